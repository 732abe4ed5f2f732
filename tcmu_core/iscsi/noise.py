"""Noise: what hosts that do not log in have the log say, so that none of them fills a disk with it."""

from __future__ import annotations

import logging
from collections.abc import Callable

log = logging.getLogger("tcmu.iscsi")

MOST = 32  # lines of one host in so many seconds
SECONDS = 10.0
HOSTS = 1024  # that are remembered


class Noise:
    """Logs lines by the host that they are about; `clock()` counts seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._said: dict[str, tuple[float, int]] = {}  # since when, and how many

    def log(self, level: int, host: str, text: str, *args: object) -> None:
        """Log a line, unless there were many of this host just now."""
        now = self._clock()
        since, count = self._said.get(host, (now, 0))
        if now - since >= SECONDS:
            if count > MOST:
                log.warning("%s: %d more connections without a login were not logged", host, count - MOST)
            since, count = now, 0
        if host not in self._said and len(self._said) >= HOSTS:
            self._said.clear()
        self._said[host] = since, count + 1
        if count < MOST:
            log.log(level, text, *args)
        elif count == MOST:
            log.warning("%s: so many connections without a login: no more are logged for %g seconds", host, SECONDS)
