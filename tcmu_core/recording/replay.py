"""Replay: a recording's operations sent to another disk, and where that one answers otherwise."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from tcmu_core.recording.file import GOOD, Outcome, Record
from tcmu_core.recording.layout import Flag, Form, Kind


class Goal(Protocol):
    """A disk that operations are sent to; each call returns when it has ended."""

    def do(self, record: Record, data: bytes) -> tuple[Outcome, bytes]:
        """Do what a record did, `data` being what it wrote; return the outcome and what was read."""


@dataclass(frozen=True, slots=True)
class Difference:
    """Where the other disk answered otherwise. `number` counts the records from 0."""

    number: int
    record: Record
    outcome: Outcome
    data: bool  # whether it is the data that differs

    def __str__(self) -> str:
        record = self.record
        where = f" {record.length} bytes at {record.offset}" if record.length else ""
        what = f"record {self.number}: {record.kind.name.lower()}{where}"
        if self.data:
            return f"{what}: other data was read"
        return f"{what}: recorded {record.outcome}, now {self.outcome}"


class _Ranges:
    """Places on the disk, merged where they meet: a recording without data has one for each of its writes."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []

    def add(self, record: Record) -> None:
        start, end = record.offset, record.offset + record.length
        low, high = bisect_left(self._ends, start), bisect_right(self._starts, end)
        if low < high:
            start, end = min(start, self._starts[low]), max(end, self._ends[high - 1])
        self._starts[low:high], self._ends[low:high] = [start], [end]

    def touch(self, record: Record) -> bool:
        at = bisect_right(self._ends, record.offset)
        return at < len(self._starts) and self._starts[at] < record.offset + record.length


def replay(
    records: Iterable[Record], goal: Goal, far: Callable[[int, int], object] = lambda done, total: None
) -> Iterator[Difference | None]:
    """Do each record in the order in which they began; yield a difference, or None, for each that was done.

    `far(done, total)` is told before each one how many there are.

    A failed write of the recording may have changed the disk or not, and reads beside a write that was in flight may
    have seen it or not: what follows from that is not compared.
    """
    uncertain = _Ranges()
    ordered = sorted(enumerate(records), key=lambda each: each[1].start)
    for position, (number, record) in enumerate(ordered):
        far(position, len(ordered))
        if record.flags & Flag.IMPLIED and _follows_fua(ordered, position):
            continue  # the write before it is sent with FUA again
        data = record.data() if record.kind is Kind.WRITE else None
        if record.kind is Kind.WRITE and data is None:  # what it wrote was not kept
            uncertain.add(record)
            continue
        outcome, got = goal.do(record, data or b"")
        if record.kind is not Kind.READ and (record.outcome, outcome) != (GOOD, GOOD):
            uncertain.add(record)
        if outcome != record.outcome:
            yield Difference(number, record, outcome, data=False)
            continue
        compared = record.kind is Kind.READ and outcome == GOOD and record.form is not Form.NONE
        certain = compared and not uncertain.touch(record) and not _beside_a_write(ordered, position)
        if certain and record.same(got) is False:
            yield Difference(number, record, outcome, data=True)
        else:
            yield None


def _follows_fua(ordered: list[tuple[int, Record]], position: int) -> bool:
    start = ordered[position][1].start
    return any(
        record.flags & Flag.FUA and record.end <= start for _, record in ordered[max(0, position - 256) : position]
    )


def _beside_a_write(ordered: list[tuple[int, Record]], position: int) -> bool:
    """Say whether a write to the same place was in flight at the same time; near records are looked at."""
    own = ordered[position][1]
    for _, record in ordered[max(0, position - 256) : position + 256]:
        together = record.start < own.end and own.start < record.end
        overlap = record.offset < own.offset + own.length and own.offset < record.offset + record.length
        if record.kind not in (Kind.READ, Kind.FLUSH) and together and overlap:
            return True
    return False
