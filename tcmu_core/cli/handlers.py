"""`tcmu handlers` and `tcmu check`: what handlers there are, and what they say of a cfgstring."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from tcmu_core.cfgstring import FILTER_OPTION, configfs_problem, split_runner_options
from tcmu_core.cli.output import Exit, Output
from tcmu_core.errors import ConfigError, HandlerError
from tcmu_core.filters.registry import check_texts
from tcmu_core.handlers import Handler, Registry
from tcmu_core.options import Options, shown

LIST_DESCRIPTION = """\
List the handlers: those of installed distributions (entry points in the group
tcmu.handlers), and with --handler-path also what is in a directory. A broken
one is listed with the reason, and does no harm to the others.

  tcmu handlers file                           all about one of them
"""
CHECK_DESCRIPTION = """\
Ask a handler whether a cfgstring can be right, without opening anything.

  tcmu check file '/var/lib/disks/a.img;direct=1'

Exit status 0 when it can, 4 when not.
"""


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
    parser.add_argument("name", metavar="HANDLER", nargs="?", help="show this one in full")
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
    registry = Registry(args.handler_path)
    if args.name is not None:
        return _show(out, registry.get(args.name), json=args.json)
    found = list(registry)
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


def _show(out: Output, handler: Handler, *, json: bool) -> int:
    """Print one handler in full."""
    if json:
        out.json(as_json(handler))
        return Exit.OK
    out.line(f"{out.style(handler.name, 'bold')}  {out.style(handler.source, 'dim')}")
    if handler.directory:
        out.line(out.style(f"  {handler.directory}", "dim"))
    options = handler.options
    if options is None:
        out.paragraph(handler.config_desc or "It says nothing of its cfgstring.")
    else:
        if options.summary:
            out.paragraph(options.summary)
        out.line()
        out.line(f"  cfgstring: {options.syntax or 'none'}")
        if options.body is not None:
            rows = [[options.body.placeholder, options.body.help, "" if options.body.required else "may be left out"]]
        else:
            rows = []
        rows += [[f"{one.name}={one.placeholder}", one.help, one.bounds] for one in options.options.values()]
        if rows:
            out.line()
            out.table(["  CFGSTRING", "MEANING", ""], [[f"  {name}", *more] for name, *more in rows])
            out.line()
            out.line(f"  The options' defaults can be set in tcmu.conf: [handlers] [[{handler.name}]]")
    out.line()
    out.line(out.style(f"  can: {', '.join(('read', *handler.capabilities))}", "cyan"))
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
        "options": _options_json(handler.options),
    }


def _options_json(options: Options | None) -> dict[str, Any] | None:
    """Return the declared options of a handler, None when it declares none."""
    if options is None:
        return None
    body = options.body
    return {
        "syntax": options.syntax,
        "body": {"placeholder": body.placeholder, "help": body.help, "required": body.required, "path": body.is_path}
        if body is not None
        else None,
        "options": [
            {"name": one.name, "value": one.placeholder, "help": one.help, "default": shown(one.default)}
            for one in options.options.values()
        ],
    }


def check_run(args: argparse.Namespace) -> int:
    """Run `tcmu check`."""
    out = Output()
    handler = Registry(args.handler_path).get(args.handler)
    cfgstring, problem = args.cfgstring, None
    try:
        cfgstring = handler.absolute(args.cfgstring, Path.cwd())
        check(handler, cfgstring)
    except ConfigError as error:
        problem = error
    limits = configfs_problem(f"{args.handler}/{cfgstring}")
    if args.json:
        out.json(
            {
                "handler": args.handler,
                "cfgstring": cfgstring,
                "valid": problem is None,
                "error": str(problem) if problem else None,
                "kernel": not limits,
                "kernel_error": limits or None,
            }
        )
        return Exit.BAD_CONFIG if problem else Exit.OK
    if problem:
        raise problem
    out.line(f"{out.style('valid', 'green')}: {args.handler}/{cfgstring}")
    if limits:
        out.line(f"  but not for a device of the kernel: {limits}")
    return Exit.OK


def check(handler: Handler, cfgstring: str) -> None:
    """Raise `ConfigError` when the runner's options, a filter or the handler's own part can't be right."""
    options, body = split_runner_options(cfgstring)
    check_texts(options.get(FILTER_OPTION, ()))
    handler.check_config(body)


def absolute(name: str, cfgstring: str) -> str:
    """Return a cfgstring with its paths, relative to where we are, made absolute as the handler called `name` says."""
    if not cfgstring:
        return cfgstring
    try:
        return Registry().get(name).absolute(cfgstring, Path.cwd())
    except HandlerError:
        return cfgstring  # the process that serves it may look for handlers in more places than we do


def kernel_config(name: str, cfgstring: str) -> str:
    """Return `name/cfgstring`, what a kernel device is configured with; raises `ConfigError` where it can't be."""
    config = f"{name}/{cfgstring}"
    problem = configfs_problem(config)
    if problem:
        raise ConfigError(f"{config!r} can't be the configuration of a kernel device: {problem}")
    return config
