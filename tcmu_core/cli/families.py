"""The metrics' families, and what an observer has seen as their samples.

The labels are bounded: disks are what is configured, a host tells 16 initiators of a disk apart and calls the rest
`other`, and so it does with operation codes that have no name.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal, NamedTuple

from tcmu_core.cli.rates import STAGES, total
from tcmu_core.host.messages import DiskStatus, InitiatorCounters, TimesTaken
from tcmu_core.host.observer import Sight

BOUNDS = range(10, 38, 2)  # powers of two of a nanosecond: from 1 µs to 69 s
EDGES = (*(repr(2**power / 1e9) for power in BOUNDS), "+Inf")  # seconds


@dataclass(frozen=True, slots=True, eq=False)
class Family:
    """One metric, by its name without the endings of samples; a counter's samples end in `_total`."""

    name: str
    kind: Literal["gauge", "counter", "histogram"]
    help: str
    labels: tuple[str, ...] = ()
    unit: str = ""


_DISK = ("target", "lun", "disk")
_EACH = (*_DISK, "initiator")

PROCESSES = Family("tcmu_processes", "gauge", "Processes that serve disks.")
SILENT = Family("tcmu_processes_silent", "gauge", "Processes that do not answer: what they serve is not told.")
UP = Family("tcmu_disk_up", "gauge", "Whether the disk is served: 0 where it is missing.", _DISK)
SIZE = Family("tcmu_disk_size_bytes", "gauge", "Size of the disk.", _DISK, "bytes")
NEXUSES = Family("tcmu_disk_nexuses", "gauge", "Initiator ports that are logged in.", _DISK)
COMMANDS = Family("tcmu_commands", "counter", "Commands that have ended.", (*_EACH, "operation"))
MOVED = Family("tcmu_transferred_bytes", "counter", "Data to the disk, or from it.", (*_EACH, "operation"))
ERRORS = Family(
    "tcmu_command_errors", "counter", "Commands that did not end with GOOD, by sense key or status.",
    (*_EACH, "operation", "error"),
)  # fmt: skip
IN_FLIGHT = Family("tcmu_commands_in_flight", "gauge", "Commands that have not ended.", _EACH)
TIMES = Family(
    "tcmu_command_sampled_seconds", "histogram",
    "Where commands spend their time, of samples: queue, storage, send.", (*_EACH, "stage"),
)  # fmt: skip
FAMILIES = (PROCESSES, SILENT, UP, SIZE, NEXUSES, COMMANDS, MOVED, ERRORS, IN_FLIGHT, TIMES)


class Value(NamedTuple):
    """A gauge's or a counter's value; `since` is when a counter began, in seconds since 1970."""

    labels: tuple[str, ...]
    value: int
    since: float | None = None


class Buckets(NamedTuple):
    """A histogram: how many samples lie below each of `EDGES`, and the seconds of all."""

    labels: tuple[str, ...]
    counts: tuple[int, ...]
    sum: float


def gathered(sight: Sight) -> dict[Family, list[Value | Buckets]]:
    """Return the samples of each family."""
    found: dict[Family, list[Value | Buckets]] = {family: [] for family in FAMILIES}
    found[PROCESSES].append(Value((), len(sight.hosts)))
    found[SILENT].append(Value((), len(sight.silent)))
    told: set[tuple[str, ...]] = set()  # two processes that serve the same would make the whole answer invalid
    for seen in sight.hosts:
        for disk in seen.status.disks:
            labels = (seen.status.title, str(disk.lun), disk.name)
            if labels not in told:
                told.add(labels)
                for family, sample in _of_disk(labels, disk, seen.counters[disk.lun]):
                    found[family].append(sample)
        for missing in seen.status.missing:
            labels = (seen.status.title, str(missing.lun), missing.name)
            if labels not in told:
                told.add(labels)
                found[UP].append(Value(labels, 0))
    return found


def _of_disk(
    labels: tuple[str, ...], disk: DiskStatus, counters: tuple[InitiatorCounters, ...]
) -> Iterator[tuple[Family, Value | Buckets]]:
    yield UP, Value(labels, 1)
    yield SIZE, Value(labels, disk.size)
    yield NEXUSES, Value(labels, len(disk.initiators))
    for one in counters:
        own = (*labels, one.initiator)
        yield IN_FLIGHT, Value(own, sum(operation.in_flight for operation in one.operations))
        for operation in one.operations:
            yield COMMANDS, Value((*own, operation.name), operation.commands, one.since)
            yield MOVED, Value((*own, operation.name), operation.bytes, one.since)
            for error in operation.errors:
                yield ERRORS, Value((*own, operation.name, error.kind), error.count, one.since)
        for stage in STAGES:
            taken = total(getattr(operation, stage) for operation in one.operations)
            yield TIMES, Buckets((*own, stage), _below(taken), taken.total / 1e9)


def _below(taken: TimesTaken) -> tuple[int, ...]:
    """Return how many samples lie below each edge."""
    below = [0, *accumulate(taken.counts)]
    return (*(below[min(power + 1, len(below) - 1)] for power in BOUNDS), below[-1])
