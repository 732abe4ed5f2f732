"""GlfsHandler: the hooks. Data goes through libgfapi's asynchronous calls; its threads complete the futures."""

from __future__ import annotations

import errno
import itertools
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from typing import Any

from tcmu_core import Busy, Change, ConfigError, Device, Extent, hookimpl
from tcmu_glfs import gfapi
from tcmu_glfs.config import OPTIONS, parse
from tcmu_glfs.file import File, open_file
from tcmu_glfs.keeper import Keeper

PAGE = 4096  # what bricks allocate and free
EXTENTS = 64  # that are asked for at once
PATIENCE = 5.0  # seconds that the loop waits to hear what is allocated


class GlfsHandler:
    """VOLUME@HOST/PATH, a file on a GlusterFS volume; options: ro, log."""

    options = OPTIONS

    # -- opening and closing ----------------------------------------------------------------------------------------

    @hookimpl
    def check_config(self, cfgstring: str) -> None:
        """Say what is wrong with the cfgstring itself."""
        parse(cfgstring)

    @hookimpl
    def open(self, device: Device) -> Future[None]:
        """Open the file, or make it where the device has a size."""
        return device.offload(self._open, device)

    def _open(self, device: Device) -> None:
        config = parse(device.cfgstring, device.options)
        device.read_only = device.read_only or config.ro
        file = open_file(config, read_only=device.read_only, create=device.size or 0)
        try:
            self._size_up(device, file)
        except BaseException:
            file.close()
            raise
        device.discard_granularity = max(PAGE, device.block_size)
        device.thin = True
        self._name = config.name
        self._flush_failed = 0  # errno
        self._keeper = Keeper(device, file)
        self._keeper.start()

    def _size_up(self, device: Device, file: File) -> None:
        found = file.size()
        size = found - found % device.block_size
        if not size:
            raise ConfigError(f"{file.config.name} has {found} bytes: truncate -s 1G it, or remove it and give a size")
        if device.size not in (None, size):
            device.log.warning("%s has %d bytes, not %d: taking that", file.config.name, size, device.size)
        device.size = size

    @hookimpl
    def close(self, device: Device) -> None:
        """Bring everything to the bricks' disks and let go of the file."""
        try:
            if not device.read_only and self._keeper.file is not None:
                self.flush().result()
        except Exception as error:
            device.log.error("%s: the last flush failed: %s", self._name, error)
        finally:
            self._keeper.stop()

    @hookimpl
    def reconfigure(self, device: Device, change: Change) -> None:
        """Make the file longer, or take the length that it was given by other means; take a write-cache mode."""
        if change.cfgstring not in (None, device.cfgstring):
            raise ConfigError("the cfgstring of an open device can't change: delete the device and create it again")
        if change.write_cache is not None:
            device.write_cache = change.write_cache
        if change.size is None or change.size == device.size:
            return
        file = self._keeper.file
        if file is None:
            raise Busy(str(self._keeper.absent()))
        now = file.size()
        if change.size < now - now % device.block_size:
            raise ConfigError(
                f"{self._name} has {now} bytes, and what is cut off is lost: truncate it, the disk follows"
            )
        before, device.size = device.size, change.size
        try:
            if change.size > now:
                file.grow(change.size)
        except BaseException:
            device.size = before
            raise

    # -- data -------------------------------------------------------------------------------------------------------

    @hookimpl
    def read(self, buffers: list[memoryview], offset: int) -> Future[None]:
        """Have gluster read into the buffers; what lies behind the end of the file reads as zeros."""
        array, kept = gfapi.vectors(buffers)
        return self._start("glfs_preadv_async", kept, array, len(buffers), offset, 0, fill=buffers)

    @hookimpl
    def write(self, buffers: list[memoryview], offset: int) -> Future[None]:
        """Have gluster write the buffers, which it copies at once."""
        array, kept = gfapi.vectors(buffers)
        length = sum(map(len, buffers))
        return self._start("glfs_pwritev_async", kept, array, len(buffers), offset, 0, expected=length)

    @hookimpl
    def flush(self) -> Future[None]:
        """Bring what was written to the bricks' disks. What failed once is not said to be there later."""
        if self._flush_failed:
            raise OSError(self._flush_failed, f"{self._name}: a flush failed before, what it was to bring is lost")
        future = self._start("glfs_fdatasync_async", None)
        future.add_done_callback(self._flushed)
        return future

    def _flushed(self, future: Future[None]) -> None:
        error = future.exception()
        if isinstance(error, OSError):
            self._flush_failed = error.errno or errno.EIO

    @hookimpl
    def discard(self, offset: int, length: int) -> Future[None]:
        """Punch a hole."""
        return self._start("glfs_discard_async", None, offset, length)

    @hookimpl
    def write_zeroes(self, offset: int, length: int) -> Future[None]:
        """Make zeros that stay allocated."""
        return self._start("glfs_zerofill_async", None, offset, length)

    def _start(
        self, name: str, kept: Any, *arguments: Any, fill: list[memoryview] | None = None, expected: int = 0
    ) -> Future[None]:
        """Start a call; `fill` are buffers that it fills, and `expected` the bytes that it has to take."""
        keeper = self._keeper
        file = keeper.file
        if file is None:
            raise keeper.absent()
        future: Future[None] = Future()
        future.set_running_or_notify_cancel()  # gluster can't be stopped

        def ended(result: int, code: int) -> None:
            try:
                if result < 0:
                    future.set_exception(keeper.failed(file, code))
                    return
                if result < expected:
                    raise OSError(f"{self._name}: {result} of {expected} bytes were written")
                if fill is not None:
                    _zero_behind(fill, result)
                future.set_result(None)
            except BaseException as error:  # nobody else would ever hear of it
                gfapi.failed(future, error)

        try:
            file.start(name, ended, kept, *arguments)
        except OSError as error:
            raise keeper.failed(file, error.errno or errno.EIO) from error
        return future

    # -- space ------------------------------------------------------------------------------------------------------

    @hookimpl
    def extents(self, device: Device, offset: int, length: int) -> Future[Iterable[Extent]]:
        """Say where the file has data and where holes."""
        return device.offload(self._begin_extents, device, offset, offset + length)

    def _begin_extents(self, device: Device, offset: int, end: int) -> Iterable[Extent]:
        """Ask for the first ones; for the others only when somebody wants to know of them."""
        found = self._some_extents(offset, end)
        return itertools.chain(found, self._more_extents(device, found[-1].offset + found[-1].length, end))

    def _more_extents(self, device: Device, offset: int, end: int) -> Iterator[Extent]:
        while offset < end:
            try:
                found = device.offload(self._some_extents, offset, end).result(PATIENCE)
            except TimeoutError as error:
                raise Busy(f"{self._name}: the bricks take long to say what is allocated") from error
            yield from found
            offset = found[-1].offset + found[-1].length

    def _some_extents(self, offset: int, end: int) -> list[Extent]:
        file = self._keeper.file
        if file is None:
            raise self._keeper.absent()
        found: list[Extent] = []
        try:
            while offset < end and len(found) < EXTENTS:
                found += file.extents(offset, end)
                offset = found[-1].offset + found[-1].length
        except OSError as error:
            raise self._keeper.failed(file, error.errno or errno.EIO) from error
        return found


def _zero_behind(buffers: list[memoryview], count: int) -> None:
    """Fill what lies behind the first `count` bytes of `buffers` with zeros."""
    for buffer in buffers:
        if count < len(buffer):
            buffer[count:] = bytes(len(buffer) - count)
        count = max(0, count - len(buffer))
