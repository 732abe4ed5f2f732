"""The command of `tcmu serve --run`: started through the shell, watched by the loop, ended with all that it started."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping

from tcmu_core import stdout
from tcmu_core.cli.output import Exit
from tcmu_core.loop import READ, Loop

PATIENCE = 0.5  # seconds from SIGTERM to SIGKILL


class Child:
    """A running command. `ended(status)` is called once on the loop, with what the shell would call `$?`."""

    def __init__(self, command: str, environment: Mapping[str, str], loop: Loop, ended: Callable[[int], None]) -> None:
        self.loop = loop
        self.ended = ended
        # A group of its own can be ended as a whole. On a terminal it would be a background group that may not read,
        # so there the command shares ours, and Ctrl-C reaches both.
        self.grouped = not sys.stdin.isatty()
        self.process = subprocess.Popen(
            command,
            shell=True,
            env={**os.environ, **environment},
            stdout=stdout.descriptor(),
            process_group=0 if self.grouped else None,
        )
        self.fd = os.pidfd_open(self.process.pid)
        loop.register(self.fd, READ, self._exited)

    def stop(self) -> None:
        """Ask the command to end, and make it end when it does not; the disk is there until then."""
        self._signal(signal.SIGTERM)
        self.loop.call_later(PATIENCE, self._signal, signal.SIGKILL)

    def close(self) -> None:
        """End the command at once if it still runs, and wait for it."""
        if self.fd < 0:
            return
        self._signal(signal.SIGKILL)
        self._reap()

    def _signal(self, number: int) -> None:
        # The leader is reaped in `_reap` only, so its number can't belong to anybody else before.
        if self.fd < 0:
            return
        with contextlib.suppress(ProcessLookupError):
            if self.grouped:
                os.killpg(self.process.pid, number)
            else:
                self.process.send_signal(number)

    def _exited(self, _events: int) -> None:
        self._signal(signal.SIGTERM)  # what it left in the background has no disk any more
        self.ended(self._reap())

    def _reap(self) -> int:
        self.loop.unregister(self.fd)
        os.close(self.fd)
        self.fd = -1
        status = self.process.wait()
        return Exit.SIGNAL - status if status < 0 else status
