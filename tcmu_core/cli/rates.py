"""Rates: what happened between two looks at the counters, by disk and initiator, and what holds it up."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import zip_longest

from tcmu_core.host.messages import InitiatorCounters, TimesTaken
from tcmu_core.host.observer import Sight

STAGES = ("queue", "storage", "send")
_LITTLE = 0.5  # commands at a time: below, the disk has nothing to do for half of the time
_PART = {
    "queue": "commands wait for their turn in this process",
    "storage": "the storage",
    "send": "the network, or the initiator that takes the answers",
}

Key = tuple[int, int, str, str]  # process, LUN, disk, initiator


@dataclass(frozen=True, slots=True)
class Sum:
    """What is counted of an initiator's commands, of all operation codes together; times by stage."""

    commands: int
    bytes: int
    in_flight: int
    errors: int
    times: Mapping[str, TimesTaken]


NOTHING = Sum(0, 0, 0, 0, dict.fromkeys(STAGES, TimesTaken()))


@dataclass(frozen=True)
class Look:
    """The counters of all disks at one time, in seconds of a clock that only goes forward."""

    at: float
    counters: Mapping[Key, InitiatorCounters]

    @functools.cached_property
    def sums(self) -> Mapping[Key, Sum]:
        """Return what is counted, of all operation codes; a look is compared with the one before and the one after."""
        return {key: _sum(counters) for key, counters in self.counters.items()}

    def since(self, key: Key, since: float) -> Sum:
        """Return the counters that began at a time; nothing where they began at another."""
        counters = self.counters.get(key)
        return self.sums[key] if counters is not None and counters.since == since else NOTHING


@dataclass(frozen=True, slots=True)
class Stage:
    """A part of the way of a command: half of the samples took no more than `p50` seconds, 99 % of them than `p99`.

    `counts` are the samples by powers of two of a nanosecond, as in `TimesTaken`.
    """

    p50: float
    p99: float
    mean: float
    samples: int
    counts: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Row:
    """What one initiator had a disk do. A stage is None where no sample was taken; `depth` are commands at a time."""

    disk: str
    initiator: str
    iops: float
    bytes: float  # a second
    depth: float
    in_flight: int
    errors: float  # a second
    queue: Stage | None
    storage: Stage | None
    send: Stage | None


def look(sight: Sight, disk: str | None = None) -> Look:
    """Return the counters in what an observer has seen, of one disk or of all."""
    return Look(
        sight.at,
        {
            (seen.status.pid, one.lun, one.name, counters.initiator): counters
            for seen in sight.hosts
            for one in seen.status.disks
            if disk in (None, one.name)
            for counters in seen.counters[one.lun]
        },
    )


def rows(before: Look, after: Look) -> list[Row]:
    """Return what happened between two looks."""
    seconds = max(after.at - before.at, 1e-9)
    return [_row(key, before.since(key, now.since), after.sums[key], seconds) for key, now in after.counters.items()]


def _row(key: Key, old: Sum, new: Sum, seconds: float) -> Row:
    stages = {name: _stage(old.times[name], new.times[name]) for name in STAGES}
    iops = (new.commands - old.commands) / seconds
    held = sum(stage.mean for stage in stages.values() if stage is not None)
    _, _, disk, initiator = key
    return Row(
        disk=disk,
        initiator=initiator,
        iops=iops,
        bytes=(new.bytes - old.bytes) / seconds,
        depth=max(iops * held, float(new.in_flight)),  # Little's law; what hangs shows in the other
        in_flight=new.in_flight,
        errors=(new.errors - old.errors) / seconds,
        **stages,
    )


def _sum(counters: InitiatorCounters) -> Sum:
    """Add up what is counted for each operation code."""
    of = counters.operations
    return Sum(
        sum(one.commands for one in of),
        sum(one.bytes for one in of),
        sum(one.in_flight for one in of),
        sum(error.count for one in of for error in one.errors),
        {name: total(getattr(one, name) for one in of) for name in STAGES},
    )


def total(histograms: Iterable[TimesTaken]) -> TimesTaken:
    """Return histograms as one."""
    taken = [one for one in histograms if one.counts]
    if len(taken) == 1:
        return taken[0]
    counts = map(sum, zip_longest(*(one.counts for one in taken), fillvalue=0))
    return TimesTaken(tuple(counts), sum(one.total for one in taken))


def _stage(before: TimesTaken, now: TimesTaken) -> Stage | None:
    earlier = before.counts + (0,) * (len(now.counts) - len(before.counts))
    counts = [new - old for old, new in zip(earlier, now.counts, strict=True)]
    samples = sum(counts)
    if not samples:
        return None
    mean = (now.total - before.total) / samples / 1e9
    return Stage(percentile(counts, 0.50), percentile(counts, 0.99), mean, samples, tuple(counts))


def percentile(counts: list[int], part: float) -> float:
    """Return in how many seconds that part of the samples was done, as well as powers of two tell it."""
    want = part * sum(counts)
    for bucket, count in enumerate(counts):
        if count and want <= count:
            return float(2 ** (bucket - 1 + want / count) / 1e9) if bucket else 0.0
        want -= count
    return 0.0


def bottleneck(found: Iterable[Row]) -> str:
    """Say in a line what holds up the row that has most under way."""
    row = max(found, key=lambda row: row.depth, default=None)
    if row is None or (not row.iops and not row.in_flight):
        return "nothing to do: no command has come"
    if not row.iops:
        return f"{row.disk}: {row.in_flight} in flight, and none has ended: the storage does not answer"
    stages = {name: stage for name in STAGES if (stage := getattr(row, name)) is not None}
    if row.depth < _LITTLE:
        return f"{row.disk}: nothing is: the initiator asks for little, {row.depth:.2f} commands at a time"
    if not stages:
        return f"{row.disk}: too few samples to tell"
    name = max(stages, key=lambda name: stages[name].mean)
    share = stages[name].mean / (sum(stage.mean for stage in stages.values()) or 1.0)
    return f"{row.disk}: {_PART[name]}: {share:.0%} of a command's time ({name}, p99 {duration(stages[name].p99)})"


def duration(seconds: float) -> str:
    """Return a time as a person writes it."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e6:.3g} µs"
