"""`tcmu handlers` and `tcmu check`: what handlers there are, and what they say of a cfgstring."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from tcmu_core.cfgstring import MAX_LENGTH, split_runner_options
from tcmu_core.cli.output import Exit, Output
from tcmu_core.errors import ConfigError
from tcmu_core.handlers import Handler, Registry

LIST_DESCRIPTION = """\
List the handlers: those of installed distributions (entry points in the group
tcmu.handlers), and with --handler-path also what is in a directory. A broken
one is listed with the reason, and does no harm to the others.
"""
CHECK_DESCRIPTION = """\
Ask a handler whether a cfgstring can be right, without opening anything.

  tcmu check file '/var/lib/disks/a.img;direct=1'

Exit status 0 when it can, 4 when not.
"""
PATH_HANDLERS = frozenset({"file", "qcow", "fbo"})  # theirs begin with a path; from a shell it may be relative


def path_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `--handler-path`."""
    parser.add_argument(
        "--handler-path",
        metavar="DIR",
        action="append",
        default=[],
        help="look for handlers there too: handler_NAME.py files, and what `pip install --target DIR` "
        "put there; may be given again",
    )


def list_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `tcmu handlers`."""
    path_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")


def check_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `tcmu check`."""
    parser.add_argument("handler", metavar="HANDLER", help="a handler's name, as `tcmu handlers` lists it")
    parser.add_argument("cfgstring", metavar="CFGSTRING", nargs="?", default="", help="what to check")
    path_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")


def list_run(args: argparse.Namespace) -> int:
    """Run `tcmu handlers`."""
    out = Output()
    found = list(Registry(args.handler_path))
    if args.json:
        out.json([as_json(handler) for handler in found])
        return Exit.OK
    if not found:
        out.line("No handlers are installed. `pip install tcmu-file` brings one, `tcmu new NAME` starts your own.")
        return Exit.OK
    usable = [handler for handler in found if not handler.error]
    for number, handler in enumerate(usable):
        if number:
            out.line()
        out.line(f"{out.style(handler.name, 'bold')}  {out.style(handler.source, 'dim')}")
        if handler.config_desc:
            out.paragraph(handler.config_desc)
        out.line(out.style(f"  can: {', '.join(('read', *handler.capabilities))}", "cyan"))
    for handler in found:
        if handler.error:
            out.line()
            out.line(f"{out.style(handler.name, 'bold')}  {out.style('broken', 'red')}  {handler.source}")
            out.paragraph(handler.error)
    return Exit.OK


def as_json(handler: Handler) -> dict[str, Any]:
    """Return a handler as `tcmu handlers --json` prints it."""
    return {
        "name": handler.name,
        "usable": not handler.error,
        "error": handler.error or None,
        "source": handler.source,
        "version": handler.version or None,
        "capabilities": list(handler.capabilities),
        "config_help": handler.config_desc,
    }


def check_run(args: argparse.Namespace) -> int:
    """Run `tcmu check`."""
    out = Output()
    handler = Registry(args.handler_path).get(args.handler)
    cfgstring = absolute(args.handler, args.cfgstring)
    problem = ""
    try:
        check(handler, cfgstring)
    except ConfigError as error:
        problem = str(error)
    limits = kernel_limits(f"{args.handler}/{cfgstring}")
    if args.json:
        out.json(
            {
                "handler": args.handler,
                "cfgstring": cfgstring,
                "valid": not problem,
                "error": problem or None,
                "kernel": not limits,
                "kernel_error": limits or None,
            }
        )
        return Exit.BAD_CONFIG if problem else Exit.OK
    if problem:
        raise ConfigError(problem)
    out.line(f"{out.style('valid', 'green')}: {args.handler}/{cfgstring}")
    if limits:
        out.line(f"  but not for a device of the kernel: {limits}")
    return Exit.OK


def check(handler: Handler, cfgstring: str) -> None:
    """Raise `ConfigError` when the runner's options or the handler's own part can't be right."""
    _options, body = split_runner_options(cfgstring)
    handler.check_config(body)


def kernel_limits(config: str) -> str:
    """Return why `subtype/cfgstring` can't be a kernel device's (DESIGN 7), empty when it can."""
    if len(config.encode()) > MAX_LENGTH:
        return f"it is longer than {MAX_LENGTH} bytes"
    held = [name for char, name in ((":", "a colon"), (",", "a comma"), ("\n", "a newline")) if char in config]
    return f"it holds {' and '.join(held)}" if held else ""


def absolute(handler: str, cfgstring: str) -> str:
    """Return the cfgstring with the path that it begins with made absolute, for handlers where it is one."""
    if handler not in PATH_HANDLERS:
        return cfgstring
    options, body = split_runner_options(cfgstring)
    runner = cfgstring[: len(cfgstring) - len(body)] if options else ""
    path, sep, rest = body.partition(";")
    if not path or (handler == "fbo" and "//" in path):  # `ro//image`: an option, and a path that is absolute
        return cfgstring
    return f"{runner}{os.path.abspath(Path(path).expanduser())}{sep}{rest}"
