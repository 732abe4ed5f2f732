"""Outlet: lines for a descriptor that perhaps nobody reads; what would have to wait is left out, and that is said.

A pager that stands still, a terminal after Ctrl-S, a journal that waits for a disk of ours: a log line that waited for
them would hold up every command. The descriptor can't be made non-blocking: others, the shell perhaps, share it.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import stat

ROOM = select.PIPE_BUF  # bytes that a pipe takes without waiting where poll(2) says that it takes any


class Outlet:
    """Writes lines to `fd` as long as that needs no waiting."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.lost = 0  # lines that were left out since the last one that was written
        self._rest = b""  # of a line that has begun
        self._socket = stat.S_ISSOCK(os.fstat(fd).st_mode)
        self._poll = select.poll()
        self._poll.register(fd, select.POLLOUT)

    def write(self, line: bytes) -> None:
        """Write a line, the rest of it later where it has begun; errors are nobody's, and lose it."""
        self._begin(self._rest)
        if self.lost and not self._rest:
            loss = f"({self.lost} lines of the log were left out here: nobody read them)\n"
            if self._begin(loss.encode()):
                self.lost = 0
        if self._rest or self.lost or not self._begin(line):
            self.lost += 1

    def _begin(self, data: bytes) -> bool:
        """Write as far as that needs no waiting and keep the rest; False where nothing of it could be written."""
        at = 0
        with contextlib.suppress(OSError):
            while at < len(data):
                part = data[at : at + ROOM]
                if self._socket:
                    with socket.socket(fileno=os.dup(self.fd)) as sock:
                        at += sock.send(part, socket.MSG_DONTWAIT)
                elif self._poll.poll(0):
                    at += os.write(self.fd, part)
                else:
                    break
        self._rest = data[at:] if at or data is self._rest else b""
        return at > 0
