"""`tcmu filters`, `tcmu filter`, `tcmu fault` and `tcmu record`: filters, and those of a disk that is being served."""

from __future__ import annotations

import argparse
import json
import signal
from pathlib import Path
from typing import Any

from tcmu_core import files
from tcmu_core.cli.arguments import seconds, state_dir
from tcmu_core.cli.output import Exit, Output
from tcmu_core.cli.signals import stop_signals
from tcmu_core.errors import ConfigError
from tcmu_core.filters.registry import FilterRegistry
from tcmu_core.filters.rules import MAX_FILE
from tcmu_core.host import control
from tcmu_core.host.control import ControlError
from tcmu_core.host.messages import FilterAnswer, FilterCommand

Message = dict[str, Any]

LIST_DESCRIPTION = """\
List the filters that can stand upon a disk: those of installed distributions
(entry points in the group tcmu.filters). A broken one is listed with the reason.

  tcmu serve file a.img --filter 'delay;read=5ms' --filter stats
"""
FILTER_DESCRIPTION = """\
Look at the filters of a disk that `tcmu serve` or tcmu-runner serves, and
change them.

  tcmu filter disk list                       their names, the lowest first
  tcmu filter disk push 'delay;read=5ms'      put one on top
  tcmu filter disk pop delay                  take one off
  tcmu filter disk tell stats                 ask one something: ACTION NAME=VALUE …
  tcmu filter disk tell rate iops=500
"""
FAULT_DESCRIPTION = """\
Let a disk that `tcmu serve` or tcmu-runner serves fail, by rules:
CONDITIONS -> ACTIONS.

  tcmu fault disk add 'write lba=2048-4095 -> write-error'
  tcmu fault disk add 'read probability=0.1 -> wait=normal/20ms/5ms'
  tcmu fault disk add 'op=WRITE_10 nth=3 -> torn=1'
  tcmu fault disk add 'flush -> lose' 'write -> hang'
  tcmu fault disk list
  tcmu fault disk release                     what hangs goes on
  tcmu fault disk clear                       no rules any more

Conditions: read write flush discard write_zeroes extents any, or op=NAME
initiator=PATTERN; lba=FIRST-LAST nth=N every=N after=N times=N probability=P
while=FILE. Actions: sense=KEY/ASC/ASCQ, an error's name (write-error, busy,
task-set-full, not-ready …), wait=TIME, hang, torn=BLOCKS, misdirect=BLOCKS,
lose, flip=BIT|random, attention=ASC/ASCQ, drop, gone, call=MODULE:FUNCTION.
"""
RECORD_DESCRIPTION = """\
Record what reaches a disk that `tcmu serve` or tcmu-runner serves, until
Ctrl-C: each operation with times, outcome and data, for `tcmu replay` and
`tcmu crash`.

  tcmu record disk /tmp/disk.rec

To have all of it from the beginning, serve the disk with
--filter 'record;file=/tmp/disk.rec'.
"""


def _common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("disk", metavar="DISK", help="its name: of `tcmu serve --name`, tcmu.conf or targetcli")
    state_dir(parser)


def _json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")


def ask(args: argparse.Namespace, message: Message) -> dict[str, Any]:
    """Ask the host that serves a disk about its filters; raises what it says."""
    path, disk = control.served(args.disk, args.state_dir)
    answer = control.ask(path, FilterCommand(json.dumps(message), disk.lun))
    if not isinstance(answer, FilterAnswer):
        raise ControlError(f"{args.disk}: the process that serves it is of another version")
    if answer.mistaken:
        raise ConfigError(answer.error)
    if answer.error:
        raise ControlError(f"{args.disk}: {answer.error}")
    told: dict[str, Any] = json.loads(answer.answer)
    return told


# -- tcmu filters -----------------------------------------------------------------------------------------------------


def list_run(args: argparse.Namespace) -> int:
    """Run `tcmu filters`."""
    out = Output()
    found = list(FilterRegistry())
    if args.json:
        out.json([
            {"name": each.name, "usable": not each.error, "error": each.error or None, "source": each.source,
             "options": sorted(each.kind.options.options) if each.kind else [], "help": each.help}
            for each in found
        ])  # fmt: skip
        return Exit.OK
    for number, each in enumerate(found):
        if number:
            out.line()
        mark = f"  {out.style('broken', 'red')}" if each.error else ""
        out.line(f"{out.style(each.name, 'bold')}{mark}  {out.style(each.source, 'dim')}")
        out.paragraph(each.help)
    return Exit.OK


# -- tcmu filter ------------------------------------------------------------------------------------------------------


def filter_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `tcmu filter`."""
    _common(parser)
    parser.add_argument("do", metavar="list|push|pop|tell", choices=("list", "push", "pop", "tell"), help="what to do")
    parser.add_argument("words", metavar="WORD", nargs="*", help="the filter, and for `tell` what to say to it")
    _json(parser)


def filter_run(args: argparse.Namespace) -> int:
    """Run `tcmu filter`."""
    if (args.do == "list") is bool(args.words) or (args.do in ("push", "pop") and len(args.words) != 1):
        raise ConfigError(f"`tcmu filter DISK {args.do}` takes {'no filter' if args.do == 'list' else 'one filter'}")
    message: Message = {"do": args.do}
    if args.do == "tell":
        message |= {"name": args.words[0], "message": _message(args.words[1:])}
    elif args.do != "list":
        message["text" if args.do == "push" else "name"] = args.words[0]
    answer = ask(args, message)
    out = Output()
    if args.json:
        out.json(answer["answer"] if args.do == "tell" else answer["filters"])
    elif args.do == "tell":
        _show(out, answer["answer"])
    else:
        for name in answer["filters"]:
            out.line(name)
    return Exit.OK


def _message(words: list[str]) -> Message:
    told: Message = {}
    for word in words:
        name, sep, value = word.partition("=")
        told |= {name: value} if sep else {"action": name}
    return told


def _show(out: Output, value: dict[str, Any], indent: str = "") -> None:
    for name, each in value.items():
        if isinstance(each, dict):
            out.line(f"{indent}{name}")
            _show(out, each, indent + "  ")
        else:
            out.line(f"{indent}{name}: {each}")


# -- tcmu fault -------------------------------------------------------------------------------------------------------


def fault_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `tcmu fault`."""
    _common(parser)
    parser.add_argument(
        "do", metavar="add|list|clear|release", choices=("add", "list", "clear", "release"), help="what to do"
    )
    parser.add_argument("rules", metavar="RULE", nargs="*", help="the rules to add")
    parser.add_argument("--file", metavar="FILE", type=Path, help="add the rules of this file, one a line")
    _json(parser)


def fault_run(args: argparse.Namespace) -> int:
    """Run `tcmu fault`."""
    message: Message = {"action": args.do}
    if args.do == "add":
        given = [files.text(args.file, MAX_FILE, "file of rules")[0]] if args.file else []
        if not (given or args.rules):
            raise ConfigError("no rule: write one, such as 'write lba=0-7 -> write-error', or --file FILE")
        message["rules"] = "\n".join([*given, *args.rules])
    elif args.rules or args.file:
        raise ConfigError(f"`tcmu fault DISK {args.do}` takes no rules")
    told = ask(args, {"do": "tell", "name": "fault", "message": message, "push": args.do == "add"})["answer"]
    out = Output()
    if args.json:
        out.json(told)
        return Exit.OK
    if "released" in told:
        out.line(f"{told['released']} commands go on")
    for rule in told["rules"]:
        out.line(f"{rule['rule']}   (matched {rule['seen']}, fired {rule['fired']})")
    if told["waiting"]:
        out.line(f"{told['waiting']} commands wait")
    if told["gone"]:
        out.line("the medium is out: `tcmu fault DISK release` puts it back")
    return Exit.OK


# -- tcmu record ------------------------------------------------------------------------------------------------------


def record_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `tcmu record`."""
    _common(parser)
    parser.add_argument("file", metavar="FILE", type=Path, help="a new file")
    parser.add_argument(
        "--data",
        choices=("writes", "all", "hash"),
        default="writes",
        help="keep what is written, and of what is read a hash (writes); both (all); or hashes only (hash)",
    )
    parser.add_argument("--seconds", metavar="N", type=seconds, help="stop after so long, rather than at Ctrl-C")


def record_run(args: argparse.Namespace) -> int:
    """Run `tcmu record`."""
    path = args.file.absolute()
    if ";" in str(path):
        raise ConfigError(f"{path}: the name of a recording can't hold a ';'")
    numbers = stop_signals()  # the terminal that is closed, too: nobody else would take the filter off again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        ask(args, {"do": "push", "text": f"record;file={path};data={args.data}"})
        try:
            Output().line(f"recording {args.disk} into {path}" + ("" if args.seconds else "; Ctrl-C ends it"))
            if args.seconds:
                signal.sigtimedwait(numbers, args.seconds)
            else:
                signal.sigwait(numbers)
            count = ask(args, {"do": "tell", "name": "record"})["answer"]["records"]
        finally:
            ask(args, {"do": "pop", "name": "record"})
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    Output().line(f"{count} records")
    return Exit.OK


def list_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `tcmu filters`."""
    _json(parser)
