"""The control socket of a running `tcmu serve`: how another `tcmu` finds it by its disk's name and asks it to act."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import stat
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tcmu_core.channel import Channel, Message, receive, send
from tcmu_core.errors import TcmuError
from tcmu_core.loop import READ, Loop

log = logging.getLogger("tcmu.control")

PATTERN = "serve-*.sock"
PATIENCE = 30.0  # seconds that a process may take to answer
BACKLOG = 8
_CREDENTIALS = struct.Struct("3i")  # struct ucred: pid, uid, gid (unix(7), SO_PEERCRED)

Answer = Callable[[Message], Message]


class ControlError(TcmuError):
    """No such process answers, or it refused; the message says which and why."""


class NoSuchDrive(ControlError):
    """No process of ours serves a drive of that name."""


class ControlSocket:
    """The socket of this process in `directory`; `answer(message)` is called on the loop for each message.

    Only the user that runs the process, and root, are answered.
    """

    def __init__(self, loop: Loop, directory: Path, answer: Answer) -> None:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.path = directory / f"serve-{os.getpid()}.sock"
        self._loop = loop
        self._answer = answer
        self._channels: set[Channel] = set()
        self._sock = _unix_socket()
        try:
            with _short(self.path) as name:
                self.path.unlink(missing_ok=True)  # of an earlier process with this id
                self._sock.bind(name)
            self.path.chmod(stat.S_IRUSR | stat.S_IWUSR)
            self._sock.listen(BACKLOG)
        except BaseException:
            self._sock.close()
            raise
        self._sock.setblocking(False)
        loop.register(self._sock.fileno(), READ, self._accept)

    def _accept(self, events: int) -> None:
        with contextlib.suppress(BlockingIOError):
            sock, _ = self._sock.accept()
            raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
            _, uid, _ = _CREDENTIALS.unpack(raw)
            if uid not in (0, os.geteuid()):
                sock.close()
                return
            channel = Channel(
                self._loop,
                sock,
                lambda message, fds: channel.send(self._answer(message)),
                lambda: self._channels.discard(channel),
            )
            self._channels.add(channel)

    def close(self) -> None:
        """Close the socket and take it out of the directory."""
        self._loop.unregister(self._sock.fileno())
        self._sock.close()
        for channel in self._channels:
            channel.close()
        self._channels.clear()
        self.path.unlink(missing_ok=True)


def ask(path: Path, message: Message) -> dict[str, Any]:
    """Send one message to the process behind a socket and return its answer; raises `OSError`."""
    with _unix_socket() as sock:
        sock.settimeout(PATIENCE)
        with _short(path) as name:
            sock.connect(name)
        send(sock, message)
        got = receive(sock)
    if got is None:
        raise ConnectionResetError(f"{path} did not answer")
    return got[0]


def find(directory: Path, name: str) -> Path:
    """Return the socket of the process that serves the device called `name`.

    Raises:
        NoSuchDrive: there is none; ControlError: there is more than one.
    """
    known: dict[Path, str] = {}
    for path in sorted(directory.glob(PATTERN)):
        try:
            known[path] = str(ask(path, {"op": "who"})["name"])
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)  # its process has gone without a word
        except OSError as error:
            log.info("%s: %s", path, error)
    found = [path for path, called in known.items() if called == name]
    if len(found) > 1:
        raise ControlError(f"{len(found)} processes serve a drive called {name!r}: give each its own --name")
    if not found:
        names = ", ".join(sorted(set(known.values())))
        hint = f"served here: {names}" if names else f"no `tcmu serve` of yours has a drive (looked in {directory})"
        raise NoSuchDrive(f"there is no drive {name!r}: {hint}")
    return found[0]


def _unix_socket() -> socket.socket:
    return socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)


@contextlib.contextmanager
def _short(path: Path) -> Iterator[str]:
    """Give a name for `path` that fits into a socket address (108 bytes, unix(7)), however long the path is."""
    fd = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}/{path.name}"
    finally:
        os.close(fd)
