"""`tcmu completion`: scripts that let a shell complete the commands, made of their parsers; the names they ask for."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path

import importlib_metadata

from tcmu_core.cli.arguments import directory
from tcmu_core.cli.output import Exit, Output
from tcmu_core.errors import TcmuError
from tcmu_core.host import control
from tcmu_core.state import default_directory

DESCRIPTION = """\
Print a script that has the shell complete commands, options, handlers, disks
and files. It is made here by shtab (`pip install 'tcmu-core[completion]'`);
the script itself needs nothing but `tcmu`.

  tcmu completion bash > ~/.local/share/bash-completion/completions/tcmu
  tcmu completion zsh > ~/.zfunc/_tcmu      # a directory of $fpath
  tcmu completion fish > ~/.config/fish/completions/tcmu.fish

--for tcmu-runner makes one for the daemon.
"""
SHELLS = ("bash", "zsh", "fish")
KINDS = ("handlers", "filters", "disks")  # what a script asks for when TAB is pressed

# Which of the KINDS an argument is, by its metavar: a NAME is one of a disk that is there in these commands only.
_NAMED = {"HANDLER": "handlers", "DISK": "disks", "NAME[;OPTION=VALUE…]": "filters"}
_NAME_OF_A_DISK = {"eject", "insert", "resize"}
_FILES = {"FILE", "IMAGE", "PATH", "CFGSTRING"}


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `tcmu completion`."""
    parser.add_argument(
        "what",
        metavar="|".join(SHELLS),
        choices=(*SHELLS, *KINDS),
        help="the shell; or handlers, filters, disks: the names that a script asks for",
    )
    parser.add_argument(
        "--for", dest="command", choices=("tcmu", "tcmu-runner"), default="tcmu", help="the command (%(default)s)"
    )
    parser.add_argument(
        "--state-dir",
        metavar="DIR",
        type=directory,
        default=default_directory(),
        help="where `tcmu serve` keeps its state: disks are looked for there (%(default)s)",
    )


def run(args: argparse.Namespace) -> int:
    """Run `tcmu completion`."""
    out = Output()
    if args.what in KINDS:
        for name in sorted(set(_names(args.what, args.state_dir))):
            out.line(name)
        return Exit.OK
    parser = args.whole
    if args.command == "tcmu-runner":
        from tcmu_core.cli import runner  # the daemon is loaded where it is asked for

        parser = runner.parser()
    out.line(script(parser, args.what))
    return Exit.OK


def script(parser: argparse.ArgumentParser, shell: str) -> str:
    """Return the completion of a command's parser for one of SHELLS.

    Raises:
        TcmuError: shtab is not installed.
    """
    try:
        import shtab
    except ImportError as error:
        raise TcmuError("this needs shtab: `pip install 'tcmu-core[completion]'` brings it") from error
    _mark(parser, "", {"file": shtab.FILE, "directory": shtab.DIRECTORY})
    return str(shtab.complete(parser, shell))


def _names(kind: str, directory: Path) -> Iterator[str]:
    if kind == "disks":
        for _path, status in control.hosts(directory):
            yield from (disk.name for disk in status.disks)
    else:
        yield from importlib_metadata.entry_points(group=f"tcmu.{kind}").names  # their code stays unloaded


def _mark(parser: argparse.ArgumentParser, command: str, places: Mapping[str, object]) -> None:
    """Say of each argument what completes it, where shtab can't know."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            said = {row.dest: row.help for row in action._choices_actions}
            for name, below in action.choices.items():
                below.description = said.get(name)  # shells show one line of each
                _mark(below, name, places)
        elif found := _completed_by(action, command, places):
            action.complete = found  # type: ignore[attr-defined]  # it is where shtab looks


def _completed_by(action: argparse.Action, command: str, places: Mapping[str, object]) -> object:
    metavar = action.metavar if isinstance(action.metavar, str) else ""
    if metavar in _NAMED:
        return _asked(_NAMED[metavar])
    if metavar == "NAME" and not action.option_strings and command in _NAME_OF_A_DISK:
        return _asked("disks")
    if metavar == "DIR":
        return places["directory"]
    if metavar in _FILES or action.type is Path:
        return places["file"]
    return None


def _asked(kind: str) -> dict[str, object]:
    """Return what completes one of the KINDS: tcmu is asked when TAB is pressed, not when the script is made."""
    function, command = f"_tcmu_{kind}", f"tcmu completion {kind} 2>/dev/null"
    return {
        "bash": function,
        "zsh": function,
        "fish": f"({command})",
        "preamble": {
            "bash": f'{function}() {{\n  compgen -W "$({command})" -- "$1"\n}}',
            "zsh": f'{function}() {{\n  compadd -- ${{(f)"$({command})"}}\n}}',
        },
    }
