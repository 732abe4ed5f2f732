"""The ways in to a handler, without I/O: commands through the engine, the portal and the kernel's ring."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, ClassVar

from tcmu_core.disk.disk import Disk
from tcmu_core.iscsi.budget import Budget
from tcmu_core.iscsi.connection import Connection
from tcmu_core.iscsi.login import Claim, Outcome
from tcmu_core.iscsi.session import Attachment, Session
from tcmu_core.iscsi.settings import PortalSettings
from tcmu_core.kernel.abi import TmrType
from tcmu_core.kernel.ring import Ring
from tcmu_core.loop import Loop
from tcmu_core.scsi.command import Command, Nexus, Status, slice_buffers
from tcmu_core.scsi.command import Initiator as Port
from tcmu_core.scsi.engine import Engine
from tcmu_core.scsi.target import Target
from tcmu_core.testing import harness
from tcmu_core.testing.fake_kernel import DATA_PAGE, FRESH, FakeKernel
from tcmu_core.testing.harness import Hangs, PromiseBroken
from tcmu_core.testing.initiator import Initiator, Reply, State

NAME, TARGET = "iqn.2025-01.local.tcmu:kit", "iqn.2025-01.local.tcmu:disk"
PORT = Port(NAME, b"\x45\x00\x00\x04kit\0")  # an iSCSI TransportID (SPC-4 7.6.4.6)
RING, PAGES = 64 << 10, 512  # bytes of the ring, pages of its data area


class Way(ABC):
    """One initiator of an open disk; `send` and `abort` start something, `wait` lets it happen."""

    name: ClassVar[str]

    def __init__(self, disk: Disk) -> None:
        given = disk.device.reactor
        self._own_loop = not isinstance(given, Loop)
        self.loop = given if isinstance(given, Loop) else Loop()
        self._goal: Callable[[], bool] | None = None
        self._error: BaseException | None = None
        self.engine = Engine(disk, post=self._post)

    def _post(self, fn: Callable[..., object], *args: Any) -> None:
        self.loop.post(self._called, fn, args)

    def _called(self, fn: Callable[..., object], args: tuple[Any, ...]) -> None:
        """Do what was posted, and see whether that was what `until` waits for; the loop would only log an error."""
        try:
            fn(*args)
            self.moved()
            reached = self._goal is not None and self._goal()
        except BaseException as error:
            self._error = error
            reached = True
        if reached:
            self._goal = None
            self.loop.stop()

    @abstractmethod
    def send(self, cdb: bytes, buffers: list[memoryview], *, writing: bool) -> Future[Reply]:
        """Send a command that writes what is in the buffers, or fills them; a Future of how it ends."""

    @abstractmethod
    def abort(self, sent: Future[Reply]) -> None:
        """Abort a command that may be in flight still: it ends with TASK ABORTED, or as it would have ended."""

    def moved(self) -> None:
        """Carry on what is there now."""
        return

    def close(self) -> None:
        """Let everything end, so that the disk can be closed."""
        self.until(lambda: self.engine.idle)

    def end(self) -> None:
        """Let go of what is its own; nothing is waited for."""
        if self._own_loop:
            self.loop.close()

    def until(self, so: Callable[[], bool]) -> None:
        """Run the loop until something is so; raises `Hangs`."""
        self.moved()
        if so():
            return
        late: list[bool] = []

        def give_up() -> None:
            late.append(True)
            self.loop.stop()

        timer = self.loop.call_later(harness.TIMEOUT, give_up)
        while not so():  # a stop that was asked for before may still be on its way
            self._goal = so
            self.loop.run()
            self._goal = None
            if self._error is not None:
                timer.cancel()
                error, self._error = self._error, None
                raise error
            if late:
                raise Hangs(f"a command has not ended within {harness.TIMEOUT:g} s")
        timer.cancel()

    def wait(self, sent: Future[Reply]) -> Reply:
        """Return how a command has ended."""
        self.until(sent.done)
        return sent.result()


class EngineWay(Way):
    """Commands to the engine itself: the handler gets the very buffers that were given."""

    name = "engine"

    def __init__(self, disk: Disk) -> None:
        super().__init__(disk)
        self._nexus = self.engine.attach(PORT)
        self._nexus.attentions.clear()
        self._commands: dict[Future[Reply], Command] = {}

    def send(self, cdb: bytes, buffers: list[memoryview], *, writing: bool) -> Future[Reply]:
        """Execute it."""
        sent: Future[Reply] = Future()

        def done(command: Command) -> None:
            self._commands.pop(sent, None)
            status = Status.TASK_ABORTED if command.aborted else command.status
            sent.set_result(Reply(0, status, bytes(command.sense), b""))

        command = Command(cdb, buffers, sum(map(len, buffers)), self._nexus, done)
        self._commands[sent] = command
        if self.engine.execute(command):
            done(command)
        return sent

    def abort(self, sent: Future[Reply]) -> None:
        """ABORT TASK."""
        command = self._commands.get(sent)
        if command is not None:
            self.engine.abort(command, lambda: None)


class PortalWay(Way):
    """The portal's connection and session, and an initiator of ours at its other end; no socket between them."""

    name = "portal"

    def __init__(self, disk: Disk) -> None:
        super().__init__(disk)
        self.initiator = Initiator(NAME, TARGET)
        self._out = bytearray(self.initiator.login())
        self._sent: dict[int, tuple[Future[Reply], list[memoryview]]] = {}
        self._connection = Connection(_Host(self.engine), lambda: None)
        self.until(lambda: self.initiator.state is State.FULL_FEATURE)

    def send(self, cdb: bytes, buffers: list[memoryview], *, writing: bool) -> Future[Reply]:
        """Send it as PDUs, when the target takes one more."""
        self.until(lambda: self.initiator.room > 0)
        sent: Future[Reply] = Future()
        length = sum(map(len, buffers))
        data = b"".join(buffers) if writing else b""
        tag, out = self.initiator.command(cdb, write=data, read=0 if writing else length)
        self._sent[tag] = sent, [] if writing else buffers
        self._out += out
        self.moved()
        return sent

    def abort(self, sent: Future[Reply]) -> None:
        """ABORT TASK."""
        for tag, (one, _) in self._sent.items():
            if one is sent:
                self._out += self.initiator.abort(tag)
                break
        self.moved()

    def moved(self) -> None:
        """Hand over bytes, both ways, as long as there are any."""
        connection, outbox = self._connection, self._connection.outbox
        moving = True
        while moving:
            moving = False
            self._out += self.initiator.outgoing()
            room = (connection.room() or connection.squeeze()) if self._out else memoryview(b"")
            if room:
                count = min(len(room), len(self._out))
                room[:count] = self._out[:count]
                del self._out[:count]
                connection.received(count)
                moving = True
            data = b"".join(bytes(part) for part in outbox.queue)
            if data:
                outbox.sent(len(data))
                for reply in self.initiator.receive(data):
                    sent, buffers = self._sent.pop(reply.tag)
                    _fill(buffers, reply.data)
                    sent.set_result(reply)
                moving = True
            if connection.stalled and not connection.blocked:
                connection.pump()
                moving = True
        if connection.ended is not None:
            raise PromiseBroken(f"the portal has closed the connection: {connection.ended}")

    def close(self) -> None:
        """Let everything end, and the connection too."""
        super().close()
        self._connection.close()


class _Host:
    """What a connection needs of a portal."""

    def __init__(self, engine: Engine) -> None:
        self.settings = PortalSettings()
        self.budget = Budget(self.settings.limits.total)
        self._target = Target(TARGET, {0: engine})

    def serves(self, name: str) -> bool:
        return name == TARGET

    def has_target(self, name: str) -> bool:
        return name == TARGET

    def has_session(self, tsih: int) -> bool:
        return False

    def new_tsih(self) -> int:
        return 1

    def admit(self, connection: Connection, claim: Claim) -> None:
        pass

    def open_session(self, connection: Connection, outcome: Outcome) -> Session:
        it = self._target.connect(PORT)
        it.luns[0][1].attentions.clear()
        return Session(
            self.settings,
            outcome,
            connection.inbox,
            connection.outbox,
            Attachment(self._target, it),
            lambda _name: [(TARGET, ["127.0.0.1:3260,1"])],
            connection.notify,
        )


class RingWay(Way):
    """The ring, and the kernel's half of it: data lies in pages that are given back when a command has ended."""

    name = "ring"

    def __init__(self, disk: Disk) -> None:
        super().__init__(disk)
        self.kernel = FakeKernel(RING, PAGES)
        nexus: Nexus = self.engine.attach(PORT)
        nexus.attentions.clear()
        self._sent: dict[int, tuple[Future[Reply], list[memoryview]]] = {}
        self._ring = Ring(self.kernel.memory, self.engine, nexus, post=self._post, doorbell=self._bell)

    def send(self, cdb: bytes, buffers: list[memoryview], *, writing: bool) -> Future[Reply]:
        """Put it into the ring, when there is room for its data and for itself."""
        sent: Future[Reply] = Future()
        length = sum(map(len, buffers))
        self.until(lambda: len(self.kernel.free) >= -(-length // DATA_PAGE))
        data = b"".join(buffers) if writing else None
        number: list[int] = []

        def queued() -> bool:
            cmd_id = self.kernel.command(cdb, data=data, room=0 if writing else length)
            number.extend([] if cmd_id is None else [cmd_id])
            return cmd_id is not None

        self.until(queued)
        self._sent[number[0]] = sent, [] if writing else buffers
        self._process()
        return sent

    def abort(self, sent: Future[Reply]) -> None:
        """Tell of it as the kernel does, when its initiator has had a command aborted."""
        for cmd_id, (one, _) in self._sent.items():
            if one is sent:
                self.kernel.abort(TmrType.ABORT_TASK, [cmd_id])
                break
        self._process()

    def _process(self) -> None:
        while self._ring.pending:
            self._ring.process()

    def _bell(self) -> None:
        self.kernel.bell()
        for answer in self.kernel.answers:
            sent, buffers = self._sent.pop(answer.cmd_id)
            _fill(buffers, answer.data)
            sent.set_result(Reply(answer.cmd_id, answer.status, answer.sense if answer.status else b"", b""))
        self.kernel.answers.clear()

    def close(self) -> None:
        """Let everything end; what was given back to the kernel must be as it was then."""
        super().close()
        self.until(lambda: not self._sent)
        untouched = bytes([FRESH]) * DATA_PAGE
        for page in self.kernel.free:
            at = self.kernel.data_at + page * DATA_PAGE
            if self.kernel.memory[at : at + DATA_PAGE] != untouched:
                raise PromiseBroken("buffers in the kernel's memory were written to after their command had ended")


def _fill(buffers: list[memoryview], data: bytes) -> None:
    for part in slice_buffers(buffers, 0, len(data)):
        part[:], data = data[: len(part)], data[len(part) :]


WAYS: dict[str, type[Way]] = {way.name: way for way in (EngineWay, PortalWay, RingWay)}
