"""Following commands: what became of each, and when, for as long as somebody looks. Sans I/O, as the engine is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from tcmu_core.scsi.command import Command, Status
from tcmu_core.scsi.opcodes import name_of
from tcmu_core.scsi.words import words_of


@dataclass(frozen=True, slots=True)
class Followed:
    """A command that has ended. `lba` and `blocks` are None where its CDB names none.

    `status` is the status in words, ABORTED where the initiator gets none; `sense` the sense data in words, empty
    where there are none. Times in seconds: `queued` before it might run, `ran` from then until its status was known,
    which for data is the storage's time, filters included; `sent` from then until the status was out, None where that
    is not known: its initiator is not told, or has gone, or the transport does not say.
    """

    name: str
    cdb: bytes
    initiator: str
    lba: int | None
    blocks: int | None
    moved: int  # bytes
    status: str
    good: bool
    sense: str
    queued: float
    ran: float
    sent: float | None = None


class Reader(Protocol):
    """Who looks at the commands of a disk."""

    def told(self, command: Followed, *, final: bool) -> None:
        """A command has ended; if that is not `final`, `sent` may follow."""

    def sent(self, command: Followed, seconds: float) -> None:
        """The status of a command of which it was told was out that much later."""


class _Out:
    """What a transport is given to say when the status of a command is out."""

    __slots__ = ("_command", "_readers")

    def __init__(self, command: Followed, readers: tuple[Reader, ...]) -> None:
        self._command = command
        self._readers = readers

    def add(self, nanoseconds: int) -> None:
        """It took so long."""
        for reader in self._readers:
            reader.sent(self._command, nanoseconds / 1e9)


@dataclass(slots=True)
class _Times:
    arrived: float
    done: Callable[[Command], None]
    started: float


class Follower:
    """Sees the commands of one engine come, start and end, and tells each of `readers` of those that have ended.

    A command that was there before its follower is not told of. `clock` counts seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.readers: list[Reader] = []
        self._clock = clock
        self._times: dict[Command, _Times] = {}

    def arrived(self, command: Command) -> None:
        """A command has come; its `done` passes by here from now on."""
        now = self._clock()
        self._times[command] = _Times(now, command.done, now)
        command.done = self._done

    def started(self, command: Command) -> None:
        """A command that had to wait for others may run."""
        times = self._times.get(command)
        if times is not None:
            times.started = self._clock()

    def ended(self, command: Command) -> None:
        """A command has ended, with all that it says of it."""
        times = self._times.pop(command, None)
        if times is None:
            return
        command.done = times.done
        told = self._told(command, times, self._clock())
        readers, outgoing = tuple(self.readers), command.nexus.outgoing
        final = outgoing is None or command.silent
        for reader in readers:
            reader.told(told, final=final)
        if outgoing is not None and not final:
            outgoing(_Out(told, readers))

    def _done(self, command: Command) -> None:
        done = self._times[command].done
        self.ended(command)
        done(command)

    def _told(self, command: Command, times: _Times, now: float) -> Followed:
        row = getattr(command, "row", None)  # one that could not be decoded has none
        blocks = row is not None and row.blocks is not None
        try:
            status = "ABORTED" if command.silent else Status(command.status).name.replace("_", " ")
        except ValueError:
            status = f"status {command.status:02X}h"
        return Followed(
            name=row.name if row is not None else name_of(command.cdb[0]),
            cdb=bytes(command.cdb),
            initiator=command.nexus.initiator.name,
            lba=command.lba if blocks else None,
            blocks=command.count if blocks else None,
            moved=command.transferred,
            status=status,
            good=status in ("GOOD", "CONDITION MET"),
            sense=words_of(bytes(command.sense)) if command.status == Status.CHECK_CONDITION else "",
            queued=times.started - times.arrived,
            ran=now - times.started,
        )
