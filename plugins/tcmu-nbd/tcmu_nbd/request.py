"""Request: one command to a server, from the hook that makes it to the Future that ends it."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

from tcmu_nbd.constants import Cmd, CmdFlag

CHANGING = frozenset({Cmd.WRITE, Cmd.WRITE_ZEROES, Cmd.TRIM})
FUA = int(CmdFlag.FUA)  # a plain number: an enum's operators take a microsecond each
OVERHEAD = 256  # bytes of memory that a request takes beside its data


class Request:
    """What is asked (bytes), where the answer goes, and what became of it.

    A write owns its `data`: the initiator's buffers are free as soon as the Future is done, while the data may
    have to be sent once more. A read fills `buffers`, which are given up (None) when it ends early. `runs` are
    the (length, status flags) of a block status. The rest is the session's: `deadline` and `lost_at` are
    monotonic seconds, `link` is the connection's index, `number` counts acknowledged changes (of a flush: up to
    which it covers), and
    `companions` are flushes that end with this one.
    """

    deadline = lost_at = 0.0
    acknowledged = False
    number = link = 0
    companions: Sequence[Request] = ()
    runs: Sequence[tuple[int, int]] = ()

    def __init__(
        self,
        command: Cmd,
        offset: int = 0,
        length: int = 0,
        flags: int = 0,
        *,
        data: bytes = b"",
        buffers: list[memoryview] | None = None,
        future: Future[Any] | None = None,
    ) -> None:
        self.command = command
        # Whether it changes data; whether only a flush makes it stable; the bytes that it takes while it is remembered.
        self.changes = command in CHANGING
        self.volatile = self.changes and not flags & FUA
        self.memory = len(data) + OVERHEAD
        self.offset = offset
        self.length = length
        self.flags = flags
        self.data = data
        self.buffers = buffers
        self.future: Future[Any] = Future() if future is None else future

    def __repr__(self) -> str:
        return f"{self.command.name}({self.offset}, {self.length})"

    def overlaps(self, other: Request) -> bool:
        """Say whether both touch a byte; a flush touches none."""
        return self.offset < other.offset + other.length and other.offset < self.offset + self.length

    def finish(self, result: object = None) -> None:
        """End it well; does nothing when it has ended."""
        future = self.future
        if not future.done():
            future.set_result(result)
        if self.companions:
            for companion in self.companions:
                companion.finish(result)

    def fail(self, error: Exception) -> None:
        """End it with an error and give its buffers back; does nothing when it has ended."""
        self.buffers = None
        if not self.future.done():
            self.future.set_exception(error)
        for companion in self.companions:
            companion.fail(error)
