"""Several operations of the layer below as one."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from concurrent.futures import Future
from typing import Any


def gathered(pending: Iterable[Any]) -> Future[None] | None:
    """Return what ends when all of them have; it fails as the first of them that failed. None when none waits."""
    waiting = [each for each in pending if isinstance(each, Future)]
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
            error = next((error for each in waiting if (error := each.exception()) is not None), None)
            if error is not None:
                outer.set_exception(error)
            else:
                outer.set_result(None)

    for each in waiting:
        each.add_done_callback(done)
    return outer
