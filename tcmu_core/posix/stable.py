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

    def check(self) -> None:
        """Raise OSError (EIO) if a flush has failed."""
        if self.failure is not None:
            raise OSError(errno.EIO, f"{self.path}: an earlier flush failed: {self.failure}; open the disk anew")

    def flush(self) -> None:
        """Return when all that was written before is on stable storage; raises OSError."""
        self.check()
        try:
            os.fdatasync(self.fd)
        except OSError as error:
            self.failed(error)
            raise
        self.check()  # one that ran beside this one failed: the kernel may have told it alone

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
