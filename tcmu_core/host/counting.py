"""What a host says of its counters: the tallies of a unit as messages, an initiator at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import compress, islice, starmap

from tcmu_core.host.messages import DiskCounters, ErrorCount, InitiatorCounters, OperationCounters, TimesTaken
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
    return next(islice(Ledger(unit).told(0, 1), number, None), None) if number >= 0 else None


@dataclass(frozen=True, slots=True)
class _Told:
    mark: tuple[int, ...]  # what the counts were, as far as it takes to see that they have changed
    number: int  # of the look that found them so first
    counters: OperationCounters


class Ledger:
    """What was told of the counters of a disk last, so that who looks again and again is told what has changed."""

    def __init__(self, unit: Unit) -> None:
        self.unit = unit
        self._told: dict[Tally, dict[int, _Told]] = {}

    def told(self, after: int, number: int) -> Iterator[InitiatorCounters]:
        """Yield each initiator, with the operation codes that have changed since look `after`; this one is `number`."""
        told, self._told = self._told, {}
        in_flight: dict[int, Counter[int]] = {}
        for command in self.unit.tasks.active:
            if command.cdb:
                in_flight.setdefault(id(command.nexus.tally), Counter())[_known(command.cdb[0])] += 1
        tallies = self.unit.tallies
        for name, tally in (*tallies.by_name.items(), (OTHERS, tallies.others)):
            own = in_flight.get(id(tally))
            if tally is not tallies.others or own or any(tally.commands):
                known = self._told[tally] = told.get(tally, {})
                _bring_up_to_date(known, tally, own or Counter(), number)
                changed = [one.counters for _, one in sorted(known.items()) if one.number > after]
                yield InitiatorCounters(name, tuple(changed), tally.since)


class Ledgers:
    """Those of the disks of a host, by LUN."""

    def __init__(self) -> None:
        self._by_lun: dict[int, Ledger] = {}
        self.number = 0  # of the last look

    def look(self, units: Mapping[int, Unit], after: int) -> Iterator[DiskCounters]:
        """Look at the disks that there are; yields what has changed since look `after` (0: all)."""
        self.number += 1
        last, self._by_lun = self._by_lun, {}
        for lun, unit in units.items():
            ledger = last.get(lun)
            if ledger is None or ledger.unit is not unit:
                ledger = Ledger(unit)
            self._by_lun[lun] = ledger
            for one in ledger.told(after, self.number):
                yield DiskCounters(lun, one)


def _known(opcode: int) -> int:
    return opcode if opcode in _NAMES else UNNAMED


def _bring_up_to_date(known: dict[int, _Told], tally: Tally, in_flight: Counter[int], number: int) -> None:
    """Note what has changed; operation codes that have no name are one, so that nobody can make it long."""
    together: dict[int, list[int]] = {opcode: [] for opcode in (*known, *in_flight)}
    for opcode in compress(range(OPCODES), tally.commands):
        together.setdefault(_known(opcode), []).append(opcode)
    for opcode, those in together.items():
        times = [tally.times[one] for one in those if one in tally.times]
        commands = sum([tally.commands[one] for one in those])
        # The status of what is counted may be out later: its time is counted then.
        mark = (commands, in_flight[opcode], *[one.send.total for one in times])
        last = known.get(opcode)
        if last is None or last.mark != mark:
            failed: Counter[str] = Counter()
            for (code, status, key), count in tally.errors.items():
                if code in those:
                    failed[error_name(status, key)] += count
            told = OperationCounters(
                opcode,
                _NAMES[opcode],
                commands,
                sum([tally.moved[one] for one in those]),
                in_flight[opcode],
                tuple(starmap(ErrorCount, sorted(failed.items()))),
                _sum([one.queue for one in times]),
                _sum([one.storage for one in times]),
                _sum([one.send for one in times]),
            )
            known[opcode] = _Told(mark, number, told)


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
