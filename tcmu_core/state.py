"""State that outlives the process: where it lies, and a device's persistent reservations (APTPL) in a file."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tcmu_core.errors import StaleVersion

LOOK_SECONDS = 2.0  # between two looks whether another process has changed a file


class Cancellable(Protocol):
    """A call that is due later."""

    def cancel(self) -> object:
        """Don't make it."""


class Later(Protocol):
    """Calls `fn()` in some seconds, on the loop's thread."""

    def __call__(self, delay: float, fn: Callable[[], object], /) -> Cancellable:
        """Arrange the call."""


class AptplFile:
    """A store of the engine's (`StateStore`): a file, replaced as a whole.

    After a crash there is the old or the new. Processes of one host that have the same file take turns by a lock of its
    directory. A version is a digest of the content. A file that a person has removed counts as what it was: nobody is
    to lose a reservation that is in force by that.
    """

    shared = False

    def __init__(self, path: str | Path, later: Later | None = None) -> None:
        self.path = Path(path)
        self._later = later
        self._seen: tuple[int, ...] | None = None  # what the file looked like when we read or wrote it
        self._known = b""  # what was in it then

    def load(self) -> tuple[bytes, str]:
        """Return the content, empty where there is no file, and its version; raises `OSError`."""
        self._seen = self._look()
        with contextlib.suppress(FileNotFoundError):
            self._known = self.path.read_bytes()
        return self._known, _version(self._known)

    def replace(self, state: bytes, version: str) -> str:
        """Put `state` in the place of this version, and return its own when it is on stable storage.

        An empty one removes the file.

        Raises:
            StaleVersion: another process has replaced it meanwhile.
            OSError: it can't be written; the old one is there.
        """
        if not state and not self.path.parent.exists():
            return _version(state)
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _turn(self.path.parent):
            if self.load()[1] != version:
                raise StaleVersion(f"{self.path}: another process has changed it")
            self._write(state)
            self._seen, self._known = self._look(), state
        return _version(state)

    def announce(self) -> None:
        """Do nothing: others look for themselves."""

    def watch(self, callback: Callable[[], Future[None]]) -> Callable[[], object]:
        """Look at the file every other second, by the loop that we were given; return what ends that.

        Without a loop nobody looks: then a change is found by the next `replace` alone.
        """
        if self._later is None:
            return _nothing
        later, timers = self._later, list[Cancellable]()

        def look() -> None:
            seen, self._seen = self._seen, self._look()
            if self._seen != seen:
                callback()
            timers[:] = [later(LOOK_SECONDS, look)]

        def stop() -> None:
            timers[0].cancel()

        timers.append(later(LOOK_SECONDS, look))
        return stop

    def _look(self) -> tuple[int, ...] | None:
        try:
            info = self.path.stat()
        except OSError:
            return None
        return info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns

    def _write(self, data: bytes) -> None:
        if not data:
            with contextlib.suppress(FileNotFoundError):
                self.path.unlink()
                _sync_directory(self.path.parent)
            return
        fd, name = tempfile.mkstemp(prefix=f".{self.path.name}.", dir=self.path.parent)
        try:
            with os.fdopen(fd, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            Path(name).replace(self.path)
        except BaseException as error:
            Path(name).unlink(missing_ok=True)
            if isinstance(error, OSError) and error.errno:  # one of a descriptor does not say of which file
                error.filename = error.filename or str(self.path)
            raise
        _sync_directory(self.path.parent)


def _version(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest() if data else ""


@contextlib.contextmanager
def _turn(directory: Path) -> Iterator[None]:
    """Wait for the turn of this process at the files of a directory, and have it."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with contextlib.suppress(OSError):  # a network file system that locks no directories: nobody else is expected
            fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _nothing() -> None:
    pass


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def default_directory() -> Path:
    """Return where state is kept: /var/lib/tcmu for root, else below $XDG_STATE_HOME (XDG base directories 0.8)."""
    if os.geteuid() == 0:
        return Path("/var/lib/tcmu")
    home = os.environ.get("XDG_STATE_HOME", "")
    if home.startswith("/"):
        return Path(home) / "tcmu"
    try:
        return Path.home() / ".local" / "state" / "tcmu"
    except RuntimeError:  # a container's user without a name or $HOME; pam_systemd(8) gives each user this place
        return Path(f"/run/user/{os.geteuid()}") / "tcmu"


@dataclass(frozen=True, slots=True)
class Places:
    """Where the daemon keeps things: its lock, the sockets of its hosts, what survives a restart, and its log."""

    lock: Path
    hosts: Path
    state: Path
    logs: Path

    @property
    def runner(self) -> Path:
        """Return the socket at which the daemon itself can be asked."""
        return self.lock.with_suffix(".sock")

    @classmethod
    def of(cls, directory: Path | None = None) -> Places:
        """Return the places of a person's own directory; without one, those of the system, or of an ordinary user."""
        if directory is not None:
            return cls(directory / "tcmu.lock", directory / "hosts", directory, directory)
        state = default_directory()
        if os.geteuid() == 0:
            return cls(Path("/run/tcmu.lock"), Path("/run/tcmu"), state, Path("/var/log"))
        runtime = os.environ.get("XDG_RUNTIME_DIR", "")
        base = Path(runtime) / "tcmu" if runtime.startswith("/") else state
        return cls(base / "tcmu.lock", base / "hosts", state, state)


def aptpl_file(directory: Path, name: str, *identity: str, later: Later | None = None) -> AptplFile:
    """Return the store of the logical unit that `identity` (handler, cfgstring, target …) tells from all others."""
    digest = hashlib.sha256("\0".join(identity).encode()).hexdigest()[:16]
    readable = re.sub(r"[^A-Za-z0-9._-]", "_", name)[:64]
    return AptplFile(directory / f"{readable}-{digest}.aptpl", later)
