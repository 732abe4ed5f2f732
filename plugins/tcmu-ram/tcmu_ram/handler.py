"""RamHandler: the hooks. Nothing here waits, so everything is done at once on the loop's thread."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tcmu_core import Body, Change, ConfigError, Device, Extent, Option, Options, hookimpl, path, size
from tcmu_ram import image
from tcmu_ram.memory import CHUNK, Memory

OPTIONS = Options(
    Option("size", size, "the size of the disk, where nothing else says it"),
    Option("load", path, "an image to begin with, which has to be there"),
    Option("save", path, "the image to write when the disk is closed"),
    body=Body("IMAGE", "an image that is loaded if it is there, and saved", required=False),
    summary="Memory as a disk; without an image it is zeros, and is gone when the disk is closed.",
)
MAX_DISCARD = 256 << 20  # bytes; freeing more at a time would hold up other commands


@dataclass(frozen=True, slots=True)
class Config:
    """A cfgstring, parsed."""

    size: int = 0
    load: str = ""
    save: str = ""
    must_exist: bool = True  # the file to load


def parse(cfgstring: str, defaults: Mapping[str, str] | None = None) -> Config:
    """Return the configuration that `cfgstring` means, `defaults` being its options from tcmu.conf."""
    parsed = OPTIONS.parse(cfgstring, defaults)
    given = parsed.options
    if not parsed.body:
        return Config(given["size"] or 0, given["load"] or "", given["save"] or "")
    if parsed.given & {"load", "save"}:
        raise ConfigError(f"{parsed.body!r} is loaded and saved already: leave out load= and save=, or the path")
    return Config(given["size"] or 0, parsed.body, parsed.body, must_exist=False)


class RamHandler:
    """Memory as a disk."""

    options = OPTIONS

    @hookimpl
    def check_config(self, cfgstring: str) -> None:
        """Say what is wrong with the cfgstring itself."""
        parse(cfgstring)

    @hookimpl
    def open(self, device: Device) -> None:
        """Make the memory and fill it from the image."""
        config = parse(device.cfgstring, device.options)
        stored = _stored_size(config)
        if config.size and device.size not in (None, config.size):
            raise ConfigError(
                f"the device has {device.size} bytes, the cfgstring says size={config.size}: leave that out"
            )
        asked = device.size or config.size
        device.size = asked or -(-(stored or 0) // device.block_size) * device.block_size
        if not device.size:
            raise ConfigError("no size: add size=64M (or what you need) to the cfgstring, or give an image to load")
        if device.size % device.block_size:
            raise ConfigError(f"size={device.size}: these are not whole blocks of {device.block_size} bytes")
        if stored is not None and stored > device.size:
            raise ConfigError(f"{config.load} has {stored} bytes, more than the device's {device.size}")
        if config.save and not device.read_only and not os.access(Path(config.save).absolute().parent, os.W_OK):
            raise ConfigError(f"{config.save} can't be saved: its directory does not exist or can't be written")
        if config.save and not device.read_only and image.would_be_lost(Path(config.save)):
            raise ConfigError(f"{config.save} can't be saved to: it is no regular file, and would be replaced by one")
        try:
            self._memory = Memory(device.size)
        except (OSError, OverflowError, MemoryError) as error:
            raise ConfigError(f"there is no memory for {device.size} bytes: take a smaller size") from error
        if stored is not None:
            try:
                image.load(config.load, self._memory, lambda done, of: device.progress(done, of, "loading the image"))
                if asked and config.save == config.load and not device.read_only:
                    image.extend(config.save, asked)
            except BaseException as error:
                self._memory.close()
                if not isinstance(error, OSError):
                    raise
                raise ConfigError(f"{config.load} can't be loaded: {error.strerror}") from error
        self._save = config.save
        device.ephemeral = not config.save or device.read_only
        device.thin = True
        device.solid_state = True
        device.discard_granularity = CHUNK
        device.max_discard_length = MAX_DISCARD

    @hookimpl
    def close(self, device: Device) -> None:
        """Save the image and give the memory back."""
        try:
            if self._save and not device.read_only:
                try:
                    image.save(self._save, self._memory, lambda done, of: device.progress(done, of, "saving the image"))
                except OSError as error:
                    device.log.error("%s", error.strerror)
                    raise
        finally:
            self._memory.close()

    @hookimpl
    def read(self, offset: int, buffers: list[memoryview]) -> None:
        """Copy out of the memory."""
        view = self._memory.view
        for buffer in buffers:
            end = offset + len(buffer)
            buffer[:] = view[offset:end]
            offset = end

    @hookimpl
    def write(self, offset: int, buffers: list[memoryview]) -> None:
        """Copy into the memory."""
        start = offset
        view = self._memory.view
        for buffer in buffers:
            end = offset + len(buffer)
            view[offset:end] = buffer
            offset = end
        self._memory.touched(start, offset)

    @hookimpl
    def flush(self) -> None:
        """Memory has no more stable place to go to; an image is saved when the device closes."""

    @hookimpl
    def discard(self, offset: int, length: int) -> None:
        """Give the memory back."""
        self._memory.clear(offset, offset + length)

    @hookimpl
    def write_zeroes(self, offset: int, length: int) -> None:
        """Make zeros, which need no memory."""
        self._memory.clear(offset, offset + length)

    @hookimpl
    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        """Say where something was written."""
        for start, end, written in self._memory.runs(offset, offset + length):
            yield Extent(start, end - start, written)

    @hookimpl
    def reconfigure(self, device: Device, change: Change) -> None:
        """Take a new size; a write cache makes no difference here."""
        if change.cfgstring not in (None, device.cfgstring):
            raise ConfigError("the cfgstring of an open device can't change: delete the device and create it again")
        if change.write_cache is not None:
            device.write_cache = change.write_cache
        if change.size is not None:
            self._memory.resize(change.size)
            device.size = change.size


def _stored_size(config: Config) -> int | None:
    """Return the size of the image to load, or None when there is none."""
    if not config.load:
        return None
    path = Path(config.load)
    try:
        info = path.stat()
    except FileNotFoundError as error:
        if not config.must_exist:
            return None
        raise ConfigError(f"{path} does not exist: load= needs an image") from error
    except OSError as error:  # what can't be looked at can't be saved either
        raise ConfigError(f"{path} can't be loaded: {error.strerror}") from error
    if not stat.S_ISREG(info.st_mode):
        raise ConfigError(f"{path} is no file: load= needs an image")
    return info.st_size
