"""Entry points: what installed distributions announce, each loaded so that a broken one disables itself alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import importlib_metadata

from tcmu_core.errors import text_of


@dataclass(frozen=True, slots=True)
class Announced:
    """One entry point: what it names, or why that can't be had."""

    name: str
    source: str  # the distribution with its version
    version: str
    directory: str  # where the distribution is installed
    value: object = None
    error: str = ""


def announced(group: str, paths: list[str] | None = None) -> Iterator[Announced]:
    """Yield what distributions announce in `group`: those of `paths`, or all that Python finds."""
    found = importlib_metadata.distributions() if paths is None else importlib_metadata.distributions(path=paths)
    seen: set[tuple[str, str]] = set()
    for distribution in found:
        project = distribution.metadata["Name"] or "?"
        for entry in distribution.entry_points:
            # One distribution can be visible twice (an editable install beside its source): the first one counts.
            if entry.group == group and (project.lower(), entry.name) not in seen:
                seen.add((project.lower(), entry.name))
                directory = str(Path(str(distribution.locate_file(""))).resolve())
                yield _load(entry, f"{project} {distribution.version}", distribution.version, directory)


def _load(entry: importlib_metadata.EntryPoint, source: str, version: str, directory: str) -> Announced:
    try:
        return Announced(entry.name, source, version, directory, entry.load())
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        said = f"{entry.value} can't be imported: {reason(error)}"
        return Announced(entry.name, source, version, directory, error=said)


def reason(error: BaseException) -> str:
    """Return one line that says what went wrong and where."""
    where = ""
    trace = error.__traceback__
    while trace is not None:
        where = f" ({Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno})"
        trace = trace.tb_next
    name, text = type(error).__name__, " ".join(text_of(error).split("\n"))
    return f"{text if text.startswith(name) else f'{name}: {text}'}{where}"
