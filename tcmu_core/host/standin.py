"""Stand-in: tells who looks at a host what there is to see, while a handler's code holds up the loop that else does so.

A handler's `open` may take as long as its storage does. While it has the host's thread, a thread of this stands at the
host's socket. It tells what can be told without changing anything; who asks for more is heard when the loop goes on.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Protocol

from tcmu_core import channel
from tcmu_core.channel import LARGEST, Rendezvous
from tcmu_core.codec import CodecError, Message, decode
from tcmu_core.host.messages import Ask, AskCounters, Look, Sessions

_PATIENCE = 1.0  # seconds for one that asks to take its answer
_LOOKS = (Ask, AskCounters, Look, Sessions)


class _Asker:
    """One that has come, as an answer of several messages needs it."""

    closed = False
    busy = False

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def send(self, message: Message) -> None:
        """Send a message."""
        channel.send(self._sock, message)

    def close(self) -> None:
        """Do nothing: its connection is somebody else's."""


class Answer(Protocol):
    """What the host says to a message, as `Host.answer`."""

    def __call__(self, message: Message, asker: _Asker) -> Message | None:
        """Return what is left to say."""


class StandIn:
    """A context in which another thread answers at `rendezvous`; those that it can't help are handed to the loop."""

    def __init__(self, rendezvous: Rendezvous, answer: Answer) -> None:
        self._rendezvous = rendezvous
        self._answer = answer
        self._kept: dict[int, socket.socket] = {}
        self._poll = select.poll()

    def __enter__(self) -> None:
        self._over = os.eventfd(0, os.EFD_CLOEXEC)
        self._poll.register(self._over, select.POLLIN)
        self._poll.register(self._rendezvous.fileno(), select.POLLIN)
        self._thread = threading.Thread(target=self._run, name="tcmu-stand-in", daemon=True)
        self._thread.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        os.eventfd_write(self._over, 1)
        self._thread.join()
        os.close(self._over)
        for sock in self._kept.values():
            self._rendezvous.welcome(sock)

    def _run(self) -> None:
        act: dict[int, Callable[[], object]] = {self._rendezvous.fileno(): self._take}
        while True:
            for fd, _ in self._poll.poll():
                if fd == self._over:
                    return
                act.get(fd, lambda fd=fd: self._hear(fd))()

    def _take(self) -> None:
        sock = self._rendezvous.accept()
        if sock is not None:
            sock.settimeout(_PATIENCE)
            self._kept[sock.fileno()] = sock
            self._poll.register(sock, select.POLLIN)

    def _hear(self, fd: int) -> None:
        """Answer a message; one that is for the loop stays where it is."""
        sock = self._kept[fd]
        try:
            data = sock.recv(LARGEST, socket.MSG_PEEK)
            if data and isinstance(decode(data), _LOOKS):
                self._tell(sock)
                return
        except (OSError, CodecError):
            data = b"?"  # the loop will find out
        self._poll.unregister(sock)
        if not data:
            self._kept.pop(fd).close()

    def _tell(self, sock: socket.socket) -> None:
        got = channel.receive(sock)
        assert got is not None
        answer = self._answer(got[0], _Asker(sock))
        if answer is not None:
            with contextlib.suppress(OSError):
                channel.send(sock, answer)
