"""Several operations of the layer below as one."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from concurrent.futures import CancelledError, Future
from typing import Any


def failure(done: Future[Any]) -> BaseException | None:
    """Return why a Future that has ended did not end well; None if it did. One that was cancelled is a failure too."""
    return CancelledError() if done.cancelled() else done.exception()


def gathered(pending: Iterable[Any]) -> Future[None] | None:
    """Return what ends when all of them have; it fails as the first of them that failed. None when none waits.

    `pending` may call each operation as it is asked for the next: where one raises, no more are begun, and the failure
    is told when those that were begun have ended: until then the buffers are theirs.
    """
    waiting: list[Future[Any]] = []
    try:
        waiting.extend(each for each in pending if isinstance(each, Future))
    except BaseException as error:
        if not waiting:
            raise
        broken: Future[Any] = Future()
        broken.set_exception(error)
        waiting.append(broken)
    if not waiting:
        return None
    if len(waiting) == 1:
        return waiting[0]
    outer: Future[None] = Future()
    left = len(waiting)
    lock = threading.Lock()

    def done(_future: Future[Any]) -> None:
        nonlocal left
        with lock:
            left -= 1
            last = not left
        if last:
            error = next((error for each in waiting if (error := failure(each)) is not None), None)
            if error is not None:
                outer.set_exception(error)
            else:
                outer.set_result(None)

    for each in waiting:
        each.add_done_callback(done)
    return outer
