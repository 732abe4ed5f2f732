"""Progress: how far something is that a person waits for, and when a log is told of it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

FIRST_SECONDS = 5.0  # until a log is told: what is over before is nothing that anybody waited for
AGAIN_SECONDS = 30.0  # from one line to the next
MAX_WHAT = 80  # characters


@dataclass(frozen=True, slots=True)
class Progress:
    """What is done, and how much of it: `done` of `total` bytes, or of whatever it is counted in."""

    what: str
    done: int
    total: int

    @property
    def percent(self) -> int:
        """Return it as a whole number from 0 to 99: what is over is no progress."""
        return min(max(self.done, 0) * 100 // max(self.total, 1), 99)

    def __str__(self) -> str:
        return f"{self.what}, {self.percent} %"


def progress(done: int, total: int, what: str) -> Progress | None:
    """Return that `done` of `total` are done; None where that is all."""
    return Progress(what[:MAX_WHAT], int(done), int(total)) if done < total else None


Report = Callable[[Progress | None], object]  # is told how far it is; None: it is over, or has failed


class Lines:
    """Tells a log of what takes long: after some seconds, then now and then, and that it is over."""

    def __init__(
        self, log: logging.Logger | logging.LoggerAdapter[logging.Logger], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._log = log
        self._clock = clock
        self._what: str | None = None
        self._due = 0.0
        self._begun = 0.0
        self._told = False

    def __call__(self, now: Progress | None) -> None:
        """Take how far it is; None: it is over, or has failed."""
        what, time_now = now.what if now is not None else None, self._clock()
        if what != self._what:
            if self._told:
                self._log.info("%s: ended after %d s", self._what, time_now - self._begun)
            self._what, self._told, self._begun, self._due = what, False, time_now, time_now + FIRST_SECONDS
        elif now is not None and time_now >= self._due:
            self._told, self._due = True, time_now + AGAIN_SECONDS
            self._log.info("%s", now)
