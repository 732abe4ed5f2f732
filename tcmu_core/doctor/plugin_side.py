"""Handlers and filters that are broken, and versions that do not belong together."""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable, Iterator

import tcmu_core
from tcmu_core.doctor.finding import Finding, Severity, System
from tcmu_core.filters.registry import FilterRegistry
from tcmu_core.handlers.registry import OURS

OLDEST = (3, 11)  # requires-python of pyproject.toml


def handlers(system: System) -> Iterator[Finding]:
    """Look at every handler."""
    for handler in system.registry:
        if handler.error:
            cure = f"tcmu handlers  (then mend or `pip uninstall` {handler.source})"
            yield Finding(f"handler {handler.name}", Severity.ERROR, f"It is broken: {handler.error}.", cure)
    good = sorted(handler.name for handler in system.registry if not handler.error)
    if good:
        yield Finding("handlers", Severity.OK, f"Installed are {', '.join(good)}.")
    else:
        text = "No handler can be used: nothing can be served."
        yield Finding("handlers", Severity.ERROR, text, "pip install tcmu-file")


def filters(_system: System, registry: Callable[[], FilterRegistry] = FilterRegistry) -> Iterator[Finding]:
    """Look at every filter."""
    found = list(registry())
    for one in found:
        if one.error:
            cure = f"tcmu filters  (then mend or `pip uninstall` {one.source})"
            yield Finding(f"filter {one.name}", Severity.ERROR, f"It is broken: {one.error}.", cure)
    good = [one.name for one in found if not one.error]
    yield Finding("filters", Severity.OK, f"Installed are {', '.join(good) or 'none'}.")


def versions(system: System, core: str = tcmu_core.__version__) -> Iterator[Finding]:
    """Compare the version of the core with those of the handlers that come with it."""
    old = sys.version_info[:2] < OLDEST
    wanted = ".".join(map(str, OLDEST))
    yield Finding(
        "versions",
        Severity.ERROR if old else Severity.OK,
        f"tcmu-core {core} on Python {platform.python_version()}"
        + (f", which is older than {wanted}." if old else "."),
        f"install Python {wanted} or later" if old else "",
    )
    for handler in system.registry:
        if handler.name in OURS and handler.version and handler.version != core:
            text = f"It is of version {handler.version}, the core of {core}: they are tested together."
            cure = f"pip install --upgrade tcmu-core tcmu-{handler.name}"
            yield Finding(f"handler {handler.name}", Severity.WARNING, text, cure)
