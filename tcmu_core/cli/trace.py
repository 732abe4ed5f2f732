"""`tcmu trace`: each command of a disk by name, as it ends, for as long as one looks."""

from __future__ import annotations

import argparse
import dataclasses
import re
import sys
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from typing import Any

from tcmu_core.cli.arguments import count, milliseconds, state_dir
from tcmu_core.cli.output import Exit, Output
from tcmu_core.errors import ConfigError
from tcmu_core.host import control
from tcmu_core.host.control import ControlError
from tcmu_core.host.traces import Line, Trace, Traced
from tcmu_core.scsi.opcodes import Op, name_of
from tcmu_core.scsi.table import ROWS

DESCRIPTION = """\
Show each SCSI command of a disk as it ends, until Ctrl-C: who sent it, what it
was, how it ended, and how long that took. The disk is found by its name, by
whichever way it is served: `tcmu serve`, tcmu-runner, or the kernel.

  tcmu trace disk1
  tcmu trace disk1 --errors                    what did not end well
  tcmu trace disk1 --slower 20 --opcode write  writes that took 20 ms or longer
  tcmu trace disk1 --json --count 1000         a line of JSON each, for programs

`queue` is the time from when all of a command had come until it might run: it
waits there for others of the same blocks. `run` is the time from then until it
had ended, which for data is the storage's time, filters included. `send` is the
time until its status was handed to the network, or to the kernel; what data
takes on the network is in none of them.

While somebody looks the disk is slower, since every command takes the long way;
afterwards it is as it was. A reader that can't keep up never holds up the disk:
what it has missed is counted and said.
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `tcmu trace`."""
    parser.add_argument("disk", metavar="DISK", help="its name: of `tcmu serve --name`, tcmu.conf, targetcli")
    parser.add_argument(
        "--opcode",
        metavar="NAME",
        action="append",
        default=[],
        help="these commands alone: read, 'read(10)', 'persistent*', 0x28; may be given again",
    )
    parser.add_argument(
        "--initiator",
        metavar="PATTERN",
        default="*",
        help="of initiators whose name fits alone, such as 'iqn.1993-08.org.debian:*'",
    )
    parser.add_argument("--errors", action="store_true", help="those alone that did not end with GOOD")
    parser.add_argument("--slower", metavar="MS", type=milliseconds, default=0.0, help="those alone that took so long")
    parser.add_argument("--count", metavar="N", type=count, default=0, help="end after N of them")
    state_dir(parser, "its process")
    parser.add_argument("--json", action="store_true", help="print one line of JSON for each")


def run(args: argparse.Namespace) -> int:
    """Run `tcmu trace`."""
    names, codes = chosen(args.opcode)
    path, disk = control.served(args.disk, args.state_dir)
    wanted = Trace(disk.lun, names, codes, args.initiator, errors=args.errors, slower=args.slower / 1000)
    out, shown, missed = Output(), 0, 0
    why = "the process that serves it has ended"
    try:
        for message in control.told(path, wanted, begun=lambda: _say(f"tracing {disk.name}; Ctrl-C ends it")):
            if not isinstance(message, Traced):
                raise ControlError(f"{disk.name}: the process that serves it is of another version")
            if message.dropped:
                missed += message.dropped
                _say(f"{message.dropped} commands are missing here: they came faster than they could be shown")
            for line in message.lines:
                if args.json:
                    out.json(as_json(line), indent=None)
                else:
                    out.line(as_text(out, line))
                shown += 1
                if shown == args.count:
                    return Exit.OK
            if message.over:
                why = message.over
                break
    except KeyboardInterrupt:
        _say(f"{shown} commands shown, {missed} missed")
        return Exit.OK
    raise ControlError(f"{disk.name}: {why}")


def chosen(patterns: list[str]) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Return the names of commands, and the operation codes, that a person's words mean.

    Raises:
        ConfigError: one of them means no command.
    """
    names: list[str] = []
    codes: list[int] = []
    known = {row.name for row in ROWS} | {name_of(code) for code in Op}
    for pattern in patterns:
        if re.fullmatch(r"0x[0-9a-fA-F]{1,2}", pattern):
            codes.append(int(pattern, 16))
            continue
        word = _plain(pattern)
        found = [name for name in known if fnmatchcase(_plain(name), word) or _family(name) == word]
        if not found:
            raise ConfigError(f"{pattern!r} is no SCSI command: write read, 'write(10)', 'persistent*', or 0x28")
        names += found
    return tuple(sorted(set(names))), tuple(codes)


def _plain(name: str) -> str:
    return re.sub(r"[ ()]", "", name).lower()


def _family(name: str) -> str:
    """Return a name without the length of its CDB: READ for READ(10)."""
    return _plain(re.sub(r"\(\d+\)$", "", name))


def as_json(line: Line) -> dict[str, Any]:
    """Return a command as programs read it: times in seconds, the CDB in hexadecimal."""
    return {"at": line.at, **dataclasses.asdict(line.command), "cdb": line.command.cdb.hex()}


def as_text(out: Output, line: Line) -> str:
    """Return a command as people read it."""
    command = line.command
    when = datetime.fromtimestamp(line.at, UTC).astimezone().strftime("%H:%M:%S.%f")
    parts = [when, out.style(command.name, "bold")]
    if command.lba is not None:
        parts.append(f"lba {command.lba} blocks {command.blocks}")
    if command.moved:
        parts.append(f"{command.moved} bytes")
    parts.append(command.status if command.good else out.style(command.status, "red"))
    if command.sense:
        parts.append(command.sense)
    sent = f", send {command.sent * 1000:.3f} ms" if command.sent is not None else ""
    parts.append(f"queue {command.queued * 1000:.3f} ms, run {command.ran * 1000:.3f} ms{sent}")
    return "  ".join([*parts, out.style(command.initiator, "dim")])


def _say(text: str) -> None:
    """Say something about the trace, beside what it shows."""
    Output(sys.stderr).line(f"tcmu: {text}")
