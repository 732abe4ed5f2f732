"""A disk beside a slow one of the same target: reads of LUN 0 while LUN 1 answers after 500 ms, and while it has none.

    python -m benchmarks.slow [--rounds 7] [--seconds 2] [--write]

`filter` has LUN 1 wait on a timer; `threads` is a handler that sleeps in its hook, on threads of the device. In each
round a client keeps 32 commands waiting at LUN 1, or none, and another reads LUN 0, which is memory.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks import clients, comparison, servers
from benchmarks.clients import Job
from benchmarks.comparison import Comparison
from benchmarks.results import python

BESIDE, ALONE = "beside a slow LUN", "alone"
JOBS = [Job("iscsi-perf", "read", 4 << 10, depth, random=True, target=0.9) for depth in (1, 8, 32)]
OTHER = "iqn.2025-01.local.bench:slow"
HANDLER = """
import time
from tcmu_core import hookimpl

class Sleepy:
    @hookimpl
    def open(self, device):
        device.threads = 4

    @hookimpl
    def read(self, offset, buffers):
        time.sleep(0.5)

"""
SLOW = {"filter": "ram --size 64M --filter 'delay;read=500ms'", "threads": "sleepy --size 64M"}


@contextmanager
def serving(kind: str, directory: Path) -> Iterator[str]:
    """Serve both disks; yields the address of the target without a LUN."""
    (directory / "handler_sleepy.py").write_text(HANDLER)
    words = ["ram", "--size", "64M", "--lun", SLOW[kind], "--handler-path", str(directory), "--name", kind]
    with servers.serving([*words, "--state-dir", str(directory / kind)]) as server:
        yield server.uri.rpartition("/")[0]


@contextmanager
def waiting(address: str) -> Iterator[None]:
    """Keep commands waiting at LUN 1."""
    command = ["iscsi-perf", "-i", OTHER, "-m", "32", "-b", "8", "-t", "3600", f"{address}/1"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            yield
        finally:
            process.kill()


def main() -> int:
    """Measure, print the table, and publish it if asked to."""
    parser = comparison.options(__doc__ or "", rounds=7)
    parser.add_argument("--seconds", type=float, default=2.0, help="how long each run takes (2)")
    args = parser.parse_args()
    result = Comparison.begin(BESIDE, args.rounds)
    result.versions = {"tcmu-core": servers.versions()["tcmu-core"], "Python": python()}
    with tempfile.TemporaryDirectory(prefix="tcmu-bench-") as directory, contextlib.ExitStack() as stack:
        addresses = {kind: stack.enter_context(serving(kind, Path(directory))) for kind in SLOW}
        for number in range(args.rounds):
            for kind, address in addresses.items():
                for job in JOBS:
                    name = f"{kind}: {job.name}"
                    for beside in (True, False) if number % 2 else (False, True):
                        with waiting(address) if beside else contextlib.nullcontext():
                            rate = clients.run(job, f"{address}/0", args.seconds, 1).rate
                        if args.jobs in name:
                            result.add(name, job.size, BESIDE if beside else ALONE, rate)
    print(result.circumstances(), result.table(), sep="\n\n")
    if args.write:
        result.publish("slow")
    return 0


if __name__ == "__main__":
    sys.exit(main())
