"""A drive on a logical unit, and initiators that use it as a transport would."""

from __future__ import annotations

import os
import queue
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tcmu_core import Change, Command, Nexus
from tcmu_core.disk.disk import Disk
from tcmu_core.disk.spec import DiskSpec
from tcmu_core.scsi.command import Initiator
from tcmu_core.scsi.engine import Engine
from tcmu_fbo import Optical
from tcmu_fbo.drive import Drive

# A loop device needs root.
collect_ignore = [] if os.geteuid() == 0 and Path("/dev/loop-control").exists() else ["test_block_device.py"]

BLOCK = 2048
DEADLINE = 60  # seconds until a command that has not ended counts as hung


@dataclass
class Answer:
    """What an initiator gets."""

    status: int
    sense: bytes
    data: bytes
    wanted: int
    transferred: int

    @property
    def error(self) -> tuple[int, int, int]:
        """Sense key, ASC, ASCQ."""
        return (self.sense[2] & 0x0F, self.sense[12], self.sense[13]) if self.sense else (0, 0, 0)

    @property
    def information(self) -> int | None:
        return int.from_bytes(self.sense[3:7], "big") if self.sense and self.sense[0] & 0x80 else None

    @property
    def field(self) -> tuple[bool, int, int | None] | None:
        """The field pointer: whether it points into the CDB, the byte, and the bit."""
        if not self.sense or not self.sense[15] & 0x80:
            return None
        first = self.sense[15]
        return bool(first & 0x40), int.from_bytes(self.sense[16:18], "big"), first & 7 if first & 8 else None

    @property
    def progress(self) -> int:
        assert self.sense[15] & 0x80
        return int.from_bytes(self.sense[16:18], "big")


class Bench:
    """A drive behind the engine."""

    def __init__(self, cfgstring: str, size: int | None = None, *, read_only: bool = False) -> None:
        self.handler = Optical()
        self.disk = Disk(DiskSpec("fbo", cfgstring, "cd0", size, read_only=read_only), self.handler)
        self.device = self.disk.device
        self.disk.open()
        self._posted: queue.SimpleQueue[tuple[Callable[..., Any], tuple[Any, ...]]] = queue.SimpleQueue()
        self.unit = Engine(self.disk, post=lambda fn, *args: self._posted.put((fn, args)))
        self.nexuses: dict[str, Nexus] = {}

    @property
    def drive(self) -> Drive:
        return self.handler.drive

    def nexus(self, who: str) -> Nexus:
        """Return an initiator's nexus, made with its power-on attention cleared and known to the drive."""
        if who not in self.nexuses:
            self.nexuses[who] = self.unit.attach(Initiator(who, who.encode()))
            self.nexuses[who].attentions.clear()
            self.send("00 00 00 00 00 00", who=who)
        return self.nexuses[who]

    def leave(self, who: str) -> None:
        """Lose an initiator's nexus."""
        self.unit.detach(self.nexuses.pop(who))

    def turn(self) -> None:
        """Run what was posted."""
        while not self._posted.empty():
            fn, args = self._posted.get()
            fn(*args)

    def start(
        self, cdb: str | bytes, data: bytes = b"", room: int = 65536, who: str = "a"
    ) -> tuple[Command, list[Command]]:
        """Send a command; the list gets it when it has ended."""
        raw = bytes.fromhex(cdb) if isinstance(cdb, str) else cdb
        buffer = bytearray(data or bytes(room))
        ended: list[Command] = []
        views = [memoryview(buffer)] if buffer else []
        command = Command(raw, views, len(buffer), self.nexus(who), ended.append)
        if self.unit.execute(command):
            ended.append(command)
        return command, ended

    def finish(self, ended: list[Command]) -> None:
        """Run the loop until the command has ended."""
        while not ended:
            fn, args = self._posted.get(timeout=DEADLINE)
            fn(*args)
        self.turn()

    def send(self, cdb: str | bytes, data: bytes = b"", room: int = 65536, who: str = "a") -> Answer:
        """Send a command and wait for its end."""
        command, ended = self.start(cdb, data, room, who)
        self.finish(ended)
        back = b"" if data else b"".join(command.buffers)[: command.transferred]
        return Answer(command.status, command.sense, back, command.wanted, command.transferred)

    def good(self, cdb: str | bytes, data: bytes = b"", room: int = 65536, who: str = "a") -> bytes:
        """Send a command that must be GOOD; return its data."""
        got = self.send(cdb, data, room, who)
        assert (got.status, got.error) == (0, (0, 0, 0))
        return got.data

    def insert(self, cfgstring: str) -> None:
        """Change the disc from outside, as ChangeMedium does."""
        self.disk.change(Change(cfgstring=cfgstring))
        self.turn()

    def close(self) -> None:
        self.turn()
        self.disk.close()


@pytest.fixture
def bench() -> Iterator[Callable[..., Bench]]:
    """Make drives that are closed at the end."""
    made: list[Bench] = []

    def make(cfgstring: str = "", size: int | None = None, *, read_only: bool = False) -> Bench:
        made.append(Bench(cfgstring, size, read_only=read_only))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture(scope="session")
def make_bench() -> type[Bench]:
    """Give tests that keep a drive for longer the class itself."""
    return Bench


@pytest.fixture
def image(tmp_path: Path) -> Callable[..., Path]:
    """Make images: `blocks` of contents that tell one block from another, or sparse ones of a size."""

    def make(name: str = "disc.iso", blocks: int = 100, *, extra: int = 0, sparse: bool = False) -> Path:
        path = tmp_path / name
        with path.open("wb") as file:
            if sparse:
                file.truncate(blocks * BLOCK + extra)
            else:
                for number in range(blocks):
                    file.write(block(number))
                file.write(block(blocks)[:extra])
        return path

    return make


def block(number: int) -> bytes:
    """Return the contents of a block: its number, over and over."""
    return number.to_bytes(8, "big") * (BLOCK // 8)
