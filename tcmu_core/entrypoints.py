"""Entry points: what installed distributions announce, each loaded so that a broken one disables itself alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import importlib_metadata


@dataclass(frozen=True, slots=True)
class Announced:
    """One entry point: what it names, or why that can't be had."""

    name: str
    source: str  # the distribution with its version
    version: str
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
                yield _load(entry, project, distribution.version)


def _load(entry: importlib_metadata.EntryPoint, project: str, version: str) -> Announced:
    source = f"{project} {version}"
    try:
        return Announced(entry.name, source, version, entry.load())
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return Announced(entry.name, source, version, error=f"{entry.value} can't be imported: {reason(error)}")


def reason(error: BaseException) -> str:
    """Return one line that says what went wrong and where."""
    where = ""
    trace = error.__traceback__
    while trace is not None:
        where = f" ({Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno})"
        trace = trace.tb_next
    return f"{type(error).__name__}: {error}{where}"
