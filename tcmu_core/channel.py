"""A channel between two of the runner's processes: JSON objects as packets of a Unix socket, with descriptors."""

from __future__ import annotations

import array
import json
import os
import socket
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from tcmu_core.loop import READ, WRITE, Loop

Message = dict[str, Any]
LARGEST = 1 << 17
MAX_FDS = 4
_INT = array.array("i").itemsize


def pair() -> tuple[socket.socket, socket.socket]:
    """Return the two ends of a new channel."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)


def send(sock: socket.socket, message: Message, fds: Iterable[int] = ()) -> None:
    """Send one message; blocks where the socket does."""
    rights = array.array("i", fds)
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)] if rights else []
    sock.sendmsg([json.dumps(message, separators=(",", ":")).encode()], ancillary)


def receive(sock: socket.socket) -> tuple[Message, list[int]] | None:
    """Return one message and the descriptors that came with it; None when the other end is closed."""
    try:
        data, ancillary, _, _ = sock.recvmsg(LARGEST, socket.CMSG_LEN(MAX_FDS * _INT), socket.MSG_CMSG_CLOEXEC)
    except ConnectionError:
        return None
    fds = array.array("i")
    for level, kind, rights in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(rights[: len(rights) - len(rights) % _INT])
    if not data:
        for fd in fds:
            os.close(fd)
        return None
    return json.loads(data), list(fds)


class Channel:
    """One end of a channel on a loop.

    `on_message(message, fds)` is called for each message, `on_close()` once when the other end is gone. What can't be
    sent at once is kept; nothing here ever blocks.
    """

    def __init__(
        self,
        loop: Loop,
        sock: socket.socket,
        on_message: Callable[[Message, list[int]], object],
        on_close: Callable[[], object],
    ) -> None:
        sock.setblocking(False)
        self._loop = loop
        self._sock = sock
        self._on_message = on_message
        self._on_close = on_close
        self._waiting: deque[tuple[Message, list[int]]] = deque()
        self.closed = False
        loop.register(sock.fileno(), READ, self._ready)

    def send(self, message: Message, fds: Iterable[int] = ()) -> None:
        """Send a message, now or soon; `fds` are duplicated for the time being. After the end it does nothing."""
        if self.closed:
            return
        if not self._waiting:
            try:
                send(self._sock, message, fds)
                return
            except BlockingIOError:
                self._loop.modify(self._sock.fileno(), READ | WRITE)
            except OSError:
                return  # the other end is gone: the loop is about to find out
        self._waiting.append((message, [os.dup(fd) for fd in fds]))

    @property
    def busy(self) -> bool:
        """Whether messages wait here, because the other end does not read."""
        return bool(self._waiting)

    def drain(self) -> None:
        """Handle the messages that have arrived."""
        if not self.closed:
            self._read()

    def close(self) -> None:
        """Close this end; `on_close` is not called."""
        if self.closed:
            return
        self.closed = True
        self._loop.unregister(self._sock.fileno())
        self._sock.close()
        while self._waiting:
            _close_all(self._waiting.popleft()[1])

    def _ready(self, events: int) -> None:
        if events & WRITE:
            self._flush()
        if events & ~WRITE:
            self._read()

    def _flush(self) -> None:
        while self._waiting:
            message, fds = self._waiting[0]
            try:
                send(self._sock, message, fds)
            except BlockingIOError:
                return
            except OSError:
                pass
            self._waiting.popleft()
            _close_all(fds)
        self._loop.modify(self._sock.fileno(), READ)

    def _read(self) -> None:
        while not self.closed:
            try:
                got = receive(self._sock)
            except BlockingIOError:
                return
            if got is None:
                self.close()
                self._on_close()
                return
            self._on_message(*got)


def _close_all(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)
