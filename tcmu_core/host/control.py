"""The control socket of a host: how another process finds it by the name of a disk, and asks it to act."""

from __future__ import annotations

import contextlib
import difflib
import errno
import logging
import os
import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

from tcmu_core import channel
from tcmu_core.channel import Channel, Rendezvous
from tcmu_core.codec import CodecError, Message
from tcmu_core.disk.device import Change
from tcmu_core.errors import ConfigError, TcmuError
from tcmu_core.host.messages import (
    Ask,
    AskCounters,
    Changed,
    Counters,
    DiskStatus,
    InitiatorCounters,
    Missing,
    Reconfigure,
    Status,
    Unserved,
)
from tcmu_core.loop import Loop
from tcmu_core.state import Places, default_directory

log = logging.getLogger("tcmu.control")

_SERVE = re.compile(r"serve-([0-9]+)\.sock")  # the socket of a `tcmu serve`, by its process id
PATIENCE = 60.0  # seconds that a host may take to carry a change out
FIND_SECONDS = 3.0  # ... and to say what it serves


class ControlError(TcmuError):
    """No such host answers, or it refused; the message says which and why."""


class NoSuchDisk(ControlError):
    """No process of this user serves a disk of that name."""


class Asked(Protocol):
    """Who answers at a socket: a host in the foreground, or the daemon."""

    def answer(self, message: Message, asker: Channel) -> Message | None:
        """Answer a message; None where there is nothing to say, or `asker` hears it by and by."""

    def gone(self, asker: Channel) -> None:
        """Somebody who has asked something is gone."""


class ControlSocket:
    """The socket of a host in the foreground, or of the daemon; only the user that runs it, and root, are answered.

    Raises:
        OSError: it can't be made.
    """

    def __init__(self, loop: Loop, path: Path, asked: Asked) -> None:
        self._loop = loop
        self._asked = asked
        self._channels: set[Channel] = set()
        self._directory = None if path.parent.exists() else path.parent  # that we make, and leave to nobody
        self.rendezvous = Rendezvous(loop, path, self._accept)

    def _accept(self, sock: socket.socket) -> None:
        channel: Channel

        def answer(message: Message, fds: list[int]) -> None:
            for fd in fds:
                os.close(fd)
            said = self._asked.answer(message, channel)
            if said is not None:
                channel.send(said)

        channel = Channel(self._loop, sock, answer, lambda: self._gone(channel))
        self._channels.add(channel)

    def _gone(self, channel: Channel) -> None:
        self._channels.discard(channel)
        self._asked.gone(channel)

    def close(self) -> None:
        """Close the socket and take it out of the directory."""
        self.rendezvous.close()
        for one in self._channels:
            one.close()
        self._channels.clear()
        if self._directory is not None:
            with contextlib.suppress(OSError):  # somebody else keeps something there by now
                self._directory.rmdir()


def ask(path: Path, message: Message, seconds: float = PATIENCE) -> Message:
    """Send one message to the host that is found at `path` and return its answer; raises `OSError`, `CodecError`."""
    return channel.ask(path, message, seconds)


def told(path: Path, message: Message, *, begun: Callable[[], object]) -> Iterator[Message]:
    """Send a message to the host at `path` and yield what it answers, message after message, until it ends.

    `begun()` is called when the host has answered for the first time; that answer is yielded too. Raises `OSError`.
    """
    sock, _ = channel.connect(path)
    with sock:
        sock.settimeout(PATIENCE)
        channel.send(sock, message)
        while (got := channel.receive(sock)) is not None:
            if sock.gettimeout() is not None:
                sock.settimeout(None)
                begun()
            yield got[0]


def places(directory: Path) -> list[Path]:
    """Return where hosts of this user may be found; `directory` is that of `hosts`."""
    runner = Places.of(None if directory == default_directory() else directory).hosts
    return sorted([*directory.glob("serve-*.sock"), *runner.glob("*.sock")])


def hosts(directory: Path, silent: list[int] | None = None) -> Iterator[tuple[Path, Status]]:
    """Yield the hosts of this user that can be found, and what each serves; `silent` gets the pids of the others.

    `directory` is where state is kept: of each `tcmu serve`, and of a tcmu-runner that was told to.
    """
    for path in places(directory):
        try:
            status = ask(path, Ask(), FIND_SECONDS)
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)  # its process has gone without a word
        except (OSError, CodecError) as error:
            log.info("%s: %s", path, error)
            if silent is not None and isinstance(error, TimeoutError):
                silent += pid_of(path)
        else:
            if isinstance(status, Status):
                yield path, status


def unserved(directory: Path, silent: list[int] | None = None) -> tuple[Status, ...]:
    """Return what a tcmu-runner of this user is to serve, and nobody serves; `silent` as in `hosts`."""
    path = Places.of(None if directory == default_directory() else directory).runner
    try:
        answer = ask(path, Ask(), FIND_SECONDS)
    except (OSError, CodecError) as error:
        log.info("%s: %s", path, error)
        if silent is not None and isinstance(error, TimeoutError):
            silent += pid_of(path)
        return ()
    return answer.hosts if isinstance(answer, Unserved) else ()


def pid_of(path: Path) -> list[int]:
    """Return whose socket it is, as well as that can be told; nothing where that has gone."""
    try:
        sock, pid = channel.connect(path)
    except TimeoutError:
        named = _SERVE.fullmatch(path.name)
        return [int(named[1])] if named is not None else []
    except OSError:
        return []
    sock.close()
    return [pid]


def counted(path: Path, lun: int) -> tuple[InitiatorCounters, ...]:
    """Return what each initiator has had a disk of the host at `path` do; nothing where that has gone meanwhile."""
    found: list[InitiatorCounters] = []
    try:
        sock, _ = channel.connect(path)
        with sock:
            sock.settimeout(FIND_SECONDS)
            while True:
                channel.send(sock, AskCounters(lun, len(found)))
                got = channel.receive(sock)
                if got is None or not isinstance(got[0], Counters) or got[0].counters is None:
                    break
                found.append(got[0].counters)
    except (OSError, CodecError) as error:
        log.info("%s: %s", path, error)
    return tuple(found)


def unheard(silent: list[int]) -> str:
    """Return what is said of the processes that do not answer, as the end of a sentence of what was not found."""
    return "".join(f"; process {pid} does not answer" for pid in silent)


def silence(pid: int) -> str:
    """Say of a process that it does not answer."""
    try:
        name = Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        name = "it has ended"
    return f"process {pid} ({name}) does not answer: a handler holds it up, or it hangs"


def disks(
    directory: Path, silent: list[int] | None = None, *, kernel: bool = True, missing: list[Missing] | None = None
) -> list[tuple[Path, DiskStatus]]:
    """Return the disks that are served, each with the place of its host; `silent` is as in `hosts`.

    Without `kernel` those of kernel devices are left out: what they are is changed by way of the kernel. `missing`
    gets those that should be there.
    """
    found = []
    for path, status in hosts(directory, silent):
        if kernel or not any(address.startswith("/dev/") for address in status.addresses):
            found += [(path, disk) for disk in status.disks]
            if missing is not None:
                missing += status.missing
    return found


def the_one(name: str, found: list[tuple[Path, DiskStatus]]) -> tuple[Path, DiskStatus] | None:
    """Return the disk of this name, None where there is none; raises `ControlError` where there are several."""
    same = [(path, disk) for path, disk in found if disk.name == name]
    if len(same) > 1:
        processes = len({path for path, _ in same})
        who = f"{processes} processes serve a disk" if processes > 1 else f"{len(same)} disks of one process are"
        raise ControlError(f"{who} called {name!r}: give each a name of its own")
    return same[0] if same else None


def refuse_missing(name: str, missing: list[Missing]) -> None:
    """Raise `NoSuchDisk` with the reason where the disk of this name should be there."""
    for one in missing:
        if one.name == name:
            raise NoSuchDisk(f"the disk {name!r} is not served: {one.reason}")


def served(name: str, directory: Path) -> tuple[Path, DiskStatus]:
    """Return the disk of this name, whichever host serves it and by whichever way in.

    Raises:
        NoSuchDisk: there is none; ControlError: there are several.
    """
    silent: list[int] = []
    missing: list[Missing] = []
    found = disks(directory, silent, missing=missing)
    one = the_one(name, found)
    if one is None:
        refuse_missing(name, missing)
        names = sorted({disk.name for _, disk in found})
        close = difflib.get_close_matches(name, names, 1)
        meant = f"did you mean {close[0]!r}? " if close else ""
        there = (
            f"served here: {', '.join(names)}" if names else f"no process of yours serves one (looked in {directory})"
        )
        raise NoSuchDisk(f"there is no disk {name!r}: {meant}{there}{unheard(silent)}")
    return one


def change(path: Path, disk: DiskStatus, wanted: Change) -> DiskStatus:
    """Have the host at `path` change a disk; returns what that is now.

    Raises:
        ConfigError: the handler takes no such value; ControlError: the change failed.
    """
    try:
        answer = ask(path, Reconfigure(wanted, disk.lun))
    except TimeoutError:
        raise ControlError(f"{disk.name}: not done within {PATIENCE:g} s: what is in flight may have to end first, and "
                           "it comes then; the log says more") from None  # fmt: skip
    if not isinstance(answer, Changed):
        raise ControlError(f"{disk.name}: the process that serves it is of another version")
    if answer.errno == errno.EINVAL:
        raise ConfigError(answer.reason)
    if answer.errno or answer.disk is None:
        raise ControlError(f"{disk.name}: {answer.reason}")
    return answer.disk
