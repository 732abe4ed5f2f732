"""Sampling: looks at the clock for the commands of one batch every now and then.

A batch is what a transport takes in one turn. The one that begins when the last timed one is `INTERVAL` ago is timed as
a whole, so that a disk with little to do has all of its commands timed, and a busy one a few hundred a second.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from tcmu_core.scsi.command import Command
from tcmu_core.scsi.tally import Sink, Tally

INTERVAL = 10_000_000  # nanoseconds
Sent = list[tuple[Sink, int]]  # where to count how long the way out took, and when it began


class Sampler:
    """Times the commands of one connection or one ring. `clock()` gives nanoseconds."""

    __slots__ = ("_next", "arrival", "clock", "ended", "on", "pending")

    def __init__(self, clock: Callable[[], int] = time.perf_counter_ns) -> None:
        self.clock = clock
        self.on = False  # whether this batch is timed
        self.arrival = 0  # of its commands
        self.pending: dict[Command, tuple[int, int]] = {}  # arrival and beginning of those that did not end at once
        self.ended: Sent = []  # those whose status is not out
        self._next = 0

    def begin(self, *, left_over: bool = False) -> bool:
        """Begin a batch; return whether it is timed. `left_over`: it came with the batch before."""
        now = self.clock()
        if not left_over:
            self.arrival = now
        self.on = now >= self._next
        return self.on

    def run(self, execute: Callable[[Command], bool], command: Command) -> bool:
        """Run a command of a batch that is timed; what `execute` returns."""
        begun = self.clock()
        ended = execute(command)
        self.hold(command, begun)
        if ended:
            self.done(command)
        return ended

    def hold(self, command: Command, begun: int) -> None:
        """Note that a command of a batch that is timed was begun; `done` is to be called."""
        self.pending[command] = (self.arrival, begun)
        self._next = begun + INTERVAL  # a batch without a command is none

    def timed(self, execute: Callable[[Command], bool]) -> Callable[[Command], bool]:
        """Return what runs a command as `execute` does, and times it."""
        return lambda command: self.run(execute, command)

    def took(self, tally: Tally, opcode: int, begun: int) -> None:
        """Note a command of a batch that is timed, which was begun and has ended now."""
        self._next = begun + INTERVAL
        self._took(tally, opcode, begun - self.arrival, begun)

    def done(self, command: Command) -> None:
        """A command has ended; if it was noted, that is its time."""
        found = self.pending.pop(command, None)
        if found is not None:
            self._note(command, *found)

    def _note(self, command: Command, arrival: int, begun: int) -> None:
        begun = getattr(command, "begun", begun)  # where it waited for its turn
        self._took(command.nexus.tally, command.cdb[0], begun - arrival, begun, silent=command.silent)

    def _took(self, tally: Tally, opcode: int, queued: int, begun: int, *, silent: bool = False) -> None:
        now = self.clock()
        times = tally.times_of(opcode)
        times.queue.add(queued)
        times.storage.add(now - begun)
        if not silent:
            self.ended.append((times.send, now))

    def follow(self, sink: Sink) -> None:
        """Count, too, how long what has ended now takes to be out."""
        self.ended.append((sink, self.clock()))

    def take(self) -> Sent:
        """Return those that have ended, whose status is on its way out from now on."""
        ended, self.ended = self.ended, []
        return ended

    def sent(self, ended: Sent) -> None:
        """Their status is out."""
        now = self.clock()
        for sink, since in ended:
            sink.add(now - since)
