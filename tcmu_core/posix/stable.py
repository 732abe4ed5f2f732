"""Stable storage: a flush that failed once fails for ever, since what was lost then can't be known."""

from __future__ import annotations

import errno
import logging
import os
import threading

Log = logging.Logger | logging.LoggerAdapter[logging.Logger]

log = logging.getLogger("tcmu.posix")


class Stable:
    """What was written to one open file, brought to stable storage. Safe from any thread.

    The kernel reports a write that it could not bring to the disk to one flush alone, and forgets the data. So after
    a failure each later flush fails as well, until the file is opened anew and its user has looked at what is there.
    """

    def __init__(self, fd: int, path: str, log: Log = log) -> None:
        self.fd = fd
        self.path = path
        self.failure: OSError | None = None
        self.log = log
        self._lock = threading.Lock()
        self._turns = threading.Condition()
        self._running = False
        self._begun = self._ended = 0  # flushes

    def check(self) -> None:
        """Raise OSError (EIO) if a flush has failed."""
        if self.failure is not None:
            raise OSError(errno.EIO, f"{self.path}: an earlier flush failed: {self.failure}; open the disk anew")

    def flush(self) -> None:
        """Return when all that was written before is on stable storage; raises OSError.

        Those who come while a flush runs, which may not cover what they wrote, share the next one.
        """
        with self._turns:
            wanted = self._begun + 1  # the first one that begins from now on
            self._turns.wait_for(lambda: not self._running or self._ended >= wanted)
            if self._ended >= wanted:
                self.check()
                return
            self.check()
            self._running = True
            self._begun += 1
        try:
            os.fdatasync(self.fd)
        except OSError as error:
            self.failed(error)
            raise
        finally:
            with self._turns:
                self._running = False
                self._ended = self._begun
                self._turns.notify_all()
        self.check()

    def failed(self, error: OSError) -> None:
        """Remember a flush, or a write through to stable storage, that failed; the log says it once."""
        with self._lock:
            if self.failure is not None:
                return
            self.failure = error
        self.log.error(
            "%s: a flush failed: %s. What was written since the one before may be lost; every flush fails from now on, "
            "until the disk is opened anew",
            self.path,
            error.strerror or error,
        )
