"""What a check finds, and the host that it looks at."""

from __future__ import annotations

import fcntl
import functools
import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path

from tcmu_core.config.configuration import DEFAULT_PATH
from tcmu_core.handlers.registry import Registry
from tcmu_core.state import Places

_FLOCK = struct.Struct("@hhqqi")  # struct flock: type, whence, start, length, pid


class Severity(IntEnum):
    """How bad a finding is: a note is something that is not there and need not be."""

    OK = 0
    NOTE = 1
    WARNING = 2
    ERROR = 3


@dataclass(frozen=True, slots=True)
class Finding:
    """What was looked at, how bad it is, a sentence, and the command (or the edit) that cures it."""

    looked_at: str
    severity: Severity
    text: str
    cure: str = ""


@dataclass(frozen=True)
class System:
    """The host: its files are those below `root`, its tcmu.conf is `config`, which need not be there."""

    root: Path = Path("/")
    config: Path = DEFAULT_PATH
    config_must_exist: bool = False
    handler_paths: tuple[Path, ...] = ()
    places: Places = field(default_factory=Places.of)
    euid: int = field(default_factory=os.geteuid)
    release: str = field(default_factory=lambda: os.uname().release)

    @functools.cached_property
    def registry(self) -> Registry:
        """Return the handlers; finding them runs code of theirs."""
        return Registry(self.handler_paths)

    def path(self, name: str) -> Path:
        """Return the place of an absolute path on this host."""
        return self.root / name.lstrip("/")

    def text(self, name: str) -> str:
        """Return what a small file says, nothing where it can't be read."""
        try:
            return self.path(name).read_text(errors="replace").strip()
        except OSError:
            return ""

    @property
    def daemon(self) -> int | None:
        """Return the process that holds the daemon's lock, 0 for none, None where we may not look."""
        try:
            fd = os.open(self.places.lock, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return 0
        except OSError:
            return None
        try:
            asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
            kind, _, _, _, pid = _FLOCK.unpack(fcntl.fcntl(fd, fcntl.F_GETLK, asked))
        finally:
            os.close(fd)
        return 0 if kind == fcntl.F_UNLCK else int(pid)


Check = Callable[[System], Iterator[Finding]]
