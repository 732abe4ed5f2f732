"""The clock of the filters that wait: what they read, and the one thread that ends what is due."""

from __future__ import annotations

import heapq
import itertools
import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Protocol

from tcmu_core.errors import AbortedCommand, ConfigError

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(|s|ms|us|m)", re.ASCII)
_UNITS = {"": 1.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "m": 60.0}


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
                    self._changed.wait(wait if self._due else None)
                fn = heapq.heappop(self._due)[2]
            fn()


CLOCK: Clock = MonotonicClock()


class Waiting:
    """The commands of one filter that wait; all end when the filter closes."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self._held: dict[Future[Any], Callable[[], object] | None] = {}  # what `release` does; None: the clock ends it
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._held)

    def delayed(self, pending: Any, delay: float) -> Any:
        """Return what ends as `pending` (what a hook returned) does, `delay` seconds later than it would."""
        if delay <= 0:
            return pending
        if not isinstance(pending, Future):
            return self._end_later(delay, lambda outer: outer.set_result(pending))
        outer: Future[Any] = Future()
        self._keep(outer, None)

        def ended(inner: Future[Any]) -> None:
            self.clock.later(delay, lambda: self._end(outer, lambda: _copy(inner, outer)))

        pending.add_done_callback(ended)
        return outer

    def failing(self, delay: float, error: BaseException) -> Future[Any]:
        """Return what fails with `error` in `delay` seconds."""
        return self._end_later(delay, lambda outer: outer.set_exception(error))

    def hold(self, then: Callable[[], Any]) -> Future[Any]:
        """Return a Future that waits for `release`, and then ends as what `then()` returns."""
        outer: Future[Any] = Future()

        def go_on() -> None:
            try:
                pending = then()
            except Exception as error:
                outer.set_exception(error)
                return
            if isinstance(pending, Future):
                pending.add_done_callback(lambda inner: _copy(inner, outer))
            else:
                outer.set_result(pending)

        self._keep(outer, go_on)
        return outer

    def release(self) -> int:
        """Let all that is held go on, the oldest first; return how many that were. On the disk's loop."""
        with self._lock:
            held = {outer: go_on for outer, go_on in self._held.items() if go_on is not None}
            for outer in held:
                del self._held[outer]
        for go_on in held.values():
            go_on()
        return len(held)

    def close(self) -> None:
        """End what waits: its disk goes away."""
        with self._lock:
            held, self._held = self._held, {}
        for outer in held:
            outer.set_exception(AbortedCommand("the disk was closed while the command waited"))

    def _end_later(self, delay: float, fn: Callable[[Future[Any]], object]) -> Future[Any]:
        outer: Future[Any] = Future()
        self._keep(outer, None)
        self.clock.later(delay, lambda: self._end(outer, lambda: fn(outer)))
        return outer

    def _keep(self, outer: Future[Any], go_on: Callable[[], object] | None) -> None:
        with self._lock:
            self._held[outer] = go_on

    def _end(self, outer: Future[Any], fn: Callable[[], object]) -> None:
        with self._lock:
            if outer not in self._held:
                return  # closed meanwhile
            del self._held[outer]
        fn()


def _copy(inner: Future[Any], outer: Future[Any]) -> None:
    error = inner.exception()
    if error is not None:
        outer.set_exception(error)
    else:
        outer.set_result(inner.result())


def duration(text: str) -> float:
    """Return the seconds that `text` means: `5ms`, `1.5s`, `200us`, `2m`; without a unit, seconds."""
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise ConfigError(f"{text!r} is no time: write a number with us, ms, s or m, such as 5ms")
    return float(match[1]) * _UNITS[match[2]]
