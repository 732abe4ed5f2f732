"""System calls that os lacks: fallocate with a mode, what direct I/O asks for, and which file system it is."""

from __future__ import annotations

import ctypes
import errno
import os
import struct

# linux/falloc.h
KEEP_SIZE = 0x01
PUNCH_HOLE = 0x02
ZERO_RANGE = 0x10

# linux/stat.h: struct statx has stx_dio_mem_align and stx_dio_offset_align at 0x98, valid when stx_mask says so
_STATX_DIOALIGN = 0x2000
_STATX_SIZE = 0x100
_STATX_MASK = struct.Struct("@I")
_STATX_DIO = struct.Struct("@II")
_STATX_DIO_AT = 0x98
_AT_EMPTY_PATH = 0x1000

_MEMORY = (0x01021994, 0x858458F6)  # linux/magic.h: TMPFS_MAGIC, RAMFS_MAGIC
_STATFS_SIZE = 256  # struct statfs has 120 bytes; f_type comes first

_libc = ctypes.CDLL(None, use_errno=True)
_fallocate = getattr(_libc, "fallocate64", None) or _libc.fallocate
_fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """Call fallocate(2); raises OSError."""
    while _fallocate(fd, mode, offset, length):
        code = ctypes.get_errno()
        if code != errno.EINTR:  # os tries again by itself, ctypes does not
            raise OSError(code, os.strerror(code))


def direct_alignment(fd: int) -> tuple[int, int] | None:
    """Return what O_DIRECT asks of (memory addresses, offsets and lengths), or None where the kernel can't say."""
    buffer = ctypes.create_string_buffer(_STATX_SIZE)
    if not hasattr(_libc, "statx") or _libc.statx(fd, b"", _AT_EMPTY_PATH, _STATX_DIOALIGN, buffer):
        return None
    memory, offset = _STATX_DIO.unpack_from(buffer, _STATX_DIO_AT)
    if not _STATX_MASK.unpack_from(buffer)[0] & _STATX_DIOALIGN or not memory or not offset:
        return None
    return memory, offset


def in_memory(fd: int) -> bool:
    """Say whether the file lies on a file system that is memory (tmpfs, ramfs): nothing that is done to it waits."""
    buffer = ctypes.create_string_buffer(_STATFS_SIZE)
    return not _libc.fstatfs(fd, buffer) and ctypes.c_ulong.from_buffer(buffer).value in _MEMORY


_byte_of, _address_of = ctypes.c_char.from_buffer, ctypes.addressof


def address(buffer: memoryview | bytearray | bytes) -> int | None:
    """Return where `buffer` begins in memory, or None for one that can't be written to."""
    try:
        return _address_of(_byte_of(buffer))
    except TypeError:
        return None
    except ValueError:  # it is empty
        return 0
