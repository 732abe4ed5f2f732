"""Completion: a Future that costs a tenth of one, for operations that end on the loop's thread by the ten thousand."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

log = logging.getLogger("tcmu.posix")

_RUNNING, _FINISHED = "RUNNING", "FINISHED"  # the states of concurrent.futures
_making = threading.Lock()


class Completion(Future[None]):
    """An operation that is under way: it can't be cancelled by `cancel`, and ends by `set_result` or `set_exception`.

    A Future makes a lock for itself and takes it at every step. Here the condition is made when somebody waits for it,
    and each step is one that the interpreter does whole: what could happen in between is looked for afterwards.
    """

    def __init__(self, drive: Callable[[Completion], object] | None = None) -> None:
        """`drive(self)` brings on the end, for one who waits for it on the very thread that would bring it."""
        self._drive = drive
        self._state = _RUNNING
        self._result: None = None
        self._exception: BaseException | None = None
        self._waiters: list[Any] = []
        self._done_callbacks: list[Callable[[Any], object]] = []

    def __getattr__(self, name: str) -> Any:
        if name != "_condition":
            raise AttributeError(name)
        with _making:
            return self.__dict__.setdefault("_condition", threading.Condition())

    def cancel(self) -> bool:
        """Return False: it is under way."""
        return False

    def cancelled(self) -> bool:
        """Return False."""
        return False

    def running(self) -> bool:
        """Return whether it has not ended."""
        return self._state is _RUNNING

    def done(self) -> bool:
        """Return whether it has ended."""
        return self._state is _FINISHED

    def add_done_callback(self, fn: Callable[[Future[None]], object]) -> None:
        """Call `fn(self)` when it has ended: on the thread that ends it, or now."""
        self._done_callbacks.append(fn)
        if self._state is _FINISHED:
            self._call_back()

    def set_result(self, result: None) -> None:
        """It has ended well."""
        self._end()

    def set_exception(self, exception: BaseException | None) -> None:
        """It has failed."""
        self._exception = exception
        self._end()

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Return what it failed with; wait for its end before."""
        if self._state is not _FINISHED and self._drive is not None:
            self._drive(self)
        return self._exception if self._state is _FINISHED else super().exception(timeout)

    def result(self, timeout: float | None = None) -> None:
        """Return when it has ended; raise what it failed with."""
        error = self.exception(timeout)
        if error is not None:
            raise error

    def _end(self) -> None:
        self._state = _FINISHED
        condition = self.__dict__.get("_condition")
        if condition is not None:
            with condition:
                for waiter in self._waiters:
                    waiter.add_result(self) if self._exception is None else waiter.add_exception(self)
                condition.notify_all()
        self._call_back()

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
