"""The control socket of a host: how another process finds it by the name of a disk, and asks it to act."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from tcmu_core import channel
from tcmu_core.channel import Channel, Rendezvous
from tcmu_core.codec import CodecError, Message
from tcmu_core.errors import TcmuError
from tcmu_core.host.host import Host
from tcmu_core.host.messages import Ask, DiskStatus, Status
from tcmu_core.loop import Loop

log = logging.getLogger("tcmu.control")

PATIENCE = 30.0  # seconds that a host may take to answer


class ControlError(TcmuError):
    """No such host answers, or it refused; the message says which and why."""


class ControlSocket:
    """The socket of a host in the foreground, in `directory`; only the user that runs it, and root, are answered.

    Raises:
        OSError: it can't be made.
    """

    def __init__(self, loop: Loop, directory: Path, host: Host) -> None:
        self._loop = loop
        self._host = host
        self._channels: set[Channel] = set()
        self._directory = None if directory.exists() else directory  # that we make, and leave to nobody
        self._rendezvous = Rendezvous(loop, directory / f"serve-{os.getpid()}.sock", self._accept)

    def _accept(self, sock: socket.socket) -> None:
        channel: Channel

        def answer(message: Message, fds: list[int]) -> None:
            for fd in fds:
                os.close(fd)
            said = self._host.answer(message)
            if said is not None:
                channel.send(said)

        channel = Channel(self._loop, sock, answer, lambda: self._channels.discard(channel))
        self._channels.add(channel)

    def close(self) -> None:
        """Close the socket and take it out of the directory."""
        self._rendezvous.close()
        for one in self._channels:
            one.close()
        self._channels.clear()
        if self._directory is not None:
            with contextlib.suppress(OSError):  # somebody else keeps something there by now
                self._directory.rmdir()


def ask(path: Path, message: Message) -> Message:
    """Send one message to the host that is found at `path` and return its answer; raises `OSError`, `CodecError`."""
    return channel.ask(path, message, PATIENCE)


def hosts(*directories: Path) -> Iterator[tuple[Path, Status]]:
    """Yield the hosts that can be found in these directories, and what each serves."""
    for directory in directories:
        for path in sorted(directory.glob("*.sock")):
            try:
                status = ask(path, Ask())
            except ConnectionRefusedError:
                path.unlink(missing_ok=True)  # its process has gone without a word
            except (OSError, CodecError) as error:
                log.info("%s: %s", path, error)
            else:
                if isinstance(status, Status):
                    yield path, status


def find(name: str, *directories: Path) -> list[tuple[Path, DiskStatus]]:
    """Return where a disk of this name is served."""
    return [(path, disk) for path, status in hosts(*directories) for disk in status.disks if disk.name == name]
