"""FileHandler: the hooks. What the page cache can answer is done at once, the rest on the device's threads."""

from __future__ import annotations

import errno
import itertools
import os
from collections.abc import Iterator
from concurrent.futures import Future
from time import monotonic

from tcmu_core import Change, ConfigError, Device, Extent, hookimpl, posix
from tcmu_file import storage

STALL = 0.010  # a write into the page cache that took longer (seconds) was held back by the kernel
BACK_OFF = 10  # the writes after it go to the threads for so many times as long
NEVER = float("inf")
PAGE_MASK = posix.PAGE - 1


class FileHandler:
    """The path to the file or block device to use as a backstore; options: ro, direct, sync, size, block_size."""

    options = storage.OPTIONS

    # -- opening and closing ----------------------------------------------------------------------------------------

    @hookimpl
    def check_config(self, cfgstring: str) -> None:
        """Say what is wrong with the cfgstring itself."""
        storage.parse(cfgstring)

    @hookimpl
    def open(self, device: Device) -> None:
        """Open or create the file at its size, lock it, and tell what is known about it."""
        config = storage.parse(device.cfgstring, device.options)
        if config.size and device.size not in (None, config.size):
            raise ConfigError(
                f"the device has {device.size} bytes, the cfgstring says size={config.size}: leave that out"
            )
        device.size = device.size or config.size or None
        device.block_size = config.block_size or device.block_size
        if device.size and device.size % device.block_size:  # before a file is made that long
            raise ConfigError(f"size={device.size}: these are not whole blocks of {device.block_size} bytes")
        device.read_only = device.read_only or config.ro
        opened = storage.open_storage(
            config, wanted=device.size, read_only=device.read_only, block_size=device.block_size
        )
        self._storage = opened
        self._fd = opened.fd
        try:
            self._size_up(device)
            self._stable = posix.Stable(opened.fd, opened.path, device.log)
            self._watch = posix.Watch(opened.fd, opened.path, device.log)
            self._engine = posix.engine(None if opened.in_memory else device.reactor, device.offload, device.log)
            self._file = posix.AsyncFile(self._engine, device.offload, self._stable, opened.alignment)
        except BaseException:
            os.close(opened.fd)
            raise
        if config.sync:
            device.write_cache = False
        device.solid_state = opened.solid_state
        if opened.block_device:
            device.physical_block_size = max(device.block_size, opened.granularity)
        device.discard_granularity = max(device.block_size, opened.granularity)
        device.thin = opened.punches
        device.buffer_alignment = opened.alignment.memory

        # How to transfer. Direct I/O always waits for the disk, so it is never done on the loop's thread; neither is
        # anything on a file system that does not know RWF_NOWAIT, unless it is memory.
        self._alignment = opened.alignment
        self._read_flags = 0 if opened.in_memory else os.RWF_NOWAIT
        self._write_flags = self._read_flags
        self._inline_reads = opened.in_memory or (not config.direct and posix.knows_nowait(opened.fd))
        self._threads_until = 0.0 if self._inline_reads else NEVER  # writes go to the threads until then (monotonic)
        self._in_memory = opened.in_memory  # a write never waits, nor has the rest of a page to be read first

    @hookimpl
    def close(self, device: Device) -> None:
        """Bring everything to the disk and let go of the file."""
        try:
            self._engine.close()
            if not device.read_only:
                self._stable.flush()
        finally:
            self._watch.close()
            os.close(self._fd)

    @hookimpl
    def reconfigure(self, device: Device, change: Change) -> None:
        """Take a new size or write-cache mode."""
        if change.cfgstring not in (None, device.cfgstring):
            raise ConfigError("the cfgstring of an open device can't change: delete the device and create it again")
        if change.write_cache is not None:
            device.write_cache = change.write_cache
        if change.size is not None and change.size != device.size:
            before, device.size = device.size, change.size
            try:
                self._size_up(device)  # a smaller disk keeps its file as it is: nothing is lost by a slip of the hand
            except BaseException:
                device.size = before
                raise

    def _size_up(self, device: Device) -> None:
        """Settle the device's size: as asked, else as the storage has it."""
        path = self._storage.path
        size = os.lseek(self._fd, 0, os.SEEK_END)
        if device.size is None:
            if not size:
                raise ConfigError(f"{path} is empty: give a size, such as size=1G")
            # A file that does not end on a block boundary is seen whole; what lies behind its end reads as zeros.
            device.size = -(-size // device.block_size) * device.block_size
        elif self._storage.block_device and device.size > size:
            raise ConfigError(f"{path} has {size} bytes: it can't be a device of {device.size} bytes")
        elif not self._storage.block_device:
            storage.extend(self._fd, path, device.size, read_only=device.read_only, block_size=device.block_size)

    # -- data -------------------------------------------------------------------------------------------------------

    @hookimpl
    def read(self, device: Device, offset: int, buffers: list[memoryview]) -> Future[None] | None:
        """Read from the page cache if all of it is there."""
        if self._inline_reads:
            try:
                done = os.preadv(self._fd, buffers, offset, self._read_flags)
            except OSError:  # not in the page cache (EAGAIN); or a true error, which comes again on the thread
                done = 0
            if done == (len(buffers[0]) if len(buffers) == 1 else sum(map(len, buffers))):
                return None
            buffers = posix.skip(buffers, done)
        else:
            done = 0
        return self._file.read(offset + done, buffers)

    @hookimpl
    def write(self, device: Device, offset: int, buffers: list[memoryview]) -> Future[None] | None:
        """Write into the page cache as long as it takes data without delay."""
        total = len(buffers[0]) if len(buffers) == 1 else sum(map(len, buffers))
        done = 0
        started = 0.0 if self._in_memory else monotonic()
        if started >= self._threads_until and (
            not (offset | total) & PAGE_MASK or self._in_memory or posix.takes_at_once(self._fd, offset, total)
        ):
            try:
                done = os.pwritev(self._fd, buffers, offset, self._write_flags)
            except BlockingIOError:
                pass  # it would wait
            except OSError as error:
                if error.errno == errno.EOPNOTSUPP:
                    self._write_flags = 0  # most file systems know RWF_NOWAIT for reads only
                elif error.errno != errno.EINVAL:  # these are more buffers than one call takes
                    raise
            if not self._in_memory and (ended := monotonic()) - started > STALL:
                self._threads_until = ended + (ended - started) * BACK_OFF
            if done == total:
                return None
        if done:
            buffers = posix.skip(buffers, done)
        return self._file.write(offset + done, buffers)

    @hookimpl
    def flush(self, device: Device) -> Future[None] | None:
        """Bring what was written to the disk."""
        if self._in_memory or device.read_only:
            return None
        return self._file.flush()

    # -- space ------------------------------------------------------------------------------------------------------

    @hookimpl
    def discard(self, offset: int, length: int) -> Future[None] | None:
        """Punch a hole; where the storage has none, write zeros."""
        if self._in_memory:
            posix.discard(self._fd, offset, length)
            return None
        return self._file.discard(offset, length)

    @hookimpl
    def write_zeroes(self, offset: int, length: int) -> Future[None] | None:
        """Make zeros that stay allocated; where the storage can't, a hole; else write them."""
        if self._in_memory:
            posix.zero(self._fd, offset, length)
            return None
        return self._file.zero(offset, length)

    @hookimpl
    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        """Say where the file has data and where holes; all of a block device counts as data."""
        return itertools.starmap(Extent, posix.extents(self._fd, offset, length))
