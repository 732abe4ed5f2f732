"""Crypt: the filter. Above it data is plain, below it encrypted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any

from tcmu_core import Change, ConfigError, Device, Filter, Option, Options, after, path
from tcmu_crypt.key import read_key
from tcmu_crypt.xts import Sectors

MOST = 256 << 10  # bytes of one command: they are encrypted on the loop, where others wait meanwhile


class Crypt(Filter):
    """Encrypt what is written and decrypt what is read, with AES-XTS, as dm-crypt's aes-xts-plain64 does.

    There is no discard and nothing unallocated above it: what is freed below would read as noise, and SCSI has it
    read as zeros. Zeros are written like any data.
    """

    options = Options(
        Option("key", path, "a file of 32 or 64 random bytes that nobody else may read"),
        Option("sector", int, "bytes that are encrypted together, 512 or 4096", default=512),
    )
    # A command that the handler serves itself would pass data by, so handle_cmd is not here.
    passes = frozenset({"flush"})
    live = False

    def open(self, device: Device, below: object, options: Mapping[str, Any]) -> None:
        """Read the key; raises `ConfigError` if it can't be used."""
        key, sector = options.get("key"), options["sector"]
        if key is None:
            raise ConfigError(f"the filter {self.name!r} needs key=/path/of/the.key")
        if sector not in (512, 4096):
            raise ConfigError("sector= is 512 or 4096")
        if device.block_size % sector:
            raise ConfigError(f"a block of {device.block_size} bytes is no whole sector: write --block-size {sector}")
        self._sectors = Sectors(read_key(key), sector)
        self._device = device
        device.max_transfer_length = min(device.max_transfer_length or MOST, MOST)
        device.thin = False

    def read(self, below: Callable[..., Any], offset: int, buffers: list[memoryview]) -> Future[None] | None:
        """Read, and decrypt what came, in its place."""

        def decrypt() -> None:
            data = memoryview(self._sectors.decrypt(offset, b"".join(buffers)))
            for buffer in buffers:
                buffer[:], data = data[: len(buffer)], data[len(buffer) :]

        return after(below(offset, buffers), decrypt)

    def write(self, below: Callable[..., Any], offset: int, buffers: list[memoryview]) -> Any:
        """Write it encrypted; what is in the buffers stays as it is, for it is the initiator's."""
        return below(offset, [memoryview(bytearray(self._sectors.encrypt(offset, b"".join(buffers))))])

    def reconfigure(self, below: Callable[[Change], None], change: Change) -> None:
        """Let the size and the write cache be changed: sectors are counted from the start."""
        if change.cfgstring not in (None, self._device.cfgstring):
            raise ConfigError(f"the filter {self.name!r} has the key of one storage: open another one anew")
        below(change)
