"""Watching files that are served: one that was truncated, deleted or replaced meanwhile is mentioned in the log."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Callable

from tcmu_core.posix.stable import Log, log

INTERVAL = 5.0  # seconds


class Watch:
    """Looks at one open file and the name it was opened by, from a thread that all of a process's watches share.

    A device node is watched by its name alone. Whoever shortens the file itself does it by `truncate`.
    """

    def __init__(self, fd: int, path: str, log: Log = log) -> None:
        info = os.fstat(fd)
        self._fd = fd
        self._path = os.path.abspath(path)
        self.log = log
        self._regular = stat.S_ISREG(info.st_mode)
        self._identity = _identity(info)
        self._length = info.st_size
        self._there = True
        self._lock = threading.Lock()
        _watcher.add(self)

    def truncate(self, length: int) -> None:
        """Set the size of the file, which is its user's own business then; raises OSError."""
        with self._lock:
            os.ftruncate(self._fd, length)
            self._length = min(self._length, length)

    def close(self) -> None:
        """Stop looking; to be called before the descriptor is closed. Twice is once."""
        _watcher.remove(self)
        with self._lock:
            self._fd = -1

    def look(self) -> None:
        """Look now."""
        with self._lock:
            if self._fd < 0:
                return
            if self._regular:
                length = os.fstat(self._fd).st_size
                if length < self._length:
                    self.log.error(
                        "%s was truncated while it is served, from %d to %d bytes: what was there reads as zeros",
                        self._path,
                        self._length,
                        length,
                    )
                self._length = length
            self._look_at_name()

    def _look_at_name(self) -> None:
        try:
            found: tuple[int, int] | None = _identity(os.stat(self._path))
        except FileNotFoundError:
            found = None
        except OSError:
            return  # it can't be told now
        if found == self._identity:
            self._there = True
        elif self._there:
            self._there = False
            what = "deleted or moved" if found is None else "replaced by another file"
            self.log.error(
                "%s was %s while it is served: the disk goes on with the old one, "
                "and what is written to it can't be found under this name",
                self._path,
                what,
            )


def _identity(info: os.stat_result) -> tuple[int, int]:
    return (0, info.st_rdev) if stat.S_ISBLK(info.st_mode) else (info.st_dev, info.st_ino)


class _Watcher:
    """The thread that looks, there as long as there is something to look at, and for one process alone."""

    def __init__(self) -> None:
        self._watches: set[Watch] = set()
        self._lock = threading.Lock()
        self._ended: threading.Event | None = None
        os.register_at_fork(after_in_child=self._forked)

    def _forked(self) -> None:
        self._watches = set()
        self._lock = threading.Lock()
        self._ended = None

    def add(self, watch: Watch) -> None:
        with self._lock:
            self._watches.add(watch)
            if self._ended is None:
                self._ended = threading.Event()
                threading.Thread(target=self._run, args=(self._ended,), name="tcmu-watch", daemon=True).start()

    def remove(self, watch: Watch) -> None:
        with self._lock:
            self._watches.discard(watch)
            if not self._watches and self._ended is not None:
                self._ended.set()
                self._ended = None

    def _run(self, ended: threading.Event) -> None:
        while not ended.wait(INTERVAL):
            with self._lock:
                watches = list(self._watches)
            for watch in watches:
                _guarded(watch.look)


def _guarded(look: Callable[[], None]) -> None:
    try:
        look()
    except Exception:
        log.exception("a file that is served could not be looked at")


_watcher = _Watcher()
