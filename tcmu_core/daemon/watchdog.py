"""Watch: looks after one worker from outside, for one that hangs or leaks does not say so itself."""

from __future__ import annotations

import logging
import time

from tcmu_core.daemon.spawner import WorkerProcess
from tcmu_core.loop import Loop, Timer

log = logging.getLogger("tcmu.runner")

PING_SECONDS = 30.0


class Watch:
    """Asks a worker now and then whether it lives, and knows when it has too much memory.

    `title` begins the log's line about one that is silent; `device` is what the line is for, if it is for one.
    """

    def __init__(self, loop: Loop, title: str, device: str = "") -> None:
        self._loop = loop
        self._title = title
        self._extra = {"device": device} if device else {}
        self._worker: WorkerProcess | None = None
        self._asked = 0.0  # monotonic seconds; 0: it has answered
        self._timer: Timer | None = None

    @property
    def silent(self) -> bool:
        """Whether the worker owes an answer."""
        return bool(self._asked)

    def begin(self, worker: WorkerProcess) -> None:
        """Watch `worker` from now on."""
        self.end()
        self._worker = worker
        self._timer = self._loop.call_later(PING_SECONDS, self._ping)

    def end(self) -> None:
        """Watch nobody."""
        if self._timer is not None:
            self._timer.cancel()
        self._worker = self._timer = None
        self._asked = 0.0

    def answered(self) -> None:
        """The worker has answered."""
        self._asked = 0.0

    def excess(self, limit: int) -> str:
        """Return what to say of the worker if it has more than `limit` bytes of memory, else nothing."""
        used = self._worker.memory if self._worker is not None else 0
        if used <= limit:
            return ""
        return f"it took {used >> 20} MiB of memory, its memory_limit is {limit >> 20} MiB"

    def _ping(self) -> None:
        if self._worker is None:
            return
        if self._asked:
            # Busy or hung, only a person can tell. One that is busy with slow storage must not be killed for it.
            log.warning(
                "%s has not answered for %d s: the handler is busy or hangs (kill -9 %d replaces it)",
                self._title,
                time.monotonic() - self._asked,
                self._worker.pid,
                extra=self._extra,
            )
        else:
            self._asked = time.monotonic()
            self._worker.send({"op": "ping"})
        self._timer = self._loop.call_later(PING_SECONDS, self._ping)
