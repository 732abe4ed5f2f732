"""What a handler promises, checked by commands: a device whose hooks are called through one of the ways in."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

from tcmu_core.scsi.command import Status, slice_buffers
from tcmu_core.testing.harness import Latest, OpenDevice, PromiseBroken, call
from tcmu_core.testing.initiator import Reply
from tcmu_core.testing.promises import (
    SCRIBBLE,
    Maker,
    Promise,
    check_buffers,
    check_ends,
    check_flush,
    check_giving_back,
    check_reading,
    check_zeros,
    require,
    same,
    writable,
)
from tcmu_core.testing.together import check_together
from tcmu_core.testing.ways import WAYS, Way

LARGEST = 256 << 10  # bytes of one command
ABORTED = 16  # commands at a time
ROUNDS = 2  # of commands in flight together: the hooks were looked at closely before
GRACE = 0.05  # seconds in which what was ended would come late


class Reached(OpenDevice):
    """An open device whose data hooks are called by commands through a way in."""

    def __init__(self, opened: OpenDevice, way: Way) -> None:
        super().__init__(opened.disk)
        self.way = way
        self._parts: dict[Future[Any], list[Future[Reply]]] = {}

    def start(self, name: str, *arguments: Any) -> Future[Any] | None:
        """Send the commands that have the engine call a data hook; large ones in several parts."""
        commands = list(self._commands(name, *arguments))
        if not commands:  # no command of this kind of device does it
            return super().start(name, *arguments)
        self.doing = f"{call(name, arguments)} by {commands[0][0]}"
        whole: Future[Any] = Future()
        self._parts[whole] = [self.way.send(cdb, buffers, writing=writing) for _, cdb, buffers, writing in commands]
        return whole

    def finish(self, pending: Future[Any] | None) -> None:
        """Wait until commands have ended, all of them GOOD."""
        for reply in self.ended(pending):
            if reply.status != Status.GOOD:
                said = f"sense {'/'.join(f'{one:02X}h' for one in reply.error)}" if any(reply.error) else "no sense"
                raise PromiseBroken(f"it ended with {Status(reply.status).name}, {said}", self.doing)

    def ended(self, pending: Future[Any] | None) -> list[Reply]:
        """Wait until commands have ended, and return how."""
        parts = self._parts.pop(pending, None) if pending is not None else None
        if parts is None:
            super().finish(pending)
            return []
        return [self.way.wait(part) for part in parts]

    def abort(self, pending: Future[Any] | None) -> None:
        """Abort commands."""
        for part in self._parts.get(pending, ()) if pending is not None else ():
            self.way.abort(part)

    def ask(self, cdb: bytes, length: int) -> bytes:
        """Return what a command answers with, in `length` bytes; the rest is zeros."""
        room = bytearray(length)
        self.doing = cdb.hex(" ")
        reply = self.way.wait(self.way.send(cdb, [memoryview(room)], writing=False))
        require(reply.status == Status.GOOD, self, f"it ended with {Status(reply.status).name}")
        return bytes(room)

    def _commands(self, name: str, *arguments: Any) -> Iterator[tuple[str, bytes, list[memoryview], bool]]:
        """Yield name, CDB, buffers of each command, and whether it writes."""
        block, unit = self.device.block_size, self.way.engine.unit
        if name in ("read", "write"):
            offset, buffers = arguments
            most = min(LARGEST // block, unit.max_blocks)
            for at, count in _cut(offset, sum(map(len, buffers)), most * block):
                part = slice_buffers(buffers, at - offset, count)
                title, cdb = _block_cdb(name, at // block, count // block)
                yield title, cdb, part, name == "write"
        elif name == "flush":
            yield "SYNCHRONIZE CACHE(10)", b"\x35" + bytes(9), [], False
        elif self.device.device_type:
            return
        elif name == "discard":
            offset, length = arguments
            for at, count in _cut(offset, length, unit.max_unmap_blocks * block):
                parameters = bytearray(b"\x00\x16\x00\x10" + bytes(4))  # SBC-4 5.35.2: one descriptor
                parameters += (at // block).to_bytes(8, "big") + (count // block).to_bytes(4, "big") + bytes(4)
                yield "UNMAP", b"\x42" + bytes(6) + b"\x00\x18\x00", [memoryview(parameters)], True
        elif name == "write_zeroes":
            offset, length = arguments
            for at, count in _cut(offset, length, unit.max_write_same_blocks * block):
                cdb = b"\x93\0" + (at // block).to_bytes(8, "big") + (count // block).to_bytes(4, "big") + bytes(2)
                yield "WRITE SAME(16)", cdb, [memoryview(bytearray(block))], True


def _cut(offset: int, length: int, most: int) -> Iterator[tuple[int, int]]:
    for at in range(offset, offset + length, most):
        yield at, min(most, offset + length - at)


def _block_cdb(name: str, lba: int, blocks: int) -> tuple[str, bytes]:
    """Return READ or WRITE, of 10 bytes where that is enough."""
    title, short, long = name.upper(), *((0x28, 0x88) if name == "read" else (0x2A, 0x8A))
    if lba + blocks < 1 << 32 and blocks < 1 << 16:
        return f"{title}(10)", bytes([short, 0]) + lba.to_bytes(4, "big") + b"\0" + blocks.to_bytes(2, "big") + b"\0"
    return f"{title}(16)", bytes([long, 0]) + lba.to_bytes(8, "big") + blocks.to_bytes(4, "big") + bytes(2)


@contextmanager
def reached(name: str, make: Maker) -> Iterator[Reached]:
    """Open a device and reach it through the way in `name`."""
    with make() as opened:
        way = WAYS[name](opened.disk)
        disk = Reached(opened, way)
        Latest.device = disk
        try:
            yield disk
            disk.doing = f"the last command through the {name}"
            way.close()
        except PromiseBroken as error:
            if error.doing:
                raise
            raise type(error)(str(error), disk.doing) from None
        finally:
            way.end()
        Latest.device = opened


# -- what commands alone can show -------------------------------------------------------------------------------------


def check_capacity(make: Maker) -> str | None:
    """READ CAPACITY tells the size and the block size of the device, whoever answers it."""
    with make() as disk:
        assert isinstance(disk, Reached)
        block = disk.device.block_size
        if disk.size // block < 1 << 32:
            said = disk.ask(b"\x25" + bytes(9), 8)  # READ CAPACITY(10)
            found = int.from_bytes(said[:4], "big") + 1, int.from_bytes(said[4:8], "big")
            require(found[1] == block, disk, f"blocks are said to be of {found[1]} bytes, and are of {block}")
            require(found[0] == disk.size // block, disk, f"{found[0]} blocks are said, {disk.size // block} are there")
    return None


def check_abort(make: Maker) -> str | None:
    """What was aborted and has ended does nothing any more: no write lands on a newer one, no buffer is filled."""
    with make() as disk:
        assert isinstance(disk, Reached)
        block = disk.device.block_size
        rooms = [bytearray(block) for _ in range(ABORTED)]
        _abort_all(disk, "read", rooms)
        if writable(disk):
            _abort_all(disk, "write", [bytearray(b"o" * block) for _ in range(ABORTED)])
            new = [bytearray(b"n" * block) for _ in range(ABORTED)]
            sent = [disk.start("write", number * block, [memoryview(data)]) for number, data in enumerate(new)]
            for one in sent:
                disk.finish(one)
        time.sleep(GRACE)
        for room in rooms:
            require(room == SCRIBBLE * block, disk, "the buffers of a read that was aborted were filled afterwards")
        for number in range(ABORTED if writable(disk) else 0):
            found = disk.read(number * block, block)
            same(found, b"n" * block, number * block, disk, "written when an older write had been aborted")
    return None


def check_in_flight(make: Maker) -> str | None:
    """Commands that are in flight together don't mix their data up."""
    return check_together(make, rounds=ROUNDS)


def _abort_all(disk: Reached, name: str, rooms: list[bytearray]) -> None:
    block = disk.device.block_size
    sent = []
    for number, room in enumerate(rooms):
        sent.append(disk.start(name, number * block, [memoryview(room)]))
        disk.abort(sent[-1])
    for one, room in zip(sent, rooms, strict=True):
        for reply in disk.ended(one):
            require(reply.status in (Status.GOOD, Status.TASK_ABORTED), disk, f"status {reply.status:02X}h")
        room[:] = SCRIBBLE * block


THROUGH: tuple[Promise, ...] = (
    check_capacity,
    check_reading,
    check_ends,
    check_buffers,
    check_giving_back,
    check_flush,
    check_zeros,
    check_in_flight,
    check_abort,
)
