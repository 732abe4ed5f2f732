"""The event loop of a worker: one thread, epoll, timers, and calls posted from other threads.

Smaller than asyncio because it must be: a command at queue depth 1 passes here twice, and asyncio's handle, context
and transport cost more than the whole engine does.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import logging
import os
import select
import signal
import socket
import time
import weakref
from collections import deque
from collections.abc import Callable
from types import FrameType
from typing import Any

log = logging.getLogger("tcmu.loop")

READ = select.EPOLLIN
WRITE = select.EPOLLOUT
SPIN = 300e-6  # seconds: a few times what it takes to wake a thread on another processor, even a virtual one
ALONE = 32  # so many commands that came one by one tell of an initiator that never has two under way
MOST_MISSES = 6  # counted up to here, so at least every 64th short sleep is preceded by spinning
LOST = 1.5  # times what it was to take, if spinning took longer, who else wants to run has had the processor
BUSY_SLEEPS = 1023  # short ones after that: where no processor is free, one who wakes up is served before one who spins
RECENT = 1000  # spins, for which that holds after one that waited for a disk; where none does, giving way is no loss
SLICE = 0.002  # seconds of posted calls, after which descriptors are looked at, however many more there are
LONGEST_SLEEP = 3600.0  # seconds; epoll_wait(2) takes no more than 2^31 ms, and a timer may be due later


class Timer:
    """A call that is due at `when` (monotonic seconds); `cancel()` forgets it."""

    __slots__ = ("_cancelled", "args", "fn", "when")

    def __init__(
        self,
        when: float,
        fn: Callable[..., object] | None,
        args: tuple[Any, ...],
        cancelled: Callable[[], object] = lambda: None,
    ) -> None:
        self.when = when
        self.fn = fn
        self.args = args
        self._cancelled = cancelled

    def cancel(self) -> None:
        """Forget the call and all that it holds; harmless when it was made already."""
        if self.fn is not None:
            self.fn, self.args = None, ()
            self._cancelled()


def spin_time() -> float:
    """Return how long a loop that carries commands should spin (seconds): not at all on a single processor."""
    return SPIN if len(os.sched_getaffinity(0)) > 1 else 0.0


class Pace:
    """Says whether to spin before the next wait, from how many commands each wait brings.

    Spinning serves an initiator that sends a command and waits for its answer. With more on their way each look would
    find one or two, and each of them be answered with a doorbell and a wake-up of its own; a sleep lets them gather.
    Looking all the time hides how many there are, so every 32nd wait is a sleep that tells.
    """

    def __init__(self, spin: float) -> None:
        self._spin = spin
        self._alone = 0

    def after(self, commands: int) -> float:
        """Return how long to spin (seconds) before the next wait, after one that brought so many commands."""
        self._alone = 0 if commands > 1 else self._alone + commands
        return self._spin if self._alone >= ALONE and self._alone % ALONE else 0.0


_at_work: weakref.WeakSet[Loop] = weakref.WeakSet()  # loops that run in this process


def _forked() -> None:
    """Keep a child that a callback has forked, and that returns from it, from being a second server.

    What it would send goes nowhere, and when the callback has returned it ends. One that calls exec(2) never sees this.
    """
    for loop in list(_at_work):
        loop.let_go()


os.register_at_fork(after_in_child=_forked)


class Loop:
    """Runs callbacks on one thread. Only `post` and `stop` may be called from another one.

    A callback that raises is logged and does no harm to the others.

    With `spin` (seconds) it goes on looking for so long before it sleeps, where sleeps are short: an initiator that
    sends one command after another does not wait for this thread to wake up each time. Each time in a row that it has
    looked in vain halves how often it tries.
    """

    def __init__(self, spin: float = 0.0) -> None:
        self.spin = spin  # callbacks may change it
        self.clock = time.monotonic  # seconds, by which timers are due
        self._epoll = select.epoll()
        self._callbacks: dict[int, Callable[[int], object]] = {}
        self._posted: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        self._timers: list[tuple[float, int, Timer]] = []
        self._cancelled = 0  # timers that are still in the heap, at most
        self._count = itertools.count()
        self._soon: list[Callable[[], object]] = []
        self._elsewhere: list[tuple[Callable[[], int], int]] = []
        self._waits = 0  # more than 0: something has been under way elsewhere lately
        self._running = False
        self._is_childs = False  # it was its parent's
        self._asleep = False
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._old_signals: dict[int, Any] = {}
        self._signal_pair: tuple[socket.socket, socket.socket] | None = None
        self.register(self._wake, READ, self._woken)

    # -- file descriptors -------------------------------------------------------------------------------------------

    def register(self, fd: int, events: int, callback: Callable[[int], object]) -> None:
        """Call `callback(events)` whenever `fd` is ready for one of `events`; level-triggered."""
        self._epoll.register(fd, events)
        self._callbacks[fd] = callback

    def modify(self, fd: int, events: int) -> None:
        """Wait for other events of `fd` from now on."""
        self._epoll.modify(fd, events)

    def unregister(self, fd: int) -> None:
        """Forget `fd`; call it before the descriptor is closed."""
        if self._callbacks.pop(fd, None) is not None:
            with contextlib.suppress(OSError):
                self._epoll.unregister(fd)

    # -- calls ------------------------------------------------------------------------------------------------------

    def post(self, fn: Callable[..., object], *args: Any) -> None:
        """Call `fn(*args)` on the loop's thread, soon; safe from any thread."""
        self._posted.append((fn, args))
        if self._asleep:
            os.eventfd_write(self._wake, 1)

    def call_later(self, delay: float, fn: Callable[..., object], *args: Any) -> Timer:
        """Call `fn(*args)` after `delay` seconds; on the loop's thread only."""
        timer = Timer(self.clock() + delay, fn, args, self._one_cancelled)
        heapq.heappush(self._timers, (timer.when, next(self._count), timer))
        return timer

    def _one_cancelled(self) -> None:
        """Sweep when more timers were cancelled than are left: most are, long before they would be due."""
        self._cancelled += 1
        if self._cancelled * 2 > len(self._timers):
            self._timers = [entry for entry in self._timers if entry[2].fn is not None]
            heapq.heapify(self._timers)
            self._cancelled = 0

    def on_signal(self, number: int, fn: Callable[[], object]) -> None:
        """Call `fn()` on the loop when the process gets signal `number`; main thread only."""
        if self._signal_pair is None:
            self._signal_pair = socket.socketpair()
            for end in self._signal_pair:
                end.setblocking(False)
            signal.set_wakeup_fd(self._signal_pair[1].fileno(), warn_on_full_buffer=False)
            self.register(self._signal_pair[0].fileno(), READ, self._drain_signals)

        def handler(_number: int, _frame: FrameType | None) -> None:
            self._posted.append((fn, ()))

        self._old_signals.setdefault(number, signal.signal(number, handler))

    def _drain_signals(self, _events: int) -> None:
        assert self._signal_pair is not None
        with contextlib.suppress(BlockingIOError):
            self._signal_pair[0].recv(4096)

    def _woken(self, _events: int) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._wake)

    def call_soon(self, fn: Callable[[], object]) -> None:
        """Call `fn()` once all that is there now has been worked off, before the loop waits; on its thread only."""
        self._soon.append(fn)

    def watch_elsewhere(self, count: Callable[[], int], few: int = 0) -> None:
        """Have `count()` say how much work of this process is under way on other threads, in the kernel, or far away.

        While that is more than `few` the loop does not spin: it would keep the interpreter from threads, and of many
        ends that come soon it is better to have some gather.
        """
        self._elsewhere.append((count, few))

    def forget_elsewhere(self, count: Callable[[], int]) -> None:
        """Ask `count` no more."""
        self._elsewhere = [one for one in self._elsewhere if one[0] != count]

    # -- running ----------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Run until `stop`."""
        self._running = True
        _at_work.add(self)
        try:
            self._run()
        finally:
            if self._is_childs:
                log.error("a hook has forked, and has returned in the child too: the child ends here")
                os._exit(1)
            _at_work.discard(self)

    def let_go(self) -> None:
        """Have no hold of anything any more: this is a child of the process whose loop it was."""
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        for fd in self._callbacks:
            os.dup2(null, fd, inheritable=False)
        os.close(null)
        self._callbacks.clear()
        self._posted.clear()
        self._timers.clear()
        self._soon.clear()
        self._running, self._is_childs = False, True

    def _run(self) -> None:
        poll, clock, rest = self._epoll.poll, time.monotonic, os.sched_yield
        callbacks = self._callbacks
        posted = self._posted
        misses = skip = 0
        eager = False
        while self._running:
            events: list[tuple[int, int]] = []
            while self._soon:
                soon, self._soon = self._soon, []
                for fn in soon:
                    self._call(fn, ())
            if eager and self.spin and not posted and not self._busy_elsewhere():
                began = clock()
                until = began + self.spin
                if self._timers:
                    until = min(until, self._timers[0][0])
                while not (events := poll(0)) and not posted and clock() < until:
                    rest()
                if self._waits and clock() - began > LOST * self.spin:  # others had the processor: none is free
                    eager, skip = False, BUSY_SLEEPS
                elif events or posted:
                    misses = 0
                else:
                    eager = False
                    misses = min(misses + 1, MOST_MISSES)
                    skip = (1 << misses) - 1
            if not events:
                # Announce sleep first, then look at the queue: a post in between writes the eventfd, none is missed.
                self._asleep = True
                timeout = self._timeout()
                began = clock()
                events = poll(timeout)
                self._asleep = False
                # Being woken up, which spinning saves, is part of what a sleep takes.
                if timeout and clock() - began < 2 * self.spin:
                    eager = not skip
                    skip -= bool(skip)
            for fd, mask in events:
                callback = callbacks.get(fd)
                if callback is not None:
                    try:
                        callback(mask)
                    except Exception:
                        log.exception("the callback of file descriptor %d failed", fd)
            if self._timers:
                self._run_timers()
            until = clock() + SLICE if len(posted) > 1 else 0.0
            for number in range(len(posted)):
                if number and clock() > until:
                    break
                fn, args = posted.popleft()
                self._call(fn, args)

    def _busy_elsewhere(self) -> bool:
        self._waits = max(self._waits - 1, 0)
        for count, few in self._elsewhere:
            under_way = count()
            if under_way > few:
                return True
            if under_way:
                self._waits = RECENT
        return False

    def stop(self) -> None:
        """Make `run` return; safe from any thread."""
        self.post(self._stop)

    def _stop(self) -> None:
        self._running = False

    def close(self) -> None:
        """Restore signal handlers and release the descriptors."""
        for number, old in self._old_signals.items():
            signal.signal(number, old)
        self._old_signals.clear()
        if self._signal_pair is not None:
            signal.set_wakeup_fd(-1)
            self.unregister(self._signal_pair[0].fileno())
            for end in self._signal_pair:
                end.close()
            self._signal_pair = None
        self.unregister(self._wake)
        self._epoll.close()
        os.close(self._wake)

    def _timeout(self) -> float:
        if self._posted:
            return 0
        while self._timers and self._timers[0][2].fn is None:
            heapq.heappop(self._timers)
        if not self._timers:
            return -1
        return min(max(0.0, self._timers[0][0] - time.monotonic()), LONGEST_SLEEP)

    def _run_timers(self) -> None:
        now = time.monotonic()
        while self._timers and self._timers[0][0] <= now:
            timer = heapq.heappop(self._timers)[2]
            fn, timer.fn = timer.fn, None
            if fn is not None:
                args, timer.args = timer.args, ()
                self._call(fn, args)

    def _call(self, fn: Callable[..., object], args: tuple[Any, ...]) -> None:
        try:
            fn(*args)
        except Exception:
            log.exception("a call on the loop failed: %r", fn)
