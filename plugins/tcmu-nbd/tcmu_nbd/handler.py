"""NbdHandler: the hooks. Each makes a request, hands it to the client, and returns its Future."""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from time import monotonic
from typing import Any

from tcmu_core import Change, CommandError, ConfigError, Device, Extent, hookimpl
from tcmu_nbd.client import Client
from tcmu_nbd.codec import Export
from tcmu_nbd.config import OPTIONS, parse
from tcmu_nbd.constants import MAX_LENGTH, STATE_HOLE, STATE_ZERO, Cmd, CmdFlag, ExportFlag
from tcmu_nbd.request import FUA, Request
from tcmu_nbd.session import State

LARGEST_SECTOR = 4096  # bytes that are told as a physical block; file systems make no use of more
LARGEST_TRANSFER = 16 << 20  # bytes of one command: as the engine has it for handlers that set no limit
MAX_SPAN = 1 << 30  # bytes of one request without data
ZEROS = 1 << 20  # bytes of one write of zeros, where the server can't make them itself
STATUS_TIME = 2.0  # seconds that the extents of one range may take
CLOSE_TIME = 30.0  # seconds for the last flush
_READ = Cmd.READ  # looking a member up takes a tenth of a microsecond, for each command


class NbdHandler:
    """An NBD export, at a Unix socket or a host's port. Options: export, tls, connections, timeout, ro and more."""

    options = OPTIONS

    # -- opening and closing ----------------------------------------------------------------------------------------

    @hookimpl
    def check_config(self, cfgstring: str) -> None:
        """Say what is wrong with the cfgstring itself."""
        parse(cfgstring)

    @hookimpl
    def open(self, device: Device) -> Future[None]:
        """Connect, and tell what the server said of the export."""
        self._config = parse(device.cfgstring, device.options)
        self._client = Client(self._config, device.log, device.reactor)
        return device.offload(self._open, device)

    def _open(self, device: Device) -> None:
        config = self._config
        try:
            self._export = self._client.start(f"nbd-{device.name}")
        except OSError as error:
            raise OSError(error.errno or errno.EIO, f"{config}: {error.strerror or error}") from None
        try:
            self._describe(device, self._export)
        except BaseException:
            self._client.stop()
            raise
        flags = self._export.flags
        self._can_flush = bool(flags & ExportFlag.SEND_FLUSH)
        self._can_fua = bool(flags & ExportFlag.SEND_FUA)
        self._can_zero = bool(flags & ExportFlag.SEND_WRITE_ZEROES)
        self._can_trim = bool(flags & ExportFlag.SEND_TRIM)
        self._most = self._export.blocks.maximum // device.block_size * device.block_size
        self._flushed_once = False
        self._client.settle()

    def _describe(self, device: Device, export: Export) -> None:
        config, blocks = self._config, export.blocks
        device.block_size = block = max(config.block_size or device.block_size, blocks.minimum)
        if config.block_size and config.block_size < blocks.minimum:
            raise ConfigError(f"block_size={config.block_size}: the server takes blocks of {blocks.minimum} and more")
        if blocks.maximum < block:
            raise ConfigError(f"the server takes {blocks.maximum} bytes at most, less than a block of {block}")
        size = export.size // block * block
        if device.size not in (None, size):
            raise ConfigError(f"the export is a disk of {size} bytes, not {device.size}: leave the size out")
        if not size:
            raise ConfigError(f"the export has {export.size} bytes, less than one block of {block}")
        if size != export.size:
            device.log.warning(
                "the last %d bytes of the export are no whole block: they are left out", export.size - size
            )
        device.size = size
        device.read_only = device.read_only or config.ro or bool(export.flags & ExportFlag.READ_ONLY)
        if config.sync or not export.flags & ExportFlag.SEND_FLUSH:
            device.write_cache = False
        device.solid_state = not export.flags & ExportFlag.ROTATIONAL
        device.physical_block_size = max(block, min(blocks.preferred, LARGEST_SECTOR))
        device.max_transfer_length = min(blocks.maximum, LARGEST_TRANSFER) // block * block
        if LARGEST_SECTOR < blocks.preferred <= device.max_transfer_length and not blocks.preferred % block:
            device.optimal_transfer_length = blocks.preferred
        frees = ExportFlag.SEND_WRITE_ZEROES | ExportFlag.SEND_TRIM
        device.thin = bool(export.flags & frees)
        device.discard_granularity = device.physical_block_size

    @hookimpl
    def close(self, device: Device) -> None:
        """Flush what was written and take leave of the server."""
        try:
            if not device.read_only and (pending := self.flush(device)) is not None:
                self._client.end(pending, CLOSE_TIME)
        finally:
            self._client.stop()

    @hookimpl
    def reconfigure(self, device: Device, change: Change) -> None:
        """Take a new write-cache mode; the size is the server's."""
        if change.cfgstring not in (None, device.cfgstring):
            raise ConfigError("the cfgstring of an open device can't change: delete the device and create it again")
        if change.size not in (None, device.size):
            raise ConfigError("an NBD disk has its server's size: resize it there, and create the device again")
        if change.write_cache is not None:
            if change.write_cache and not self._can_flush:
                raise ConfigError("the server takes no flush: there is no write cache to be switched on")
            device.write_cache = change.write_cache

    # -- data -------------------------------------------------------------------------------------------------------

    @hookimpl
    def read(self, device: Device, offset: int, buffers: list[memoryview]) -> Future[None]:
        """Ask for the range; the answer is received into the buffers."""
        length = len(buffers[0]) if len(buffers) == 1 else sum(map(len, buffers))
        if length <= self._most:
            client = self._client
            return client.submit(Request(_READ, offset, length, buffers=buffers, future=client.completion()))
        return self._all(
            Request(Cmd.READ, offset + at, sum(map(len, part)), buffers=part, future=self._client.completion())
            for at, part in _cut(buffers, self._most)
        )

    @hookimpl
    def write(self, device: Device, offset: int, buffers: list[memoryview]) -> Future[None]:
        """Send a copy of the data: it may have to be sent again when the initiator has long forgotten it."""
        data = b"".join(buffers)
        flags = self._durable(device)
        if len(data) <= self._most:
            return self._client.submit(
                Request(Cmd.WRITE, offset, len(data), flags, data=data, future=self._client.completion())
            )
        parts = (data[at : at + self._most] for at in range(0, len(data), self._most))
        return self._all(
            Request(
                Cmd.WRITE, offset + number * self._most, len(part), flags, data=part, future=self._client.completion()
            )
            for number, part in enumerate(parts)
        )

    @hookimpl
    def flush(self, device: Device) -> Future[None] | None:
        """Flush, unless each write that was acknowledged is stable already."""
        if not self._can_flush or (self._flushed_once and not self._client.session.unflushed):
            return None
        self._flushed_once = True  # the first one is for whoever wrote before this disk was opened
        return self._client.submit(Request(Cmd.FLUSH, future=self._client.completion()))

    def _durable(self, device: Device) -> int:
        """Return the flags of a change: without a write cache it is stable when it is acknowledged."""
        return FUA if self._can_fua and not device.write_cache else 0

    # -- space ------------------------------------------------------------------------------------------------------

    @hookimpl
    def discard(self, device: Device, offset: int, length: int) -> Future[None]:
        """Have zeros there that need no storage; what is only trimmed may read as anything."""
        if self._can_zero:
            return self._spans(Cmd.WRITE_ZEROES, offset, length, self._durable(device))
        return self._client.driven(device.offload(self._discard_slowly, offset, length, self._durable(device)))

    @hookimpl
    def write_zeroes(self, device: Device, offset: int, length: int) -> Future[None]:
        """Have zeros there that stay allocated."""
        if self._can_zero:
            return self._spans(Cmd.WRITE_ZEROES, offset, length, self._durable(device) | int(CmdFlag.NO_HOLE))
        return self._client.driven(device.offload(self._write_zeros, offset, length, self._durable(device)))

    def _discard_slowly(self, offset: int, length: int, flags: int) -> None:
        """Trim, and write zeros where the server does not say that it has zeros now."""
        if self._can_trim:
            self._spans(Cmd.TRIM, offset, length, flags).result()
            if self._export.context is not None:
                end = offset + length
                while offset < end:
                    for run, state in self._status(offset, end).result():
                        run = min(run, end - offset)
                        if not state & STATE_ZERO:
                            self._write_zeros(offset, run, flags)
                        offset += run
                return
        self._write_zeros(offset, length, flags)

    def _write_zeros(self, offset: int, length: int, flags: int) -> None:
        chunk = bytes(min(ZEROS, self._most, length))
        end = offset + length
        while offset < end:
            data = chunk[: end - offset]
            self._client.submit(
                Request(Cmd.WRITE, offset, len(data), flags, data=data, future=self._client.completion())
            ).result()
            offset += len(data)

    def _spans(self, command: Cmd, offset: int, length: int, flags: int) -> Future[None]:
        return self._all(
            Request(command, at, min(MAX_SPAN, offset + length - at), flags, future=self._client.completion())
            for at in range(offset, offset + length, MAX_SPAN)
        )

    @hookimpl
    def extents(self, device: Device, offset: int, length: int) -> Future[list[Extent]]:
        """Ask the server what is allocated; what it does not say in two seconds counts as mapped."""
        return self._client.driven(device.offload(lambda: list(self._extents(offset, offset + length))))

    def _extents(self, offset: int, end: int) -> Iterator[Extent]:
        until = monotonic() + STATUS_TIME
        mapped = True
        began = offset  # of the run that grows
        while offset < end:
            left = until - monotonic()
            if self._export.context is None or left <= 0 or self._client.session.state is not State.UP:
                break
            try:
                runs = self._status(offset, end).result(left)
            except (OSError, CommandError):
                break
            for run, state in runs:
                run = min(run, end - offset)
                allocated = state & (STATE_HOLE | STATE_ZERO) != STATE_HOLE | STATE_ZERO
                if allocated is not mapped:
                    if offset > began:
                        yield Extent(began, offset - began, mapped)
                    began, mapped = offset, allocated
                offset += run
                if offset == end:
                    break
        if not mapped and began < offset:
            yield Extent(began, offset - began, False)
            began = offset
        if began < end:
            yield Extent(began, end - began, True)

    def _status(self, offset: int, end: int) -> Future[Sequence[tuple[int, int]]]:
        granule = self._export.blocks.minimum
        length = min(end - offset, MAX_LENGTH // granule * granule)
        return self._client.submit(Request(Cmd.BLOCK_STATUS, offset, length))

    def _all(self, requests: Iterator[Request]) -> Future[None]:
        """Submit requests; the Future is done when all are, with the first error."""
        pending = [self._client.submit(request) for request in requests]
        return pending[0] if len(pending) == 1 else _gather(pending, self._client.completion())


def _cut(buffers: Sequence[memoryview], most: int) -> Iterator[tuple[int, list[memoryview]]]:
    """Yield the buffers in parts of `most` bytes, each with its place."""
    at = size = 0
    part: list[memoryview] = []
    for buffer in buffers:
        while buffer:
            piece, buffer = buffer[: most - size], buffer[most - size :]
            part.append(piece)
            size += len(piece)
            if size == most:
                yield at, part
                at, size, part = at + size, 0, []
    if part:
        yield at, part


def _gather(pending: Sequence[Future[Any]], both: Future[None]) -> Future[None]:
    """Return `both`, which ends after the last one: until then the buffers are in use."""
    lock = threading.Lock()
    left = len(pending)

    def ended(_done: Future[Any]) -> None:
        nonlocal left
        with lock:
            left -= 1
            if left:
                return
        errors = [error for error in (future.exception() for future in pending) if error is not None]
        if errors:
            both.set_exception(errors[0])
        else:
            both.set_result(None)

    for future in pending:
        future.add_done_callback(ended)
    return both
