"""Crash states: the images that a power cut could have left, as a recording tells what was flushed when.

The disk is one with a volatile write cache (SBC-4 4.15). What ended before a flush began is on the medium when that
flush has ended; a write with FUA when it has itself. Of all other writes any may be there, or not, or in part: blocks
are whole, so a torn write has its first blocks, or its last. From one flush to the next that is an epoch. All subsets
of an epoch are tried where they are few; otherwise, as CrashMonkey bounds it, what bugs were found with: each prefix,
all but one, one alone, a prefix whose last write is torn, and then subsets by chance.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import Enum

from tcmu_core.errors import ConfigError
from tcmu_core.recording.file import GOOD, Record
from tcmu_core.recording.layout import Flag, Kind

CHANGES = (Kind.WRITE, Kind.DISCARD, Kind.WRITE_ZEROES)


class Part(Enum):
    """How much of a write is on the medium."""

    WHOLE = "whole"
    FIRST = "its first block only"
    HALF = "its first half"
    LAST = "its last block only"


@dataclass(frozen=True, slots=True)
class Write:
    """A change of the medium. `number` counts the recording's records from 0."""

    number: int
    offset: int
    length: int
    data: bytes | None  # None: zeros

    def part(self, part: Part, block: int) -> tuple[int, bytes]:
        """Return offset and bytes of a part of it."""
        data = self.data if self.data is not None else bytes(self.length)
        match part:
            case Part.FIRST:
                return self.offset, data[:block]
            case Part.HALF:
                return self.offset, data[: max(1, self.length // block // 2) * block]
            case Part.LAST:
                return self.offset + self.length - block, data[self.length - block :]
        return self.offset, data


State = tuple[tuple[int, Part], ...]  # positions in the epoch's `pending`, ascending, and how much of each


@dataclass(slots=True)
class Epoch:
    """From one flush to the next: `durable` became certain at its beginning, `pending` may be there or not.

    `number` counts the epochs from 0; the last may have no flush at its end.
    """

    number: int
    durable: list[Write] = field(default_factory=list)
    pending: list[Write] = field(default_factory=list)

    def states(self, block: int, limit: int, seed: int) -> Iterator[State]:
        """Yield what a cut in this epoch could have left, no more than `limit`, none twice; the whole of it first."""
        seen: set[State] = set()
        for state in self._states(block, limit, seed):
            if state not in seen:
                seen.add(state)
                yield state
                if len(seen) >= limit:
                    return

    def _states(self, block: int, limit: int, seed: int) -> Iterator[State]:
        count = len(self.pending)
        whole = [(position, Part.WHOLE) for position in range(count)]
        for length in range(count, -1, -1):
            yield tuple(whole[:length])
        if count <= 20 and 1 << count <= limit:
            for bits in range(1 << count):
                yield tuple(each for each in whole if bits >> each[0] & 1)
        for position in range(count):
            yield tuple(whole[:position] + whole[position + 1 :])
            yield (whole[position],)
        for position in range(count):
            for part in self._parts(position, block):
                yield (*whole[:position], (position, part))
                yield (*whole[:position], (position, part), *whole[position + 1 :])
        if not count:
            return
        chance = random.Random(f"{seed}/{self.number}")
        for _ in range(4 * limit):
            chosen = [each for each in whole if chance.random() < 0.5]
            yield tuple(chosen)
            if chosen and (parts := self._parts(chosen[-1][0], block)):
                yield (*chosen[:-1], (chosen[-1][0], chance.choice(parts)))

    def _parts(self, position: int, block: int) -> list[Part]:
        """Return how a write can be torn."""
        blocks = self.pending[position].length // block
        if blocks < 2:
            return []
        return [Part.FIRST, Part.LAST] if blocks < 4 else [Part.FIRST, Part.HALF, Part.LAST]


def epochs(records: Iterable[Record]) -> Iterator[Epoch]:
    """Yield the epochs of a recording.

    Raises:
        ConfigError: the data of a write was not kept.
    """
    found = [(number, record) for number, record in enumerate(records) if record.outcome == GOOD]
    epoch = Epoch(0)
    ends: dict[int, tuple[int, bool]] = {}  # by number: when a pending write ended, and whether it is one with FUA
    for number, record in sorted(found, key=lambda each: each[1].end):
        if record.kind in CHANGES:
            epoch.pending.append(_write(number, record))
            ends[number] = record.end, bool(record.flags & Flag.FUA)
        elif record.kind is Kind.FLUSH:
            covered = _covered(record, epoch.pending, ends)
            if not covered:
                continue
            yield epoch
            durable = [write for write in epoch.pending if write.number in covered]
            others = [write for write in epoch.pending if write.number not in covered]
            kept = [piece for write in others for piece in _uncovered(write, epoch.pending, covered)]
            epoch = Epoch(epoch.number + 1, durable, kept)
    yield epoch


def _covered(flush: Record, pending: list[Write], ends: dict[int, tuple[int, bool]]) -> set[int]:
    """Return the numbers of the writes that a flush has made durable."""
    before = {write.number for write in pending if ends[write.number][0] <= flush.start}
    if flush.flags & Flag.IMPLIED:
        own = {number for number in before if ends[number][1]}
        return own or before  # without FUA it is the end of a write where the write cache is off
    return before


def _uncovered(write: Write, pending: list[Write], covered: set[int]) -> list[Write]:
    """Return the pieces of a write that no later, durable one lies upon: a cache never goes back behind the medium."""
    later = pending[pending.index(write) + 1 :]
    pieces = [write]
    for above in (each for each in later if each.number in covered):
        pieces = [rest for piece in pieces for rest in _minus(piece, above)]
    return pieces


def _minus(write: Write, above: Write) -> Iterator[Write]:
    """Yield what is left of a write before and behind another."""
    end, stop = write.offset + write.length, above.offset + above.length
    if above.offset >= end or stop <= write.offset:
        yield write
        return
    for first, last in ((write.offset, above.offset), (stop, end)):
        if first < last:
            data = None if write.data is None else write.data[first - write.offset : last - write.offset]
            yield Write(write.number, first, last - first, data)


def _write(number: int, record: Record) -> Write:
    data = None
    if record.kind is Kind.WRITE:
        data = record.data()
        if data is None:
            raise ConfigError("what was written is not in the recording: record with data=writes")
    return Write(number, record.offset, record.length, data)
