"""Tally: what one initiator has had a disk do, by operation code: how often, how much, what failed, how long it took.

Counts are exact, for each command that has ended. Times are those of samples (`sampling.py`): to look at the clock for
every command would cost more than many commands do.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

OPCODES = 256
BUCKETS = 44  # bucket n holds what took from 2**(n-1) ns on and less than 2**n; the last one all above an hour
MOST = 16  # initiators of a disk that are told apart; what others did is in one tally
OTHERS = "other"
ABORTED = -1  # in place of a status: it was aborted, and nobody was told how it ended
CHECK_CONDITION = 0x02  # SAM-5 5.3.1


class Ended(Protocol):
    """What is counted of a command that has ended."""

    cdb: bytes
    status: int
    sense: bytes
    transferred: int
    aborted: bool

    @property
    def silent(self) -> bool:
        """Whether its initiator is not told that it has ended."""


class Sink(Protocol):
    """What counts times."""

    def add(self, nanoseconds: int) -> None:
        """Count one."""


class Histogram:
    """How often something took how long: `counts` by powers of two of a nanosecond, and the nanoseconds in all."""

    __slots__ = ("counts", "total")

    def __init__(self) -> None:
        self.counts = [0] * BUCKETS
        self.total = 0

    def add(self, nanoseconds: int) -> None:
        """Count one."""
        nanoseconds = max(nanoseconds, 0)
        self.counts[min(nanoseconds.bit_length(), BUCKETS - 1)] += 1
        self.total += nanoseconds


class Times:
    """Where commands of one operation code spend their time."""

    __slots__ = ("queue", "send", "storage")

    def __init__(self) -> None:
        self.queue = Histogram()  # from the arrival of the command and its data to the call of its hook
        self.storage = Histogram()  # from there until the hook is done
        self.send = Histogram()  # from there until the status is out


class Tally:
    """The counts of one initiator at one disk, `since` seconds since 1970: lists by operation code."""

    __slots__ = ("commands", "errors", "moved", "since", "times")

    def __init__(self) -> None:
        self.since = time.time()
        self.commands = [0] * OPCODES
        self.moved = [0] * OPCODES  # bytes, to the disk or from it
        # By operation code, status and sense key; the key is 0 for another status than CHECK CONDITION.
        self.errors: dict[tuple[int, int, int], int] = {}
        self.times: dict[int, Times] = {}

    def count(self, command: Ended) -> None:
        """Count a command that has ended."""
        opcode = command.cdb[0]
        self.commands[opcode] += 1
        self.moved[opcode] += command.transferred
        if command.status or command.aborted:
            self._failed(opcode, command)

    def _failed(self, opcode: int, command: Ended) -> None:
        status, sense, key = command.status, command.sense, 0
        if command.silent:
            status = ABORTED
        elif status == CHECK_CONDITION and len(sense) > 2:
            key = sense[1 if sense[0] & 0x7E == 0x72 else 2] & 0xF  # SPC-4 4.5: descriptor or fixed format
        what = (opcode, int(status), key)
        self.errors[what] = self.errors.get(what, 0) + 1

    def times_of(self, opcode: int) -> Times:
        """Return the histograms of an operation code."""
        times = self.times.get(opcode)
        if times is None:
            times = self.times[opcode] = Times()
        return times

    def add(self, other: Tally) -> None:
        """Count what another one has counted."""
        for opcode, commands in enumerate(other.commands):
            self.commands[opcode] += commands
            self.moved[opcode] += other.moved[opcode]
        for what, count in other.errors.items():
            self.errors[what] = self.errors.get(what, 0) + count
        for opcode, times in other.times.items():
            own = self.times_of(opcode)
            for mine, theirs in ((own.queue, times.queue), (own.storage, times.storage), (own.send, times.send)):
                mine.counts = [one + more for one, more in zip(mine.counts, theirs.counts, strict=True)]
                mine.total += theirs.total


class Uncounted(Tally):
    """Stands in for the tally of an initiator of which nothing is counted: nobody looks."""

    __slots__ = ()

    def count(self, command: Ended) -> None:
        """Do nothing."""


class Tallies:
    """The tallies of a disk by the initiator's name: `MOST` of them, so that no flood of names takes our memory."""

    def __init__(self) -> None:
        self.by_name: dict[str, Tally] = {}
        self.others = Tally()

    def of(self, name: str, in_use: Callable[[Tally], bool]) -> Tally:
        """Return the tally of an initiator that comes.

        Where there are too many, the one of them that came first and is not here any more becomes one of the others.
        """
        tally = self.by_name.get(name)
        if tally is None:
            if len(self.by_name) >= MOST:
                gone = next((other for other, one in self.by_name.items() if not in_use(one)), None)
                if gone is None:
                    return self.others
                self.others.add(self.by_name.pop(gone))
            tally = self.by_name[name] = Tally()
        return tally

    def anew(self, name: str) -> Tally:
        """Return a tally for this initiator that begins now, in place of the one that it had."""
        tally = self.by_name[name] = Tally()
        return tally

    @property
    def commands(self) -> int:
        """How many commands have ended, of all initiators."""
        return sum(sum(tally.commands) for tally in (*self.by_name.values(), self.others))

    def drop(self, name: str) -> None:
        """Forget what an initiator did: it is not counted any more."""
        self.by_name.pop(name, None)
