"""Kernel devices, side by side in one boot: tcmu-runner in Python, Debian's tcmu-runner in C, LIO's own fileio.

    python -m benchmarks.kernel [--rounds 3] [--seconds 4] [--write]

The same raw image in the guest's memory stands behind each: our `file` handler, the C runner's `qcow` handler (it
serves raw images; Debian's package has no file handler), `fileio` with buffered I/O. Each is a local disk over LIO's
loopback fabric, with the same limit on one transfer, and gets the same fio jobs. Rounds alternate between them. Under
emulation (no /dev/kvm) only the ratios mean anything.
"""

from __future__ import annotations

import sys
import time

from benchmarks import guest
from benchmarks.comparison import Comparison, options
from benchmarks.guest import LIO, OURS, THEIRS, Job
from tests.vm import Machine

IMAGE = "/tmp/bench.img"
SIZE = 256 << 20
MAX_SECTORS = 2048
JOBS = [
    Job("4 KiB random read, depth 1", "randread", 4096, 1),
    Job("4 KiB random write, depth 1", "randwrite", 4096, 1),
    Job("4 KiB random read, depth 32", "randread", 4096, 32),
    Job("4 KiB random write, depth 32", "randwrite", 4096, 32),
    Job("256 KiB sequential read, depth 8", "read", 256 << 10, 8),
    Job("256 KiB sequential write, depth 8", "write", 256 << 10, 8),
]
STORES = {
    OURS: ("user_1/bench", f"dev_config=file/{IMAGE},dev_size={SIZE},hw_max_sectors={MAX_SECTORS}"),
    THEIRS: ("user_1/bench", f"dev_config=qcow/{IMAGE},dev_size={SIZE},hw_max_sectors={MAX_SECTORS}"),
    LIO: ("fileio_0/bench", f"fd_dev_name={IMAGE},fd_dev_size={SIZE},fd_buffered_io=1"),
}


def main() -> int:
    """Run all and print the table."""
    parser = options(__doc__ or "", rounds=3)
    parser.add_argument("--seconds", type=float, default=4, help="of each job (4)")
    parser.add_argument("--only", choices=list(STORES), action="append", help="only this server")
    args = parser.parse_args()
    servers = args.only or list(STORES)
    jobs = [job for job in JOBS if args.jobs in job.name]
    comparison = Comparison.begin(OURS, args.rounds)
    with Machine(cpus=2, memory="2G") as machine:
        guest.prepare(machine, IMAGE, SIZE)
        comparison.versions = guest.versions(machine)
        for number in range(args.rounds):
            for who in servers if number % 2 == 0 else reversed(servers):
                began = time.monotonic()
                with guest.daemon(machine, who), guest.disk(machine, *STORES[who]) as device:
                    for job in jobs:
                        rate = guest.fio(machine, device, job, guest.for_seconds(args.seconds))
                        comparison.add(job.name, job.size, who, rate)
                print(f"round {number + 1}: {who}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    print(comparison.section())
    if args.write:
        comparison.publish("kernel")
    return 0


if __name__ == "__main__":
    sys.exit(main())
