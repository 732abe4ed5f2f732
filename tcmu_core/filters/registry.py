"""Which filters there are, and the filters of a disk made of the texts that name them."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from tcmu_core.disk.layers import waiting
from tcmu_core.entrypoints import announced, reason
from tcmu_core.errors import ConfigError, HandlerError, repr_of
from tcmu_core.filters.base import EVERY_HOOK, Filter
from tcmu_core.options import declared

ENTRY_POINT_GROUP = "tcmu.filters"
_PARTS = frozenset(name for name in dir(Filter) if not name.startswith("_")) | EVERY_HOOK


@dataclass(frozen=True, slots=True)
class FoundFilter:
    """A filter that is installed: usable when `error` is empty."""

    name: str
    source: str  # the distribution with its version
    kind: type[Filter] | None = None
    error: str = ""

    @property
    def help(self) -> str:
        """Return what its class says of itself, and its options."""
        if self.kind is None:
            return self.error
        return f"{inspect.getdoc(self.kind)}\n{self.kind.options.description}"


class FilterRegistry:
    """All filters that distributions announce, loaded and broken ones, by name."""

    def __init__(self) -> None:
        self.filters: dict[str, FoundFilter] = {}
        for found in announced(ENTRY_POINT_GROUP):
            self._add(check(found.name, found.source, found.value, found.error))

    def __iter__(self) -> Iterator[FoundFilter]:
        return iter(sorted(self.filters.values(), key=lambda found: found.name))

    def _add(self, found: FoundFilter) -> None:
        known = self.filters.get(found.name)
        if known is not None and known.source != found.source:
            both = f"{known.source} and {found.source}"
            found = FoundFilter(found.name, both, error=f"two filters have this name: {both}; remove one of them")
        self.filters[found.name] = found

    def make(self, text: str) -> Filter:
        """Return the filter that `name[;option=value…]` describes, still to be opened.

        Raises:
            HandlerError: there is no such filter, or it is broken.
            ConfigError: its options are wrong.
        """
        name, _, options = text.partition(";")
        found = self.filters.get(name)
        if found is None:
            known = sorted(name for name, found in self.filters.items() if not found.error)
            close = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise HandlerError(f"no filter {name!r}: {hint}installed are {', '.join(known) or 'none'}")
        if found.kind is None:
            raise HandlerError(f"filter {name!r} of {found.source} is broken: {found.error}")
        try:
            parsed = found.kind.options.parse(f";{options}").options
        except ConfigError as error:
            raise ConfigError(f"filter {name!r}: {error}") from None
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            raise HandlerError(f"filter {name!r} broke while it read its options: {reason(error)}") from error
        try:
            made = found.kind()
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            raise HandlerError(f"filter {name!r} can't be made: {reason(error)}") from error
        made.name, made.given = name, {option: value for option, value in parsed.items() if value is not None}
        return made


def check(name: str, source: str, kind: object, error: str = "") -> FoundFilter:
    """Look at what an entry point names: whether it is a filter, and misses or misspells nothing."""
    if error:
        return FoundFilter(name, source, error=error)
    try:
        return _checked(name, source, kind)
    except BaseException as problem:  # what its attributes do when they are looked at
        if isinstance(problem, KeyboardInterrupt):
            raise
        return FoundFilter(name, source, error=f"it can't be looked at: {reason(problem)}")


def _checked(name: str, source: str, kind: object) -> FoundFilter:
    if not isinstance(kind, type) or not issubclass(kind, Filter):
        problem = f"the entry point names {repr_of(kind)}: it must be a subclass of Filter"
        return FoundFilter(name, source, error=problem)
    for part in ("passes", "provides", "settable"):
        if isinstance(given := getattr(kind, part), str) or not all(isinstance(one, str) for one in given):
            return FoundFilter(name, source, error=f"its {part!r} must be a frozenset of names")
    if declared(kind) is None:
        return FoundFilter(name, source, error="its `options` are no tcmu_core.Options")
    for part in sorted({*kind.passes, *kind.provides} - EVERY_HOOK):
        return FoundFilter(name, source, error=f"there is no hook {part!r}{_meant(part)}")
    for part, own in vars(kind).items():
        if inspect.isfunction(own) and not part.startswith("_") and part not in _PARTS and (hint := _meant(part)):
            return FoundFilter(name, source, error=f"it has a method {part!r}, which nobody would call{hint}")
    for part in sorted(EVERY_HOOK):
        what = waiting(part, getattr(kind, part, None))
        if what:
            problem = f"its {part!r} is {what}: a method must do its work, and return None or a Future, as a hook does"
            return FoundFilter(name, source, error=problem)
    if not hasattr(kind, "read") and "read" not in kind.passes:
        return FoundFilter(name, source, error="it has no 'read': nothing could be read through it")
    return FoundFilter(name, source, kind)


def _meant(part: str) -> str:
    close = difflib.get_close_matches(part, _PARTS, 1, 0.8)
    return f": did you mean {close[0]!r}?" if close else ""


@functools.cache
def installed() -> FilterRegistry:
    """Return the filters of this process, looked for once."""
    return FilterRegistry()


def make(texts: Iterable[str]) -> list[Filter]:
    """Return the filters that texts describe, the lowest first; raises as `FilterRegistry.make`."""
    return [installed().make(text) for text in texts]


def check_texts(texts: Iterable[str]) -> None:
    """Raise `ConfigError` unless there are filters as these texts describe them; nothing is opened."""
    try:
        make(texts)
    except HandlerError as error:
        raise ConfigError(str(error)) from error
