"""Reading tcmu.conf again when it changes.

The file is looked at by name with stat, so that a rename over it, a change of a symbolic link's goal and a network
file system are all noticed. A change is read when the file has stood still from one look to the next: an editor that
truncates and then writes is not caught halfway.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from tcmu_core.config.configuration import Config
from tcmu_core.config.file import load
from tcmu_core.errors import ConfigError
from tcmu_core.loop import Loop, Timer

log = logging.getLogger("tcmu.config")

INTERVAL = 1.0  # seconds
Signature = tuple[int, int, int, int, int]


class Watcher:
    """Calls `apply(config)` after the file changed; a bad edit or a missing file keeps the old settings and says so.

    Raises:
        ConfigError: when made, for a file that is bad already.
    """

    def __init__(self, path: Path, apply: Callable[[Config], object]) -> None:
        self.path = path
        self.apply = apply
        self._read: Signature | None = self._look()
        self._seen = self._read
        self.config = load(path)
        self._timer: Timer | None = None

    def start(self, loop: Loop) -> None:
        """Look at the file every second."""
        self._timer = loop.call_later(INTERVAL, self._tick, loop)

    def stop(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _tick(self, loop: Loop) -> None:
        self.start(loop)
        self.poll()

    def poll(self) -> bool:
        """Look once; returns whether new settings were applied. A change needs two looks."""
        now = self._look()
        still, self._seen = now == self._seen, now
        if now == self._read or not still:
            return False
        return self.reload()

    def reload(self) -> bool:
        """Read the file now, changed or not (SIGHUP); returns whether new settings were applied."""
        self._read = self._seen = self._look()
        try:
            config = load(self.path, must_exist=True)
        except ConfigError as error:
            for line in str(error).splitlines():
                log.error("%s", line)
            log.error("%s: the settings stay as they were", self.path)
            return False
        for warning in config.warnings:
            log.warning("%s", warning)
        if config == self.config:
            return False
        log.info("%s: new settings are in force", self.path)
        self.config = config
        self.apply(config)
        return True

    def _look(self) -> Signature | None:
        try:
            status = self.path.stat()
        except OSError:
            return None
        return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_mode
