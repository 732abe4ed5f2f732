"""What a handler promises of the life of a device: opened as it was asked for, changed, closed, and opened again."""

from __future__ import annotations

import contextlib
import gc
import os
import random
import signal
import threading
import time
import warnings
from pathlib import Path

from tcmu_core.errors import ConfigError, TcmuError
from tcmu_core.testing import harness
from tcmu_core.testing.failures import NONE_MADE, failing
from tcmu_core.testing.harness import OpenDevice, PromiseBroken, asking
from tcmu_core.testing.promises import NO_WRITE, Maker, require, same, window, writable, write

REOPENINGS = 5
OPENING = ("fstat", "pread", "preadv", "lseek", "ftruncate")  # what an open asks of os
OFFSETS = (1 << 31, 1 << 32, (1 << 40) + (1 << 12), 2 << 40)  # where 32 bits of bytes, then of blocks, end
LARGE = 3 << 40  # bytes
ENDING = 0.5  # seconds that a thread that has been joined may take to end; a library's own threads stay
CRASHED, BROKE = 0, 1  # exit statuses of a child that crashes on purpose


def check_size(make: Maker) -> str | None:
    """The size is exactly the one that was asked for."""
    with make() as disk:
        asked = disk.disk.spec.size
        if asked is None:
            return "no size is asked for"
        require(disk.size == asked, disk, f"the size is {disk.size}, {asked} was asked for")
    return None


def check_block_size(make: Maker) -> str | None:
    """A block size that is asked for is the device's, and the data does not depend on it."""
    with make() as disk:
        usual = disk.device.block_size
        if disk.size % 4096:
            return f"its size, {disk.size}, is not whole blocks of 4096 bytes"
    other = 512 if usual == 4096 else 4096
    try:
        with asking(block_size=other), make() as disk:
            found = disk.device.block_size
            require(found == other, disk, f"blocks are of {found} bytes, {other} was asked for")
            if writable(disk):
                data = random.Random(4).randbytes(2 * other)
                write(disk, other, data)
                same(disk.read(other, 2 * other), data, other, disk, f"with blocks of {other} bytes")
    except (ConfigError, OSError) as error:
        return f"it refuses blocks of {other} bytes: {error}"
    return None


def check_read_only(make: Maker) -> str | None:
    """A device that is opened read-only is, and is after that as it was before."""
    with make() as disk:
        before = disk.read(0, window(disk))
        end = disk.read(disk.size - disk.device.block_size, disk.device.block_size)
    with asking(read_only=True), make() as disk:
        require(disk.disk.read_only, disk, "it takes writes, though it was opened read-only")
        disk.read(0, disk.device.block_size)
    with make() as disk:
        again = disk.read(0, window(disk))
        if before != bytes(len(before)) or end.strip(b"\0"):
            if not any(again):
                return "nothing stays when it is closed"
            same(again, before, 0, disk, "opened read-only in between")
    return None


def check_sizes(make: Maker) -> str | None:
    """A reconfigure to what is there already succeeds: rtslib writes every attribute back when it restores."""
    with make() as disk:
        if not disk.has("reconfigure"):
            return "it has no reconfigure"
        size = disk.size
        disk.reconfigure(size=size)
        disk.reconfigure(cfgstring=disk.device.cfgstring)
        disk.reconfigure(write_cache=disk.device.write_cache)
        require(disk.size == size, disk, f"the size changed from {size} to {disk.size}")
    return None


def check_resizing(make: Maker) -> str | None:
    """A new size loses nothing of what both have, and what is new can be read and written; then back again."""
    with make() as disk:
        if not disk.has("reconfigure"):
            return "it has no reconfigure"
        if not writable(disk):
            return NO_WRITE
        block = disk.device.block_size
        small, large = disk.size, disk.size + 16 * block
        data = random.Random(5).randbytes(window(disk))
        write(disk, 0, data)
        write(disk, small - block, data[:block])
        try:
            disk.reconfigure(size=large)
        except (TcmuError, OSError, NotImplementedError) as error:
            return f"it refuses to grow: {error}"
        same(disk.read(0, len(data)), _ended(data, small, block), 0, disk, "after it grew")
        same(disk.read(small - block, block), data[:block], small - block, disk, "the last block before it grew")
        for offset in (small, large - block):
            write(disk, offset, b"g" * block)
            same(disk.read(offset, block), b"g" * block, offset, disk, "written to what is new")
        try:
            disk.reconfigure(size=small)
        except (TcmuError, OSError, NotImplementedError):
            return None  # to refuse to shrink is right: data would be lost
        same(disk.read(0, len(data)), _ended(data, small, block), 0, disk, "after it shrank again")
    return None


def _ended(data: bytes, size: int, block: int) -> bytes:
    """Return the window when the device's last block holds the data of its first one too."""
    return data if len(data) < size else data[: size - block] + data[:block]


def check_reopening(make: Maker) -> str | None:
    """Close lets go of the storage: the device can be opened again, and again, with the same geometry."""
    seen = set()
    for _ in range(3):
        with make() as disk:
            seen.add((disk.size, disk.device.block_size))
            disk.read(0, disk.device.block_size)
    if len(seen) != 1:
        raise PromiseBroken(f"each opening gives another geometry (size, block size): {sorted(seen)}", "open")
    return None


def check_leaks(make: Maker) -> str | None:
    """Close gives back every descriptor and ends every thread."""
    _use(make)  # what is made once, and kept for all devices, is no leak
    before = _held()
    for _ in range(REOPENINGS):
        _use(make)
    after = _held()
    for what, count in after.items():
        if count >= before[what] + REOPENINGS:
            raise PromiseBroken(
                f"there are {count} {what}, {before[what]} before the device was opened and closed {REOPENINGS} times",
                "close",
            )
    return None


def _use(make: Maker) -> None:
    with make() as disk:
        block = disk.device.block_size
        disk.read(0, block)
        if writable(disk):
            write(disk, 0, b"u" * block)
            if disk.operations.flush is not None:
                disk.flush()


def check_failing_open(make: Maker) -> str | None:
    """An open that fails half-way gives back what it had: descriptors and threads."""
    _use(make)
    tried = 0
    for name in OPENING:
        before = _held()
        failures = 0
        for _ in range(REOPENINGS):
            with contextlib.ExitStack() as opened:
                with failing((name,)) as meanwhile:
                    try:
                        opened.enter_context(make())
                    except (TcmuError, OSError):
                        failures += 1
                tried += meanwhile.calls
        after = _held()
        for what, count in after.items():
            if failures and count >= before[what] + failures:
                raise PromiseBroken(
                    f"{failures} times it failed because os.{name} did (EIO), and then there are {count} {what}, "
                    f"{before[what]} before",
                    "open",
                )
    return None if tried else NONE_MADE


def _held() -> dict[str, int]:
    gc.collect()
    return {"descriptors": len(list(Path("/proc/self/fd").iterdir())), "threads": threading.active_count()}


def check_far_offsets(make: Maker) -> str | None:
    """Offsets beyond 2 GiB, 4 GiB and 2 TiB are not cut off."""
    with make() as disk:
        if not disk.device.thin:
            return "it is not thin: a device of 3 TiB would need that much"
        if not writable(disk):
            return NO_WRITE
    try:
        with asking(size=LARGE), make() as disk:
            block = disk.device.block_size
            texts = {offset: bytes([number + 1]) * block for number, offset in enumerate((0, 1 << 12, *OFFSETS))}
            for offset, text in texts.items():
                write(disk, offset, text)
            for offset, text in texts.items():
                same(disk.read(offset, block), text, offset, disk, "far offsets")
    except (TcmuError, OSError) as error:
        return f"it refuses a device of 3 TiB: {error}"
    return None


# -- what stays -------------------------------------------------------------------------------------------------------


def check_persistence(make: Maker) -> str | None:
    """What was written, discarded and zeroed is as it was left after closing and opening."""
    with make() as disk:
        if not writable(disk):
            return NO_WRITE
        block = disk.device.block_size
        data = random.Random(3).randbytes(16 * block)
        write(disk, 0, data)
        write(disk, disk.size - block, data[:block])
        expected = bytearray(data)
        for at, name in ((2 * block, "discard"), (5 * block, "write_zeroes")):
            if getattr(disk.operations, name) is not None:
                getattr(disk, name)(at, 2 * block)
                expected[at : at + 2 * block] = bytes(2 * block)
    with make() as disk:
        same(disk.read(0, len(data)), bytes(expected), 0, disk, "closed and opened again")
        same(disk.read(disk.size - block, block), data[:block], disk.size - block, disk, "closed and opened again")
    return None


def check_crash(make: Maker) -> str | None:
    """What was flushed is there after a crash without close; without a flush hook, what was written is."""
    with make() as disk:
        if not writable(disk):
            return NO_WRITE
        block = disk.device.block_size
        write(disk, 0, bytes(8 * block))
    data = random.Random(6).randbytes(8 * block)
    status = _crash(make, data)
    if status != CRASHED:
        raise PromiseBroken(f"a child that writes, flushes and crashes ended with status {status}", "flush")
    with make() as disk:
        found = disk.read(0, len(data))
        disk.doing = "flush" if disk.operations.flush is not None else "write"
        same(found, data, 0, disk, "after a crash without close")
    return None


def _crash(make: Maker, data: bytes) -> int:
    """Write and flush in a child, which ends then without closing anything; returns its exit status."""
    await_ending_threads()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside threads: the child starts its own
        pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    status = BROKE
    try:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(int(harness.TIMEOUT) + 1)
        manager = make()
        disk: OpenDevice = manager.__enter__()
        disk.write(0, data)
        if disk.operations.flush is not None:
            disk.flush()
        status = CRASHED
    finally:
        os._exit(status)
    raise AssertionError("not reached")


def await_ending_threads() -> None:
    """Wait until threads that were joined have ended for the kernel too, or have had time to.

    Python counts a thread as ended before the destructors of its thread-local data have run. OpenSSL holds a lock of
    the whole process in its own: a child that is forked meanwhile finds that lock held for ever.
    """
    until = time.monotonic() + ENDING
    while time.monotonic() < until:
        known = {thread.native_id for thread in threading.enumerate()}
        if all(int(name) in known for name in os.listdir("/proc/self/task")):
            return
        time.sleep(0.001)
