"""The filter `stats`: counts of operations, bytes and errors, and how long they took."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any

from tcmu_core.disk.layers import CHANGES
from tcmu_core.errors import ConfigError
from tcmu_core.filters.base import Filter
from tcmu_core.filters.clock import CLOCK, Clock
from tcmu_core.filters.waiting import failure

BUCKETS = 26  # powers of two of microseconds: up to half a minute


class Counter:
    """What is known of one hook; `latency[n]` counts those that took from 2**(n-1) to less than 2**n microseconds."""

    def __init__(self) -> None:
        self.count = self.bytes = self.errors = self.in_flight = 0
        self.seconds = 0.0
        self.latency = [0] * BUCKETS
        self._lock = threading.Lock()  # a handler's operations may end on its threads

    def began(self, length: int) -> None:
        """Count one that begins, of so many bytes."""
        with self._lock:
            self.count += 1
            self.bytes += length
            self.in_flight += 1

    def ended(self, seconds: float, *, failed: bool) -> None:
        """Count one that has ended."""
        with self._lock:
            self.in_flight -= 1
            self.errors += failed
            self.seconds += seconds
            self.latency[min(BUCKETS - 1, int(seconds * 1e6).bit_length())] += 1

    def as_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        last = max((at for at, count in enumerate(self.latency) if count), default=-1)
        return {
            "count": self.count,
            "bytes": self.bytes,
            "errors": self.errors,
            "in_flight": self.in_flight,
            "seconds": self.seconds,
            "latency_us": {str(1 << at): count for at, count in enumerate(self.latency[: last + 1]) if count},
        }


class Statistics(Filter):
    """Count operations, bytes, errors and times; `tcmu filter DISK tell stats` shows them."""

    passes = frozenset({"handle_cmd", CHANGES})

    def __init__(self, clock: Clock = CLOCK) -> None:
        super().__init__()
        self._now = clock.now
        self.counters: dict[str, Counter] = {}
        self._reset()

    def _reset(self) -> None:
        self.counters = {hook: Counter() for hook in ("read", "write", "flush", "discard", "write_zeroes", "extents")}

    def control(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """Answer `show` (the default) and `reset`."""
        action = message.get("action", "show")
        if action not in ("show", "reset"):
            raise ConfigError(f"{action!r} is nothing that can be asked of `stats`: show or reset")
        told = {hook: counter.as_dict() for hook, counter in self.counters.items()}
        if action == "reset":
            self._reset()
        return told

    def _counted(self, counter: Counter, length: int, fn: Callable[..., Any], *args: Any) -> Any:
        counter.began(length)
        began = self._now()
        try:
            pending = fn(*args)
        except BaseException:
            counter.ended(self._now() - began, failed=True)
            raise
        if isinstance(pending, Future):
            pending.add_done_callback(lambda done: counter.ended(self._now() - began, failed=failure(done) is not None))
        else:
            counter.ended(self._now() - began, failed=False)
        return pending

    def read(self, below: Callable[..., Any], offset: int, buffers: list[memoryview]) -> Any:
        """Count a read."""
        return self._counted(self.counters["read"], sum(map(len, buffers)), below, offset, buffers)

    def write(self, below: Callable[..., Any], offset: int, buffers: list[memoryview]) -> Any:
        """Count a write."""
        return self._counted(self.counters["write"], sum(map(len, buffers)), below, offset, buffers)

    def flush(self, below: Callable[..., Any]) -> Any:
        """Count a flush."""
        return self._counted(self.counters["flush"], 0, below)

    def discard(self, below: Callable[..., Any], offset: int, length: int) -> Any:
        """Count a discard."""
        return self._counted(self.counters["discard"], length, below, offset, length)

    def write_zeroes(self, below: Callable[..., Any], offset: int, length: int) -> Any:
        """Count a write of zeros."""
        return self._counted(self.counters["write_zeroes"], length, below, offset, length)

    def extents(self, below: Callable[..., Any], offset: int, length: int) -> Any:
        """Count a question for extents."""
        return self._counted(self.counters["extents"], length, below, offset, length)
