"""Layers: a handler's hooks resolved once into plain callables, and filters composed upon them.

What the engine calls is the handler's own function where nothing stands around it: a composed closure costs 0.15 µs a
call, the plugin manager's own call 5 µs, so pluggy names and checks the hooks and is not on the way of the data.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import itertools
import types
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, fields, replace
from typing import Any

import pluggy

from tcmu_core.disk.device import Change, Device, Extent
from tcmu_core.disk.threads import chained
from tcmu_core.errors import HandlerError, WriteProtected
from tcmu_core.hookspecs import HOOKS, PROJECT, HandlerHooks

Transfer = Callable[[int, list[memoryview]], "Future[None] | None"]
Range = Callable[[int, int], "Future[None] | None"]


@dataclass(frozen=True, slots=True)
class Operations:
    """What an open disk can do: callables, None for what it can't.

    `read(offset, buffers)`, `write(offset, buffers)`, `flush()`, `discard(offset, length)`,
    `write_zeroes(offset, length)`: bytes; each returns None when done, or a Future. `extents(offset, length)` returns
    the extents or a Future of them, `handle_cmd(command)` a status, a Future of one, or None.
    """

    read: Transfer
    write: Transfer | None = None
    flush: Callable[[], Future[None] | None] | None = None
    discard: Range | None = None
    write_zeroes: Range | None = None
    extents: Callable[[int, int], Iterable[Extent] | Future[Iterable[Extent]] | None] | None = None
    handle_cmd: Callable[[Any], object] | None = None


OPERATIONS = tuple(field.name for field in fields(Operations))
WRITING = ("write", "discard", "write_zeroes")
CHANGES = "reconfigure"


def plugin_manager(handler: object, name: str) -> pluggy.PluginManager:
    """Return a plugin manager with this one handler registered.

    Raises:
        HandlerError: a hook is misspelt, can't be called as its specification has it, is not marked, or is missing.
    """
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(HandlerHooks)
    functions = dict(_marked(handler))
    marked = functions.keys()
    for attribute in sorted(marked - HOOKS.keys()):
        close = difflib.get_close_matches(attribute, HOOKS, 1)
        hint = f"did you mean {close[0]!r}?" if close else f"hooks are {', '.join(HOOKS)}"
        raise HandlerError(f"handler {name!r}: there is no hook {attribute!r}: {hint}")
    for attribute, function in functions.items():
        _check_kind(name, attribute, function)
    try:
        manager.register(handler, name=name)
        manager.check_pending()
    except pluggy.PluginValidationError as error:
        raise HandlerError(f"handler {name!r}: {'; '.join(str(error).splitlines())}") from error
    for attribute in marked:
        impls = getattr(manager.hook, attribute).get_hookimpls()
        if not impls:
            kind = type(functions[attribute]).__name__
            raise HandlerError(
                f"handler {name!r}: its {attribute!r} is an object of {kind!r}, which hides the mark: a hook must be a "
                "function or a method: write one that calls it"
            )
        _take_defaults(name, attribute, impls[0])
    if marked:
        for attribute in _unmarked(handler):
            raise HandlerError(
                f"handler {name!r}: its {attribute!r} is not marked with @tcmu_core.hookimpl, so nobody would call it: "
                "mark it, or give it another name"
            )
    missing = [hook for hook in ("open", "read") if hook not in marked]
    if missing and "handle_cmd" not in marked:
        raise HandlerError(
            f"handler {name!r} has no {' and no '.join(missing)} hook: mark its functions with @tcmu_core.hookimpl"
        )
    return manager


def _marked(handler: object) -> Iterator[tuple[str, Any]]:
    """Yield the attributes that are marked as hooks, with what pluggy would call."""
    for attribute in dir(handler):
        function = _plain(inspect.getattr_static(handler, attribute))
        if isinstance(getattr(function, f"{PROJECT}_impl", None), dict):
            yield attribute, function


def _plain(attribute: Any) -> Any:
    """Return the function inside a static or class method."""
    return attribute.__func__ if isinstance(attribute, staticmethod | classmethod) else attribute


def _unmarked(handler: object) -> Iterator[str]:
    """Yield the names of hooks that the handler defines as what can be called without marking them.

    What an instance has of its own, such as a method of its file, is no definition, unless it is a plain function.
    """
    definer = handler if isinstance(handler, types.ModuleType) else type(handler)
    for name in HOOKS:
        own = _plain(inspect.getattr_static(handler, name, None))
        if isinstance(handler, types.ModuleType) and getattr(own, "__module__", "") != handler.__name__:
            continue  # it was imported: `from os import open`
        defined = inspect.getattr_static(definer, name, None) is inspect.getattr_static(handler, name, None)
        can = (inspect.isroutine(own) or callable(own)) and not isinstance(own, type) and defined
        if (can or inspect.isfunction(own)) and not hasattr(own, f"{PROJECT}_impl"):
            yield name


_WAITING = (
    (inspect.iscoroutinefunction, "a coroutine function"),
    (inspect.isasyncgenfunction, "an asynchronous generator"),
)


def _take_defaults(name: str, attribute: str, impl: pluggy.HookImpl) -> None:
    """Have a hook's arguments that have a default given too: pluggy gives those without one, and no others.

    Raises:
        HandlerError: there is one that can't be given.
    """
    ours = ("device", *HOOKS[attribute].arguments)
    given = tuple(itertools.takewhile(ours.__contains__, impl.kwargnames))
    impl.argnames += given  # type: ignore[misc]
    impl.kwargnames = impl.kwargnames[len(given) :]  # type: ignore[misc]
    try:
        rest = [one for one in inspect.signature(impl.function).parameters.values() if one.name not in impl.argnames]
    except ValueError:  # one that is written in C says nothing of them
        return
    for one in rest:
        if one.kind is one.KEYWORD_ONLY and (one.default is one.empty or one.name in ours):
            what = f"its {one.name!r} could be given by name alone"
        elif one.name in ours:
            what = f"its {one.name!r} stands behind what can't be given"
        elif one.kind in (one.VAR_POSITIONAL, one.VAR_KEYWORD) and not {*ours[1:]} <= {*impl.argnames}:
            what = f"what it takes as {str(one)!r} is never given"
        else:
            continue
        raise HandlerError(
            f"handler {name!r}: {attribute!r}: {what}: write {attribute}({', '.join(ours)}), or those of them that it "
            "needs; a decorator keeps them with functools.wraps"
        )


def _check_kind(name: str, attribute: str, function: Any) -> None:
    """Refuse a hook whose call would do nothing, or that pluggy would not call as one of these."""
    for option in ("wrapper", "hookwrapper", "specname"):
        if getattr(function, f"{PROJECT}_impl").get(option):
            raise HandlerError(
                f"handler {name!r}: its {attribute!r} is marked with {option}, which a hook here can't have: write "
                "@hookimpl alone"
            )
    what = waiting(attribute, function)
    if what:
        raise HandlerError(
            f"handler {name!r}: its {attribute!r} is {what}: a hook is a plain function that returns None when it "
            "is done, or a concurrent.futures.Future (asyncio.run_coroutine_threadsafe makes one)"
        )
    if not inspect.isroutine(function):
        raise HandlerError(
            f"handler {name!r}: its {attribute!r} is an object of {type(function).__name__!r}: a hook must be a "
            "function or a method: write one that calls it"
        )


def waiting(hook: str, function: Any) -> str:
    """Say what kind of function it is whose call would do nothing of a hook's work; empty for any other."""
    kinds = _WAITING if hook == "extents" else (*_WAITING, (inspect.isgeneratorfunction, "a generator"))
    call = vars(type(function)).get("__call__")
    for is_kind, what in kinds:
        if is_kind(function) or (not inspect.isroutine(function) and is_kind(call)):
            return what
    return ""


def resolve(manager: pluggy.PluginManager, device: Device, *, read_only: bool) -> Operations:
    """Return the handler's operations; `read_only` is a person's word, which no handler overrules."""
    found = {name: _bind(manager, device, name) for name in OPERATIONS}
    if read_only:
        found |= {name: _protected for name in WRITING if found[name] is not None}
    return Operations(**{**found, "read": found["read"] or _cannot_read})  # type: ignore[arg-type]


def _bind(manager: pluggy.PluginManager, device: Device, name: str) -> Callable[..., Any] | None:
    """Return one hook as a callable of its arguments."""
    impls = getattr(manager.hook, name).get_hookimpls()
    if not impls:
        return None
    hook = HOOKS[name]
    call = _adapt(impls[0].function, impls[0].argnames, device, hook.arguments)
    if device.threads and hook.data:
        return functools.partial(_on_thread, device, call)
    return call


def _on_thread(device: Device, call: Callable[..., Any], *args: Any) -> Future[Any]:
    """Run a hook on the device's threads; what it returns there means what it means here."""
    return chained(device.offload(call, *args))


def _adapt(
    function: Callable[..., Any], argnames: tuple[str, ...], device: Device, args: tuple[str, ...]
) -> Callable[..., Any]:
    """Return `function`, which names only the hook arguments it needs, as a callable of exactly `args`."""
    if argnames == ("device", *args):
        if isinstance(function, types.MethodType):  # one call less than partial of a bound method
            return functools.partial(function.__func__, function.__self__, device)
        return functools.partial(function, device)
    if argnames == args and not inspect.isbuiltin(function):
        return function

    def call(*values: Any) -> Any:
        given = dict(zip(args, values, strict=True), device=device)
        return function(*[given[name] for name in argnames])

    return call


def _cannot_read(offset: int, buffers: list[memoryview]) -> None:
    raise OSError("the handler has no read hook")


def _protected(*_args: object) -> None:
    raise WriteProtected


def stack(layer: object, below: Operations) -> Operations:
    """Return the operations of `below` as a filter lets them through.

    A filter's operation takes, before the hook's own arguments, the same operation of the layer below it; those named
    in its `passes` are the lower ones themselves, and `provides` names those that it has whatever is below. What the
    filter does not have, the disk does not have above it: an operation that it does not know must not pass it by.
    """
    composed: dict[str, Any] = {name: _layered(layer, name, getattr(below, name)) for name in OPERATIONS}
    if composed["read"] is None:
        raise HandlerError(f"the filter {type(layer).__name__} has no 'read': nothing could be read through it")
    return replace(below, **composed)


def chain_change(
    layers: Iterable[object], device: Device, bottom: Callable[[Change], None]
) -> Callable[[Change], None]:
    """Return what changes a disk, `bottom` being the handler's part, as the filters let it through."""
    change = bottom
    for layer in layers:
        change = _layered(layer, CHANGES, change) or functools.partial(_unchanging, layer, device)
    return change


def changes_nothing(device: Device, change: Change) -> bool:
    """Say whether a change asks for what is there: rtslib writes every attribute back when it restores a device."""
    if change.size is not None:
        return change.size == device.size
    if change.cfgstring is not None:
        return change.cfgstring == device.cfgstring
    return change.write_cache == device.write_cache


def _unchanging(layer: object, device: Device, change: Change) -> None:
    if changes_nothing(device, change):
        return
    raise NotImplementedError(f"the filter {getattr(layer, 'name', type(layer).__name__)!r} lets no change through")


def _layered(layer: object, name: str, lower: Callable[..., Any] | None) -> Callable[..., Any] | None:
    """Return one operation as a layer has it."""
    own = getattr(layer, name, None)
    if own is None or name in getattr(layer, "passes", ()):
        return lower if name in getattr(layer, "passes", ()) else None
    if lower is None:
        if name == "handle_cmd":
            lower = _unanswered  # a command that no handler wants to see is the engine's
        elif name not in getattr(layer, "provides", ()):
            return None
    if isinstance(own, types.MethodType):  # one call less than partial of a bound method
        return functools.partial(own.__func__, own.__self__, lower)
    return functools.partial(own, lower)


def _unanswered(_command: object) -> None:
    return None
