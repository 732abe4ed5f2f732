"""Observer: looks at all hosts of a user, again and again, as cheaply for them and for itself as that can be."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from tcmu_core import channel
from tcmu_core.codec import CodecError
from tcmu_core.host.control import FIND_SECONDS, pid_of, places
from tcmu_core.host.messages import DiskCounters, InitiatorCounters, Look, Looked, SessionStatus, Status

log = logging.getLogger("tcmu.control")


@dataclass(frozen=True, slots=True)
class Seen:
    """All that there is to see of a host at one time: counters by LUN, and sessions."""

    status: Status
    counters: Mapping[int, tuple[InitiatorCounters, ...]]
    sessions: tuple[SessionStatus, ...] = ()


@dataclass(frozen=True, slots=True)
class Sight:
    """What was seen of all hosts `at` a time, in seconds of a clock that only goes forward.

    `silent` are the pids of those that do not answer.
    """

    at: float
    hosts: tuple[Seen, ...]
    silent: tuple[int, ...] = ()


class _Known:
    """What a host has told of its counters, by LUN, initiator and when they began: it tells again what has changed."""

    def __init__(self) -> None:
        self.number = 0  # of the last answer that is in it
        self._told: dict[tuple[int, str, float], InitiatorCounters] = {}

    def take(self, number: int, told: Iterable[DiskCounters]) -> Iterator[DiskCounters]:
        """Take all of an answer; yields the counters as they are now."""
        before, self._told, self.number = self._told, {}, number
        for one in told:
            key = (one.lun, one.counters.initiator, one.counters.since)
            self._told[key] = now = _together(before.get(key), one.counters)
            yield DiskCounters(one.lun, now)


def _together(before: InitiatorCounters | None, now: InitiatorCounters) -> InitiatorCounters:
    """Return counters, of which `now` has those that have changed."""
    if before is None:
        return now
    if not now.operations:
        return before
    operations = {one.opcode: one for one in (*before.operations, *now.operations)}
    return replace(now, operations=tuple(operations[opcode] for opcode in sorted(operations)))


class Observer:
    """Asks each host for all that it tells in one message, by connections that stay; several threads may look.

    `directory` is where state is kept, as `control.hosts` has it.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._lock = threading.Lock()
        self._sockets: dict[Path, socket.socket] = {}
        self._pids: dict[Path, int] = {}  # whom the connection leads to
        self._known: dict[Path, _Known] = {}  # by the connection's path
        self._last: Sight | None = None
        self._silent: set[int] = set()  # of the look that is under way

    def look(self, age: float = 0.0) -> Sight:
        """Return what can be seen of the hosts that answer, or what was seen last if that is no older than `age`."""
        with self._lock:
            last = self._last
            if last is None or not age or time.monotonic() - last.at > age:
                last = self._last = self._look()
            return last

    def _look(self) -> Sight:
        paths = places(self._directory)
        for path in self._sockets.keys() - set(paths):
            self._drop(path)
        kept = set(self._sockets)
        found = []
        self._silent = set()
        for path in [path for path in paths if self._ask(path)]:  # all of them first, so that they work meanwhile
            seen = self._hear(path)
            if seen is None and path in kept and self._ask(path):  # another process may be there by now
                seen = self._hear(path)
            if seen is not None:
                found.append(seen)
        answering = {seen.status.pid for seen in found}
        return Sight(time.monotonic(), tuple(found), tuple(sorted(self._silent - answering)))

    def _ask(self, path: Path) -> bool:
        """Ask one host; returns whether it can be reached."""
        for _ in range(2):  # a connection that was kept may lead nowhere any more
            try:
                if path not in self._sockets:
                    self._sockets[path], self._pids[path] = channel.connect(path)
                    self._sockets[path].settimeout(FIND_SECONDS)
                    self._known[path] = _Known()
                channel.send(self._sockets[path], Look(self._known[path].number))
            except ConnectionRefusedError:
                path.unlink(missing_ok=True)  # its process has gone without a word
                return False
            except OSError as error:
                log.info("%s: %s", path, error)
                self._drop(path)
                if isinstance(error, TimeoutError):  # so many wait for it that no more may
                    self._silent.update(pid_of(path))
                    return False
            else:
                return True
        return False

    def _hear(self, path: Path) -> Seen | None:
        """Return what one host tells; None where it has gone, or does not answer in time."""
        told: list[DiskCounters] = []
        sessions: list[SessionStatus] = []
        try:
            while (got := channel.receive(self._sockets[path])) is not None and isinstance(got[0], Looked):
                told += got[0].counters
                sessions += got[0].sessions
                if got[0].over and got[0].status is not None:
                    return _seen(got[0].status, self._known[path].take(got[0].number, told), tuple(sessions))
        except (OSError, CodecError) as error:
            log.info("%s: %s", path, error)
            if isinstance(error, TimeoutError):
                self._silent.add(self._pids[path])
        self._drop(path)
        return None

    def _drop(self, path: Path) -> None:
        self._known.pop(path, None)
        sock = self._sockets.pop(path, None)
        if sock is not None:
            sock.close()

    def close(self) -> None:
        """Let go of all connections."""
        with self._lock:
            for path in list(self._sockets):
                self._drop(path)


def _seen(status: Status, told: Iterable[DiskCounters], sessions: tuple[SessionStatus, ...]) -> Seen:
    counters: dict[int, list[InitiatorCounters]] = {disk.lun: [] for disk in status.disks}
    for one in told:
        counters.setdefault(one.lun, []).append(one.counters)
    return Seen(status, {lun: tuple(each) for lun, each in counters.items()}, sessions)
