"""A connection's memory: what was received and not handled yet, and what waits to be sent.

Both are written like a log, front to back, and begin again at the front when nothing in them is needed any more. What
a pending command still uses pins its memory; when a pinned memory is full, a fresh one takes its place and the old one
lives as long as the views into it. So data is not copied between the socket and the handler.

Both begin small, grow while much is under way, and shrink again when the connection is idle. Every memory is a block of
the connection's account: where that allows no more, the inbox has no room, and the outbox can't make any.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from tcmu_core.iscsi.budget import Account, Budget
from tcmu_core.iscsi.constants import BHS

SMALL = 65536  # bytes: what either begins with
MIN_ROOM = 32768  # less than this is not worth a recv
GROWTH = 4  # times


class Memory:
    """A block of memory, and how many pending commands use it."""

    __slots__ = ("pins", "size", "view")

    def __init__(self, account: Account, size: int) -> None:
        self.view = account.block(size)
        self.size = size
        self.pins = 0


NOTHING = Memory(Budget(0).account(0, 0), 0)  # what a connection keeps that has ended


class Inbox:
    """What was received: bytes `start` to `end` of `memory` are not handled yet; `need` bytes make the next PDU."""

    __slots__ = ("_most", "_size", "account", "end", "lean", "memory", "need", "start")

    def __init__(self, account: Account, most: int) -> None:
        self.account = account
        self._most = most  # bytes that it grows to
        self._size = SMALL
        self.memory = Memory(account, SMALL)
        self.start = 0
        self.end = 0
        self.need = BHS
        self.lean = False  # whether to shrink at the next opportunity

    def room(self) -> memoryview:
        """Return where to receive next; empty when nothing may be received before something has ended."""
        memory = self.memory
        start, end = self.start, self.end
        if start == end and not memory.pins and memory.size >= self._size:
            if self.lean:
                self.lean = False
                self.shrink()
            self.start = self.end = 0
            return self.memory.view
        if memory.size - end < max(start + self.need - end, MIN_ROOM) or memory.size < self._size:
            self._move()
        return self.memory.view[self.end :]

    def filled(self) -> None:
        """Note that a memory was filled to its end: the next one is larger."""
        if self.memory.size >= self._size:
            self._size = min(self._size * GROWTH, self._most)

    def shrink(self) -> None:
        """Be as small as at the beginning, if it is empty."""
        self._size = SMALL
        if self.start == self.end and self.memory.size > SMALL:
            self.memory = Memory(self.account, SMALL)
            self.start = self.end = 0

    def clear(self) -> None:
        """Forget all, for good."""
        self.memory = NOTHING
        self.start = self.end = 0

    def _move(self) -> None:
        """Go on at the front of this memory, or of a fresh one, if there may be one."""
        old = self.memory
        rest = old.view[self.start : self.end]
        least = max(self.need, len(rest) + BHS)
        if old.pins or old.size < max(self._size, least):
            for size in (max(self._size, least), least + MIN_ROOM):
                if self.account.allows(size - (0 if old.pins else old.size)):
                    self.memory = Memory(self.account, size)
                    break
            else:
                if old.pins or old.size < least:
                    return
        if self.start or self.memory is not old:
            self.memory.view[: len(rest)] = rest
            self.start, self.end = 0, len(rest)


class Outbox:
    """What waits to be sent: `queue`, then bytes `run` to `cursor` of `memory`. `queued` counts the queue's bytes.

    `limit` is how much may be queued before commands wait.
    """

    __slots__ = (
        "_account",
        "_joins",
        "_most",
        "_size",
        "_watched",
        "cursor",
        "limit",
        "memory",
        "queue",
        "queued",
        "run",
    )

    def __init__(self, account: Account, most: int, limit: int) -> None:
        self._account = account
        self._most = most  # bytes that it grows to
        self._size = SMALL
        self.memory = Memory(account, SMALL)
        self.limit = limit
        self.queue: deque[memoryview] = deque()
        self.queued = 0
        self.run = 0
        self.cursor = 0
        self._joins = False  # whether the queue ends where the run begins
        self._watched: list[tuple[int, Callable[[], object]]] = []  # bytes that go before, and what to call then

    def clear(self) -> None:
        """Forget all, for good."""
        self.queue.clear()
        self._watched.clear()
        self.memory = NOTHING
        self.queued = self.run = self.cursor = 0

    def shrink(self) -> None:
        """Be as small as at the beginning, if it is empty."""
        self._size = SMALL
        if not self.queue and self.cursor == self.run and self.memory.size > SMALL:
            self._renew(SMALL)

    def close_run(self) -> None:
        """Put what was written since the last time into the queue."""
        run, cursor = self.run, self.cursor
        if cursor != run:
            queue = self.queue
            if self._joins and queue:  # a peer that takes nothing must not cost a view for each response
                queue[-1] = self.memory.view[run - len(queue[-1]) : cursor]
            else:
                queue.append(self.memory.view[run:cursor])
                self._joins = True
            self.queued += cursor - run
            self.run = cursor

    def push(self, part: memoryview) -> None:
        """Queue a view behind all that was written."""
        if self.cursor != self.run:
            self.close_run()
        self._joins = False
        self.queue.append(part)
        self.queued += len(part)

    def append(self, data: bytes) -> None:
        """Write a finished PDU."""
        end = self.cursor + len(data)
        if end > self.memory.size:
            self.close_run()
            self._renew(max(len(data), SMALL))
            end = len(data)
        self.memory.view[self.cursor : end] = data
        self.cursor = end

    def skip(self, end: int) -> None:
        """Leave the bytes from the cursor to `end` to a pending command."""
        if self.cursor != self.run:
            self.close_run()
        self._joins = False
        self.run = self.cursor = end

    def make_room(self, count: int) -> bool:
        """Have `count` bytes of room at the cursor. False: there is none until the queue was sent, or commands end."""
        memory = self.memory
        if self.cursor + count <= memory.size:
            return True
        self.close_run()
        idle = not memory.pins and not self.queue
        if idle and memory.size >= count and memory.size >= self._size:
            self.run = self.cursor = 0
            self._joins = False
            return True
        if self.queue and (not memory.pins or self.queued > self.limit) and self._size >= self._most:
            return False
        self._size = min(max(self._size, memory.size * GROWTH), self._most)
        for size in (max(self._size, count), max(count, SMALL)):
            if self._account.allows_data(size - (memory.size if idle else 0)):
                self._renew(size)
                return True
        if idle and memory.size >= count:
            self.run = self.cursor = 0
            self._joins = False
            return True
        return False

    def sent(self, count: int) -> None:
        """Forget the first `count` bytes of the queue; begin at the front again once all is gone."""
        self.queued -= count
        if self._watched:
            self._look(count)
        queue = self.queue
        while count:
            part = queue[0]
            if len(part) > count:
                queue[0] = part[count:]
                return
            count -= len(part)
            queue.popleft()
        if not queue and self.cursor == self.run and not self.memory.pins:
            if self.memory.size > self._most:  # it was made for one command
                self._renew(self._size)
            self.run = self.cursor = 0
            self._joins = False

    def when_sent(self, then: Callable[[], object]) -> None:
        """Call `then()` when all that is queued by now was sent."""
        self._watched.append((self.queued, then))

    def _look(self, count: int) -> None:
        """Tell those who watch that `count` bytes more were sent."""
        watched = [(before - count, then) for before, then in self._watched]
        self._watched = [(before, then) for before, then in watched if before > 0]
        for before, then in watched:
            if before <= 0:
                then()

    def _renew(self, size: int) -> None:
        self.memory = Memory(self._account, size)
        self.run = self.cursor = 0
        self._joins = False
