"""Traces: what ends on a disk, told to those that look, for as long as they do.

A reader never holds up the disk: what it does not take is kept for it, up to a bound, then dropped and counted. One
that is gone, or takes nothing for long, is let go; with the last one the disk's fast path is open again.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Protocol

from tcmu_core.codec import Message
from tcmu_core.loop import Loop, Timer
from tcmu_core.scsi.engine import Engine
from tcmu_core.scsi.following import Followed

KEPT = 4096  # commands that wait for a reader
BATCH = 100  # commands of one message: at most two thirds of what a channel carries in one
EVERY = 0.01  # seconds between two messages
SENT_SECONDS = 1.0  # for the status of a command to be out, before it is told of without that time
PATIENCE = 30.0  # seconds without taking anything, after which a reader is let go


@dataclass(frozen=True, slots=True)
class Trace(Message):
    """Tell of the commands of a LUN that end from now on, `Traced` after `Traced`, until the channel is closed.

    Of those alone that have one of the `names` or operation `codes`, where any is given, whose initiator fits the
    pattern, that did not end with GOOD if `errors`, and that took no less than `slower` seconds.
    """

    lun: int = 0
    names: tuple[str, ...] = ()
    codes: tuple[int, ...] = ()
    initiator: str = "*"
    errors: bool = False
    slower: float = 0.0


@dataclass(frozen=True, slots=True)
class Line:
    """One command that has ended, `at` seconds since 1970; the rest as `Followed` has it."""

    at: float
    command: Followed


@dataclass(frozen=True, slots=True)
class Traced(Message):
    """Commands in the order in which they ended, and how many were dropped before them. `over`: why no more come."""

    lines: tuple[Line, ...] = ()
    dropped: int = 0
    over: str = ""


class Reader(Protocol):
    """Where a trace goes: the channel that it was asked for by."""

    closed: bool

    @property
    def busy(self) -> bool:
        """Whether messages wait here, because the other end does not read."""

    def send(self, message: Message) -> None:
        """Send a message, now or soon."""

    def close(self) -> None:
        """Close this end."""


@dataclass(slots=True)
class _Kept:
    """A command that waits for its reader, and for its status to be out until `until`, on the loop's clock."""

    at: float
    command: Followed
    until: float


class _Trace:
    """One reader, and what waits for it."""

    def __init__(self, traces: Traces, engine: Engine, wanted: Trace, reader: Reader) -> None:
        self.engine = engine
        self.reader = reader
        self._traces = traces
        self._wanted = wanted
        self._kept: deque[_Kept] = deque()
        self._unsent: dict[int, _Kept] = {}  # by the identity of its command
        self._dropped = 0
        self._timer: Timer | None = None
        self._taken = traces.loop.clock()  # when the reader last took something

    def told(self, command: Followed, *, final: bool) -> None:
        """A command has ended."""
        if not self._fits(command):
            return
        if len(self._kept) >= KEPT:
            self._dropped += 1
            return
        now = self._traces.loop.clock()
        kept = _Kept(time.time(), command, now if final else now + SENT_SECONDS)
        self._kept.append(kept)
        if not final:
            self._unsent[id(command)] = kept
        if self._timer is None:
            self._taken = now
            self._timer = self._traces.loop.call_later(EVERY, self._send)

    def sent(self, command: Followed, seconds: float) -> None:
        """The status of a command is out."""
        kept = self._unsent.pop(id(command), None)
        if kept is not None:
            kept.command, kept.until = replace(command, sent=seconds), 0.0

    def _ready(self, now: float) -> Iterator[Line]:
        """Take those of which all is known, or will not be, as many as a message has room for."""
        for _ in range(BATCH):
            if not self._kept or self._kept[0].until > now:
                return
            kept = self._kept.popleft()
            self._unsent.pop(id(kept.command), None)
            yield Line(kept.at, kept.command)

    def _fits(self, command: Followed) -> bool:
        wanted = self._wanted
        return (
            not (wanted.errors and command.good)
            and command.queued + command.ran >= wanted.slower
            and (not (wanted.names or wanted.codes) or command.name in wanted.names or command.cdb[0] in wanted.codes)
            and fnmatchcase(command.initiator.lower(), wanted.initiator.lower())
        )

    def _send(self) -> None:
        self._timer = None
        now = self._traces.loop.clock()
        if not self.reader.busy:
            self._taken = now
            lines = tuple(self._ready(now))
            if lines or self._dropped:
                self.reader.send(Traced(lines, self._dropped))
            self._dropped = 0
            self._traces.watched(self._wanted.lun)
        elif now - self._taken > PATIENCE:
            self.reader.close()
            self._traces.forget(self.reader)
            return
        if self._kept or self._dropped:
            self._timer = self._traces.loop.call_later(EVERY, self._send)

    def end(self) -> None:
        """Look no more."""
        self.engine.unfollow(self)
        if self._timer is not None:
            self._timer.cancel()


class Traces:
    """Those that look at the disks of a host; `engines` are by LUN.

    `watched(lun)` is called when somebody begins to look, and now and then for as long as he does.
    """

    def __init__(self, loop: Loop, engines: Mapping[int, Engine], watched: Callable[[int], object]) -> None:
        self.loop = loop
        self.watched = watched
        self._engines = engines
        self._traces: dict[Reader, _Trace] = {}

    def begin(self, wanted: Trace, reader: Reader) -> None:
        """Have `reader` told of what it wants; the first message says that from now on nothing is missed."""
        self.forget(reader)
        engine = self._engines.get(wanted.lun)
        if engine is None:
            reader.send(Traced(over=f"LUN {wanted.lun} is not served"))
            return
        trace = self._traces[reader] = _Trace(self, engine, wanted, reader)
        self.watched(wanted.lun)
        engine.follow(trace)
        reader.send(Traced())

    def forget(self, reader: Reader) -> None:
        """A reader is gone."""
        trace = self._traces.pop(reader, None)
        if trace is not None:
            trace.end()

    def left(self, engine: Engine) -> None:
        """A disk is not served any more."""
        for reader, trace in list(self._traces.items()):
            if trace.engine is engine:
                self.forget(reader)
                reader.send(Traced(over="the disk is not served any more"))
