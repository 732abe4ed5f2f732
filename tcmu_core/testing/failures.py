"""What a handler promises when its storage fails: the error arrives."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tcmu_core.errors import CommandError
from tcmu_core.testing.harness import OpenDevice
from tcmu_core.testing.promises import NO_WRITE, Maker, require, same, writable, write

READS = ("read", "readv", "pread", "preadv")
FLUSHES = ("fsync", "fdatasync")
WRITES = ("write", "writev", "pwrite", "pwritev", "truncate", "ftruncate", "fsync", "fdatasync")
NONE_MADE = "its storage can't be made to fail: it does not use the functions of os"


class Failing:
    """System calls that fail: how many were made meanwhile."""

    def __init__(self) -> None:
        self.calls = 0


@contextmanager
def failing(names: tuple[str, ...], code: int = errno.EIO) -> Iterator[Failing]:
    """Have these functions of `os` fail with `code`, in every thread."""
    count = Failing()
    before: dict[str, Callable[..., Any]] = {name: getattr(os, name) for name in names}

    def fail(*_arguments: Any, **_more: Any) -> Any:
        count.calls += 1
        raise OSError(code, os.strerror(code))

    try:
        for name in names:
            setattr(os, name, fail)
        yield count
    finally:
        for name, function in before.items():
            setattr(os, name, function)


@contextmanager
def _opened(make: Maker) -> Iterator[OpenDevice]:
    """Open a device whose storage will have failed, so that closing it may fail too."""
    manager = make()
    disk = manager.__enter__()
    try:
        yield disk
    except BaseException:
        with contextlib.suppress(CommandError, OSError):
            manager.__exit__(None, None, None)
        raise
    with contextlib.suppress(CommandError, OSError):
        manager.__exit__(None, None, None)


def check_flush_errors(make: Maker) -> str | None:
    """Once a flush has failed, none says that all is well: what was written before may be lost."""
    with _opened(make) as disk:
        if not writable(disk):
            return NO_WRITE
        if disk.operations.flush is None:
            return "it has no flush"
        write(disk, 0, b"o" * disk.device.block_size)
        disk.flush()
        write(disk, 0, b"n" * disk.device.block_size)
        with failing(FLUSHES) as meanwhile:
            told = not _succeeds(disk)
        if not meanwhile.calls:
            return "its flush can't be made to fail: it uses neither fsync nor fdatasync of os"
        require(told, disk, "the storage failed to flush with EIO, and all was said to be stable")
        require(not _succeeds(disk), disk, "a flush failed, and the one after it said that all is stable")
    return None


def _succeeds(disk: OpenDevice) -> bool:
    try:
        disk.flush()
    except (CommandError, OSError):
        return False
    return True


def check_write_errors(make: Maker) -> str | None:
    """When the storage can't be written, the write fails, or the flush after it: never are both good."""
    with _opened(make) as disk:
        if not writable(disk):
            return NO_WRITE
        block = disk.device.block_size
        write(disk, 0, b"o" * block)
        told = False
        with failing(WRITES) as meanwhile:
            for call in (lambda: write(disk, 0, b"n" * block), disk.flush if disk.operations.flush else None):
                try:
                    if call is not None:
                        call()
                except (CommandError, OSError):
                    told = True
        if not meanwhile.calls:
            return NONE_MADE
        require(told, disk, f"the storage failed with EIO ({meanwhile.calls} calls), and all was said to be written")
    return None


def check_read_errors(make: Maker) -> str | None:
    """When the storage can't be read, the read fails, or gives what is there from memory."""
    with _opened(make) as disk:
        block = disk.device.block_size
        expected = disk.read(block, block)
        with failing(READS) as meanwhile:
            try:
                found = disk.read(block, block)
            except (CommandError, OSError):
                return None
        if not meanwhile.calls:
            return NONE_MADE
        same(found, expected, block, disk, "the storage failed with EIO, and something was read")
    return None
