"""A connection fed from memory: no socket, scripted units behind it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from tcmu_core.iscsi import pdu as p
from tcmu_core.iscsi.connection import Connection
from tcmu_core.iscsi.login import Outcome
from tcmu_core.iscsi.session import Attachment, Session
from tcmu_core.iscsi.settings import PortalSettings
from tcmu_core.scsi import command as scsi
from tcmu_core.scsi.target import ITNexus, Target
from tests.iscsi.initiator import NAME, OPERATIONAL, TARGET, Initiator

BLOCK = 512


class Place:
    """Where a unit stands, as the target tells it."""

    def __init__(self, attention: Callable[..., None]) -> None:
        self.attention = attention
        self.around: Any = None
        self.lun = 0


class FakeUnit:
    """A unit that does as it is told: reads and writes 512-byte blocks of `disk`; `hold` keeps commands pending."""

    def __init__(self, size: int = 1 << 20) -> None:
        self.disk = bytearray(size)
        self.hold = False
        self.held: list[scsi.Command] = []
        self.commands: list[scsi.Command] = []
        self.nexuses: list[scsi.Nexus] = []
        self.calls: list[str] = []
        self.answer: Callable[[scsi.Command], None] | None = None
        self.unit = Place(self.attention)

    def attach(self, initiator: scsi.Initiator) -> scsi.Nexus:
        nexus = scsi.Nexus(initiator)
        self.nexuses.append(nexus)
        return nexus

    def attention(self, asc: int, ascq: int) -> None:
        self.calls.append(f"{asc:02X}/{ascq:02X}")

    def detach(self, nexus: scsi.Nexus, then: Callable[[], object]) -> None:
        self.nexuses.remove(nexus)
        self.calls.append("detach")
        then()

    def execute(self, command: scsi.Command) -> bool:
        self.commands.append(command)
        if self.hold:
            self.held.append(command)
            return False
        self._run(command)
        return True

    def _run(self, command: scsi.Command) -> None:
        if self.answer is not None:
            self.answer(command)
        elif command.cdb[0] in {0x28, 0x2A}:
            at = int.from_bytes(command.cdb[2:6], "big") * BLOCK
            command.wanted = int.from_bytes(command.cdb[7:9], "big") * BLOCK
            command.transferred = min(command.wanted, command.length)
            for view in scsi.slice_buffers(command.buffers, 0, command.transferred):
                if command.cdb[0] == 0x28:
                    view[:] = self.disk[at : at + len(view)]
                else:
                    self.disk[at : at + len(view)] = view
                at += len(view)

    def finish(self, command: scsi.Command | None = None) -> None:
        """End one held command, the oldest by default."""
        command = command or self.held[0]
        self.held.remove(command)
        if not command.aborted:
            self._run(command)
        command.done(command)

    def abort(self, command: scsi.Command, then: Callable[[], object]) -> None:
        self.calls.append("abort")
        command.aborted = True
        if command in self.held:
            self.finish(command)
        then()

    def abort_task_set(self, nexus: scsi.Nexus, then: Callable[[], object]) -> None:
        self.calls.append("abort task set")
        for command in [command for command in self.held if command.nexus is nexus]:
            command.aborted = True
            self.finish(command)
        then()

    def clear_task_set(self, nexus: scsi.Nexus, then: Callable[[], object]) -> None:
        self.calls.append("clear task set")
        self._clear(nexus, then)

    def reset(self, nexus: scsi.Nexus, then: Callable[[], object]) -> None:
        self.calls.append("reset")
        self._clear(nexus, then)

    def _clear(self, nexus: scsi.Nexus, then: Callable[[], object]) -> None:
        for other in self.nexuses:
            if other is not nexus and other.on_clear is not None:
                other.on_clear()
        for command in list(self.held):
            command.aborted = True
            self.finish(command)
        then()


class FakeHost:
    """The portal's part for connections without a portal."""

    def __init__(self, settings: PortalSettings | None = None, units: Iterable[FakeUnit] = ()) -> None:
        self.settings = settings or PortalSettings()
        self.units = list(units) or [FakeUnit(), FakeUnit()]
        self.target = Target(TARGET, dict(enumerate(self.units)))  # type: ignore[arg-type]
        self.sessions: list[Session] = []
        self.notified = 0
        self.reset: list[Target] = []

    def has_target(self, name: str) -> bool:
        return name == TARGET

    def has_session(self, tsih: int) -> bool:
        return any(session.outcome.tsih == tsih for session in self.sessions)

    def new_tsih(self) -> int:
        return len(self.sessions) + 1

    def open_session(self, connection: Connection, outcome: Outcome) -> Session:
        attachment = None
        if outcome.target is not None:
            attachment = Attachment(self.target, ITNexus(self.target, scsi.Initiator(outcome.initiator, b"id")))
        session = Session(
            self.settings,
            outcome,
            connection.inbox,
            connection.outbox,
            attachment,
            lambda _name: [(TARGET, ["127.0.0.1:3260,1"])],
            connection.notify,
            self.reset.append,
        )
        self.sessions.append(session)
        return session


class Wire:
    """An initiator and a connection with nothing but memory between them."""

    def __init__(self, host: FakeHost | None = None, initiator: Initiator | None = None) -> None:
        self.host = host or FakeHost()
        self.initiator = initiator or Initiator()
        self.connection = Connection(self.host, self._notified)
        self.notified = 0

    def _notified(self) -> None:
        self.notified += 1

    @property
    def unit(self) -> FakeUnit:
        return self.host.units[0]

    @property
    def session(self) -> Session:
        assert self.connection.session is not None
        return self.connection.session

    def feed(self, data: bytes, step: int | None = None) -> list[p.Pdu]:
        """Let `data` arrive, in pieces of `step` bytes; return what is answered."""
        answers: list[p.Pdu] = []
        while data:
            room = self.connection.room()
            count = min(len(room), len(data), step or len(data))
            if not count or self.connection.ended is not None:
                break
            room[:count] = data[:count]
            data = data[count:]
            self.connection.received(count)
            answers += self.collect()
            while self.connection.stalled and not self.connection.blocked:
                self.connection.pump()
                answers += self.collect()
        return answers

    def collect(self) -> list[p.Pdu]:
        """Return what waits to be sent."""
        outbox = self.connection.outbox
        data = b"".join(bytes(part) for part in outbox.queue)
        assert len(data) == outbox.queued
        if data:
            outbox.sent(len(data))
        return self.initiator.decode(data)

    def send(self, *pdus: p.Pdu, step: int | None = None) -> list[p.Pdu]:
        """Send requests and return what is answered."""
        return self.feed(self.initiator.encode(*pdus), step)

    def login(self, changes: Mapping[str, str] | None = None) -> p.LoginResponse:
        """Log in without authentication."""
        pairs = OPERATIONAL | dict(changes or {}) if self.initiator.target is not None else dict(changes or {})
        (answer,) = self.send(self.initiator.login(pairs))
        assert isinstance(answer, p.LoginResponse)
        if self.connection.session is not None:
            self.initiator.framing = self.connection.session.framing
        return answer


def logged_in(changes: Mapping[str, str] | None = None, settings: PortalSettings | None = None) -> Wire:
    """Return a wire with a session."""
    wire = Wire(FakeHost(settings))
    assert wire.login(changes).status == 0
    return wire


__all__ = ["NAME", "TARGET", "FakeHost", "FakeUnit", "Wire", "logged_in"]
