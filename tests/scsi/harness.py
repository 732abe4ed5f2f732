"""A logical unit over memory, driven as a transport would: for the tests of the engine."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from tcmu_core import Device, Extent, hookimpl
from tcmu_core.disk.spec import DiskSpec
from tcmu_core.errors import StaleVersion
from tcmu_core.scsi.alua import ONE_GROUP, Arrangement
from tcmu_core.scsi.command import Command, Initiator, Status
from tcmu_core.scsi.engine import Engine
from tcmu_core.scsi.following import Followed
from tcmu_core.scsi.target import Target
from tcmu_core.scsi.unit import Unit
from tcmu_core.testing.harness import make_disk

BLOCK = 512


class Memory:
    """A handler with every hook. `held` collects Futures instead of answering while `hold` is set."""

    def __init__(self) -> None:
        self.data = memoryview(bytearray())
        self.mapped: set[int] = set()
        self.flushed = 0
        self.hold = False
        self.held: deque[tuple[Future[None], Any]] = deque()
        self.error: BaseException | None = None

    def _answer(self, work: Any) -> Future[None] | None:
        if self.error is not None:
            raise self.error
        if not self.hold:
            work()
            return None
        future: Future[None] = Future()
        self.held.append((future, work))
        return future

    def release(self, *, last: bool = False) -> None:
        """Let the first (or last) held hook end."""
        future, work = self.held.pop() if last else self.held.popleft()
        work()
        future.set_result(None)

    @hookimpl
    def open(self, device: Device) -> None:
        assert device.size is not None
        self.block_size = device.block_size
        self.data = memoryview(bytearray(device.size))

    @hookimpl
    def read(self, offset: int, buffers: list[memoryview]) -> Future[None] | None:
        def work() -> None:
            at = offset
            for buffer in buffers:
                buffer[:] = self.data[at : at + len(buffer)]
                at += len(buffer)

        return self._answer(work)

    @hookimpl
    def write(self, offset: int, buffers: list[memoryview]) -> Future[None] | None:
        def work() -> None:
            at = offset
            for buffer in buffers:
                self.data[at : at + len(buffer)] = buffer
                at += len(buffer)
            self.mapped.update(range(offset // self.block_size, -(-at // self.block_size)))

        return self._answer(work)

    @hookimpl
    def flush(self) -> Future[None] | None:
        def work() -> None:
            self.flushed += 1

        return self._answer(work)

    @hookimpl
    def discard(self, offset: int, length: int) -> Future[None] | None:
        def work() -> None:
            self.data[offset : offset + length] = bytes(length)
            self.mapped.difference_update(range(offset // self.block_size, (offset + length) // self.block_size))

        return self._answer(work)

    @hookimpl
    def write_zeroes(self, offset: int, length: int) -> Future[None] | None:
        def work() -> None:
            self.data[offset : offset + length] = bytes(length)
            self.mapped.update(range(offset // self.block_size, (offset + length) // self.block_size))

        return self._answer(work)

    @hookimpl
    def extents(self, offset: int, length: int) -> list[Extent]:
        size = self.block_size
        return [Extent(at, size, at // size in self.mapped) for at in range(offset, offset + length, size)]


class Plain:
    """A handler with nothing but open and read: a read-only disk."""

    @hookimpl
    def open(self, device: Device) -> None:
        pass

    @hookimpl
    def read(self, buffers: list[memoryview]) -> None:
        for buffer in buffers:
            buffer[:] = b"r" * len(buffer)


class Looker:
    """One that looks at the commands of an engine: what it was told, in order, and how long statuses took to be out."""

    def __init__(self) -> None:
        self.found: list[Followed] = []
        self.out: list[float] = []

    def told(self, command: Followed, *, final: bool) -> None:
        self.found.append(command)

    def sent(self, command: Followed, seconds: float) -> None:
        assert command in self.found
        self.out.append(seconds)


class Shelf:
    """A store that several units may have. `later` collects what is to be replaced, and a Future is given for each."""

    def __init__(self, *, shared: bool = False) -> None:
        self.shared = shared
        self.data = b""
        self.version = 0
        self.watching: list[Callable[[], Future[None]]] = []
        self.taken: list[Future[None]] = []  # what those who watch have said to the last change
        self.later: list[Callable[[], None]] | None = None

    def load(self) -> tuple[bytes, str]:
        return self.data, str(self.version)

    def replace(self, state: bytes, version: str) -> str | Future[str]:
        def work() -> str:
            if version != str(self.version):
                raise StaleVersion("it has been replaced")
            self.data, self.version = state, self.version + 1
            self.taken = [callback() for callback in self.watching]
            return str(self.version)

        if self.later is None:
            return work()
        future: Future[str] = Future()

        def run() -> None:
            try:
                future.set_result(work())
            except StaleVersion as error:
                future.set_exception(error)

        self.later.append(run)
        return future

    def announce(self) -> Future[None] | None:
        if not self.shared:
            return None
        announced: Future[None] = Future()
        waiting = list(self.taken)

        def one_took(_future: Future[None]) -> None:
            if all(one.done() for one in waiting) and not announced.done():
                announced.set_result(None)

        for one in waiting:
            one.add_done_callback(one_took)
        return announced

    def watch(self, callback: Callable[[], Future[None]]) -> Callable[[], object]:
        self.watching.append(callback)
        return lambda: self.watching.remove(callback)


@dataclass
class Answer:
    """What an initiator gets."""

    status: int
    sense: bytes
    data: bytes
    wanted: int
    transferred: int
    command: Command

    @property
    def error(self) -> tuple[int, int, int]:
        """Sense key, ASC, ASCQ."""
        if not self.sense:
            return (0, 0, 0)
        if self.sense[0] & 0x7F == 0x72:
            return self.sense[1], self.sense[2], self.sense[3]
        return self.sense[2] & 0x0F, self.sense[12], self.sense[13]

    @property
    def field(self) -> tuple[int, int | None] | None:
        """The field pointer, if the sense has one."""
        first, byte = self.sense[15], int.from_bytes(self.sense[16:18], "big")
        if not first & 0x80:
            return None
        return byte, first & 7 if first & 8 else None


def cdb_of(text: str | bytes) -> bytes:
    """Read a CDB as people write it: hexadecimal bytes, in groups or one by one."""
    if isinstance(text, bytes):
        return text
    parts = text.split()
    if all(len(part) <= 2 for part in parts):
        return bytes(int(part, 16) for part in parts)
    return bytes.fromhex(text)


@dataclass
class Rig:
    """A target with logical units, and initiators that send to it."""

    handlers: list[Any]
    engines: list[Engine]
    target: Target
    posted: deque[tuple[Any, tuple[Any, ...]]]
    nexuses: dict[str, Any] = field(default_factory=dict)

    @property
    def engine(self) -> Engine:
        return self.engines[0]

    @property
    def unit(self) -> Unit:
        return self.engine.unit

    @property
    def memory(self) -> Any:
        return self.handlers[0]

    def turn(self) -> None:
        """Run what was posted to the loop, until there is nothing."""
        while self.posted:
            fn, args = self.posted.popleft()
            fn(*args)

    def nexus(self, who: str = "a") -> Any:
        """Return the I_T nexus of an initiator, made on first use with its power-on attentions cleared.

        `a:2` is initiator a at the target port 2.
        """
        if who not in self.nexuses:
            self.nexuses[who] = self.target.connect(initiator(who))
            for lun in self.target.luns:
                self.nexuses[who].luns[lun][1].attentions.clear()
        return self.nexuses[who]

    def start(
        self, cdb: str | bytes, data: bytes = b"", room: int = 0, *, who: str = "a", lun: int = 0, attribute: int = 1
    ) -> tuple[Command, list[Command]]:
        """Send a command; the list gets it when it has ended."""
        buffer = bytearray(data or room)
        ended: list[Command] = []
        views = [memoryview(buffer)] if buffer else []
        nexus: Any = None
        command = Command(cdb_of(cdb), views, len(buffer), nexus, ended.append, attribute=attribute)
        if self.nexus(who).execute(lun, command):
            ended.append(command)
        return command, ended

    def send(self, cdb: str | bytes, data: bytes = b"", room: int = 0, **kwargs: Any) -> Answer:
        """Send a command and run the loop until it has ended."""
        command, ended = self.start(cdb, data, room, **kwargs)
        self.turn()
        assert ended == [command], "the command has not ended, or more than once"
        return answer(command, data)

    def good(self, cdb: str | bytes, data: bytes = b"", room: int = 0, **kwargs: Any) -> bytes:
        """Send a command that must be GOOD; returns its data."""
        got = self.send(cdb, data, room, **kwargs)
        assert (got.status, got.error) == (Status.GOOD, (0, 0, 0))
        return got.data


def answer(command: Command, data: bytes = b"") -> Answer:
    """Read an ended command as its initiator would."""
    back = b"" if data else b"".join(command.buffers)[: command.transferred]
    return Answer(command.status, command.sense, back, command.wanted, command.transferred, command)


def initiator(who: str) -> Initiator:
    """Return an initiator port with an iSCSI TransportID (SPC-4 7.6.4.6); `a:2` is a at the target port 2."""
    who, _, port = who.partition(":")
    name = f"iqn.2020-01.test:{who},i,0x000000000001\0".encode()
    name += bytes(-len(name) % 4)
    return Initiator(who, bytes([0x45, 0]) + len(name).to_bytes(2, "big") + name, int(port or 1))


def make_rig(
    *handlers: Any,
    size: int = 1 << 20,
    shelf: Shelf | None = None,
    arrangement: Arrangement = ONE_GROUP,
    **attributes: Any,
) -> Rig:
    """Return a rig with one unit for each handler, Memory by default."""
    posted: deque[tuple[Any, tuple[Any, ...]]] = deque()
    made, engines = list(handlers) or [Memory()], []
    for number, handler in enumerate(made):
        disk = make_disk(handler, DiskSpec("memory", name=f"disk{number}", size=size), **attributes)
        disk.open()
        engines.append(Engine(disk, post=lambda fn, *args: posted.append((fn, args)), store=shelf))
    arrangements = dict.fromkeys(range(len(engines)), arrangement)
    return Rig(made, engines, Target("iqn.2020-01.test:target", dict(enumerate(engines)), arrangements), posted)


def cdb10(code: int, lba: int, count: int, flags: int = 0) -> bytes:
    """Return a 10-byte block CDB."""
    return bytes([code, flags]) + lba.to_bytes(4, "big") + b"\0" + count.to_bytes(2, "big") + b"\0"


def cdb12(code: int, lba: int, count: int, flags: int = 0) -> bytes:
    """Return a 12-byte block CDB."""
    return bytes([code, flags]) + lba.to_bytes(4, "big") + count.to_bytes(4, "big") + bytes(2)


def cdb16(code: int, lba: int, count: int, flags: int = 0) -> bytes:
    """Return a 16-byte block CDB."""
    return bytes([code, flags]) + lba.to_bytes(8, "big") + count.to_bytes(4, "big") + bytes(2)
