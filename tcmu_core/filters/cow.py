"""The filter `cow`: what is written goes into an overlay that is thrown away; the handler's storage is only read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from typing import Any

from tcmu_core.disk.device import Device, Extent
from tcmu_core.disk.layers import Operations
from tcmu_core.errors import ConfigError
from tcmu_core.filters.base import Filter, after
from tcmu_core.filters.overlay import Overlay
from tcmu_core.filters.waiting import gathered
from tcmu_core.options import Option, Options, path
from tcmu_core.scsi.command import slice_buffers


class Cow(Filter):
    """Keep writes in memory, or in a temporary file, and throw them away when the disk closes."""

    options = Options(Option("directory", path, "have the overlay in a file there rather than in memory"))
    passes = frozenset({"handle_cmd"})
    provides = frozenset({"write", "flush", "discard", "write_zeroes", "extents"})
    live = False

    def open(self, device: Device, below: Operations, options: Mapping[str, Any]) -> None:
        """Make the overlay; the disk takes writes now, whatever the handler does."""
        try:
            self._overlay = Overlay(device.size or 0, device.block_size, options.get("directory", ""))
        except (OSError, ValueError) as error:
            raise ConfigError(f"there is no room for an overlay of {device.size} bytes: {error}") from error
        device.read_only = False
        device.write_cache = True
        device.discard_granularity = device.discard_alignment = device.max_discard_length = 0

    def close(self) -> None:
        """Throw the overlay away."""
        self._overlay.close()

    def read(self, below: Callable[..., Any], offset: int, buffers: list[memoryview]) -> Any:
        """Read what was written from the overlay, and the rest from below."""

        def each() -> Iterator[Any]:
            for start, length, own in self._overlay.runs(offset, sum(map(len, buffers))):
                parts = slice_buffers(buffers, start - offset, length)
                yield (self._overlay.read if own else below)(start, parts)

        return gathered(each())

    def write(self, below: object, offset: int, buffers: list[memoryview]) -> None:
        """Keep data in the overlay."""
        self._overlay.write(offset, buffers)

    def flush(self, below: object) -> None:
        """Do nothing: nothing of this is to last."""

    def discard(self, below: object, offset: int, length: int) -> None:
        """Free what the overlay has, and read as zeros."""
        self._overlay.clear(offset, length)

    def write_zeroes(self, below: object, offset: int, length: int) -> None:
        """Read as zeros."""
        self._overlay.clear(offset, length)

    def extents(self, below: Callable[..., Any] | None, offset: int, length: int) -> list[Extent] | Any:
        """Call all that the overlay has allocated, and tell the rest as below does."""
        runs = list(self._overlay.runs(offset, length))
        lower = [None if own or below is None else below(start, count) for start, count, own in runs]

        def joined() -> list[Extent]:
            found: list[Extent] = []
            for (start, count, _own), told in zip(runs, lower, strict=True):
                seen = told.result() if isinstance(told, Future) else told
                found += [Extent(start, count, mapped=True)] if seen is None else seen
            return found

        return after(gathered(lower), joined)
