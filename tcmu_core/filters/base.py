"""Filter: the contract of what stands between the engine and a handler."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any, ClassVar, TypeVar

from tcmu_core.disk.device import Change, Device
from tcmu_core.disk.layers import CHANGES, OPERATIONS, Operations
from tcmu_core.errors import ConfigError
from tcmu_core.options import Options

T = TypeVar("T")
EVERY_HOOK = frozenset({*OPERATIONS, CHANGES})


class Filter:
    """One layer of one disk; subclass it and announce the class by an entry point of the group `tcmu.filters`.

    A filter has any of these methods; each takes, before the hook's own arguments, the same operation of the layer
    below it, and returns what the hook returns:

        read(below, offset, buffers)        write(below, offset, buffers)      flush(below)
        discard(below, offset, length)      write_zeroes(below, offset, length)
        extents(below, offset, length)      handle_cmd(below, command)         reconfigure(below, change)

    A hook that is neither a method nor named in `passes` is not there above this filter: nothing that a filter does
    not know passes it by. All are called on the disk's loop; `below` may be called on that thread only.
    """

    options: ClassVar[Options] = Options()
    """What it takes, typed; `open` gets the values that were given, and the defaults."""

    passes: frozenset[str] = frozenset()
    """Hooks that go by it untouched, at no cost. `open` may set it for this disk."""

    provides: frozenset[str] = frozenset()
    """Hooks whose method is called although the layer below has none: `below` is None then. `open` may set it."""

    live: ClassVar[bool] = True
    """Whether it may be put on, and taken off, a disk that is in use: not if that changes what is read."""

    settable: ClassVar[frozenset[str]] = frozenset()
    """Which of its options may be set while the disk is in use: `control` takes them as `{name: text}`, and answers
    with what is in force, by name."""

    def __init__(self) -> None:
        self.name = type(self).__name__.lower()  # both are set before `open`: what it was found by, and its options
        self.given: Mapping[str, Any] = {}

    def open(self, device: Device, below: Operations, options: Mapping[str, Any]) -> None:
        """Get ready. `device` is open and may be changed, `below` serves for looking at what is on it.

        Raises:
            ConfigError, OSError: what prevents it; then the disk is not opened.
        """

    def close(self) -> None:
        """Let go of what it has. What waits in it must end now. Called before the layer below is closed."""

    def control(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """Answer a person's message to this filter; by default there is nothing to say.

        Raises:
            ConfigError: it is not understood.
        """
        raise ConfigError(f"the filter {self.name!r} takes no messages")


def after(pending: Future[Any] | None, then: Callable[[], T]) -> T | Future[T]:
    """Call `then()` when `pending`, what a hook returned, has ended well; return what it returns, or a Future of it.

    For work on memory that is small and never waits: it runs where `pending` ends, maybe on another thread.
    """
    if pending is None:
        return then()
    ended: Future[T] = Future()

    def done(future: Future[Any]) -> None:
        try:
            future.result()
            ended.set_result(then())
        except BaseException as error:
            ended.set_exception(error)

    pending.add_done_callback(done)
    return ended


__all__ = ["EVERY_HOOK", "Change", "Filter", "after"]
