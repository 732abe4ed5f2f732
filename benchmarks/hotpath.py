"""The hot path before and after a change: two checkouts measured in turn, in one run.

    python -m benchmarks.hotpath --before DIR [--rounds 7] [--seconds 1]

`DIR` is a checkout of what is compared with. The ring is fed from memory, without a kernel: with a handler that does
nothing, and with `preadv` of a file on a tmpfs. Its two processes take turns many times a second, so that what slows
the machine slows both. The portal is measured from outside, by iscsi-perf and qemu-img.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import mmap
import os
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks import clients, report
from benchmarks.clients import Job

HERE = Path(__file__).resolve().parents[1]
KIB = 1 << 10
SIZE = 64 << 20
TURN = 64  # commands of one call of Ring.process
SLICES = 25  # turns that each of the two has in a round of the ring
ENTRY, START = 128, 128  # bytes of an entry, and of the mailbox before the ring
RING_JOBS = {"ring, null handler": "null", "ring, preadv": "preadv"}
PORTAL_JOBS = [
    Job("iscsi-perf", "read", 4 * KIB, 1, random=True, target=0.98),
    Job("iscsi-perf", "read", 4 * KIB, 32, random=True, target=0.98),
    Job("iscsi-perf", "read", 256 * KIB, 8, random=False, target=0.98),
    Job("qemu-img", "write", 4 * KIB, 32, random=True, target=0.98),
    Job("qemu-img", "write", 256 * KIB, 8, random=False, target=0.98),
]


def measure_ring(kind: str, image: str) -> Callable[[float], float]:
    """Return what measures commands a second of ring, engine and handler in this process's checkout."""
    from tcmu_core import hookimpl
    from tcmu_core.kernel.ring import Ring
    from tcmu_core.scsi.command import Initiator

    fd = os.open(image, os.O_RDONLY)

    class Handler:
        @hookimpl
        def open(self, device: Any) -> None:
            device.size = SIZE

        @hookimpl
        def read(self, offset: int, buffers: list[memoryview]) -> None:
            if kind == "preadv":
                os.preadv(fd, buffers, offset)

    unit = _unit(Handler())
    room = ENTRY * (TURN + 1)
    memory = mmap.mmap(-1, START + room + 4096 * TURN)
    struct.pack_into("=HHII", memory, 0, 2, 7, START, room)
    entries = bytearray(ENTRY * TURN)
    for number in range(TURN):
        at = ENTRY * number
        struct.pack_into("=IHBBIII4xQ", entries, at, ENTRY | 1, number, 0, 0, 1, 0, 0, START + at + 112)
        struct.pack_into("=QQ", entries, at + 48, START + room + 4096 * number, 4096)
        cdb = bytes([0x28, 0]) + (number * 8).to_bytes(4, "big") + bytes([0, 0, 8, 0])
        entries[at + 112 : at + 112 + len(cdb)] = cdb
    nexus = unit.attach(Initiator("kernel", b""))
    nexus.attentions.clear()
    ring = Ring(memory, unit, nexus, post=lambda *_: None, doorbell=lambda: None)
    clock = time.perf_counter

    def rate(seconds: float) -> float:
        spent, before = 0.0, ring.commands
        while spent < seconds:
            memory[START : START + len(entries)] = entries
            ring._at = ring._tail = 0
            struct.pack_into("=I", memory, 64, 0)
            struct.pack_into("=I", memory, 12, len(entries))
            begun = clock()
            ring.process()
            spent += clock() - begun
        return (ring.commands - before) / spent

    return rate


def _unit(handler: object) -> Any:
    """Return what runs commands, in this checkout or an older one."""
    posted: deque[Any] = deque()

    def post(fn: Any, *args: Any) -> None:
        posted.append((fn, args))

    try:
        from tcmu_core.disk.disk import Disk
        from tcmu_core.disk.spec import DiskSpec
        from tcmu_core.scsi.engine import Engine
    except ImportError:
        from tcmu_core.backend import Backend

        from tcmu_core import Device
        from tcmu_core.scsi.unit import LogicalUnit

        backend = Backend(handler, Device("disk", "null"))
        backend.open()
        return LogicalUnit(backend, post=post)
    disk = Disk(DiskSpec("null"), handler)
    disk.open()
    return Engine(disk, post=post)


def environment(tree: Path) -> dict[str, str]:
    """Return the environment in which a checkout's own code is imported."""
    paths = [tree, *sorted((tree / "plugins").glob("tcmu-*")), HERE]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))}


def ring_rates(
    trees: list[tuple[Path, Path]], kind: str, seconds: float, pythons: list[str] | None = None
) -> list[float]:
    """Measure the ring of each checkout in a process of its own, in turn: the medians of their slices.

    Each runs on this Python, or on that of `pythons` which has its place.
    """
    program = [str(Path(__file__).resolve()), "--measure", kind]
    found: list[list[float]] = [[] for _ in trees]
    with contextlib.ExitStack() as stack:
        processes = [
            stack.enter_context(
                subprocess.Popen(
                    [python, *program, "--image", str(image)],
                    env=environment(tree),
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                    bufsize=1,
                )
            )
            for (tree, image), python in zip(trees, pythons or [sys.executable] * len(trees), strict=True)
        ]
        for number in range(1 + SLICES):
            for which, process in enumerate(processes):
                assert process.stdin is not None
                assert process.stdout is not None
                process.stdin.write(f"{seconds / SLICES}\n")
                rate = float(process.stdout.readline())
                if number:  # the first one warms up
                    found[which].append(rate)
    return [statistics.median(rates) for rates in found]


@contextlib.contextmanager
def served(tree: Path, image: Path) -> Iterator[str]:
    """Serve the image by a checkout's `tcmu serve`; yields its address."""
    program = [sys.executable, "-m", "tcmu_core.cli.tcmu", "serve", "file", str(image), "--portal", "127.0.0.1:0"]
    with subprocess.Popen(
        [*program, "--json", "--name", "bench"], env=environment(tree), stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            yield str(json.loads(process.stdout.readline())["uri"])
        finally:
            process.terminate()


def compare(before: Path, rounds: int, seconds: float, only: str) -> list[tuple[str, list[float], list[float]]]:
    """Return for each job the rates of the checkout `before` and of this one, round by round."""
    found: dict[str, tuple[list[float], list[float]]] = {}
    with tempfile.TemporaryDirectory(prefix="tcmu-bench-", dir="/dev/shm") as directory:
        images = []
        for name in ("before", "after"):
            images.append(Path(directory, name))
            images[-1].write_bytes(os.urandom(1 << 20) * (SIZE >> 20))
        trees = list(zip((before, HERE), images, strict=True))
        for number in range(rounds):
            for job, kind in RING_JOBS.items():
                if only in job:
                    order = 1 if number % 2 else -1
                    rates = ring_rates(trees[::order], kind, seconds)[::order]
                    for which, rate in enumerate(rates):
                        found.setdefault(job, ([], []))[which].append(rate)
        jobs = [job for job in PORTAL_JOBS if only in f"portal, {job.tool}: {job.name}"]
        if jobs:
            with served(*trees[0]) as first, served(*trees[1]) as second:
                for number in range(rounds):
                    for portal_job in jobs:
                        for which in (0, 1) if number % 2 else (1, 0):
                            measured = clients.run(portal_job, (first, second)[which], seconds, 4000).rate
                            name = f"portal, {portal_job.tool}: {portal_job.name}"
                            found.setdefault(name, ([], []))[which].append(measured)
    return [(job, *rates) for job, rates in found.items()]


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.hotpath", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--before", type=Path, metavar="DIR", help="a checkout of what is compared with")
    parser.add_argument("--rounds", type=int, default=7, help="runs of each job on each of the two (7)")
    parser.add_argument("--seconds", type=float, default=1.0, help="how long each of them takes (1)")
    parser.add_argument("--only", default="", metavar="TEXT", help="only jobs that have this in their name")
    parser.add_argument("--measure", choices=list(RING_JOBS.values()), help=argparse.SUPPRESS)
    parser.add_argument("--image", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        rate = measure_ring(options.measure, options.image)
        for line in sys.stdin:
            print(rate(float(line)), flush=True)
        return 0
    if options.before is None:
        print("nothing to compare with: give --before a checkout of what was before", file=sys.stderr)
        return 0
    lines = [["job", "before /s", "after /s", "after ÷ before", "within rounds"]]
    for job, before, after in compare(options.before.resolve(), options.rounds, options.seconds, options.only):
        each = sorted(mine / theirs for mine, theirs in zip(after, before, strict=True))
        ratio = statistics.median(each)
        rates = [f"{statistics.median(rates):,.0f}" for rates in (before, after)]
        lines.append([job, *rates, f"{ratio:.3f}", f"{each[0]:.2f} to {each[-1]:.2f}"])
    print(report.table(lines, left=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
