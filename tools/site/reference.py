"""The generated pages: each is written from what the code itself reads, so that it says what is so."""

from __future__ import annotations

import argparse
import errno
import inspect
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.resources import files

from tcmu_core.cli import runner, tcmu
from tcmu_core.cli.output import Exit
from tcmu_core.errors import CommandError, from_oserror
from tcmu_core.filters.registry import FilterRegistry
from tcmu_core.handlers.registry import Handler, Registry
from tcmu_core.hookspecs import HOOKS, HandlerHooks
from tcmu_core.options import Options

WIDTH = 100  # of what --help prints


def hooks() -> str:
    """Return the page of the hooks."""
    lines = ["# Hooks", "", inspect.getdoc(inspect.getmodule(HandlerHooks)) or "", ""]
    for name, hook in HOOKS.items():
        function = getattr(HandlerHooks, name)
        signature = re.sub(r"'|\bself, ", "", str(inspect.signature(function)))
        kind = "It moves data: it may return a Future." if hook.data else ""
        lines += [f"## {name}", "", f"    def {name}{signature}", "", inspect.getdoc(function) or "", "", kind, ""]
    return "\n".join(lines)


def handlers(found: Iterable[Handler] | None = None) -> str:
    """Return the page of the handlers that are installed, with the options of each.

    Raises:
        ValueError: one is broken, so that the page would lack it.
    """
    lines = ["# Handlers and their options", "", "What stands here is what `tcmu handlers` shows of them."]
    for handler in Registry() if found is None else found:
        if handler.error or handler.options is None:
            raise ValueError(f"handler {handler.name}: {handler.error or 'it declares no options'}")
        lines += ["", f"## {handler.name}", "", handler.options.summary, "", *_options(handler.options)]
        lines += ["", f"Hooks: {', '.join(f'`{name}`' for name in handler.capabilities)}."]
    return "\n".join(lines)


def filters() -> str:
    """Return the page of the filters that are installed, with the options of each."""
    lines = ["# Filters and their options", "", "How they are put on a disk: [filters](../docs/filters.md)."]
    for found in FilterRegistry():
        if found.kind is None:
            raise ValueError(f"filter {found.name}: {found.error}")
        summary = inspect.getdoc(found.kind) or found.kind.options.summary
        lines += ["", f"## {found.name}", "", summary, "", *_options(found.kind.options)]
    return "\n".join(lines)


def _options(options: Options) -> Iterator[str]:
    yield from ("    " + (options.syntax or "it takes nothing"), "")
    rows = [(option.name, option.placeholder, option.help, option.bounds) for option in options.options.values()]
    if options.body is not None:
        rows.insert(0, (options.body.placeholder, "", options.body.help, "" if options.body.required else "optional"))
    if rows:
        yield from _table(("option", "value", "meaning", "limits"), [[_code(a), _code(b), c, d] for a, b, c, d in rows])


def configuration() -> str:
    """Return the page of tcmu.conf: each section with its keys, their types from the schema and what the file says."""
    said = _explained(files("tcmu_core").joinpath("data/conf/tcmu.conf").read_text("utf-8"))
    lines = ["# Every key of tcmu.conf", "", "The [file itself](../conf/tcmu.conf) says the same, ready to be edited."]
    where: list[str] = []
    rows: list[list[str]] = []
    for line in [*files("tcmu_core").joinpath("config/tcmu.spec").read_text("utf-8").splitlines(), "[]"]:
        if heading := re.fullmatch(r"(\[+)([^\]]*)\]+", line):
            if rows:
                lines += [
                    "",
                    f"## {' / '.join(where) or 'At the top'}",
                    "",
                    *_table(("key", "kind", "default", "meaning"), rows),
                ]
                rows = []
            name = heading[2].replace("__many__", "…")
            where = [*where[: len(heading[1]) - 1], name]
        elif match := re.fullmatch(r"(\w+) = (\w+)(?:\((.*)\))?", line):
            key, kind, rest = match.groups("")
            default = re.search(r"default=(.*)", rest)
            name = "…" if key == "__many__" else key
            rows.append([_code(name), kind.replace("_", " "), _code(default[1] if default else ""), said.get(key, "")])
    return "\n".join(lines)


def _explained(text: str) -> dict[str, str]:
    """Return what the comment before each key of the shipped file says of it; one comment may be for several."""
    found: dict[str, str] = {}
    comment: list[str] = []
    for line in text.splitlines():
        if match := re.match(r"#?(\w+) = ", line):
            found.setdefault(match[1], " ".join(comment))
        elif line.startswith("# "):
            comment.append(line[2:])
        elif not line.startswith(("[", "#[")):  # a section's name may stand between its keys and what is said
            comment = []
    return found


def commands() -> str:
    """Return the page of the commands: what --help says of each."""
    os.environ["COLUMNS"] = str(WIDTH)  # argparse wraps to it
    top = tcmu.parser()
    lines = ["# Commands", "", "## tcmu", "", *_verbatim(top.format_help())]
    for action in top._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, parser in action.choices.items():
                lines += ["", f"### tcmu {name}", "", *_verbatim(parser.format_help())]
    lines += ["", "## tcmu-runner", "", *_verbatim(runner.parser().format_help())]
    return "\n".join(lines)


def errors() -> str:
    """Return the page of the errors: what a handler raises and what an initiator hears, and the exit statuses."""
    lines = ["# Errors", "", "What a hook raises is what the initiator hears: status, sense key, ASC and ASCQ."]
    rows = []
    for kind in _subclasses(CommandError):
        summary = (inspect.getdoc(kind) or "").split("\n", maxsplit=1)[0]
        sense = f"{kind.sense_key:X}/{kind.asc:02X}/{kind.ascq:02X}" if kind.status == CommandError.status else ""
        rows.append([_code(kind.__name__), f"{kind.status:02X}h", sense, summary])
    lines += ["", *_table(("exception", "status", "sense", "meaning"), rows)]
    lines += ["", "## From errno", "", "An `OSError` means, by its errno; any other one is a hardware error:", ""]
    rows = []
    for number, name in sorted(errno.errorcode.items(), key=lambda item: item[1]):
        read, written = (type(from_oserror(OSError(number, ""), writing=writing)).__name__ for writing in (False, True))
        if {read, written} != {"HardwareError"}:
            rows.append([_code(name), os.strerror(number), read, written])
    lines += [*_table(("errno", "text", "of a read", "of a write"), rows), "", "## Exit statuses of tcmu", ""]
    lines += _table(("status", "name"), [[str(int(status)), status.name] for status in Exit])
    return "\n".join(lines)


def _subclasses(kind: type[CommandError]) -> Iterator[type[CommandError]]:
    for below in kind.__subclasses__():
        if below.__module__ == CommandError.__module__:
            yield below
            yield from _subclasses(below)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * len(head)}"
    for row in rows:
        yield f"| {' | '.join(' '.join(cell.split()).replace('|', '&#124;') for cell in row)} |"


def _code(text: str) -> str:
    escaped = text.replace("&", "&amp;").replace("<", "&lt;")
    return f"<code>{escaped}</code>" if text else ""


def _verbatim(text: str) -> Iterator[str]:
    yield from (f"    {line}".rstrip() for line in text.splitlines())


PAGES: dict[str, Callable[[], str]] = {
    "hooks.md": hooks,
    "handlers.md": handlers,
    "filters.md": filters,
    "configuration.md": configuration,
    "commands.md": commands,
    "errors.md": errors,
}
