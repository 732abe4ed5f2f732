"""An overlay: blocks kept in memory or in a sparse temporary file, and which blocks those are."""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Iterator

from tcmu_core.posix import discard, read_full, write_full

_NORESERVE = 0x4000  # mmap(2): MAP_NORESERVE, which `mmap` has from Python 3.13 on


class MemoryRoom:
    """Room in memory; it takes what was written."""

    def __init__(self, size: int) -> None:
        self._map = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NORESERVE)
        self._view = memoryview(self._map)

    def read(self, offset: int, buffers: list[memoryview]) -> None:
        """Fill the buffers."""
        for buffer in buffers:
            buffer[:] = self._view[offset : offset + len(buffer)]
            offset += len(buffer)

    def write(self, offset: int, buffers: list[memoryview]) -> None:
        """Keep what is in the buffers."""
        for buffer in buffers:
            self._view[offset : offset + len(buffer)] = buffer
            offset += len(buffer)

    def clear(self, offset: int, length: int) -> None:
        """Make a range zeros, and give its whole pages back."""
        page, end = mmap.PAGESIZE, offset + length
        first, last = -(-offset // page) * page, end // page * page
        if first < last:
            self._map.madvise(mmap.MADV_DONTNEED, first, last - first)
        else:
            first = last = end
        self._view[offset:first] = bytes(first - offset)
        self._view[last:end] = bytes(end - last)

    def close(self) -> None:
        """Give all back."""
        self._view.release()
        self._map.close()


class FileRoom:
    """Room in a sparse file of `directory` that has no name, so that it is gone with the process."""

    def __init__(self, size: int, directory: str) -> None:
        with tempfile.TemporaryFile(dir=directory) as file:
            os.ftruncate(file.fileno(), size)
            self._fd = os.dup(file.fileno())

    def read(self, offset: int, buffers: list[memoryview]) -> None:
        """Fill the buffers."""
        read_full(self._fd, offset, buffers)

    def write(self, offset: int, buffers: list[memoryview]) -> None:
        """Keep what is in the buffers; raises `OSError` when its file system is full."""
        write_full(self._fd, offset, buffers)

    def clear(self, offset: int, length: int) -> None:
        """Make a range zeros, by a hole where the file system can."""
        discard(self._fd, offset, length)

    def close(self) -> None:
        """Give all back."""
        os.close(self._fd)


class Overlay:
    """`size` bytes of room, of which `block`-sized blocks are set or not; in memory, or in a file of `directory`."""

    def __init__(self, size: int, block: int, directory: str = "") -> None:
        self.block = block
        self._set = bytearray(-(-size // (block * 8)))
        self._room = FileRoom(size, directory) if directory else MemoryRoom(size)
        self.read = self._room.read
        self.close = self._room.close

    def runs(self, offset: int, length: int) -> Iterator[tuple[int, int, bool]]:
        """Yield (offset, length, set) of the runs of blocks in a range."""
        bits = self._set
        first, last = offset // self.block, (offset + length) // self.block
        while first < last:
            state = bits[first >> 3] >> (first & 7) & 1
            end = first + 1
            full = 0xFF if state else 0
            while end < last:
                if not end & 7 and bits[end >> 3] == full:
                    end = min(end + 8, last)
                elif bits[end >> 3] >> (end & 7) & 1 == state:
                    end += 1
                else:
                    break
            yield first * self.block, (end - first) * self.block, bool(state)
            first = end

    def mark(self, offset: int, length: int) -> None:
        """Set the blocks of a range."""
        bits, first, last = self._set, offset // self.block, (offset + length) // self.block
        while first < last:
            if not first & 7 and last - first >= 8:
                whole = (last - first) >> 3
                bits[first >> 3 : (first >> 3) + whole] = b"\xff" * whole
                first += whole * 8
            else:
                bits[first >> 3] |= 1 << (first & 7)
                first += 1

    def unmark(self, offset: int, length: int) -> None:
        """Forget the blocks of a range."""
        for number in range(offset // self.block, (offset + length) // self.block):
            self._set[number >> 3] &= ~(1 << (number & 7))

    def write(self, offset: int, buffers: list[memoryview]) -> None:
        """Keep data, and set its blocks."""
        self._room.write(offset, buffers)
        self.mark(offset, sum(map(len, buffers)))

    def clear(self, offset: int, length: int) -> None:
        """Make a range zeros, and set its blocks."""
        self._room.clear(offset, length)
        self.mark(offset, length)
