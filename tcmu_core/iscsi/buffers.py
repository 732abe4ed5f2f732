"""A connection's memory: what was received and not handled yet, and what waits to be sent.

Both are written like a log, front to back, and begin again at the front when nothing in them is needed any more. What
a pending command still uses pins its memory; when a pinned memory is full, a fresh one takes its place and the old one
lives as long as the views into it. So data is not copied between the socket and the handler.
"""

from __future__ import annotations

from collections import deque

from tcmu_core.iscsi.constants import BHS

MIN_ROOM = 32768  # less than this is not worth a recv


class Memory:
    """A block of memory, and how many pending commands use it."""

    __slots__ = ("pins", "size", "view")

    def __init__(self, size: int) -> None:
        self.view = memoryview(bytearray(size))
        self.size = size
        self.pins = 0


class Inbox:
    """What was received: bytes `start` to `end` of `memory` are not handled yet; `need` bytes make the next PDU."""

    __slots__ = ("end", "memory", "need", "start")

    def __init__(self, size: int) -> None:
        self.memory = Memory(size)
        self.start = 0
        self.end = 0
        self.need = BHS

    def room(self) -> memoryview:
        """Return where to receive next; empty when nothing may be received before something was handled."""
        memory = self.memory
        start, end = self.start, self.end
        if start == end and not memory.pins:
            self.start = self.end = 0
            return memory.view
        if start and memory.size - end < max(start + self.need - end, MIN_ROOM):
            self._move(memory.size)
        return self.memory.view[self.end :]

    def grow(self, size: int) -> None:
        """Go on in a memory of another size."""
        self._move(size, fresh=True)

    def clear(self) -> None:
        """Forget all, for good."""
        self.memory = Memory(0)
        self.start = self.end = 0

    def _move(self, size: int, *, fresh: bool = False) -> None:
        old = self.memory
        rest = old.view[self.start : self.end]
        if old.pins or fresh:
            self.memory = Memory(size)
        self.memory.view[: len(rest)] = rest
        self.start, self.end = 0, len(rest)


class Outbox:
    """What waits to be sent: `queue`, then bytes `run` to `cursor` of `memory`. `queued` counts the queue's bytes."""

    __slots__ = ("cursor", "limit", "memory", "queue", "queued", "run", "size")

    def __init__(self, size: int, limit: int) -> None:
        self.memory = Memory(size)
        self.size = size
        self.limit = limit
        self.queue: deque[memoryview] = deque()
        self.queued = 0
        self.run = 0
        self.cursor = 0

    def grow(self, size: int) -> None:
        """Go on in a memory of another size."""
        self.close_run()
        self.memory = Memory(size)
        self.size = size
        self.run = self.cursor = 0

    def clear(self) -> None:
        """Forget all, for good."""
        self.queue.clear()
        self.memory = Memory(0)
        self.queued = self.run = self.cursor = 0

    def close_run(self) -> None:
        """Put what was written since the last time into the queue."""
        if self.cursor != self.run:
            part = self.memory.view[self.run : self.cursor]
            self.queue.append(part)
            self.queued += len(part)
            self.run = self.cursor

    def push(self, part: memoryview) -> None:
        """Queue a view behind all that was written."""
        self.close_run()
        self.queue.append(part)
        self.queued += len(part)

    def append(self, data: bytes) -> None:
        """Write a finished PDU."""
        end = self.cursor + len(data)
        if end > self.memory.size:
            self.push(memoryview(data))
        else:
            self.memory.view[self.cursor : end] = data
            self.cursor = end

    def skip(self, end: int) -> None:
        """Leave the bytes from the cursor to `end` to a pending command."""
        self.close_run()
        self.run = self.cursor = end

    def make_room(self, count: int, *, force: bool = False) -> bool:
        """Have `count` bytes of room at the cursor. False: wait until the queue was sent (never with `force`)."""
        if self.cursor + count <= self.memory.size:
            return True
        self.close_run()
        memory = self.memory
        if not memory.pins and not self.queue and memory.size == self.size >= count:
            self.run = self.cursor = 0
            return True
        if not force and self.queue and (not memory.pins or self.queued > self.limit):
            return False
        self.memory = Memory(max(self.size, count))
        self.run = self.cursor = 0
        return True

    def sent(self, count: int) -> None:
        """Forget the first `count` bytes of the queue; begin at the front again once all is gone."""
        self.queued -= count
        queue = self.queue
        while count:
            part = queue[0]
            if len(part) > count:
                queue[0] = part[count:]
                return
            count -= len(part)
            queue.popleft()
        if not queue and self.cursor == self.run and not self.memory.pins and self.memory.size == self.size:
            self.run = self.cursor = 0
