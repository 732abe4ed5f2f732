"""A disk on its way to be open: a handler's `open` may take as long as its storage does, and nobody waits for it."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Any

from tcmu_core.disk.disk import Disk


class Opening:
    """Opens `disk`, as far as that goes without waiting; `over` tells when it is open, or why it is not (`error`).

    `early`: it began while another disk, which may have been in its way, had not gone yet.
    """

    def __init__(self, disk: Disk, *, early: bool = False) -> None:
        self.disk = disk
        self.early = early
        self.over = False
        self.error: Exception | None = None
        self._steps = disk.opening()
        self._pending: Future[Any] | None = None

    def advance(self) -> bool:
        """Go on where what it waited for has ended; returns whether it is over."""
        while not self.over and (self._pending is None or self._pending.done()):
            try:
                self._pending = next(self._steps)
            except StopIteration:
                self.over = True
            except Exception as error:
                self.over, self.error = True, error
        return self.over

    def wait(self, seconds: float | None = None) -> bool:
        """Wait for it, on the thread that serves nobody meanwhile; returns whether it is over."""
        until = None if seconds is None else time.monotonic() + seconds
        while not self.advance():
            assert self._pending is not None
            left = None if until is None else until - time.monotonic()
            if left is not None and left <= 0:
                break
            wait((self._pending,), left)
        return self.over

    def watch(self, call: Callable[[], object]) -> None:
        """Have `call()` made, on whichever thread, when it can advance."""
        assert self._pending is not None
        self._pending.add_done_callback(lambda _: call())

    def abandon(self) -> None:
        """Close the disk where it was opened, or is over: nobody wants it any more."""
        if self.over and self.error is None:
            self.disk.close_quietly()
