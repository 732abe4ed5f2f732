"""What the levels of memory and of shares have in common: clients, a portal, and a disk whose hooks move nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import Any

from tcmu_core.loop import SLICE
from tests.simulation.book import Violation
from tests.simulation.link import Link, Management
from tests.simulation.net import WRITE, Loop, Socket
from tests.simulation.operation import Operation
from tests.simulation.schedule import Schedule
from tests.simulation.storage import BLOCK
from tests.simulation.world import TARGET, PortalWorld, limits


class Disk:
    """Storage that holds nothing: its hooks take time alone. `bytes` and `calls` count what they were asked for."""

    def __init__(self, number: int, size: int, extent: int) -> None:
        self.number = number
        self.blocks = range(size)
        self.pending: list[Future[None]] = []
        self.bytes = 0
        self.calls = 0
        self.at_once = False
        self._extent = extent  # bytes of each extent

    def hook(self, kind: str, offset: int, length: int, buffers: list[memoryview]) -> Future[None] | None:
        """Begin what a hook asks for."""
        self.calls += 1
        self.bytes += length if kind in {"read", "write"} else 0
        if self.at_once:
            return None
        future: Future[None] = Future()
        self.pending.append(future)
        return future

    def extents(self, offset: int, length: int) -> Iterable[tuple[int, int, bool]]:
        """Tell of many extents."""
        for at in range(offset, offset + length, self._extent):
            self.calls += 1
            yield at, self._extent, bool(at // self._extent & 1)


class BulkRun:
    """Clients, and a portal with one such disk."""

    clients = 1
    size = 4096  # blocks
    extent = 1 << 16  # bytes
    burst = 1 << 18  # bytes: MaxBurstLength, likewise
    segment = 8192  # MaxRecvDataSegmentLength of the clients (RFC 7143 13.12: the default)
    limits: dict[str, int] = {}

    def __init__(self, schedule: Schedule, log: Callable[[str], object] | None = None) -> None:
        self.schedule = schedule
        self.log = log
        self.violation: Violation | None = None
        self.book = self
        self.loop = Loop()
        self.disk = Disk(0, self.size, self.extent)
        self.world = PortalWorld(self.loop, limits(**self.limits), [self.disk], [None], 0, None)
        self.begin()
        self.links: list[Link] = []
        self.answers = 0
        self._tag = 0
        for who in range(self.clients):
            self.connect(who)
        self.settle()

    def begin(self) -> None:
        """The process is there; nobody has connected yet."""

    def connect(self, who: int) -> None:
        """Log in."""
        sock = Socket(self.loop)
        self.world.accept(sock)
        link = Link(self, who, f"iqn.2026-01.test:{'abcdefgh'[who]}", TARGET, bytes([0x80, 0, 0, 0, 0, who]), sock)
        link.segment, link.burst = self.segment, self.burst
        self.links.append(link)
        link.login()

    def operation(self, who: int, name: str) -> Operation:
        """Return a new operation."""
        self._tag += 1
        return Operation(self._tag, name, who, 0, 0)

    # -- what links tell ----------------------------------------------------------------------------------------------

    def answered(self, link: Link, op: Operation, status: int, sense: bytes, data: bytes) -> None:
        """An operation was answered."""
        link.ops.pop(op.number, None)
        self.answers += 1
        if self.log is not None and status:
            self.log(f"  {op}: status {status:02X}h, sense {sense.hex()}")

    def refused(self, link: Link, op: Operation) -> None:
        """An operation was rejected."""

    def managed(self, link: Link, request: Management, response: int) -> None:
        """A task management request was answered."""

    def logged_in(self, link: Link) -> None:
        """The login is over."""
        self.world.hush(f"iqn.2026-01.test:{'abcdefgh'[link.who]}", link.isid)

    def left(self, link: Link) -> None:
        """The session is over."""
        if self.log is not None:
            self.log(f"  {link} is over")

    # -- the run ------------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Do every step."""
        for name, choices in self.schedule.steps:
            if self.log is not None:
                self.log(f"{name} {choices.hex()}")
            getattr(self, "do_" + name)(choices)
        self.drain()

    def drain(self) -> None:
        """Let everything end."""

    def call(self, fn: Callable[..., object], *args: Any) -> Any:
        """Make one call of the loop."""
        return fn(*args)

    def round(self) -> bool:
        """Let the loop go round once: every socket that is ready, then what was posted; True if anything happened."""
        moved = False
        for link in self.links:
            if not link.over:
                if link.sock.arriving:
                    moved = bool(self.call(link.sock.deliver, 1 << 20)) or moved
                if link.sock.window is None:
                    moved = bool(self.call(link.sock.ready, WRITE)) or moved
        until = self.loop.now + SLICE
        for _ in range(len(self.loop.posted)):
            moved = True
            self.call(self.loop.turn)
            if self.loop.now > until:
                break
        for link in self.links:
            link.read()
        if self.world.error is not None:
            raise Violation("internal", self.world.error)
        return moved

    def settle(self) -> None:
        """Let the loop go round until nothing happens."""
        for _ in range(100_000):
            if not self.round():
                return
        raise Violation("hung", "the loop never comes to rest")


def read_16(lba: int, count: int) -> bytes:
    """READ(16)."""
    return bytes([0x88, 0]) + lba.to_bytes(8, "big") + count.to_bytes(4, "big") + bytes(2)


def write_16(lba: int, count: int) -> bytes:
    """WRITE(16)."""
    return bytes([0x8A, 0]) + lba.to_bytes(8, "big") + count.to_bytes(4, "big") + bytes(2)


__all__ = ["BLOCK", "BulkRun", "Disk", "read_16", "write_16"]
