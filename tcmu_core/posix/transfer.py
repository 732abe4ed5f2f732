"""Transfers that are carried to their end: short ones resumed, IOV_MAX kept, memory aligned for O_DIRECT."""

from __future__ import annotations

import errno
import mmap
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass

from tcmu_core.posix import syscalls
from tcmu_core.posix.buffers import ZEROS, Buffer, fill_zero, gather, scatter, skip, total, window

IOV_MAX = os.sysconf("SC_IOV_MAX")
PAGE = mmap.PAGESIZE

_thread = threading.local()


@dataclass(frozen=True, slots=True)
class Alignment:
    """What direct I/O asks for: bytes that addresses, and offsets and lengths, must be multiples of."""

    memory: int = 1
    offset: int = 1

    def fits(self, buffers: Sequence[Buffer]) -> bool:
        """Say whether the kernel can transfer straight into or out of `buffers`."""
        for buffer in buffers:
            start = syscalls.address(buffer)
            if start is None or start % self.memory or len(buffer) % self.offset:
                return False
        return True


BUFFERED = Alignment()


def bounce(length: int) -> memoryview:
    """Return `length` bytes of page-aligned memory that is this thread's to use until it asks again."""
    memory: mmap.mmap | None = getattr(_thread, "memory", None)
    if memory is None or len(memory) < length:
        memory = _thread.memory = mmap.mmap(-1, length)
    return memoryview(memory)[:length]


def read_available(fd: int, offset: int, buffers: Sequence[memoryview], alignment: Alignment = BUFFERED) -> int:
    """Fill `buffers` from `offset` on as far as the file goes, and return how many bytes that were."""
    if alignment is not BUFFERED and not alignment.fits(buffers):
        memory = bounce(total(buffers))
        done = read_available(fd, offset, [memory], alignment)
        scatter(memory[:done], window(buffers, 0, done))
        return done
    start = offset
    left = buffers
    while left:
        done = os.preadv(fd, left if len(left) <= IOV_MAX else left[:IOV_MAX], offset)
        offset += done
        left = skip(left, done)
        if not done or offset % alignment.offset:  # direct reads are cut off unaligned at the end of the file only
            break
    return offset - start


def read_full(fd: int, offset: int, buffers: Sequence[memoryview], alignment: Alignment = BUFFERED) -> None:
    """Fill `buffers` from `offset` on; what lies beyond the end of the file reads as zeros."""
    done = read_available(fd, offset, buffers, alignment)
    if done < total(buffers):
        fill_zero(skip(buffers, done))


def read_cached(fd: int, offset: int, buffers: Sequence[memoryview], flags: int = os.RWF_NOWAIT) -> int:
    """Read what the page cache holds of the beginning of `buffers` in one call, and return how many bytes that are.

    Nothing is waited for, and nothing raised: an error comes again where the rest is read and waiting is allowed
    (EAGAIN is one of them, so is a file system that does not know RWF_NOWAIT). With no `flags` it waits: for a file
    that is in memory altogether.
    """
    try:
        return os.preadv(fd, buffers if len(buffers) <= IOV_MAX else buffers[:IOV_MAX], offset, flags)
    except OSError:
        return 0


def knows_nowait(fd: int) -> bool:
    """Say whether the file can be read with RWF_NOWAIT."""
    try:
        os.preadv(fd, [bytearray(1)], 0, os.RWF_NOWAIT)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return True


_probe = [memoryview(bytearray(1))]  # what is read into it is never looked at


def takes_at_once(fd: int, offset: int, length: int) -> bool:
    """Say whether the page cache takes these bytes without reading the rest of their first and last page before."""
    if not (offset | length) % PAGE:
        return True
    try:
        return bool(
            os.preadv(fd, _probe, offset, os.RWF_NOWAIT) and os.preadv(fd, _probe, offset + length - 1, os.RWF_NOWAIT)
        )
    except OSError:
        return False


def write_full(
    fd: int, offset: int, buffers: Sequence[Buffer], alignment: Alignment = BUFFERED, flags: int = 0
) -> None:
    """Write all of `buffers` at `offset` on; `flags` as pwritev(2) has them."""
    if alignment is not BUFFERED and not alignment.fits(buffers):
        memory = bounce(total(buffers))
        gather(buffers, memory)
        buffers = [memory]
    left = buffers
    while left:
        done = os.pwritev(fd, left if len(left) <= IOV_MAX else left[:IOV_MAX], offset, flags)
        if not done and total(left):
            raise OSError(errno.ENOSPC, "the storage takes no more data")
        offset += done
        left = skip(left, done)


def write_zeroes(fd: int, offset: int, length: int, alignment: Alignment = BUFFERED) -> None:
    """Write `length` zeros at `offset` on."""
    while length:
        part = ZEROS[: min(length, len(ZEROS))]
        write_full(fd, offset, [part], alignment)
        offset += len(part)
        length -= len(part)


def read_to(fd: int, offset: int, length: int) -> bytes:
    """Return `length` bytes from `offset` on; fewer only where the file ends."""
    data = os.pread(fd, length, offset)
    while len(data) < length:
        more = os.pread(fd, length - len(data), offset + len(data))
        if not more:
            break
        data += more
    return data
