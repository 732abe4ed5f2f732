"""What a host says of its counters: the tallies of a unit as messages, an initiator at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import compress, islice, starmap

from tcmu_core.host.messages import ErrorCount, InitiatorCounters, OperationCounters, TimesTaken
from tcmu_core.scsi.command import Status
from tcmu_core.scsi.opcodes import Op
from tcmu_core.scsi.sense import SenseKey
from tcmu_core.scsi.tally import ABORTED, OPCODES, OTHERS, Histogram, Tally
from tcmu_core.scsi.unit import Unit

UNNAMED = -1  # in place of an operation code: all that have no name
_NAMES = {**{int(op): op.name.lower() for op in Op}, UNNAMED: OTHERS}
_NO_TIME = TimesTaken()


def counters(unit: Unit, number: int) -> InitiatorCounters | None:
    """Return what initiator `number` of a disk, from 0 on, has had it do; None where there are no more."""
    return next(islice(every_counters(unit), number, None), None) if number >= 0 else None


def every_counters(unit: Unit) -> Iterator[InitiatorCounters]:
    """Yield what each initiator of a disk has had it do."""
    in_flight: dict[int, Counter[int]] = {}
    for command in unit.tasks.active:
        if command.cdb:
            in_flight.setdefault(id(command.nexus.tally), Counter())[_known(command.cdb[0])] += 1
    others = unit.tallies.others
    for name, tally in (*unit.tallies.by_name.items(), (OTHERS, others)):
        own = in_flight.get(id(tally))
        if tally is not others or own or any(tally.commands):
            yield InitiatorCounters(name, _operations(tally, own or Counter()), tally.since)


def _known(opcode: int) -> int:
    return opcode if opcode in _NAMES else UNNAMED


def _operations(tally: Tally, in_flight: Counter[int]) -> tuple[OperationCounters, ...]:
    """Return the counts by operation code; those that have no name are one, so that nobody can make it long."""
    failed: dict[int, Counter[str]] = {}
    for (opcode, status, key), count in tally.errors.items():
        failed.setdefault(_known(opcode), Counter())[error_name(status, key)] += count
    together: dict[int, list[int]] = {opcode: [] for opcode in in_flight}
    for opcode in compress(range(OPCODES), tally.commands):
        together.setdefault(_known(opcode), []).append(opcode)
    found = []
    for opcode, those in sorted(together.items()):
        times = [tally.times[one] for one in those if one in tally.times]
        found.append(
            OperationCounters(
                opcode,
                _NAMES[opcode],
                sum([tally.commands[one] for one in those]),
                sum([tally.moved[one] for one in those]),
                in_flight[opcode],
                tuple(starmap(ErrorCount, sorted(failed[opcode].items()))) if opcode in failed else (),
                _sum([one.queue for one in times]),
                _sum([one.storage for one in times]),
                _sum([one.send for one in times]),
            )
        )
    return tuple(found)


def error_name(status: int, key: int) -> str:
    """Return what an error is called: its sense key (SPC-4 4.5.6), or a status that is no CHECK CONDITION."""
    if status == ABORTED:
        return "aborted"
    if status != Status.CHECK_CONDITION:
        return Status(status).name.lower()
    return SenseKey(key).name.lower() if key in SenseKey.__members__.values() else OTHERS


def _sum(histograms: list[Histogram]) -> TimesTaken:
    """Return histograms as one, up to the last count that is not 0."""
    if len(histograms) == 1:  # of what has a name there is but one
        counts = histograms[0].counts
    else:
        counts = [sum(column) for column in zip(*(one.counts for one in histograms), strict=True)]
    if not any(counts):
        return _NO_TIME
    end = len(counts)
    while end and not counts[end - 1]:
        end -= 1
    return TimesTaken(tuple(counts[:end]), sum(one.total for one in histograms))
