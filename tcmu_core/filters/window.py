"""The filters `offset`, `truncate` and `partition`: a part of a disk as a disk of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from typing import Any

from tcmu_core.cfgstring import size
from tcmu_core.disk.device import Change, Device, Extent
from tcmu_core.disk.layers import Operations, changes_nothing
from tcmu_core.errors import ConfigError
from tcmu_core.filters.base import Filter, after
from tcmu_core.filters.partitions import find
from tcmu_core.options import Option, Options

PATIENCE = 60.0  # seconds that reading the partition table may take


class Window(Filter):
    """The part of a disk that begins at `start` (bytes); the base of the three."""

    passes = frozenset({"flush"})
    live = False
    start = 0

    def narrow(self, device: Device, start: int, length: int | None) -> None:
        """Make the disk the part of `length` bytes (None: all) from `start` on, whole blocks of what is there."""
        whole, block = device.size or 0, device.block_size
        rest = whole - start if length is None else length
        for number in (start, rest):
            if number % block:
                raise ConfigError(f"{number} bytes are not whole blocks of {block}")
        if start >= whole or start + rest > whole:
            raise ConfigError(f"{max(rest, block)} bytes from byte {start} on: the disk below ends at {whole}")
        if not rest:
            raise ConfigError(f"nothing is left of the {whole} bytes of the disk below")
        self.start, self._device = start, device
        device.size = rest
        if device.discard_granularity:  # SBC-4 6.6.4: the alignment is that of the first block that can be freed
            device.discard_alignment = (device.discard_alignment - start) % device.discard_granularity

    def read(self, below: Callable[..., Any], offset: int, buffers: list[memoryview]) -> Any:
        """Read there."""
        return below(self.start + offset, buffers)

    def write(self, below: Callable[..., Any], offset: int, buffers: list[memoryview]) -> Any:
        """Write there."""
        return below(self.start + offset, buffers)

    def discard(self, below: Callable[..., Any], offset: int, length: int) -> Any:
        """Discard there."""
        return below(self.start + offset, length)

    def write_zeroes(self, below: Callable[..., Any], offset: int, length: int) -> Any:
        """Write zeros there."""
        return below(self.start + offset, length)

    def extents(self, below: Callable[..., Any], offset: int, length: int) -> Any:
        """Tell the extents there, as seen from here."""
        found = below(self.start + offset, length)
        return after(found if isinstance(found, Future) else None, lambda: self._seen(found))

    def _seen(self, found: Any) -> list[Extent] | None:
        told: Iterable[Extent] | None = found.result() if isinstance(found, Future) else found
        if told is None:
            return None
        return [Extent(extent.offset - self.start, extent.length, extent.mapped) for extent in told]

    def reconfigure(self, below: Callable[[Change], None], change: Change) -> None:
        """Let the write cache be changed; what another size or storage would mean here, nobody can say."""
        if change.write_cache is not None:
            below(change)
        elif not changes_nothing(self._device, change):
            raise NotImplementedError(f"the filter {self.name!r} is open on a disk of this size and storage")


class Offset(Window):
    """Make a part of a disk a disk of its own."""

    options = Options(
        Option("start", size, "where it begins", default=0), Option("length", size, "how long it is, if not to the end")
    )

    def open(self, device: Device, below: Operations, options: Mapping[str, Any]) -> None:
        """Look through the window."""
        self.narrow(device, options.get("start", 0), options.get("length"))


class Truncate(Window):
    """Make a disk shorter."""

    options = Options(
        Option("size", size, "how long it is"), Option("multiple", size, "or: the largest multiple of that")
    )

    def open(self, device: Device, below: Operations, options: Mapping[str, Any]) -> None:
        """Cut it off."""
        if len(options) != 1:
            raise ConfigError(f"the filter {self.name!r} takes size= or multiple=, one of them")
        whole = device.size or 0
        length = options["size"] if "size" in options else whole - whole % max(1, options["multiple"])
        self.narrow(device, 0, length)


class Partition(Window):
    """Make one partition of an MBR or GPT disk a disk of its own."""

    options = Options(
        Option("number", int, "the partition's, as in /dev/sda1; logical ones are 5 and more", default=1, least=1)
    )

    def open(self, device: Device, below: Operations, options: Mapping[str, Any]) -> None:
        """Find the partition."""

        def read(offset: int, length: int) -> bytes:
            room = bytearray(length)
            pending = below.read(offset, [memoryview(room)])
            if pending is not None:
                pending.result(PATIENCE)
            return bytes(room)

        number = options.get("number", 1)
        found = find(read, device.size or 0, device.block_size)
        for partition in found:
            if partition.number == number:
                self.narrow(device, partition.offset, partition.length)
                return
        known = ", ".join(str(partition.number) for partition in found)
        raise ConfigError(f"there is no partition {number}: there are {known or 'none'}")
