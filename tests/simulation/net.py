"""A network and a loop in virtual time: sockets whose bytes arrive when the schedule says so, timers by its clock."""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Callable
from typing import Any

READ, WRITE = 0x1, 0x4  # EPOLLIN, EPOLLOUT


def no_time() -> float:
    """Return what most calls take."""
    return 0.0


class Timer:
    """A call that is due at `when` (virtual seconds)."""

    def __init__(self, when: float, fn: Callable[..., object] | None, args: tuple[Any, ...]) -> None:
        self.when = when
        self.fn = fn
        self.args = args

    def cancel(self) -> None:
        """Forget the call."""
        self.fn = None


class Loop:
    """The loop of one process. Nothing runs by itself: the schedule lets callbacks run one by one."""

    def __init__(self) -> None:
        self.now = 0.0
        self.elapsed = no_time  # of a call that is being made (virtual seconds)
        self.posted: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        self.callbacks: dict[int, tuple[int, Callable[[int], object]]] = {}
        self._timers: list[tuple[float, int, Timer]] = []
        self._count = itertools.count()

    def clock(self) -> float:
        """Return the time (virtual seconds), with what the call takes that is being made."""
        return self.now + self.elapsed()

    def register(self, fd: int, events: int, callback: Callable[[int], object]) -> None:
        """Call `callback(events)` when `fd` is ready."""
        self.callbacks[fd] = events, callback

    def modify(self, fd: int, events: int) -> None:
        """Wait for other events."""
        self.callbacks[fd] = events, self.callbacks[fd][1]

    def unregister(self, fd: int) -> None:
        """Forget `fd`."""
        self.callbacks.pop(fd, None)

    def post(self, fn: Callable[..., object], *args: Any) -> None:
        """Call soon."""
        self.posted.append((fn, args))

    def call_soon(self, fn: Callable[[], object]) -> None:
        """Call before the loop waits."""
        self.post(fn)

    def call_later(self, delay: float, fn: Callable[..., object], *args: Any) -> Timer:
        """Call after `delay` seconds."""
        timer = Timer(self.now + delay, fn, args)
        heapq.heappush(self._timers, (timer.when, next(self._count), timer))
        return timer

    def turn(self) -> None:
        """Make the posted call that is due."""
        fn, args = self.posted.popleft()
        fn(*args)

    def wait(self, seconds: float) -> None:
        """Let time pass, and timers with it."""
        self.now += seconds
        while self._timers and self._timers[0][0] <= self.now:
            timer = heapq.heappop(self._timers)[2]
            fn, timer.fn = timer.fn, None
            if fn is not None:
                fn(*timer.args)


class Socket:
    """The target's end of a connection. `arriving` are the bytes under way to it, `sent` what it has sent."""

    _numbers = itertools.count(1000)

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.number = next(self._numbers)
        self.arriving = bytearray()
        self.allowed = 0  # bytes that the next receive may take
        self.ended = False  # the peer has closed
        self.window: int | None = None  # bytes that the peer takes; None: all
        self.sent = bytearray()
        self.open = True

    def ready(self, events: int) -> bool:
        """Have the loop see these events; False if nobody waits for them."""
        waited, callback = self.loop.callbacks.get(self.number, (0, None))
        if callback is None or not waited & events:
            return False
        callback(waited & events)
        return True

    def put(self, data: bytes) -> None:
        """The peer sends; nothing comes behind its end."""
        if not self.ended:
            self.arriving += data

    def deliver(self, count: int) -> bool:
        """Let `count` bytes arrive, or the end behind them; False if the target does not take any."""
        if not self.arriving and not self.ended:
            return False
        self.allowed = count
        return self.ready(READ)

    # -- what the target calls ----------------------------------------------------------------------------------------

    def fileno(self) -> int:
        """Return its number."""
        return self.number

    def recv_into(self, room: memoryview) -> int:
        """Receive; 0 at the end."""
        count = min(len(room), self.allowed, len(self.arriving))
        if not count:
            if self.ended and not self.arriving:
                return 0
            raise BlockingIOError
        room[:count] = self.arriving[:count]
        del self.arriving[:count]
        self.allowed -= count
        return count

    def send(self, data: memoryview) -> int:
        """Send what the peer takes."""
        count = len(data)
        if self.window is not None:
            count = min(count, self.window)
            self.window -= count
            if not count:
                raise BlockingIOError
        self.sent += data[:count]
        return count

    def sendmsg(self, parts: list[memoryview]) -> int:
        """Send several parts."""
        return self.send(memoryview(b"".join(parts)))

    def getsockname(self) -> tuple[str, int]:
        """Return our address."""
        return "127.0.0.1", 3260

    def getpeername(self) -> tuple[str, int]:
        """Return the peer's."""
        return "127.0.0.1", self.number

    def setblocking(self, flag: bool) -> None:
        """It never blocks."""

    def setsockopt(self, *values: Any) -> None:
        """It has no options."""

    def close(self) -> None:
        """The target closes."""
        self.open = False


class Clock:
    """The clock of filters: what is due is called when the schedule has it so, in any order."""

    def __init__(self) -> None:
        self.later: Callable[[float, Callable[[], object]], object] = lambda delay, fn: None

    def now(self) -> float:
        """Return the time."""
        return 0.0
