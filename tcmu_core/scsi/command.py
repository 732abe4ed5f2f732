"""Command: one CDB with its data buffers on the way down, its status and sense on the way up."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

from tcmu_core.scsi.tally import Sink, Tally


class Status(IntEnum):
    """Status codes (SAM-5 5.3.1)."""

    GOOD = 0x00
    CHECK_CONDITION = 0x02
    CONDITION_MET = 0x04
    BUSY = 0x08
    RESERVATION_CONFLICT = 0x18
    TASK_SET_FULL = 0x28
    ACA_ACTIVE = 0x30
    TASK_ABORTED = 0x40


class TaskAttribute(IntEnum):
    """Task attributes, numbered as in RFC 7143 11.3.1."""

    UNTAGGED = 0
    SIMPLE = 1
    ORDERED = 2
    HEAD_OF_QUEUE = 3
    ACA = 4


@dataclass(frozen=True, slots=True)
class Initiator:
    """An initiator port as the target knows it.

    `name` is for the log, `transport_id` the TransportID of SPC-4 7.6.4 (the identity that registrations follow),
    `port` the relative target port identifier that it came in by.
    """

    name: str
    transport_id: bytes
    port: int = 1


@dataclass(eq=False, slots=True, weakref_slot=True)
class Nexus:
    """An I_T_L nexus: one initiator port and one logical unit, with the unit attentions that wait for it.

    A handler that keeps something for each nexus keeps it by weak reference.
    """

    initiator: Initiator
    attentions: deque[tuple[int, int]] = field(default_factory=deque)  # (asc, ascq), oldest first
    on_clear: Callable[[], object] | None = None  # a transport drops what it has not handed over; true if it had any
    tally: Tally = field(default_factory=Tally)  # of the initiator at this disk, whatever nexus it has
    outgoing: Callable[[Sink], object] | None = None  # a transport counts how long what ended now takes to be out


def _ignore(command: Command) -> None:
    pass


class Command:
    """A SCSI command.

    `buffers` are writable memoryviews: what the initiator sent, or the room for what it will get; `length` is their
    total in bytes. When the command has ended: `status`, `sense` (empty unless CHECK CONDITION), `transferred`, the
    bytes moved, and `wanted`, the bytes that the CDB asked to move (more than `length` is a residual overflow).
    `done` is called on the loop's thread for a command that did not end inside `Engine.execute`.

    The engine decodes the CDB once: `row` is its line in the opcode table, None where there is none, `lba` and `count`
    the blocks that it names. `aborted`: it is to end as soon as its hook returns; `silent`: then nobody is told.
    `begun`: when it had its turn (time.perf_counter_ns), if it had to wait for that.
    """

    __slots__ = (
        "aborted",
        "attribute",
        "begun",
        "buffers",
        "cdb",
        "context",
        "count",
        "done",
        "lba",
        "length",
        "nexus",
        "row",
        "sense",
        "status",
        "tag",
        "transferred",
        "wanted",
    )

    def __init__(
        self,
        cdb: bytes,
        buffers: list[memoryview],
        length: int,
        nexus: Nexus,
        done: Callable[[Command], None] = _ignore,
        tag: int = 0,
        attribute: int = 1,
    ) -> None:
        # Not set here, for a command whose fast path ends it never has them: row, lba, count, begun.
        self.cdb = cdb
        self.buffers = buffers
        self.length = length
        self.nexus = nexus
        self.done = done
        self.tag = tag
        self.attribute = attribute
        self.status: int = 0
        self.sense = b""
        self.transferred = 0
        self.wanted = 0
        self.aborted = False
        self.context: Any = None  # the transport's own

    row: Any
    lba: int
    count: int
    begun: int

    @property
    def silent(self) -> bool:
        """Whether it ends without a status: it was aborted, and not by another nexus with TAS set (SAM-5 5.7)."""
        return self.aborted and self.status != Status.TASK_ABORTED

    def put(self, data: bytes | bytearray | memoryview) -> None:
        """Answer with `data`: copy what fits into the buffers and note what was wanted and moved."""
        self.wanted = len(data)
        at = 0
        for buffer in self.buffers:
            if at >= len(data):
                break
            part = data[at : at + len(buffer)]
            buffer[: len(part)] = part
            at += len(part)
        self.transferred = at

    def put_at(self, at: int, data: bytes | bytearray | memoryview) -> None:
        """Copy `data` into the buffers from byte `at` on; there is room for all of it."""
        for part in slice_buffers(self.buffers, at, len(data)):
            part[:], data = data[: len(part)], data[len(part) :]

    def bytes_from(self, at: int, count: int | None = None) -> bytes:
        """Return what the initiator sent from byte `at` on: all of it, or `count` bytes at most."""
        rest = self.length - at
        return b"".join(slice_buffers(self.buffers, at, rest if count is None else min(count, rest)))

    def take(self, count: int | None = None) -> bytes:
        """Return the first `count` bytes (all of them by default) that the initiator sent; fewer when it sent fewer."""
        data = self.bytes_from(0, count)
        self.transferred = len(data)
        self.wanted = len(data) if count is None else count
        return data

    def window(self, count: int) -> list[memoryview]:
        """Return buffers that cover exactly the first `count` bytes; `count` is at most `length`."""
        if count == self.length:
            return self.buffers
        return slice_buffers(self.buffers, 0, count)


def slice_buffers(buffers: list[memoryview], start: int, count: int) -> list[memoryview]:
    """Return views of `count` bytes of `buffers` from byte `start` on."""
    result = []
    for buffer in buffers:
        size = len(buffer)
        if start >= size:
            start -= size
            continue
        part = buffer[start : start + count]
        start = 0
        count -= len(part)
        result.append(part)
        if not count:
            break
    return result
