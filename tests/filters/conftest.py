"""What the tests of filters share: memory with every hook, and a disk upon it."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tcmu_core.disk.disk import Disk
from tcmu_core.disk.spec import DiskSpec
from tcmu_core.filters.base import Filter
from tcmu_core.scsi.engine import Engine
from tcmu_core.scsi.target import Target
from tcmu_core.testing.harness import OpenDevice
from tests.scsi.harness import Memory, Rig

SIZE = 1 << 20


class HandClock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self._now = 100.0
        self._due: list[tuple[float, int, Callable[[], object]]] = []
        self._count = 0

    def now(self) -> float:
        return self._now

    def later(self, delay: float, fn: Callable[[], object]) -> None:
        self._count += 1
        heapq.heappush(self._due, (self._now + delay, self._count, fn))

    def pass_by(self, seconds: float) -> None:
        """Let time go by, and do what falls due."""
        end = self._now + seconds
        while self._due and self._due[0][0] <= end + 1e-9:
            self._now = self._due[0][0]
            heapq.heappop(self._due)[2]()
        self._now = end


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@contextmanager
def upon(*filters: Filter, handler: Any = None, size: int = SIZE, **spec: Any) -> Iterator[OpenDevice]:
    """Open a disk of memory with these filters upon it, the lowest first."""
    disk = Disk(DiskSpec("memory", name="test", size=size, **spec), handler or Memory(), filters)
    disk.open()
    try:
        yield OpenDevice(disk)
    finally:
        disk.close()


def given(made: Filter, **options: Any) -> Filter:
    """Return a filter with options, as the registry would have made it."""
    text = "".join(f";{name}={value}" for name, value in options.items())
    made.given = {name: value for name, value in made.options.parse(text).options.items() if value is not None}
    return made


def rig_upon(*filters: Filter, size: int = SIZE) -> Rig:
    """Return an engine upon a disk of memory with these filters, and initiators that send to it."""
    posted: deque[tuple[Any, tuple[Any, ...]]] = deque()
    handler = Memory()
    disk = Disk(DiskSpec("memory", name="test", size=size), handler, filters)
    disk.open()
    engine = Engine(disk, post=lambda fn, *args: posted.append((fn, args)))
    return Rig([handler], [engine], Target("iqn.2020-01.test:target", {0: engine}), posted)
