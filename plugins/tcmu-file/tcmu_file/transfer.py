"""Transfers that are carried to their end: short ones resumed, IOV_MAX kept, memory aligned for O_DIRECT."""

from __future__ import annotations

import errno
import mmap
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass

from tcmu_file import syscalls

IOV_MAX = os.sysconf("SC_IOV_MAX")
ZEROS = memoryview(bytes(1 << 20))

_thread = threading.local()


@dataclass(frozen=True, slots=True)
class Alignment:
    """What direct I/O asks for: bytes that addresses, and offsets and lengths, must be multiples of."""

    memory: int = 1
    offset: int = 1

    def fits(self, buffers: list[memoryview]) -> bool:
        """Say whether the kernel can transfer straight into or out of `buffers`."""
        for buffer in buffers:
            start = syscalls.address(buffer)
            if start is None or start % self.memory or len(buffer) % self.offset:
                return False
        return True


BUFFERED = Alignment()


def skip(buffers: list[memoryview], count: int) -> list[memoryview]:
    """Return what of `buffers` is left after their first `count` bytes."""
    for index, buffer in enumerate(buffers):
        if count < len(buffer):
            return [buffer[count:], *buffers[index + 1 :]]
        count -= len(buffer)
    return []


def read_full(fd: int, offset: int, buffers: list[memoryview], alignment: Alignment = BUFFERED) -> None:
    """Fill `buffers` from `offset` on; what lies beyond the end of the file reads as zeros."""
    if alignment is not BUFFERED and not alignment.fits(buffers):
        bounce = _bounce(sum(map(len, buffers)))
        read_full(fd, offset, [bounce], alignment)
        at = 0
        for buffer in buffers:
            buffer[:] = bounce[at : at + len(buffer)]
            at += len(buffer)
        return
    while buffers:
        done = os.preadv(fd, buffers[:IOV_MAX], offset)
        offset += done
        buffers = skip(buffers, done)
        if not done or offset % alignment.offset:  # direct reads are cut off unaligned at the end of the file only
            break
    for buffer in buffers:
        for at in range(0, len(buffer), len(ZEROS)):
            part = buffer[at : at + len(ZEROS)]
            part[:] = ZEROS[: len(part)]


def write_full(fd: int, offset: int, buffers: list[memoryview], alignment: Alignment = BUFFERED) -> None:
    """Write all of `buffers` at `offset` on."""
    if alignment is not BUFFERED and not alignment.fits(buffers):
        bounce = _bounce(sum(map(len, buffers)))
        at = 0
        for buffer in buffers:
            bounce[at : at + len(buffer)] = buffer
            at += len(buffer)
        buffers = [bounce]
    while buffers:
        done = os.pwritev(fd, buffers[:IOV_MAX], offset)
        if not done:
            raise OSError(errno.EIO, "the storage takes no more data")
        offset += done
        buffers = skip(buffers, done)


def write_zeroes(fd: int, offset: int, length: int, write: Callable[[int, int, list[memoryview]], None]) -> None:
    """Write `length` zeros at `offset` by `write(fd, offset, buffers)`."""
    while length:
        part = ZEROS[: min(length, len(ZEROS))]
        write(fd, offset, [part])
        offset += len(part)
        length -= len(part)


def _bounce(length: int) -> memoryview:
    """Return `length` bytes of page-aligned memory that is this thread's to use until it asks again."""
    memory: mmap.mmap | None = getattr(_thread, "memory", None)
    if memory is None or len(memory) < length:
        memory = _thread.memory = mmap.mmap(-1, length)
    return memoryview(memory)[:length]
