"""A bar at the foot of a terminal for what takes long; elsewhere the log is told, and programs nothing."""

from __future__ import annotations

import contextlib
import logging
import os
import select
import sys
import threading
import time
from collections.abc import Callable
from typing import TextIO

from tcmu_core.progress import Lines, Progress, Report

PATIENCE = 0.5  # seconds until it is drawn: what is over before would only flicker
PACE = 0.1  # seconds from one drawing to the next
CELLS = 24
_COLUMNS = 80  # of a terminal that does not say


class Bar:
    """One line on `stream`, a terminal: the last that was told of. From any thread; it waits for no reader."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self.paused = False  # while the terminal is another program's
        self._fd = stream.fileno()
        self._clock = clock
        self._lock = threading.Lock()
        self._subject: tuple[str, str] | None = None  # who, and what it does
        self._since, self._first = 0.0, 0
        self._next = 0.0
        self._drawn = 0  # columns
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLOUT)
        self._above = _Above(self)
        logging.getLogger("tcmu").handlers.insert(0, self._above)

    def of(self, title: str) -> Report:
        """Return what tells of a disk, or of a file."""
        return lambda now: self._tell(title, now)

    def _tell(self, title: str, now: Progress | None) -> None:
        with self._lock:
            if now is None:
                if self._subject is not None and self._subject[0] == title:
                    self._subject = None
                    self._hide()
                return
            clock = self._clock()
            if self._subject != (title, now.what):
                self._subject, self._since, self._first = (title, now.what), clock, now.done
                self._next = clock + PATIENCE
            if clock >= self._next and not self.paused:
                self._next = clock + PACE
                self._draw(self._line(title, now, clock))

    def _line(self, title: str, now: Progress, clock: float) -> str:
        full = now.percent * CELLS // 100
        line = f"{title}: {now.what} [{'#' * full}{'-' * (CELLS - full)}] {now.percent} %"
        if now.done > self._first:
            left = (clock - self._since) * (now.total - now.done) / (now.done - self._first)
            line += f", {_duration(left)} left"
        return line

    def _draw(self, line: str) -> None:
        try:
            columns = os.get_terminal_size(self._fd).columns or _COLUMNS
        except OSError:
            columns = _COLUMNS
        line = line[: columns - 1]
        self._write(f"\r{line.ljust(min(self._drawn, columns - 1))}")
        self._drawn = len(line)

    def _write(self, text: str) -> None:
        with contextlib.suppress(OSError):
            if self._poll.poll(0):
                os.write(self._fd, text.encode(errors="replace"))

    def hide(self) -> None:
        """Clear the line for what somebody else says; it is drawn again."""
        with self._lock:
            self._hide()

    def _hide(self) -> None:
        if self._drawn:
            self._write(f"\r{' ' * self._drawn}\r")
            self._drawn = 0

    def close(self) -> None:
        """Leave the terminal as it was."""
        logging.getLogger("tcmu").removeHandler(self._above)
        self.hide()


class _Above(logging.Handler):
    """Makes room for each line of the log."""

    def __init__(self, bar: Bar) -> None:
        super().__init__()
        self._bar = bar

    def emit(self, record: logging.LogRecord) -> None:
        """The line is printed by the handler that comes after this one."""
        self._bar.hide()


def _duration(seconds: float) -> str:
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    return f"{whole // 60} min" if whole < 6000 else f"{whole // 3600} h"


def on_terminal(*, programs: bool) -> Bar | None:
    """Return a bar where a person looks: stderr is a terminal, and what is printed is not for `programs`."""
    return Bar(sys.stderr) if not programs and sys.stderr.isatty() else None


class Teller:
    """Tells a person how far a command is: by a bar, else by lines in the log."""

    def __init__(self, title: str, *, programs: bool) -> None:
        self.bar = on_terminal(programs=programs)
        self._report: Report = self.bar.of(title) if self.bar is not None else Lines(logging.getLogger("tcmu.progress"))

    def __call__(self, now: Progress | None) -> None:
        """Take how far it is; None: it is over."""
        self._report(now)

    def above(self) -> None:
        """Make room for something that is printed."""
        if self.bar is not None:
            self.bar.hide()

    def __enter__(self) -> Teller:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the terminal as it was."""
        self._report(None)
        if self.bar is not None:
            self.bar.close()
