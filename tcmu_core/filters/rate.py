"""The filter `rate`: so many operations and bytes a second, for the disk and for each initiator."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from tcmu_core.cfgstring import size
from tcmu_core.disk.device import Device
from tcmu_core.disk.layers import CHANGES, Operations
from tcmu_core.errors import ConfigError
from tcmu_core.filters.base import Filter
from tcmu_core.filters.bucket import Bucket
from tcmu_core.filters.clock import CLOCK, Clock, Waiting
from tcmu_core.options import Option, Options
from tcmu_core.scsi.command import Command
from tcmu_core.scsi.opcodes import Op

LIMITS = ("iops", "bytes", "initiator_iops", "initiator_bytes")
MANY = 256  # initiators that are known, from which on those that pause are forgotten
_TRANSFERS = frozenset({
    Op.READ_6, Op.READ_10, Op.READ_12, Op.READ_16, Op.WRITE_6, Op.WRITE_10, Op.WRITE_12, Op.WRITE_16,
    Op.WRITE_AND_VERIFY_10, Op.WRITE_AND_VERIFY_12, Op.WRITE_AND_VERIFY_16, Op.COMPARE_AND_WRITE, Op.ORWRITE_16,
    Op.WRITE_SAME_10, Op.WRITE_SAME_16, Op.WRITE_ATOMIC_16, Op.UNMAP, Op.VERIFY_10, Op.VERIFY_12, Op.VERIFY_16,
})  # fmt: skip


class Rate(Filter):
    """Limit how many operations and bytes a second the disk does; `tcmu filter DISK tell rate iops=…` changes that."""

    options = Options(
        Option("iops", float, "operations a second", least=0),
        Option("bytes", size, "bytes a second, such as 100M"),
        Option("initiator_iops", float, "operations a second of each initiator", least=0),
        Option("initiator_bytes", size, "bytes a second of each initiator"),
        Option("burst", float, "how many seconds' worth may come at once after a pause", default=1.0),
    )

    settable = frozenset(options.options)

    def __init__(self, clock: Clock = CLOCK) -> None:
        super().__init__()
        self._clock = clock
        self._waiting = Waiting(clock)
        self._limits: dict[str, float] = {}
        self._burst = 1.0
        self._disk: list[tuple[Bucket, bool]] = []  # with whether its tokens are bytes
        self._initiators: dict[str, list[tuple[Bucket, bool]]] = {}

    def open(self, device: Device, below: Operations, options: Mapping[str, Any]) -> None:
        """Take the limits."""
        self._set({**{"burst": 1.0}, **options})

    def close(self) -> None:
        """End what waits."""
        self._waiting.close()

    def _set(self, options: Mapping[str, float]) -> None:
        limits = {name: float(options[name]) for name in LIMITS if options.get(name)}
        burst = float(options.get("burst", self._burst))
        if not all(0 < number < math.inf for number in (*limits.values(), burst)):
            raise ConfigError("a rate is a number above 0, and 0 for none; a burst is a number of seconds above 0")
        self._limits, self._burst = limits, burst
        self._disk = self._buckets("iops", "bytes")
        self._initiators.clear()
        hooks = {"extents", CHANGES} | ({"flush"} if "iops" not in limits else set())
        if not self._disk:
            hooks |= {"read", "write", "flush", "discard", "write_zeroes"}
        if not limits.keys() & {"initiator_iops", "initiator_bytes"}:
            hooks.add("handle_cmd")
        self.passes = frozenset(hooks)

    def _buckets(self, operations: str, volume: str) -> list[tuple[Bucket, bool]]:
        now = self._clock.now()
        return [
            (Bucket(self._limits[name], max(1.0, self._limits[name] * self._burst), now), name == volume)
            for name in (operations, volume)
            if name in self._limits
        ]

    def control(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """Show the limits, after setting those that the message has (0: none)."""
        given = {name: value for name, value in message.items() if name in self.options.options}
        if unknown := message.keys() - given.keys() - {"action"}:
            raise ConfigError(f"{', '.join(sorted(unknown))}: there are {', '.join(self.options.options)}")
        if given:
            try:
                told = {name: self.options.options[name].value(str(value)) for name, value in given.items()}
            except ValueError as error:
                raise ConfigError(str(error)) from None
            self._set({**self._limits, **told})
        return {**dict.fromkeys(LIMITS, 0), **self._limits, "burst": self._burst, "waiting": len(self._waiting)}

    def _delay(self, buckets: list[tuple[Bucket, bool]], length: int) -> float:
        now = self._clock.now()
        return max((bucket.take(length if of_bytes else 1, now) for bucket, of_bytes in buckets), default=0.0)

    def _late(self, pending: Any, length: int) -> Any:
        return self._waiting.delayed(pending, self._delay(self._disk, length))

    def handle_cmd(self, below: Callable[..., Any], command: Command) -> Any:
        """Let a command that moves or frees data wait for its initiator's share."""
        if command.cdb[0] not in _TRANSFERS:
            return below(command)
        name = command.nexus.initiator.name
        if name not in self._initiators:
            if len(self._initiators) >= MANY:
                self._forget_idle()
            self._initiators[name] = self._buckets("initiator_iops", "initiator_bytes")
        return self._waiting.delayed(below(command), self._delay(self._initiators[name], command.length))

    def _forget_idle(self) -> None:
        """Forget the initiators that have had a pause long enough: who comes back begins as they would go on."""
        now = self._clock.now()
        self._initiators = {
            name: buckets
            for name, buckets in self._initiators.items()
            if not all(bucket.full(now) for bucket, _ in buckets)
        }

    def read(self, below: Callable[..., Any], offset: int, buffers: list[memoryview]) -> Any:
        """Read, at the rate."""
        return self._late(below(offset, buffers), sum(map(len, buffers)))

    def write(self, below: Callable[..., Any], offset: int, buffers: list[memoryview]) -> Any:
        """Write, at the rate."""
        return self._late(below(offset, buffers), sum(map(len, buffers)))

    def flush(self, below: Callable[..., Any]) -> Any:
        """Flush, at the rate."""
        return self._late(below(), 0)

    def discard(self, below: Callable[..., Any], offset: int, length: int) -> Any:
        """Discard, at the rate; no bytes are moved."""
        return self._late(below(offset, length), 0)

    def write_zeroes(self, below: Callable[..., Any], offset: int, length: int) -> Any:
        """Write zeros, at the rate; no bytes are moved."""
        return self._late(below(offset, length), 0)
