"""Storage whose hooks end when the schedule says so: late, in any order, torn, with an error; it remembers all it held.

It outlives the processes that open it. What it holds is written by hooks alone, so who wrote each block, and when, is
known, and the book can judge it.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable
from concurrent.futures import Future
from typing import Protocol

from tests.simulation.operation import Operation

BLOCK = 512
ZERO = bytes(BLOCK)


class Stage(Protocol):
    """What the storage asks of the run that it is part of."""

    now: int  # events since the start

    def whose(self) -> Operation | None:
        """Return the operation whose hook is being called."""

    def manner(self) -> str:
        """Return how this hook goes, as the schedule has it: `later`, at once (`now`), or at once with an `error`."""

    def called(self, hook: Hook) -> None:
        """A hook is called."""

    def moved(self, hook: Hook, block: int) -> None:
        """A hook is about to move a block: from its buffers, or into them."""

    def returned(self, hook: Hook, error: BaseException | None) -> None:
        """A hook has ended."""


class Hook:
    """A call of a data hook that has not ended: `left` are the blocks that it has not moved yet."""

    __slots__ = ("buffers", "content", "count", "first", "flushes", "future", "kind", "left", "op", "since", "storage")

    def __init__(
        self, storage: Storage, kind: str, op: Operation | None, first: int, count: int, buffers: list[memoryview]
    ) -> None:
        self.storage = storage
        self.kind = kind  # read, write, zero or flush
        self.op = op
        self.first = first
        self.count = count
        self.buffers = buffers
        self.left = list(range(first, first + count))
        self.content = b"".join(buffers) if kind == "write" else b""
        self.flushes = [len(past) for past in storage.history] if kind == "flush" else []
        self.future: Future[None] | None = None
        self.since = storage.stage.now

    @property
    def writes(self) -> bool:
        """Whether it changes what the storage holds."""
        return self.kind in {"write", "zero"}

    def overlaps(self, keys: Iterable[tuple[int, int]]) -> bool:
        """Return whether it touches one of these blocks, each a storage's number and a block's."""
        number, first, end = self.storage.number, self.first, self.first + self.count
        return any(disk == number and first <= block < end for disk, block in keys)

    def move(self, block: int) -> None:
        """Move one block."""
        self.left.remove(block)
        storage = self.storage
        storage.stage.moved(self, block)
        at = (block - self.first) * BLOCK
        if self.kind == "read":
            _put(self.buffers, at, storage.blocks[block])
            return
        if self.kind == "zero":
            value = ZERO
        else:
            value = b"".join(self.buffers)[at : at + BLOCK] if len(self.buffers) > 1 else _cut(self.buffers[0], at)
        storage.blocks[block] = value
        storage.history[block].append((storage.stage.now, self.op, value))

    def finish(self, error: BaseException | None = None) -> None:
        """End: with all blocks moved, or with an error."""
        storage = self.storage
        if error is None and self.kind == "flush" and storage.flush_failed:
            error = OSError(errno.EIO, "a flush has failed before")
        if error is None:
            for block in list(self.left):
                self.move(block)
            if self.kind == "flush":
                storage.stable = [max(pair) for pair in zip(storage.stable, self.flushes, strict=True)]
        elif self.kind == "flush":
            storage.flush_failed = True
        storage.stage.returned(self, error)
        if self.future is not None:
            storage.pending.remove(self)
            if error is None:
                self.future.set_result(None)
            else:
                self.future.set_exception(error)

    def __str__(self) -> str:
        """Say what it is, for people."""
        what = f"{self.kind} of {self.count} at {self.first}" if self.count else self.kind
        return f"{what} on disk {self.storage.number} for {self.op}"


def _cut(buffer: memoryview, at: int) -> bytes:
    return bytes(buffer[at : at + BLOCK])


def _put(buffers: list[memoryview], at: int, data: bytes) -> None:
    """Write `data` into `buffers`, from byte `at` of them all on."""
    for buffer in buffers:
        size = len(buffer)
        if at >= size:
            at -= size
            continue
        part = data[: size - at]
        buffer[at : at + len(part)] = part
        data = data[len(part) :]
        at = 0
        if not data:
            return


class Storage:
    """A handler's hooks over a few blocks.

    `history` has, for each block, when each value came there and by whom; `stable` how much of that is on stable
    storage. After a flush that has failed each later one fails, as a handler must see to.
    """

    def __init__(self, number: int, size: int, stage: Stage) -> None:
        self.number = number
        self.stage = stage
        self.blocks = [ZERO] * size
        self.history: list[list[tuple[int, Operation | None, bytes]]] = [[(0, None, ZERO)] for _ in range(size)]
        self.stable = [1] * size
        self.flush_failed = False
        self.pending: list[Hook] = []

    def hook(self, kind: str, offset: int, length: int, buffers: list[memoryview]) -> Future[None] | None:
        """Begin what a hook asks for."""
        stage = self.stage
        hook = Hook(self, kind, stage.whose(), offset // BLOCK, length // BLOCK, buffers)
        stage.called(hook)
        manner = stage.manner()
        if manner == "later":
            hook.future = Future()
            self.pending.append(hook)
            return hook.future
        if manner == "error" or (kind == "flush" and self.flush_failed):
            error = OSError(errno.EIO, "the schedule has it so")
            hook.finish(error)
            raise error
        hook.finish()
        return None

    def extents(self, offset: int, length: int) -> Iterable[tuple[int, int, bool]]:
        """Say that all is mapped."""
        return [(offset, length, True)]

    def wipe_process(self, bits: int) -> None:
        """The process is gone: of what its hooks had begun, a part still reaches the storage."""
        for at, hook in enumerate(self.pending):
            if hook.writes and bits >> at % 8 & 1:
                for block in hook.left[: 1 + (bits >> 3) % 4]:
                    hook.move(block)
        self.pending = []
        self.flush_failed = False
