"""Threads: the pool of one device, for calls that wait."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from typing import Any

DEFAULT_THREADS = 8


class Threads:
    """A pool that is made when it is first used. `busy` counts the calls that have not ended."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._pool: ThreadPoolExecutor | None = None

    def submit(self, count: int, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Future[Any]:
        """Run `fn` on one of `count` threads (0: the default number) and return its future."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(count or DEFAULT_THREADS, f"tcmu-{self._name}")
        return self._pool.submit(fn, *args, **kwargs)

    def shutdown(self) -> None:
        """Wait for what was submitted and end the pool."""
        if self._pool is not None:
            self._pool.shutdown(wait=True)
            self._pool = None


def chained(future: Future[Any]) -> Future[Any]:
    """Return a future that ends as `future` does; where that ends with another Future, as that one does."""
    outer: Future[Any] = Future()

    def ended(done: Future[Any]) -> None:
        error = CancelledError() if done.cancelled() else done.exception()
        if error is not None:
            outer.set_exception(error)
            return
        result = done.result()
        if isinstance(result, Future):
            result.add_done_callback(ended)
        else:
            outer.set_result(result)

    future.add_done_callback(ended)
    return outer
