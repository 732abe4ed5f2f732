"""Lists of buffers: cut, walked along and zeroed without copying. Lengths are bytes; every piece is a view."""

from __future__ import annotations

from collections.abc import Sequence

Buffer = memoryview | bytearray | bytes  # what pwritev(2) takes; what preadv(2) fills is one of the first two

ZEROS = memoryview(bytes(1 << 20))


def total(buffers: Sequence[Buffer]) -> int:
    """Return how many bytes all of `buffers` have together."""
    return len(buffers[0]) if len(buffers) == 1 else sum(map(len, buffers))


def skip(buffers: Sequence[Buffer], count: int) -> list[memoryview]:
    """Return what of `buffers` is left after their first `count` bytes; empty buffers in front are left out."""
    for index, buffer in enumerate(buffers):
        if count < len(buffer):
            return [memoryview(buffer)[count:], *(memoryview(rest) for rest in buffers[index + 1 :])]
        count -= len(buffer)
    return []


def split(buffers: list[memoryview], count: int) -> tuple[list[memoryview], list[memoryview]]:
    """Return the first `count` bytes of `buffers`, and the rest."""
    for index, buffer in enumerate(buffers):
        if count < len(buffer):
            if not count:
                return buffers[:index], buffers[index:]
            return [*buffers[:index], buffer[:count]], [buffer[count:], *buffers[index + 1 :]]
        count -= len(buffer)
    return buffers, []


def window(buffers: Sequence[memoryview], start: int, count: int) -> list[memoryview]:
    """Return `count` bytes of `buffers` from byte `start` on; fewer where they end earlier."""
    pieces: list[memoryview] = []
    for buffer in buffers:
        size = len(buffer)
        if start >= size:
            start -= size
            continue
        if not count:
            break
        piece = buffer[start : start + count]
        start = 0
        count -= len(piece)
        pieces.append(piece)
    return pieces


class Cursor:
    """Walks along a list of buffers and hands out piece after piece of it."""

    __slots__ = ("_at", "_buffers", "_index")

    def __init__(self, buffers: Sequence[memoryview]) -> None:
        self._buffers = buffers
        self._index = 0
        self._at = 0

    def take(self, length: int) -> list[memoryview]:
        """Return the next `length` bytes; IndexError when there are not so many."""
        pieces = []
        while length:
            buffer = self._buffers[self._index]
            left = len(buffer) - self._at
            if left > length:
                pieces.append(buffer[self._at : self._at + length])
                self._at += length
                break
            if left:
                pieces.append(buffer[self._at :] if self._at else buffer)
            length -= left
            self._index += 1
            self._at = 0
        return pieces


def fill_zero(buffers: Sequence[memoryview | bytearray]) -> None:
    """Make every byte of every buffer zero."""
    for buffer in buffers:
        length = len(buffer)
        view = memoryview(buffer)
        for at in range(0, length, len(ZEROS)):
            part = min(len(ZEROS), length - at)
            view[at : at + part] = ZEROS[:part]


def gather(buffers: Sequence[Buffer], into: memoryview) -> None:
    """Copy all of `buffers` into one that has room for them."""
    at = 0
    for buffer in buffers:
        into[at : at + len(buffer)] = buffer
        at += len(buffer)


def scatter(data: memoryview, buffers: Sequence[memoryview]) -> None:
    """Fill all of `buffers` from `data`, which has as much."""
    at = 0
    for buffer in buffers:
        buffer[:] = data[at : at + len(buffer)]
        at += len(buffer)
