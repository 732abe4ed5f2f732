"""The clock of the filters that wait: what they read, and the one thread that ends what is due."""

from __future__ import annotations

import heapq
import itertools
import math
import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Protocol

from tcmu_core.errors import AbortedCommand, ConfigError
from tcmu_core.filters.waiting import failure

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(|s|ms|us|m)", re.ASCII)
_UNITS = {"": 1.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "m": 60.0}
LONGEST_WAIT = 3600.0  # seconds; a condition takes no more than some centuries, and a delay may be longer


class Clock(Protocol):
    """What a filter that waits needs of time; tests bring their own."""

    def now(self) -> float:
        """Return seconds since some moment."""

    def later(self, delay: float, fn: Callable[[], object]) -> None:
        """Call `fn()` in `delay` seconds, on any thread."""


class MonotonicClock:
    """Real time. Its thread starts when it is first needed, and ends with the process."""

    now = staticmethod(time.monotonic)

    def __init__(self) -> None:
        self._due: list[tuple[float, int, Callable[[], object]]] = []
        self._count = itertools.count()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def later(self, delay: float, fn: Callable[[], object]) -> None:
        """Call `fn()` on the clock's thread."""
        with self._changed:
            heapq.heappush(self._due, (self.now() + delay, next(self._count), fn))
            if self._thread is None or not self._thread.is_alive():  # a fork has taken it
                self._thread = threading.Thread(target=self._run, name="tcmu-clock", daemon=True)
                self._thread.start()
            self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._due or (wait := self._due[0][0] - self.now()) > 0:
                    self._changed.wait(min(wait, LONGEST_WAIT) if self._due else None)
                fn = heapq.heappop(self._due)[2]
            fn()


CLOCK: Clock = MonotonicClock()


class Waiting:
    """The commands of one filter that wait: for a time, or for a person."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        # What ends each, and for those that wait for a person, what goes on with it instead.
        self._held: dict[Future[Any], tuple[Callable[[], object], Callable[[], object] | None]] = {}
        self._closed = False
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._held)

    def delayed(self, pending: Any, delay: float) -> Any:
        """Return what ends as `pending` (what a hook returned) does, `delay` seconds later than it would."""
        if delay <= 0:
            return pending
        outer: Future[Any] = Future()
        if isinstance(pending, Future):
            pending.add_done_callback(lambda inner: self._later(outer, delay, lambda: _copy(inner, outer)))
        else:
            self._later(outer, delay, lambda: outer.set_result(pending))
        return outer

    def failing(self, delay: float, error: BaseException) -> Future[Any]:
        """Return what fails with `error` in `delay` seconds."""
        outer: Future[Any] = Future()
        self._later(outer, delay, lambda: outer.set_exception(error))
        return outer

    def hold(self, then: Callable[[], Any]) -> Future[Any]:
        """Return a Future that waits for `release`, and then ends as what `then()` returns."""
        outer: Future[Any] = Future()

        def go_on() -> None:
            try:
                pending = then()
            except BaseException as error:
                outer.set_exception(error)
                return
            if isinstance(pending, Future):
                pending.add_done_callback(lambda inner: _copy(inner, outer))
            else:
                outer.set_result(pending)

        gone = AbortedCommand("the disk was closed while the command hung")
        with self._lock:
            closed = self._closed  # and nobody can release it: the filter was taken off below what held the command
            if not closed:
                self._held[outer] = (lambda: outer.set_exception(gone)), go_on
        if closed:
            outer.set_exception(gone)
        return outer

    def release(self) -> int:
        """Let all that is held go on, the oldest first; return how many that were. On the disk's loop."""
        with self._lock:
            held = {outer: go_on for outer, (_, go_on) in self._held.items() if go_on is not None}
            for outer in held:
                del self._held[outer]
        for go_on in held.values():
            go_on()
        return len(held)

    def close(self) -> None:
        """End what waits: what the clock holds as it would have ended, what is held for a person with an error."""
        with self._lock:
            self._closed = True
            held, self._held = self._held, {}
        for end, _ in held.values():
            end()

    def _later(self, outer: Future[Any], delay: float, end: Callable[[], object]) -> None:
        with self._lock:
            closed = self._closed
            if not closed:
                self._held[outer] = end, None
        if closed:
            end()
        else:
            self.clock.later(delay, lambda: self._end(outer))

    def _end(self, outer: Future[Any]) -> None:
        with self._lock:
            found = self._held.pop(outer, None)
        if found is not None:  # not ended by `close` meanwhile
            found[0]()


def _copy(inner: Future[Any], outer: Future[Any]) -> None:
    error = failure(inner)
    if error is not None:
        outer.set_exception(error)
    else:
        outer.set_result(inner.result())


def duration(text: str) -> float:
    """Return the seconds that `text` means: `5ms`, `1.5s`, `200us`, `2m`; without a unit, seconds."""
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise ConfigError(f"{text!r} is no time: write a number with us, ms, s or m, such as 5ms")
    seconds = float(match[1]) * _UNITS[match[2]]
    if not math.isfinite(seconds):
        raise ConfigError(f"a time of {len(match[1])} digits is longer than any")
    return seconds
