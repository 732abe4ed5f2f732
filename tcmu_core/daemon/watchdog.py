"""Watchdog: looks after one host from outside, for one that hangs or leaks does not say so itself."""

from __future__ import annotations

import logging

from tcmu_core.daemon.spawner import Process
from tcmu_core.host.messages import Ping
from tcmu_core.loop import Loop, Timer

log = logging.getLogger("tcmu.runner")

PING_SECONDS = 5.0  # a host that hangs is told of within two of these
REMIND_SECONDS = 30.0  # and again this often, as long as it hangs


class Watchdog:
    """Asks a host now and then whether it lives, and knows when it has too much memory.

    `title` begins the log's line about one that is silent; `device` is what the line is for, if it is for one.
    """

    def __init__(self, loop: Loop, title: str, device: str = "") -> None:
        self._loop = loop
        self._title = title
        self._extra = {"device": device} if device else {}
        self._process: Process | None = None
        self._asked = 0.0  # on the loop's clock; 0: it has answered
        self._told = 0.0
        self._timer: Timer | None = None

    @property
    def silent(self) -> bool:
        """Whether the host owes an answer."""
        return bool(self._asked)

    def begin(self, process: Process) -> None:
        """Watch `process` from now on."""
        self.end()
        self._process = process
        self._timer = self._loop.call_later(PING_SECONDS, self._ping)

    def end(self) -> None:
        """Watch nobody."""
        if self._timer is not None:
            self._timer.cancel()
        self._process = self._timer = None
        self._asked = self._told = 0.0

    def answered(self) -> None:
        """The host has answered."""
        self._asked = self._told = 0.0

    def excess(self, limit: int) -> str:
        """Return what to say of the host if it has more than `limit` bytes of memory, else nothing."""
        used = self._process.memory if self._process is not None else 0
        if used <= limit:
            return ""
        return f"it took {used >> 20} MiB of memory, its memory_limit is {limit >> 20} MiB"

    def _ping(self) -> None:
        if self._process is None:
            return
        now = self._loop.clock()
        if not self._asked:
            self._asked = now
            self._process.send(Ping())
        elif not self._told or now - self._told >= REMIND_SECONDS:
            # Busy or hung, only a person can tell. One that is busy with slow storage must not be killed for it.
            self._told = now
            log.warning(
                "%s has not answered for %d s: the handler is busy or hangs (kill -9 %d replaces it)",
                self._title,
                now - self._asked,
                self._process.pid,
                extra=self._extra,
            )
        self._timer = self._loop.call_later(PING_SECONDS, self._ping)
