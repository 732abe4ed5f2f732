"""What a handler that stands on files needs: complete I/O that waits or does not, locks, space, buffers, flushes.

Public: a handler imports it as `tcmu_core.posix`. Offsets and lengths are bytes; everything raises OSError.
"""

from tcmu_core.posix.aiofile import AsyncFile
from tcmu_core.posix.buffers import ZEROS, Buffer, Cursor, fill_zero, gather, scatter, skip, split, total, window
from tcmu_core.posix.completion import Completion
from tcmu_core.posix.engines import Engine, Reactor, engine
from tcmu_core.posix.locks import InUse, lock, unlock, users
from tcmu_core.posix.space import can_punch, discard, extents, punch, reserve, zero
from tcmu_core.posix.stable import Log, Stable, log
from tcmu_core.posix.syscalls import KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE, address, direct_alignment, fallocate, in_memory
from tcmu_core.posix.transfer import (
    BUFFERED,
    IOV_MAX,
    PAGE,
    Alignment,
    knows_nowait,
    read_available,
    read_cached,
    read_full,
    read_to,
    takes_at_once,
    write_full,
    write_zeroes,
)
from tcmu_core.posix.watch import Watch

__all__ = [
    "BUFFERED",
    "IOV_MAX",
    "KEEP_SIZE",
    "PAGE",
    "PUNCH_HOLE",
    "ZEROS",
    "ZERO_RANGE",
    "Alignment",
    "AsyncFile",
    "Buffer",
    "Completion",
    "Cursor",
    "Engine",
    "InUse",
    "Log",
    "Reactor",
    "Stable",
    "Watch",
    "address",
    "can_punch",
    "direct_alignment",
    "discard",
    "engine",
    "extents",
    "fallocate",
    "fill_zero",
    "gather",
    "in_memory",
    "knows_nowait",
    "lock",
    "log",
    "punch",
    "read_available",
    "read_cached",
    "read_full",
    "read_to",
    "reserve",
    "scatter",
    "skip",
    "split",
    "takes_at_once",
    "total",
    "unlock",
    "users",
    "window",
    "write_full",
    "write_zeroes",
    "zero",
]
