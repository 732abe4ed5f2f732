"""Threads: the pool of one device, for calls that wait."""

from __future__ import annotations

import inspect
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from tcmu_core.errors import HandlerError

DEFAULT_THREADS = 8


class Threads:
    """A pool that is made when it is first used. `busy` counts the calls that have not ended."""

    def __init__(self, name: str) -> None:
        self.busy = 0
        self._name = name
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._pool: ThreadPoolExecutor | None = None

    def submit(self, count: int, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Future[Any]:
        """Run `fn` on one of `count` threads (0: the default number) and return its future."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(count or DEFAULT_THREADS, f"tcmu-{self._name}")
        with self._lock:
            self.busy += 1
        try:
            future = self._pool.submit(fn, *args, **kwargs)
        except BaseException:
            self._ended(None)
            raise
        future.add_done_callback(self._ended)
        return future

    def _ended(self, _future: Future[Any] | None) -> None:
        if os.getpid() != self._pid:  # a child that the call has forked: it has nothing to answer, and would wait here
            os._exit(1)
        with self._lock:
            self.busy -= 1

    def shutdown(self, *, wait: bool = True) -> None:
        """End the pool when what was submitted has ended, and wait for that."""
        if self._pool is not None:
            self._pool.shutdown(wait=wait)
            self._pool = None


def chained(future: Future[Any]) -> Future[Any]:
    """Return a future of what a hook that runs on a thread comes to: as `future`, or as the Future that it ends with.

    What a hook must not return fails, as it does without threads.
    """
    outer: Future[Any] = Future()

    def returned(done: Future[Any]) -> None:
        if done.cancelled() or done.exception() is not None:
            _copy(done, outer)
            return
        result = done.result()
        try:
            if isinstance(result, Future):
                result.add_done_callback(ended)
            elif result is None:
                outer.set_result(None)
            else:
                outer.set_exception(HandlerError(wrong_result(result)))
        except BaseException as error:  # a result that can't even be looked at: a command waits for it all the same
            outer.set_exception(error)

    def ended(done: Future[Any]) -> None:
        _copy(done, outer)

    future.add_done_callback(returned)
    return outer


def _copy(done: Future[Any], outer: Future[Any]) -> None:
    """End `outer` as `done` has ended."""
    if done.cancelled():
        outer.cancel()
        outer.set_running_or_notify_cancel()
    elif (error := done.exception()) is not None:
        outer.set_exception(error)
    else:
        outer.set_result(done.result())


def wrong_result(result: object) -> str:
    """Return the sentence about a hook's result that is neither None nor a Future; it never quotes data."""
    kind = type(result).__name__
    if inspect.iscoroutine(result):
        result.close()  # else Python complains that nobody awaited it
    hint = ": its coroutine was never awaited" if inspect.isawaitable(result) else ""
    return f"a hook returned {kind!r}: it must return None, or a concurrent.futures.Future that ends with None{hint}"
