"""Space in files: where they have data, holes punched, ranges zeroed, and what a file system can't do of it."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

from tcmu_core.posix import syscalls
from tcmu_core.posix.syscalls import KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE
from tcmu_core.posix.transfer import BUFFERED, Alignment, write_zeroes

UNSUPPORTED = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS, errno.ENODEV)
_FREE = PUNCH_HOLE | KEEP_SIZE
_PROBE = 1 << 30  # bytes behind the end of a file, where there is nothing to lose


def extents(fd: int, offset: int, length: int) -> Iterator[tuple[int, int, bool]]:
    """Yield (offset, length, whether there is data) for all of the range, in order; what lies behind the end is none.

    Where a file can't tell, and on a block device, all counts as data.
    """
    end = offset + length
    while offset < end:
        data = hole = offset
        try:
            data = min(os.lseek(fd, offset, os.SEEK_DATA), end)
            hole = min(os.lseek(fd, data, os.SEEK_HOLE), end) if data < end else end
        except OSError as error:
            if error.errno != errno.ENXIO:
                yield offset, end - offset, True
                return
            data = end  # no more data up to the end of the file
        if data > offset:
            yield offset, data - offset, False
        if data < end:
            yield data, hole - data, True
        offset = max(data, hole)


def can_punch(fd: int) -> bool:
    """Say whether holes can be punched into this file, which is open for writing."""
    try:
        syscalls.fallocate(fd, _FREE, os.fstat(fd).st_size + _PROBE, 4096)
    except OSError:
        return False
    return True


def punch(fd: int, offset: int, length: int) -> bool:
    """Give a range back to the file system: it reads as zeros from now on. False where that can't be done.

    Raises:
        OSError: it could be done and failed.
    """
    return _try(fd, _FREE, offset, length)


def discard(fd: int, offset: int, length: int, alignment: Alignment = BUFFERED) -> None:
    """Make a range read as zeros and give it back where that can be done; else zero it in place."""
    if not _try(fd, _FREE, offset, length) and not _try(fd, ZERO_RANGE, offset, length):
        write_zeroes(fd, offset, length, alignment)


def zero(fd: int, offset: int, length: int, alignment: Alignment = BUFFERED) -> None:
    """Make a range read as zeros: by extents that stay allocated, else by a hole, else by writing them."""
    if not _try(fd, ZERO_RANGE, offset, length) and not _try(fd, _FREE, offset, length):
        write_zeroes(fd, offset, length, alignment)


def reserve(fd: int, offset: int, length: int) -> None:
    """Set space aside, so that writing there can't fail for want of it; raises OSError."""
    os.posix_fallocate(fd, offset, length)


def _try(fd: int, mode: int, offset: int, length: int) -> bool:
    try:
        syscalls.fallocate(fd, mode, offset, length)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
        return False
    return True
