"""`tcmu new`: write the distribution of a handler or a filter to start from, which works and whose tests pass."""

from __future__ import annotations

import argparse
import keyword
import re
import shlex
from importlib import resources
from pathlib import Path
from string import Template

import tcmu_core
from tcmu_core.cli.output import Exit, Output
from tcmu_core.errors import ConfigError
from tcmu_core.filters.registry import installed
from tcmu_core.handlers.registry import OURS

DESCRIPTION = """\
Write a handler distribution to start from: tcmu-NAME with its pyproject.toml,
README.md, package and tests. It is a working disk already; change what it does.

  tcmu new shout
  pip install -e ./tcmu-shout[test] && pytest ./tcmu-shout
  tcmu serve shout /tmp/shout.img --size 64M

With --filter it is the distribution of a filter, which stands between the SCSI engine
and a handler.

  tcmu new --filter count
  tcmu serve ram --size 64M --filter count
"""
# What is written, by its template: $name is NAME, $module the package tcmu_name, $cls the class.
FILES = {
    "pyproject.toml.in": "pyproject.toml",
    "README.md.in": "README.md",
    "package.py.in": "$module/__init__.py",
    "tests.py.in": "tests/test_$name.py",
}
FILTER_FILES = {f"filter_{source}": goal for source, goal in FILES.items()}
_NAME = re.compile(r"[a-z]([a-z0-9_]*[a-z0-9])?")  # as a distribution's may end, too


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `tcmu new`."""
    parser.add_argument("name", metavar="NAME", help="its name: lower-case letters, digits and _")
    parser.add_argument("--filter", action="store_true", help="write a filter instead of a handler")
    parser.add_argument(
        "--directory", metavar="DIR", type=Path, help="write it there instead of ./tcmu-NAME; must not exist yet"
    )


def run(args: argparse.Namespace) -> int:
    """Run `tcmu new`."""
    name = args.name.removeprefix("tcmu-")
    kind = "filter" if args.filter else "handler"
    if not _NAME.fullmatch(name) or keyword.iskeyword(name):
        raise ConfigError(f"{args.name!r} can't be a {kind}'s name: write lower-case letters, digits and _")
    # Installed, it would take the place of a distribution of ours, or there would be two filters of this name.
    if name in {"core", *OURS} or (args.filter and name in installed().filters):
        raise ConfigError(
            f"{args.name!r} is taken: there is a {kind} or a distribution of this name; choose another one"
        )
    directory = args.directory or Path(f"tcmu-{name}")
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise ConfigError(f"{directory} is there already: choose another name, or --directory")
    files = write(name, directory, kind)
    out = Output()
    out.line(f"Written to {directory}:")
    for file in files:
        out.line(f"  {file.relative_to(directory)}")
    out.line()
    out.line("Try it:")
    out.line(f"  pip install -e {shlex.quote(f'{directory}[test]')} && pytest {shlex.quote(str(directory))}")
    if args.filter:
        out.line(f"  tcmu serve ram --size 64M --filter {name}")
    else:
        out.line(f"  tcmu serve {name} ./{name}.img --size 64M")
    return Exit.OK


def write(name: str, directory: Path, kind: str = "handler") -> list[Path]:
    """Write the distribution of the handler, or the filter, `name` and return its files."""
    values = {
        "name": name,
        "module": f"tcmu_{name}",
        "cls": "".join(part.capitalize() for part in name.split("_")) + kind.capitalize(),
        "core": ".".join(tcmu_core.__version__.split(".")[:2]),
    }
    templates = resources.files("tcmu_core.cli").joinpath("template")
    written = []
    for source, goal in (FILTER_FILES if kind == "filter" else FILES).items():
        path = directory / Template(goal).substitute(values)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(Template(templates.joinpath(source).read_text("utf-8")).substitute(values), "utf-8")
        written.append(path)
    typed = directory / values["module"] / "py.typed"
    typed.touch()
    return [*written, typed]
