"""Crash states: the images that a power cut could have left, as a recording tells what was flushed when.

The disk is one with a volatile write cache (SBC-4 4.15). What ended before a flush began is on the medium when that
flush has ended; a write with FUA when it has itself. Of all other writes any may be there, or not, or in part: blocks
are whole, so a torn write has its first blocks, or its last. From one flush to the next that is an epoch. All subsets
of an epoch are tried where they are few; otherwise, as CrashMonkey bounds it, what bugs were found with: each prefix,
all but one, one alone, a prefix whose last write is torn, and then subsets by chance.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from enum import Enum

from tcmu_core.errors import ConfigError
from tcmu_core.recording.file import GOOD, Record
from tcmu_core.recording.layout import Flag, Form, Kind

CHANGES = (Kind.WRITE, Kind.DISCARD, Kind.WRITE_ZEROES)
MOST_REPEATED = 100_000  # states that were tried already, one after another: there are hardly others


class Part(Enum):
    """How much of a write is on the medium."""

    WHOLE = "whole"
    FIRST = "its first block only"
    HALF = "its first half"
    LAST = "its last block only"


@dataclass(frozen=True, slots=True)
class Write:
    """A change of the medium, or a piece of one. `number` counts the recording's records from 0.

    Its data stays as the recording has it, deflated perhaps, until it is asked for.
    """

    number: int
    offset: int
    length: int
    record: Record | None  # what holds the data; None: zeros

    def data(self) -> bytes | None:
        """Return the bytes; None for zeros, of which there may be as many as the disk has."""
        if self.record is None:
            return None
        first = self.offset - self.record.offset
        return (self.record.data() or b"")[first : first + self.length]

    def within(self, offset: int, length: int) -> Write:
        """Return a piece of it."""
        return Write(self.number, offset, length, self.record)

    def part(self, part: Part, block: int) -> Write:
        """Return as much of it as that says."""
        match part:
            case Part.FIRST:
                return self.within(self.offset, block)
            case Part.HALF:
                return self.within(self.offset, max(1, self.length // block // 2) * block)
            case Part.LAST:
                return self.within(self.offset + self.length - block, block)
        return self


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
        repeated = 0
        for state in self._states(block, limit, seed):
            repeated += 1
            if state not in seen:
                repeated = 0
                seen.add(state)
                yield state
            if len(seen) >= limit or repeated > MOST_REPEATED:
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


def epochs(records: Iterable[Record], far: Callable[[int, int], object] = lambda done, total: None) -> Iterator[Epoch]:
    """Yield the epochs of a recording; `far(done, total)` is told before each record how many there are.

    Raises:
        ConfigError: the data of a write was not kept.
    """
    found = [(number, record) for number, record in enumerate(records) if record.outcome == GOOD]
    epoch = Epoch(0)
    ends: dict[int, tuple[int, bool]] = {}  # by number: when a pending write ended, and whether it is one with FUA
    for done, (number, record) in enumerate(sorted(found, key=lambda each: each[1].end)):
        far(done, len(found))
        if record.kind in CHANGES:
            epoch.pending.append(_write(number, record))
            ends[number] = record.end, bool(record.flags & Flag.FUA)
        elif record.kind is Kind.FLUSH:
            covered = _covered(record, epoch.pending, ends)
            if not covered:
                continue
            yield epoch
            durable = [write for write in epoch.pending if write.number in covered]
            epoch = Epoch(epoch.number + 1, durable, list(_uncovered(epoch.pending, covered)))
    far(len(found), len(found))
    yield epoch


def _covered(flush: Record, pending: list[Write], ends: dict[int, tuple[int, bool]]) -> set[int]:
    """Return the numbers of the writes that a flush has made durable."""
    before = {write.number for write in pending if ends[write.number][0] <= flush.start}
    if flush.flags & Flag.IMPLIED:
        own = {number for number in before if ends[number][1]}
        return own or before  # without FUA it is the end of a write where the write cache is off
    return before


def _uncovered(pending: list[Write], covered: set[int]) -> Iterator[Write]:
    """Yield the pieces of writes that no later, durable one lies upon: a cache never goes back behind the medium."""
    durable = [(position, write) for position, write in enumerate(pending) if write.number in covered]
    for position, write in enumerate(pending):
        if write.number in covered:
            continue
        pieces, end = [write], write.offset + write.length
        for later, above in durable:
            if later < position or above.offset >= end or above.offset + above.length <= write.offset:
                continue
            pieces = [rest for piece in pieces for rest in _minus(piece, above)]
        yield from pieces


def _minus(write: Write, above: Write) -> Iterator[Write]:
    """Yield what is left of a write before and behind another."""
    end, stop = write.offset + write.length, above.offset + above.length
    if above.offset >= end or stop <= write.offset:
        yield write
        return
    for first, last in ((write.offset, above.offset), (stop, end)):
        if first < last:
            yield write.within(first, last - first)


def _write(number: int, record: Record) -> Write:
    zeros = record.kind is not Kind.WRITE or record.form is Form.ZEROS
    if not zeros and record.form in (Form.NONE, Form.SHA256):
        raise ConfigError(f"what record {number} wrote is not in the recording: record with data=writes")
    return Write(number, record.offset, record.length, None if zeros else record)
