"""The filter `log`: each operation in the log, when it ends."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any

from tcmu_core.cfgstring import boolean
from tcmu_core.disk.device import Device
from tcmu_core.disk.layers import CHANGES, Operations
from tcmu_core.errors import text_of
from tcmu_core.filters.base import Filter
from tcmu_core.filters.clock import CLOCK, Clock
from tcmu_core.filters.waiting import failure
from tcmu_core.options import Option, Options

LEVELS = {"error": logging.ERROR, "warn": logging.WARNING, "info": logging.INFO, "debug": logging.DEBUG}


class OperationLog(Filter):
    """Write a line into the log for each operation: what was asked, how long it took, and what came of it."""

    options = Options(
        Option("level", help="of the lines", default="info", choices=tuple(LEVELS)),
        Option("errors", boolean, "only those that fail", default=False),
    )
    passes = frozenset({"handle_cmd", CHANGES})

    def __init__(self, clock: Clock = CLOCK) -> None:
        super().__init__()
        self._clock = clock

    def open(self, device: Device, below: Operations, options: Mapping[str, Any]) -> None:
        """Take the device's log."""
        self._log = device.log
        self._level = LEVELS[options.get("level", "info")]
        self._errors: bool = options.get("errors", False)

    def _watched(self, what: str, fn: Callable[..., Any], *args: Any) -> Any:
        began = self._clock.now()
        try:
            pending = fn(*args)
        except BaseException as error:
            self._ended(what, began, error)
            raise
        if isinstance(pending, Future):
            pending.add_done_callback(lambda done: self._ended(what, began, failure(done)))
        else:
            self._ended(what, began, None)
        return pending

    def _ended(self, what: str, began: float, error: BaseException | None) -> None:
        if error is not None or not self._errors:
            took = (self._clock.now() - began) * 1e6
            self._log.log(self._level, "%s: %s, %.0f us", what, "done" if error is None else text_of(error), took)

    def read(self, below: Callable[..., Any], offset: int, buffers: list[memoryview]) -> Any:
        """Log a read."""
        return self._watched(f"read {_length(buffers)} bytes at {offset}", below, offset, buffers)

    def write(self, below: Callable[..., Any], offset: int, buffers: list[memoryview]) -> Any:
        """Log a write."""
        return self._watched(f"write {_length(buffers)} bytes at {offset}", below, offset, buffers)

    def flush(self, below: Callable[..., Any]) -> Any:
        """Log a flush."""
        return self._watched("flush", below)

    def discard(self, below: Callable[..., Any], offset: int, length: int) -> Any:
        """Log a discard."""
        return self._watched(f"discard {length} bytes at {offset}", below, offset, length)

    def write_zeroes(self, below: Callable[..., Any], offset: int, length: int) -> Any:
        """Log a write of zeros."""
        return self._watched(f"write_zeroes {length} bytes at {offset}", below, offset, length)

    def extents(self, below: Callable[..., Any], offset: int, length: int) -> Any:
        """Log a question for extents."""
        return self._watched(f"extents of {length} bytes at {offset}", below, offset, length)


def _length(buffers: list[memoryview]) -> int:
    return sum(len(buffer) for buffer in buffers)
