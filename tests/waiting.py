"""Waiting in tests: for what comes soon, with a bound that only guards against a hang."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
PATIENCE = 60.0  # seconds


def wait_for(
    condition: Callable[[], T], seconds: float = PATIENCE, *, every: float = 0.02, why: Callable[[], object] = str
) -> T:
    """Return the first value of `condition()` that is true; `why()` is shown when there is none in time."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, why()
        time.sleep(every)
    return value


def suspend(pid: int) -> None:
    """Stop a process with SIGSTOP, and return when each of its threads stands: the signal alone is only sent."""
    os.kill(pid, signal.SIGSTOP)
    wait_for(lambda: all(_state(task) in "TtZX" for task in Path(f"/proc/{pid}/task").iterdir()), every=0.001)


def _state(task: Path) -> str:
    return (task / "stat").read_text().rpartition(")")[2].split()[0]


def drop_cache(fd: int) -> None:
    """Ask for the file to leave the page cache; the kernel keeps what others hold: one may have to ask again."""
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
