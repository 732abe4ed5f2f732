"""`tcmu`: the person's tool; a table of subcommands."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import tcmu_core
from tcmu_core import stdout
from tcmu_core.cli import (
    completion,
    doctor,
    drive,
    filters,
    handlers,
    metrics,
    new,
    replays,
    serve,
    sessions,
    status,
    steer,
    top,
    trace,
)
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
    """One row of the table: what it is called, what help says, its arguments, and the function behind it."""

    name: str
    help: str
    description: str
    arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


SUBCOMMANDS = (
    Subcommand("serve", "serve a disk over iSCSI, by this process", serve.DESCRIPTION, serve.arguments, serve.run),
    Subcommand(
        "handlers",
        "list the handlers, loaded and broken ones",
        handlers.LIST_DESCRIPTION,
        handlers.list_arguments,
        handlers.list_run,
    ),
    Subcommand(
        "check",
        "say whether a cfgstring can be right",
        handlers.CHECK_DESCRIPTION,
        handlers.check_arguments,
        handlers.check_run,
    ),
    Subcommand("set", "change a disk while it is in use", steer.DESCRIPTION, steer.arguments, steer.run),
    Subcommand("status", "show what is served, and what is not", status.DESCRIPTION, status.arguments, status.run),
    Subcommand("trace", "show each command of a disk as it ends", trace.DESCRIPTION, trace.arguments, trace.run),
    Subcommand(
        "sessions",
        "show who is logged in",
        sessions.SESSIONS_DESCRIPTION,
        sessions.sessions_arguments,
        sessions.sessions_run,
    ),
    Subcommand(
        "logout",
        "ask an initiator to log out",
        sessions.LOGOUT_DESCRIPTION,
        sessions.logout_arguments,
        sessions.logout_run,
    ),
    Subcommand(
        "doctor", "look for what is wrong here, and say what cures it", doctor.DESCRIPTION, doctor.arguments, doctor.run
    ),
    Subcommand("top", "show live who has which disk do what", top.DESCRIPTION, top.arguments, top.run),
    Subcommand("metrics", "serve the counters to Prometheus", metrics.DESCRIPTION, metrics.arguments, metrics.run),
    Subcommand(
        "eject",
        "take the disc out of a drive that is served",
        drive.EJECT_DESCRIPTION,
        drive.eject_arguments,
        drive.eject_run,
    ),
    Subcommand(
        "insert",
        "put a disc into a drive that is served",
        drive.INSERT_DESCRIPTION,
        drive.insert_arguments,
        drive.insert_run,
    ),
    Subcommand("filters", "list the filters", filters.LIST_DESCRIPTION, filters.list_arguments, filters.list_run),
    Subcommand(
        "filter",
        "look at the filters of a disk, change them",
        filters.FILTER_DESCRIPTION,
        filters.filter_arguments,
        filters.filter_run,
    ),
    Subcommand(
        "fault", "let a disk fail by rules", filters.FAULT_DESCRIPTION, filters.fault_arguments, filters.fault_run
    ),
    Subcommand(
        "record",
        "record what reaches a disk",
        filters.RECORD_DESCRIPTION,
        filters.record_arguments,
        filters.record_run,
    ),
    Subcommand(
        "replay",
        "do to another disk what was recorded",
        replays.REPLAY_DESCRIPTION,
        replays.replay_arguments,
        replays.replay_run,
    ),
    Subcommand(
        "crash",
        "check what a power cut could have left",
        replays.CRASH_DESCRIPTION,
        replays.crash_arguments,
        replays.crash_run,
    ),
    Subcommand("new", "write a tested handler distribution to start from", new.DESCRIPTION, new.arguments, new.run),
    Subcommand(
        "completion",
        "print what has a shell complete all this",
        completion.DESCRIPTION,
        completion.arguments,
        completion.run,
    ),
)

MORE = ("tcmu_core.cli.lio", "tcmu_core.cli.install")  # each adds its own commands: add_commands(subparsers)


def add_common(parser: argparse.ArgumentParser) -> None:
    """Add the options that every subcommand has."""
    group = parser.add_argument_group("messages")
    group.add_argument("-v", "--verbose", action="count", default=0, help="log more on stderr; twice for more still")
    group.add_argument(
        "-d", "--debug", action="store_true", help="log all, each SCSI command by name too, and show tracebacks"
    )


def parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line; each subcommand's function is its default `func`."""
    top = argparse.ArgumentParser(
        "tcmu", description=DESCRIPTION, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    top.add_argument("-V", "--version", action="version", version=f"tcmu {tcmu_core.__version__}")
    subparsers = top.add_subparsers(title="commands", metavar="COMMAND", required=True, parser_class=Parser)
    for command in SUBCOMMANDS:
        sub = subparsers.add_parser(
            command.name,
            help=command.help,
            description=command.description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.arguments(sub)
        sub.set_defaults(func=command.run)
    for module in (name for name in MORE if importlib.util.find_spec(name)):
        importlib.import_module(module).add_commands(subparsers)
    for sub in subparsers.choices.values():
        add_common(sub)
    subparsers.choices["completion"].set_defaults(whole=top)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status."""
    stdout.see_to_descriptors()
    args = parser().parse_args(argv)
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
