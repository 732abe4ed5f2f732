"""qcow2 on kernel devices, side by side in one boot: tcmu-qcow, and the qcow handler of the tcmu-runner in C.

    python -m benchmarks.qcow_kernel [--rounds 3] [--seconds 4] [--write]

Each daemon serves a qcow2 image of its own (version 2, 64 KiB clusters, in the guest's memory) as a local disk over
LIO's loopback fabric, and gets the same fio jobs; rounds alternate. “First write” fills an image that has no clusters
yet. Under emulation (no /dev/kvm) only the ratios mean anything.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence

from benchmarks import guest
from benchmarks.comparison import Comparison, options
from benchmarks.guest import OURS, THEIRS, Job
from tests.vm import CommandFailed, Machine

RAW, FULL, FRESH = "/tmp/data.raw", "/tmp/full.qcow2", "/tmp/fresh.qcow2"
SIZE = 192 << 20
MAX_SECTORS = 2048
JOBS = [
    Job("4 KiB random read, depth 1", "randread", 4096, 1),
    Job("4 KiB random read, depth 32", "randread", 4096, 32),
    Job("4 KiB random write, depth 1", "randwrite", 4096, 1),
    Job("4 KiB random write, depth 32", "randwrite", 4096, 32),
    Job("256 KiB sequential read, depth 8", "read", 256 << 10, 8),
]
FIRST = Job("256 KiB first write, depth 8", "write", 256 << 10, 8)
SERVERS = [OURS, THEIRS]


def turn(machine: Machine, who: str, jobs: Sequence[Job], seconds: float) -> Iterator[tuple[Job, float]]:
    """Run every job on one daemon; yields the job and its rate."""
    machine.run(
        f"rm -f {FULL} {FRESH}; qemu-img convert -f raw -O qcow2 -o compat=0.10 {RAW} {FULL};"
        f"qemu-img create -q -f qcow2 -o compat=0.10 {FRESH} {SIZE}",
        check=True,
    )
    control = f"dev_config=qcow/{{}},dev_size={SIZE},hw_max_sectors={MAX_SECTORS}"
    with guest.daemon(machine, who):
        with guest.disk(machine, "user_1/bench", control.format(FULL)) as device:
            for job in jobs:
                if job is not FIRST:
                    yield job, guest.fio(machine, device, job, guest.for_seconds(seconds))
        if FIRST in jobs:
            with guest.disk(machine, "user_1/bench", control.format(FRESH)) as device:
                try:
                    yield FIRST, guest.fio(machine, device, FIRST, f"--size={SIZE}")
                except CommandFailed as error:
                    print(f"{who}: {FIRST.name}: {error.result.stderr.splitlines()[0]}", file=sys.stderr)
    for image in (FULL, FRESH):
        checked = machine.run(f"qemu-img check {image}").returncode
        print(f"{who}: qemu-img check {image}: {'clean' if not checked else f'exit {checked}'}", file=sys.stderr)


def main() -> int:
    """Run all and print the table."""
    parser = options(__doc__ or "", rounds=3)
    parser.add_argument("--seconds", type=float, default=4, help="of each job (4)")
    args = parser.parse_args()
    jobs = [job for job in [*JOBS, FIRST] if args.jobs in job.name]
    comparison = Comparison.begin(OURS, args.rounds)
    with Machine(cpus=2, memory="2G") as machine:
        guest.prepare(machine, RAW, SIZE)
        comparison.versions = guest.versions(machine)
        for number in range(args.rounds):
            for who in SERVERS if number % 2 == 0 else reversed(SERVERS):
                for job, rate in turn(machine, who, jobs, args.seconds):
                    comparison.add(job.name, job.size, who, rate)
    print(comparison.section())
    if args.write:
        comparison.publish("qcow_kernel")
    return 0


if __name__ == "__main__":
    sys.exit(main())
