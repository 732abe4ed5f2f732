"""The filter `delay`: every operation takes longer, by a time or a distribution of times."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any

from tcmu_core.disk.device import Device
from tcmu_core.disk.layers import CHANGES, Operations
from tcmu_core.filters.base import Filter
from tcmu_core.filters.clock import CLOCK, Clock, Waiting
from tcmu_core.filters.latency import Latency, latency
from tcmu_core.options import Option, Options

_HOOKS = ("read", "write", "flush", "discard", "write_zeroes", "extents")


class Delay(Filter):
    """Delay operations by a time such as 5ms, or by a distribution: uniform/1ms/5ms, normal/5ms/1ms, exponential/5ms,
    pareto/1ms/1.5.
    """

    options = Options(
        *(Option(hook, latency, f"how much later each {hook} ends") for hook in _HOOKS),
        Option("all", latency, "the same for each hook that is not named"),
        Option("seed", int, "for the same times again"),
    )

    def __init__(self, clock: Clock = CLOCK) -> None:
        super().__init__()
        self._waiting = Waiting(clock)
        self._chance = random.Random()
        self._times: dict[str, Latency] = {}

    def open(self, device: Device, below: Operations, options: Mapping[str, Any]) -> None:
        """Take the times."""
        if "seed" in options:
            self._chance = random.Random(options["seed"])
        for hook in _HOOKS:
            found = options.get(hook, options.get("all"))
            if found is not None:
                self._times[hook] = found
        self.passes = frozenset({*_HOOKS, "handle_cmd", CHANGES} - self._times.keys())

    def close(self) -> None:
        """End what waits."""
        self._waiting.close()

    def _late(self, hook: str, pending: Any) -> Any:
        # The work is done at once and its end told later: who waits can't see a difference, and `below` is called
        # on the thread that it is for.
        return self._waiting.delayed(pending, self._times[hook](self._chance))

    def read(self, below: Callable[..., Any], offset: int, buffers: list[memoryview]) -> Any:
        """Read, and tell so later."""
        return self._late("read", below(offset, buffers))

    def write(self, below: Callable[..., Any], offset: int, buffers: list[memoryview]) -> Any:
        """Write, and tell so later."""
        return self._late("write", below(offset, buffers))

    def flush(self, below: Callable[..., Any]) -> Any:
        """Flush, and tell so later."""
        return self._late("flush", below())

    def discard(self, below: Callable[..., Any], offset: int, length: int) -> Any:
        """Discard, and tell so later."""
        return self._late("discard", below(offset, length))

    def write_zeroes(self, below: Callable[..., Any], offset: int, length: int) -> Any:
        """Write zeros, and tell so later."""
        return self._late("write_zeroes", below(offset, length))

    def extents(self, below: Callable[..., Any], offset: int, length: int) -> Any:
        """Tell the extents, later."""
        return self._late("extents", below(offset, length))
