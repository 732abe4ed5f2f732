"""HttpHandler: the hooks."""

from __future__ import annotations

import errno
from concurrent.futures import Future

from tcmu_core import ConfigError, Device, hookimpl
from tcmu_http.blocks import Blocks
from tcmu_http.config import OPTIONS, parse
from tcmu_http.source import Source


class HttpHandler:
    """A file behind an HTTP server, read by ranges. Options: block, cache, connections, timeout, retry, ca."""

    tcmu_api = 1
    options = OPTIONS

    @hookimpl
    def check_config(self, cfgstring: str) -> None:
        """Say what is wrong with the URL; the options are checked by their declaration."""
        parse(cfgstring)

    @hookimpl
    def open(self, device: Device) -> Future[None]:
        """Ask the server for the size, on a thread: a target's other disks need not wait for that."""
        return device.offload(self._open, device)

    def _open(self, device: Device) -> None:
        config = parse(device.cfgstring, device.options)
        source = Source(config, device.log)
        try:
            source.open()
            self._describe(device, source.version.size)
        except OSError as error:
            source.close()
            raise OSError(errno.EIO, f"{config.place}: {error.strerror or error}") from error
        except BaseException:
            source.close()
            raise
        self._source = source
        self._blocks = Blocks(
            source.fetch, device.size or 0, size=config.block, limit=config.cache, threads=config.connections
        )

    def _describe(self, device: Device, there: int) -> None:
        """Make the disk as large as the file, in whole blocks."""
        block = device.block_size
        size = there // block * block
        if not size:
            raise ConfigError(f"the file has {there} bytes, less than one block of {block}")
        if device.size not in (None, size):
            raise ConfigError(f"the file is a disk of {size} bytes, not {device.size}: leave the size out")
        if size != there:
            device.log.warning("the last %d bytes of the file are no whole block: they are left out", there - size)
        device.size = size

    @hookimpl
    def close(self) -> None:
        """Let go of the connections and the threads."""
        self._source.close()
        self._blocks.close()

    @hookimpl
    def read(self, offset: int, buffers: list[memoryview]) -> Future[None] | None:
        """Answer from memory, or when the server has answered."""
        return self._blocks.read(offset, buffers)
