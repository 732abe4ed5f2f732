"""Completion: a Future that costs a tenth of one, for operations that end on the loop's thread by the ten thousand."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

log = logging.getLogger("tcmu.posix")

_RUNNING, _FINISHED = "RUNNING", "FINISHED"  # the states of concurrent.futures
_MADE_LATE: dict[str, Callable[[], Any]] = {"_condition": threading.Condition, "_waiters": list}
_making = threading.Lock()


class Completion(Future[None]):
    """An operation that is under way: it can't be cancelled by `cancel`, and ends by `set_result` or `set_exception`.

    A Future makes a lock for itself and takes it at every step. Here the condition is made when somebody waits for it,
    and each step is one that the interpreter does whole: what could happen in between is looked for afterwards.
    What it has from the beginning, and most of them keep until the end, stands in the class.
    """

    ended = False
    error: BaseException | None = None  # what it failed with; both are to be read, not written
    _state = _RUNNING
    _result: None = None
    _awaited = False  # whether somebody may wait for it on a thread

    def __init__(self, drive: Callable[[Completion], object] | None = None) -> None:
        """`drive(self)` brings on the end, for one who waits for it on the very thread that would bring it."""
        self._drive = drive
        self._done_callbacks: list[Callable[[Any], object]] = []

    def __getattr__(self, name: str) -> Any:
        if name not in _MADE_LATE:
            raise AttributeError(name)
        self._awaited = True  # before who asks looks whether it has ended, as its end comes before it looks here
        with _making:
            return self.__dict__.setdefault(name, _MADE_LATE[name]())

    @property
    def _exception(self) -> BaseException | None:  # type: ignore[override]  # where a Future keeps it
        return self.error

    def cancel(self) -> bool:
        """Return False: it is under way."""
        return False

    def cancelled(self) -> bool:
        """Return False."""
        return False

    def running(self) -> bool:
        """Return whether it has not ended."""
        return not self.ended

    def done(self) -> bool:
        """Return whether it has ended."""
        return self.ended

    def add_done_callback(self, fn: Callable[[Future[None]], object]) -> None:
        """Call `fn(self)` when it has ended: on the thread that ends it, or now."""
        self._done_callbacks.append(fn)
        if self.ended:
            self._call_back()

    def set_result(self, result: None) -> None:
        """It has ended well."""
        self._state = _FINISHED
        self.ended = True
        if self._awaited:
            self._wake_up()
        if self._done_callbacks:
            self._call_back()

    def set_exception(self, exception: BaseException | None) -> None:
        """It has failed."""
        self.error = exception
        self.set_result(None)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Return what it failed with; wait for its end before."""
        if not self.ended and self._drive is not None:
            self._drive(self)
        return self.error if self.ended else super().exception(timeout)

    def result(self, timeout: float | None = None) -> None:
        """Return when it has ended; raise what it failed with."""
        error = self.exception(timeout)
        if error is not None:
            raise error

    def _wake_up(self) -> None:
        """Tell those who wait on threads."""
        with self._condition:
            for waiter in self._waiters:
                waiter.add_result(self) if self.error is None else waiter.add_exception(self)
            self._condition.notify_all()

    def _call_back(self) -> None:
        """Each callback is taken by one thread alone, whoever comes here."""
        callbacks = self._done_callbacks
        while callbacks:
            try:
                fn = callbacks.pop(0)
            except IndexError:
                return
            try:
                fn(self)
            except Exception:
                log.exception("what was to follow an operation failed: %r", fn)
