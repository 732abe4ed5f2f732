"""`tcmu top`: what each initiator has each disk do now, how long that takes, and what holds it up."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib
import os
import select
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from tcmu_core import stdout
from tcmu_core.cli import rates
from tcmu_core.cli.arguments import state_dir
from tcmu_core.cli.output import Exit, Output
from tcmu_core.cli.rates import Row, Stage, bottleneck, duration
from tcmu_core.errors import TcmuError
from tcmu_core.host import control
from tcmu_core.host.messages import Status
from tcmu_core.host.observer import Observer

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

DESCRIPTION = """\
Show live what each initiator has each disk do: commands and bytes a second,
how many at a time, and where a command spends its time: in the queue (from its
arrival until it is carried out), in the storage (the handler, its filters
included), and on the way out. `p50/p99`: half of the commands, or 99 % of
them, took no longer. The last line says what holds the busiest one up.

  tcmu top                     all disks that are served on this host, until q
  tcmu top disk1 --sort storage
  tcmu top --once --json       one look, for scripts

Times are those of samples. It shows the processes that `tcmu status` shows.
"""
SLICE = 0.25  # seconds between two looks at the keyboard and at the size of the terminal
WIDTH = 160  # where there is no terminal


def _slowest(name: str) -> Callable[[Row], Any]:
    def order(row: Row) -> float:
        stage: Stage | None = getattr(row, name)
        return -stage.p99 if stage is not None else 0.0

    return order


ORDERS: dict[str, Callable[[Row], Any]] = {
    "iops": lambda row: -row.iops,
    "bytes": lambda row: -row.bytes,
    "depth": lambda row: -row.depth,
    "errors": lambda row: -row.errors,
    **{name: _slowest(name) for name in rates.STAGES},
    "disk": lambda row: (row.disk, row.initiator),
}


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `tcmu top`."""
    parser.add_argument("disk", metavar="DISK", nargs="?", help="one disk, by its name")
    parser.add_argument("--interval", metavar="SECONDS", type=_seconds, default=2.0, help="between two looks (2)")
    parser.add_argument("--once", action="store_true", help="one look, an interval long, then end")
    parser.add_argument("--sort", choices=ORDERS, default="iops", help="what comes first (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print JSON, a line for each look")
    state_dir(parser)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.1 <= value <= 3600:
        raise argparse.ArgumentTypeError(f"{text!r}: from 0.1 to 3600 seconds")
    return value


def run(args: argparse.Namespace) -> int:
    """Run `tcmu top`."""
    if args.json:
        out = Output()
        for found, silent in _looks(args, time.sleep):
            row_list = [dataclasses.asdict(row) for row in found]
            out.json({"rows": row_list, "bottleneck": bottleneck(found), "silent": silent}, indent=None)
        return Exit.OK
    try:
        console_module = importlib.import_module("rich.console")
    except ImportError:
        raise TcmuError("`tcmu top` needs rich: `pip install 'tcmu-core[monitor]'` brings it") from None
    stream = stdout.stream()
    console = console_module.Console(file=stream, width=None if stream.isatty() else WIDTH, highlight=False)
    if args.once or not stream.isatty():
        for found, silent in _looks(args, time.sleep):
            console.print(picture(found, console.width, silent=silent))
    else:
        _live(args, console)
    return Exit.OK


class _Quit(Exception):
    """The person has seen enough."""


def _looks(args: argparse.Namespace, pause: Callable[[float], object]) -> Iterator[tuple[list[Row], list[int]]]:
    """Yield the rows of each look, and the pids of processes that do not answer."""
    with contextlib.closing(Observer(args.state_dir)) as observer:
        sight = observer.look()
        if args.disk is not None and not any(_has(seen.status, args.disk) for seen in sight.hosts):
            control.served(args.disk, args.state_dir)  # which says what there is instead
        before = rates.look(sight, args.disk)
        while True:
            pause(args.interval)
            sight = observer.look()
            after = rates.look(sight, args.disk)
            yield sorted(rates.rows(before, after), key=ORDERS[args.sort]), list(sight.silent)
            if args.once:
                return
            before = after


def _has(status: Status, name: str) -> bool:
    """Whether the disk of this name is there, or comes perhaps."""
    return name in {*(disk.name for disk in status.disks), *(one.name for one in status.missing)}


def _live(args: argparse.Namespace, console: Console) -> None:
    """Show it on a terminal until q or Ctrl-C."""
    from rich.live import Live

    shown: tuple[list[Row], list[int]] = ([], [])
    with _keys() as key, Live(console=console, screen=True, auto_refresh=False) as live:

        def pause(seconds: float) -> None:
            until = time.monotonic() + seconds
            size = console.size
            while (left := until - time.monotonic()) > 0:
                if key(min(left, SLICE)) in ("q", "Q"):
                    raise _Quit
                if console.size != size:
                    size = console.size
                    show()

        def show() -> None:
            rows, silent = shown
            live.update(picture(rows, console.width, console.height, silent=silent), refresh=True)

        live.update("looking ...", refresh=True)
        with contextlib.suppress(_Quit, KeyboardInterrupt):
            for found in _looks(args, pause):
                shown = found
                show()


@contextlib.contextmanager
def _keys() -> Iterator[Callable[[float], str]]:
    """Give a function that waits some seconds for a key; "" where none is pressed."""
    if not sys.stdin.isatty():
        yield _no_key
        return
    fd = sys.stdin.fileno()
    before = termios.tcgetattr(fd)
    tty.setcbreak(fd)
    try:
        yield (
            lambda seconds: os.read(fd, 1).decode("ascii", "ignore") if select.select([fd], [], [], seconds)[0] else ""
        )
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


def _no_key(seconds: float) -> str:
    time.sleep(seconds)
    return ""


NARROW = 100  # columns, below which there is no room for all
SHORT = 6  # columns of a name at least
TITLES = ("IOPS", "MB/s", "depth", "errors/s", "queue p50/p99", "storage p50/p99", "send p50/p99")
ERRORS = TITLES.index("errors/s")


def picture(found: list[Row], width: int, height: int | None = None, *, silent: Sequence[int] = ()) -> RenderableType:
    """Return the rows as a table so many columns wide, and the line below it; with a `height` as many as have room.

    Processes that are `silent` are named below that.
    A table of rich's own takes some 0.6 ms of processor time for each row.
    """
    from rich.cells import cell_len
    from rich.console import Group
    from rich.text import Text

    narrow = width < NARROW
    gap = " " if narrow else "  "
    below = [f"bottleneck: {bottleneck(found)}", *map(control.silence, silent)]
    taken = 4 + len(below)  # titles, what is left out, an empty line, the last ones
    room = len(found) if height is None else max(height - taken, 1)
    numbers = [list(TITLES), *(_numbers(row) for row in found[:room])]
    if narrow:
        for cells in numbers:
            del cells[ERRORS]
    widths = [max(map(len, column)) for column in zip(*numbers, strict=True)]
    names = [("disk", "initiator"), *((_shown(row.disk), _shown(row.initiator)) for row in found[:room])]
    left = width - sum(widths) - len(gap) * (len(widths) + 1)
    first = min(max(cell_len(disk) for disk, _ in names), max(left // 2, SHORT))
    lines = []
    for (disk, initiator), cells in zip(names, numbers, strict=True):
        parts = [_fitted(disk, first), _fitted(initiator, max(left - first, SHORT))]
        lines.append(gap.join([*parts, *(cell.rjust(size) for cell, size in zip(cells, widths, strict=True))]))
    if len(found) > room:
        lines.append(f"{len(found) - room} more")
    table = Text("\n".join(lines), no_wrap=True, overflow="crop")
    table.stylize("bold", 0, len(lines[0]))
    return Group(table, Text(), *(Text(_shown(line)) for line in below))


def _numbers(row: Row) -> list[str]:
    times = (_pair(getattr(row, name)) for name in rates.STAGES)
    return [f"{row.iops:,.0f}", f"{row.bytes / 1e6:,.1f}", f"{row.depth:.1f}", f"{row.errors:.1f}", *times]


def _fitted(text: str, size: int) -> str:
    """Return a name in so many cells of a terminal, with its end left out where that is too few."""
    from rich.cells import cell_len, set_cell_size

    return set_cell_size(text, size) if cell_len(text) <= size else set_cell_size(text, size - 1) + "…"


def _shown(text: str) -> str:
    """Return what others have chosen, without what a terminal would act upon."""
    return text if text.isprintable() else "".join(letter if letter.isprintable() else "?" for letter in text)


def _pair(stage: Stage | None) -> str:
    return f"{duration(stage.p50)} / {duration(stage.p99)}" if stage is not None else "-"
