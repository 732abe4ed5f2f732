"""A connection fed from memory: no socket; a real target behind it, whose disks do as they are told."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from tcmu_core import hookimpl
from tcmu_core.disk.device import Device
from tcmu_core.disk.disk import Disk
from tcmu_core.disk.spec import DiskSpec
from tcmu_core.iscsi import pdu as p
from tcmu_core.iscsi.budget import Budget
from tcmu_core.iscsi.connection import Connection
from tcmu_core.iscsi.login import Claim, Outcome
from tcmu_core.iscsi.session import Attachment, Session
from tcmu_core.iscsi.settings import PortalSettings
from tcmu_core.scsi import command as scsi
from tcmu_core.scsi.engine import Engine
from tcmu_core.scsi.target import Target
from tcmu_core.testing.harness import make_disk
from tests.iscsi.initiator import NAME, OPERATIONAL, TARGET, Initiator


@dataclass(eq=False)
class Pending:
    """A hook that has not returned yet, and the command that it belongs to."""

    future: Future[None]
    run: Callable[[], None]


class Scripted:
    """A disk in memory behind a real unit; its hooks wait while `hold` is set, and raise `error` if there is one."""

    def __init__(self, size: int = 1 << 20) -> None:
        self.disk = bytearray(size)
        self.hold = False
        self.watch = True  # whether it keeps each command in `commands`, with its buffers
        self.error: Exception | None = None
        self.held: list[Pending] = []
        self.pieces = 0  # buffers of the last write
        self.commands: list[scsi.Command] = []
        self.calls: list[str] = []
        self.posted: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        opened = make_disk(self, DiskSpec("scripted", size=size))
        opened.open()
        self.engine = WatchedEngine(self, opened)

    @hookimpl
    def open(self, device: Device) -> None:
        device.size = len(self.disk)

    @hookimpl
    def read(self, offset: int, buffers: list[memoryview]) -> Future[None] | None:
        def run() -> None:
            at = offset
            for buffer in buffers:
                buffer[:] = self.disk[at : at + len(buffer)]
                at += len(buffer)

        return self._now_or_later(run)

    @hookimpl
    def write(self, offset: int, buffers: list[memoryview]) -> Future[None] | None:
        self.pieces = len(buffers)

        def run() -> None:
            at = offset
            for buffer in buffers:
                self.disk[at : at + len(buffer)] = buffer
                at += len(buffer)

        return self._now_or_later(run)

    @hookimpl
    def flush(self) -> Future[None] | None:
        return self._now_or_later(lambda: None)

    def _now_or_later(self, run: Callable[[], None]) -> Future[None] | None:
        if self.error is not None:
            raise self.error
        if not self.hold:
            run()
            return None
        self.held.append(Pending(Future(), run))
        return self.held[-1].future

    def finish(self, pending: Pending | None = None) -> None:
        """Let one hook that waits return, the oldest by default."""
        pending = pending or self.held[0]
        self.held.remove(pending)
        pending.run()
        pending.future.set_result(None)
        self.turn()

    def post(self, fn: Callable[..., object], *args: Any) -> None:
        """Take a call for the loop's next turn."""
        self.posted.append((fn, args))

    def turn(self) -> None:
        """Make the calls that were posted."""
        while self.posted:
            fn, args = self.posted.popleft()
            fn(*args)


class Answering(Scripted):
    """One whose handler answers each command itself, by calling `answer`, as far as that returns a status."""

    def __init__(self, answer: Callable[[scsi.Command], scsi.Status | None]) -> None:
        self.answer = answer
        super().__init__()

    @hookimpl
    def handle_cmd(self, command: scsi.Command) -> scsi.Status | None:
        return self.answer(command)


class WatchedEngine(Engine):
    """A unit that notes what it is asked to do; no unit attention stands before a test's first command."""

    def __init__(self, scripted: Scripted, opened: Disk) -> None:
        self._scripted = scripted
        super().__init__(opened, post=scripted.post)

    def attach(self, initiator: scsi.Initiator) -> scsi.Nexus:
        nexus = super().attach(initiator)
        nexus.attentions.clear()
        return nexus

    def execute(self, command: scsi.Command) -> bool:
        if self._scripted.watch:
            self._scripted.commands.append(command)
        return super().execute(command)

    def detach(self, nexus: scsi.Nexus, then: Callable[[], object] | None = None) -> None:
        self._scripted.calls.append("detach")
        super().detach(nexus, then)

    def abort_task_set(self, nexus: scsi.Nexus, then: Callable[[], object]) -> None:
        self._scripted.calls.append("abort task set")
        super().abort_task_set(nexus, then)

    def clear_task_set(self, nexus: scsi.Nexus | None, then: Callable[[], object]) -> None:
        self._scripted.calls.append("clear task set")
        super().clear_task_set(nexus, then)

    def reset(self, nexus: scsi.Nexus | None, then: Callable[[], object]) -> None:
        self._scripted.calls.append("reset")
        super().reset(nexus, then)


class FakeHost:
    """The portal's part for connections without a portal."""

    def __init__(self, settings: PortalSettings | None = None, units: Iterable[Scripted] = ()) -> None:
        self.settings = settings or PortalSettings()
        self.budget = Budget(self.settings.limits.total)
        self.units = list(units) or [Scripted(), Scripted()]
        self.target = Target(TARGET, {lun: scripted.engine for lun, scripted in enumerate(self.units)})
        self.sessions: list[Session] = []
        self.notified = 0
        self.reset: list[Target] = []

    def serves(self, name: str) -> bool:
        return name == TARGET

    def has_target(self, name: str) -> bool:
        return name == TARGET

    def has_session(self, tsih: int) -> bool:
        return any(session.outcome.tsih == tsih for session in self.sessions)

    def new_tsih(self) -> int:
        return len(self.sessions) + 1

    def admit(self, connection: Connection, claim: Claim) -> None:
        pass

    def open_session(self, connection: Connection, outcome: Outcome) -> Session:
        attachment = None
        if outcome.target is not None:
            attachment = Attachment(self.target, self.target.connect(scsi.Initiator(outcome.initiator, b"id")))
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
    def unit(self) -> Scripted:
        return self.host.units[0]

    @property
    def session(self) -> Session:
        assert self.connection.session is not None
        return self.connection.session

    def feed(self, data: bytes, step: int | None = None) -> list[p.Pdu]:
        """Let `data` arrive, in pieces of `step` bytes; return what is answered."""
        answers: list[p.Pdu] = []
        while data:
            room = self.connection.room() or self.connection.squeeze()
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
        for unit in self.host.units:
            unit.turn()
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


def logged_in(
    changes: Mapping[str, str] | None = None, settings: PortalSettings | None = None, units: Iterable[Scripted] = ()
) -> Wire:
    """Return a wire with a session."""
    wire = Wire(FakeHost(settings, units))
    assert wire.login(changes).status == 0
    return wire


__all__ = ["NAME", "TARGET", "Answering", "FakeHost", "Scripted", "Wire", "logged_in"]
