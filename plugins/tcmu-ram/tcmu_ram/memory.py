"""Memory: bytes that take up room only where they were written."""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Iterator

SHIFT = 16
CHUNK = 1 << SHIFT  # bytes; the unit in which memory is given back
MAP_NORESERVE = 0x4000  # asm-generic/mman-common.h: do not ask for all of it to exist at once


class Memory:
    """A sparse run of `size` bytes, zeros at first. Not for several threads at a time.

    `view` is the bytes themselves; whoever writes there says so by `touched`.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        count = -(-size // CHUNK)
        self._map = mmap.mmap(-1, count * CHUNK, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE)
        self._map.madvise(mmap.MADV_NOHUGEPAGE)  # a 4 KiB write shall not cost 2 MiB
        self.view = memoryview(self._map)
        self._written = bytearray(count)  # for each chunk: 1 when something was written there

    def touched(self, start: int, end: int) -> None:
        """Note that the bytes from `start` to `end` were written."""
        first, last = start >> SHIFT, (end - 1) >> SHIFT
        if first == last:
            self._written[first] = 1
        else:
            self._written[first : last + 1] = b"\1" * (last + 1 - first)

    def clear(self, start: int, end: int) -> None:
        """Make zeros from `start` to `end`, and give back the memory of the chunks that lie in between."""
        first = -(-start // CHUNK)
        last = end // CHUNK if end < self.size else len(self._written)
        if first >= last:
            self._zero(start, end)
            return
        self._zero(start, first * CHUNK)
        self._zero(last * CHUNK, end)
        self._map.madvise(mmap.MADV_DONTNEED, first * CHUNK, (last - first) * CHUNK)
        self._written[first:last] = bytes(last - first)

    def _zero(self, start: int, end: int) -> None:
        for at, stop, written in self.runs(start, end):
            if written:
                self.view[at:stop] = bytes(stop - at)

    def runs(self, start: int, end: int) -> Iterator[tuple[int, int, bool]]:
        """Yield (start, end, written) for the runs of chunks of one kind between `start` and `end`."""
        while start < end:
            kind = self._written[start >> SHIFT]
            other = self._written.find(1 - kind, start >> SHIFT)
            stop = end if other < 0 else min(other << SHIFT, end)
            yield start, stop, bool(kind)
            start = stop

    def resize(self, size: int) -> None:
        """Cut off or append bytes; what is appended are zeros."""
        if size < self.size:
            self.clear(size, self.size)
        count = -(-size // CHUNK)
        self.view.release()
        try:
            self._map.resize(count * CHUNK)
            self._written = self._written[:count].ljust(count, b"\0")
            self.size = size
        finally:
            self.view = memoryview(self._map)

    def close(self) -> None:
        """Give all memory back."""
        self.view.release()
        with contextlib.suppress(BufferError):  # a traceback still has a piece of it: then it goes with that
            self._map.close()
