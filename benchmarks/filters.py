"""What filters cost: reads through engine and disk with none, one and three of them, in turn, in one process.

    python -m benchmarks.filters [--rounds 9] [--seconds 0.3] [--json FILE]

The handler does nothing, so that what is measured is the way to it. `passing` has nothing to do with reads: it costs
nothing. `counting` is the smallest filter that looks at them: one call more. `stats` reads a clock twice; `fault` has a
rule for writes, and one for reads of blocks that nobody reads; `three` are stats, rate and log upon one another.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tcmu_core import hookimpl
from tcmu_core.disk.disk import Disk
from tcmu_core.disk.spec import DiskSpec
from tcmu_core.filters.base import EVERY_HOOK, Filter
from tcmu_core.filters.registry import make
from tcmu_core.scsi.command import Command, Initiator
from tcmu_core.scsi.engine import Engine

SIZE = 64 << 20
BATCH = 1000  # commands between two looks at the clock
READ_10 = bytes.fromhex("28 00 00000100 00 0008 00".replace(" ", ""))


class Nothing:
    """A handler that does nothing."""

    @hookimpl
    def open(self, device: Any) -> None:
        device.size = SIZE

    @hookimpl
    def read(self, offset: int, buffers: list[memoryview]) -> None:
        pass

    @hookimpl
    def write(self, offset: int, buffers: list[memoryview]) -> None:
        pass


class Passing(Filter):
    """Lets everything by."""

    passes = EVERY_HOOK


class Counting(Filter):
    """Counts reads."""

    passes = EVERY_HOOK - {"read"}
    count = 0

    def read(self, below: Callable[..., Any], offset: int, buffers: list[memoryview]) -> Any:
        self.count += 1
        return below(offset, buffers)


STACKS: dict[str, Callable[[], Sequence[Filter]]] = {
    "none": lambda: [],
    "passing": lambda: [Passing()],
    "counting": lambda: [Counting()],
    "three counting": lambda: [Counting(), Counting(), Counting()],
    "stats": lambda: make(["stats"]),
    "fault": lambda: make(["fault;rule=write -> write-error\nread lba=9000 -> read-error"]),
    "three": lambda: make(["stats", "rate;iops=1000000000", "log;errors=yes"]),
}


def runner(filters: Sequence[Filter]) -> Callable[[], float]:
    """Return what runs one batch of reads and returns the seconds that it took."""
    disk = Disk(DiskSpec("nothing", size=SIZE), Nothing(), filters)
    disk.open()
    engine = Engine(disk, post=lambda fn, *args: None)
    nexus = engine.attach(Initiator("benchmark", b""))
    nexus.attentions.clear()
    buffers = [memoryview(bytearray(4096))]
    execute = engine.execute

    def run() -> float:
        began = time.perf_counter()
        for _ in range(BATCH):
            execute(Command(READ_10, buffers, 4096, nexus))
        return time.perf_counter() - began

    return run


def measure(rounds: int, seconds: float) -> dict[str, list[float]]:
    """Return microseconds a command of each stack, one figure a round; the stacks take turns."""
    runners = {name: runner(list(stack())) for name, stack in STACKS.items()}
    figures: dict[str, list[float]] = {name: [] for name in STACKS}
    for _ in range(rounds):
        for name, run in runners.items():
            best = run()
            until = time.perf_counter() + seconds
            while time.perf_counter() < until:
                best = min(best, run())
            figures[name].append(best / BATCH * 1e6)
    return figures


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=0.3, help="for each stack in a round (%(default)g)")
    parser.add_argument("--json", type=Path, help="write the figures there")
    options = parser.parse_args(argv)
    figures = measure(options.rounds, options.seconds)
    plain = statistics.median(figures["none"])
    print("| filters | µs a read | more than none |\n|---|---|---|")
    for name, each in figures.items():
        middle = statistics.median(each)
        print(f"| {name} | {middle:.2f} | {middle - plain:+.2f} |")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
