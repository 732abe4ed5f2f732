"""The last lines of the logs that processes write, as far as they can be read."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tcmu_core import files
from tcmu_core.errors import ConfigError
from tcmu_core.log import FILE_NAME

BYTES = 16 << 10  # of each file
FILES = 4
LINES = 200  # of each file
STDERR = 2


@dataclass(frozen=True, slots=True)
class Tail:
    """The end of a log file."""

    path: str
    lines: tuple[str, ...]


def tails(pids: Iterable[int]) -> tuple[list[Tail], list[str]]:
    """Return the ends of the files that these processes log to, and a sentence where there is none to be read."""
    found: dict[tuple[int, int], Tail] = {}
    reasons: list[str] = []
    for pid in sorted(set(pids)):
        try:
            read = [_read(place) for place in _places(pid)]
        except (OSError, ConfigError) as error:
            why = error.strerror if isinstance(error, OSError) else _instead(pid)
            reasons.append(f"process {pid}: its log can't be read here: {why}")
        else:
            found.update(read)
    tails = list(found.values())
    if len(tails) > FILES:
        reasons.append(f"{len(tails) - FILES} more log files are not shown")
    return tails[:FILES], reasons


def _places(pid: int) -> list[Path]:
    """Return where the open logs of a process are found: its log files, else its stderr. Raises `OSError`."""
    places = Path(f"/proc/{pid}/fd")
    logs = [place for place in places.iterdir() if _target(place).rpartition("/")[2].startswith(FILE_NAME)]
    return sorted(logs) or [places / str(STDERR)]


def _target(place: Path) -> str:
    try:
        return os.readlink(place)
    except OSError:
        return ""  # it has been closed meanwhile


def _read(place: Path) -> tuple[tuple[int, int], Tail]:
    """Return the end of one file, with its device and inode.

    Raises:
        ConfigError: it is no regular file; OSError: it can't be read.
    """
    with files.opened(place) as file:
        status = os.fstat(file.fileno())
        start = max(0, status.st_size - BYTES)
        file.seek(start)
        text = file.read(BYTES).decode("utf-8", "replace")
    lines = text.splitlines()[1 if start else 0 :]  # the first one is not whole
    return (status.st_dev, status.st_ino), Tail(_target(place), tuple(lines[-LINES:]))


def _instead(pid: int) -> str:
    """Say what takes the lines of a process whose stderr is no file."""
    target = _target(Path(f"/proc/{pid}/fd/{STDERR}"))
    if target.startswith("socket:"):
        return f"a socket takes it; where that is the journal's, `journalctl _PID={pid}` shows it"
    if target.startswith("pipe:"):
        return "a pipe takes it"
    return f"{target} takes it"
