"""What the commands print: tables, JSON, colours on a terminal only, and errors explained by their cause chain."""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
import traceback
from collections.abc import Iterator, Sequence
from enum import IntEnum
from typing import Any, TextIO

from tcmu_core import stdout
from tcmu_core.errors import ConfigError, HandlerError, TcmuError
from tcmu_core.log import wants_colour


class Exit(IntEnum):
    """Exit statuses of `tcmu`; `serve --run` passes on its command's instead."""

    OK = 0
    FAILED = 1
    USAGE = 2  # argparse's own
    NO_HANDLER = 3  # not installed, or broken
    BAD_CONFIG = 4  # a cfgstring, an option or a configuration file is wrong
    WARNED = 5  # `tcmu doctor` has warnings, and no errors
    SIGNAL = 128  # plus the signal's number


_STYLES = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "cyan": "36"}


class Output:
    """Prints to one stream."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream or stdout.stream()
        self.colour = wants_colour(self.stream)
        self.width = shutil.get_terminal_size().columns if self.stream.isatty() else 100

    def style(self, text: str, name: str) -> str:
        """Return `text` in bold, dim or a colour, where colours are wanted."""
        return f"\x1b[{_STYLES[name]}m{text}\x1b[0m" if self.colour else text

    def line(self, text: str = "") -> None:
        """Print a line, and see that it is out at once: a reader may wait for it."""
        print(text, file=self.stream, flush=True)

    def json(self, value: Any, *, indent: int | None = 2) -> None:
        """Print a value as JSON."""
        self.line(json.dumps(value, indent=indent))

    def paragraph(self, text: str, indent: str = "  ") -> None:
        """Print text wrapped to the terminal's width, keeping its own line breaks."""
        for part in text.splitlines():
            self.line(
                textwrap.fill(part.rstrip(), max(40, self.width), initial_indent=indent, subsequent_indent=indent)
            )

    def table(self, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Print columns that are as wide as they must be."""
        widths = [max(len(row[at]) for row in (head, *rows)) for at in range(len(head))]
        for number, row in enumerate((head, *rows)):
            cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            line = "  ".join(cells).rstrip()
            self.line(self.style(line, "bold") if number == 0 else line)


def human(number: int) -> str:
    """Return a size in bytes as a person writes it: `1.5 GiB`, exact or not."""
    for power, unit in ((60, "EiB"), (50, "PiB"), (40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")):
        if number >= 1 << power:
            return f"{number / (1 << power):.4g} {unit}"
    return f"{number} bytes"


def error(problem: BaseException, *, debug: bool = False) -> Exit:
    """Say on stderr what went wrong and why, with the traceback only for `debug`; returns the exit status."""
    out = Output(sys.stderr)
    if debug:
        out.stream.write("".join(traceback.format_exception(problem)))
    lines = list(explain(problem))
    out.line(f"{out.style('tcmu:', 'red')} {lines[0]}")
    for line in (*lines[1:], *pointed(problem)):
        out.line(f"  {line}")
    return exit_status(problem)


def exit_status(problem: BaseException) -> Exit:
    """Return the exit status that fits an exception."""
    if isinstance(problem, ConfigError):
        return Exit.BAD_CONFIG
    if isinstance(problem, HandlerError):
        return Exit.NO_HANDLER
    return Exit.FAILED


def explain(problem: BaseException) -> Iterator[str]:
    """Yield what an exception says, then each of its causes that adds something."""
    said = ""
    seen: set[int] = set()
    current: BaseException | None = problem
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        text = sentence(current)
        if text not in said:
            first, *more = text.splitlines()
            yield f"because: {first}" if said else first
            yield from more
            said += text
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)


def pointed(problem: BaseException) -> list[str]:
    """Return the text that a person wrote, and below it a mark at the place of the fault, where there is one."""
    if not isinstance(problem, ConfigError) or not problem.text.isprintable() or problem.span[0] >= problem.span[1]:
        return []
    start, end = problem.span
    return [problem.text, " " * start + "^" * (end - start)]


def sentence(problem: BaseException) -> str:
    """Return one exception in words a person can use."""
    if isinstance(problem, OSError) and problem.strerror:
        names = [str(name) for name in (problem.filename, problem.filename2) if name is not None]
        return f"{' -> '.join(names)}: {problem.strerror}" if names else problem.strerror
    text = str(problem)
    if isinstance(problem, TcmuError) and text:
        return text
    return f"{type(problem).__name__}: {text}" if text else type(problem).__name__
