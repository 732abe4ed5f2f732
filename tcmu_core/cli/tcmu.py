"""`tcmu`: the person's tool; a table of subcommands."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import tcmu_core
from tcmu_core import stdout
from tcmu_core.cli.arguments import Parser
from tcmu_core.cli.output import Exit, error
from tcmu_core.errors import TcmuError
from tcmu_core.log import Level, Log

DESCRIPTION = """\
Turn files, memory, images, and whatever a handler can read, into SCSI disks.

  tcmu serve file ./disk.img --size 1G     a disk that any iSCSI client can log in to
  tcmu handlers                            what can stand behind a disk here
  tcmu COMMAND --help                      everything about one command
"""
EPILOG = """\
exit status:
  0  done                          3  the handler is not installed, or is broken
  1  it failed; stderr says why    4  a cfgstring or configuration is wrong
  2  wrong usage                   5  doctor has warnings, and no errors
                                   128+N  ended by signal N
"""


@dataclass(frozen=True, slots=True)
class Subcommand:
    """One row of the table: what it is called, what help says, and the module with the rest.

    That has `DESCRIPTION`, `arguments` and `run`, behind `prefix` and an underscore where it serves several. It is
    imported when the command is meant: most of what one command needs no other does.
    """

    name: str
    help: str
    module: str
    prefix: str = ""

    def add_to(self, subparsers: Any, *, whole: bool) -> None:
        """Add a parser of its arguments; one that is not `whole` has none."""
        if not whole:
            subparsers.add_parser(self.name, help=self.help)
            return
        module = importlib.import_module(f"tcmu_core.cli.{self.module}")
        prefix = f"{self.prefix}_" if self.prefix else ""
        parser = subparsers.add_parser(
            self.name,
            help=self.help,
            description=getattr(module, f"{prefix.upper()}DESCRIPTION"),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        getattr(module, f"{prefix}arguments")(parser)
        parser.set_defaults(func=getattr(module, f"{prefix}run"))


SUBCOMMANDS = (
    Subcommand("serve", "serve a disk over iSCSI, by this process", "serve"),
    Subcommand("handlers", "list the handlers, loaded and broken ones", "handlers", "list"),
    Subcommand("check", "say whether a cfgstring can be right", "handlers", "check"),
    Subcommand("set", "change a disk while it is in use", "steer"),
    Subcommand("status", "show what is served, and what is not", "status"),
    Subcommand("trace", "show each command of a disk as it ends", "trace"),
    Subcommand("sessions", "show who is logged in", "sessions", "sessions"),
    Subcommand("logout", "ask an initiator to log out", "sessions", "logout"),
    Subcommand("doctor", "look for what is wrong here, and say what cures it", "doctor"),
    Subcommand("top", "show live who has which disk do what", "top"),
    Subcommand("metrics", "serve the counters to Prometheus", "metrics"),
    Subcommand("eject", "take the disc out of a drive that is served", "drive", "eject"),
    Subcommand("insert", "put a disc into a drive that is served", "drive", "insert"),
    Subcommand("filters", "list the filters", "filters", "list"),
    Subcommand("filter", "look at the filters of a disk, change them", "filters", "filter"),
    Subcommand("fault", "let a disk fail by rules", "filters", "fault"),
    Subcommand("record", "record what reaches a disk", "filters", "record"),
    Subcommand("replay", "do to another disk what was recorded", "replays", "replay"),
    Subcommand("crash", "check what a power cut could have left", "replays", "crash"),
    Subcommand("new", "write a tested handler distribution to start from", "new"),
    Subcommand("completion", "print what has a shell complete all this", "completion"),
)

MORE = ("tcmu_core.cli.lio", "tcmu_core.cli.install")  # each adds its own commands: add_commands(subparsers)


def add_common(parser: argparse.ArgumentParser) -> None:
    """Add the options that every subcommand has."""
    group = parser.add_argument_group("messages")
    group.add_argument("-v", "--verbose", action="count", default=0, help="log more on stderr; twice for more still")
    group.add_argument(
        "-d", "--debug", action="store_true", help="log all, each SCSI command by name too, and show tracebacks"
    )


def parser(command: str | None = None) -> argparse.ArgumentParser:
    """Return the parser of the whole command line; each subcommand's function is its default `func`.

    With the name of a `command` it is made for that one: no other has arguments.
    """
    top = argparse.ArgumentParser(
        "tcmu", description=DESCRIPTION, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    top.add_argument("-V", "--version", action="version", version=f"tcmu {tcmu_core.__version__}")
    subparsers = top.add_subparsers(title="commands", metavar="COMMAND", required=True, parser_class=Parser)
    for row in SUBCOMMANDS:
        row.add_to(subparsers, whole=command in (None, row.name))
    if command is None:
        for module in (name for name in MORE if importlib.util.find_spec(name)):
            importlib.import_module(module).add_commands(subparsers)
    for sub in subparsers.choices.values():
        add_common(sub)
    subparsers.choices["completion"].set_defaults(whole=top)
    return top


def meant(words: Sequence[str]) -> str | None:
    """Return the command that a command line names if it is one that needs no other; None for all else."""
    word = next((word for word in words if not word.startswith("-")), None)
    names = {row.name for row in SUBCOMMANDS} - {"completion"}  # which looks at all of them
    return word if word in names else None


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status."""
    stdout.see_to_descriptors()
    args = parser(meant(sys.argv[1:] if argv is None else argv)).parse_args(argv)
    debug = getattr(args, "debug", False)
    level = Level.DEBUG_SCSI_CMD if debug else Level(min(Level.DEBUG, Level.WARN + getattr(args, "verbose", 0)))
    try:
        with stdout.taken(restore=argv is not None), Log(level) as args.logs:
            return int(args.func(args))
    except (TcmuError, OSError) as problem:
        if isinstance(problem, BrokenPipeError):  # the reader of our output (head, less) has gone
            return Exit.FAILED
        return error(problem, debug=debug)
    except KeyboardInterrupt as interrupt:
        return Exit.SIGNAL + getattr(interrupt, "number", signal.SIGINT)


if __name__ == "__main__":
    sys.exit(main())
