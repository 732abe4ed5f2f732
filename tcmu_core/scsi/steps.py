"""Commands of several steps: generators that yield what hooks return, None or a Future, and go on when it is done."""

from __future__ import annotations

from collections.abc import Generator
from concurrent.futures import Future
from typing import Any

from tcmu_core.scsi.command import Status

Steps = Generator[Any, Any, Any]

PAUSE: Future[None] = Future()  # yielded by a long command: let others run, then go on


def follow(result: Any) -> Steps:
    """Run what a command or a hook returned to its end: a generator, a Future, a status, or None."""
    if isinstance(result, Generator):
        return (yield from result)
    if result is None or isinstance(result, Status):
        return result
    return (yield result)


def checked(waiting: object) -> Future[Any]:
    """Return a yielded Future as it is; for anything else one that failed, since a hook must not return that."""
    if isinstance(waiting, Future):
        return waiting
    failed: Future[Any] = Future()
    failed.set_exception(TypeError(f"a hook returned {waiting!r}: it must return None or a Future"))
    return failed
