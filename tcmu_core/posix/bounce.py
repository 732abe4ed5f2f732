"""Bounce buffers: memory that suits direct I/O, used again, for data that lies where the kernel can't reach."""

from __future__ import annotations

import mmap
from collections.abc import Sequence

from tcmu_core.posix.buffers import Buffer, gather, scatter
from tcmu_core.posix.syscalls import address

KEPT = 4 << 20  # bytes: what is free beyond that goes back to the system


class Bounce:
    """`view` has the bytes that were asked for, from `address` on, where a page begins."""

    __slots__ = ("_memory", "address", "view")

    def __init__(self, memory: memoryview) -> None:
        self._memory = memory
        self.view = memory
        self.address = address(memory) or 0

    @property
    def size(self) -> int:
        """How many bytes there are, whatever was asked for."""
        return len(self._memory)

    def fit(self, length: int) -> None:
        """Be `length` bytes long."""
        if length != len(self.view):
            self.view = self._memory[:length]

    def fill(self, buffers: Sequence[Buffer]) -> None:
        """Take the data of `buffers`, which have as much."""
        gather(buffers, self.view)

    def empty(self, buffers: Sequence[memoryview]) -> None:
        """Give the data to `buffers`, which have as much."""
        scatter(self.view, buffers)


class Bounces:
    """Those of one engine; each is somebody's from `take` to `give`."""

    def __init__(self) -> None:
        self._free: dict[int, list[Bounce]] = {}  # by size, a power of two
        self._kept = 0

    def take(self, length: int) -> Bounce:
        """Return one of `length` bytes; what is in it is not known."""
        size = max(mmap.PAGESIZE, 1 << (length - 1).bit_length())
        free = self._free.get(size)
        if free:
            found = free.pop()
            self._kept -= size
        else:
            found = Bounce(memoryview(mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)))
        found.fit(length)
        return found

    def give(self, bounce: Bounce) -> None:
        """Take one back that nobody uses any more."""
        size = bounce.size
        if self._kept + size <= KEPT:
            self._kept += size
            self._free.setdefault(size, []).append(bounce)
