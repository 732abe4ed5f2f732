"""Reading tcmu.conf again when it changes.

The file is looked at by name with stat, so that a rename over it, a change of a symbolic link's goal and a network
file system are all noticed. A change is read when the file has stood still from one look to the next: an editor that
truncates and then writes is not caught halfway.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from tcmu_core.config.configuration import Config
from tcmu_core.config.file import load
from tcmu_core.errors import ConfigError
from tcmu_core.loop import Loop, Timer

log = logging.getLogger("tcmu.config")

INTERVAL = 1.0  # seconds


class Signature(NamedTuple):
    """What tells one content of a file from another."""

    device: int
    inode: int
    size: int
    modified: int  # nanoseconds
    mode: int


# (settings, verdict): looks whether they can be right, and calls `verdict(problems)` on the loop, then or later.
Judge = Callable[[Config, Callable[[list[str]], None]], object]


def _nothing_against(_config: Config, verdict: Callable[[list[str]], None]) -> None:
    verdict([])


class Watcher:
    """Calls `apply(config)` after the file changed; a bad edit or a missing file keeps the old settings and says so.

    Raises:
        ConfigError: when made, for a file that is bad already.
    """

    def __init__(
        self, path: Path, apply: Callable[[Config], object], *, judge: Judge | None = None, must_exist: bool = False
    ) -> None:
        self.path = path
        self.apply = apply
        self._judge = judge or _nothing_against
        self._proposed: Config | None = None
        self._read: Signature | None = self._look()
        self._seen = self._read
        self.config = load(path, must_exist=must_exist)
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
        """Look once; returns whether new settings were proposed. A change needs two looks."""
        now = self._look()
        still, self._seen = now == self._seen, now
        if now == self._read or not still:
            return False
        return self._propose(meant=False)

    def reload(self) -> bool:
        """Read the file now, changed or not (SIGHUP); returns whether new settings were proposed."""
        return self._propose(meant=True)

    def _propose(self, *, meant: bool) -> bool:
        self._read = self._seen = self._look()
        try:
            config = load(self.path, must_exist=True)
        except ConfigError as error:
            for line in str(error).splitlines():
                log.error("%s", line)
            log.error("%s: the settings stay as they were", self.path)
            return False
        if not meant and config == Config() and (self.config.targets or not (self._read and self._read.size)):
            # Not a word in it, or comments alone. Somebody is about to write it, or the disk is full: nobody empties a
            # file to have all targets go.
            log.error("%s is empty: the settings stay as they were (SIGHUP applies it all the same)", self.path)
            return False
        for warning in config.warnings:
            log.warning("%s", warning)
        self._proposed = config if config != self.config else None
        if self._proposed is None:
            return False
        self._judge(config, partial(self._verdict, config))
        return True

    def _verdict(self, config: Config, problems: list[str]) -> None:
        """Apply what was proposed, unless there is something against it, or a newer proposal."""
        if config is not self._proposed:
            return
        self._proposed = None
        for problem in problems:
            log.error("%s", problem)
        if problems:
            log.error("%s: the settings stay as they were", self.path)
            return
        log.info("%s: new settings are in force", self.path)
        self.config = config
        self.apply(config)

    def _look(self) -> Signature | None:
        try:
            status = self.path.stat()
        except OSError:
            return None
        return Signature(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_mode)
