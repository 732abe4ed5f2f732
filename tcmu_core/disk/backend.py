"""Backend: a handler's hooks resolved once per device into plain callables."""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import Any

import pluggy

from tcmu_core.disk.device import Change, Device, Extent
from tcmu_core.errors import ConfigError, HandlerError
from tcmu_core.hookspecs import DATA_HOOKS, PROJECT, HandlerHooks

Read = Callable[[int, list[memoryview]], "Future[None] | None"]
Range = Callable[[int, int], "Future[None] | None"]


def plugin_manager(handler: object, name: str) -> pluggy.PluginManager:
    """Return a plugin manager with this one handler registered.

    Raises:
        HandlerError: a hook is misspelt, has an argument that its specification lacks, or none is marked.
    """
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(HandlerHooks)
    try:
        manager.register(handler, name=name)
        manager.check_pending()
    except pluggy.PluginValidationError as error:
        raise HandlerError(f"handler {name!r}: {'; '.join(str(error).splitlines())}") from error
    missing = [hook for hook in ("open", "read") if not getattr(manager.hook, hook).get_hookimpls()]
    if missing and not manager.hook.handle_cmd.get_hookimpls():
        raise HandlerError(
            f"handler {name!r} has no {' and no '.join(missing)} hook: mark its functions with @tcmu_core.hookimpl"
        )
    return manager


class Backend:
    """One open device: its hooks as callables, None where the handler has no such hook.

    `read(offset, buffers)`, `write(offset, buffers)`, `flush()`, `discard(offset, length)`,
    `write_zeroes(offset, length)`: bytes; each returns None when done or a Future. `extents(offset, length)` returns
    the extents. `handle_cmd(command)` returns a status or None.
    """

    read: Read
    write: Read | None
    flush: Callable[[], Future[None] | None] | None
    discard: Range | None
    write_zeroes: Range | None
    extents: Callable[[int, int], Iterable[Extent]] | None
    handle_cmd: Callable[[Any], object] | None

    def __init__(self, handler: object, device: Device) -> None:
        self.device = device
        self.manager = plugin_manager(handler, device.handler)
        self._opened = False

    def open(self) -> None:
        """Open the device and resolve its hooks.

        Raises:
            ConfigError, OSError: what the handler says; HandlerError when it left the device without a valid size.
        """
        device = self.device
        hooks = self.manager.hook
        hooks.check_config(cfgstring=device.cfgstring)
        try:
            hooks.open(device=device)
            self._opened = True
            self._check()
            self.resolve()
        except BaseException:
            self.close()
            raise

    def _check(self) -> None:
        device = self.device
        who = f"handler {device.handler!r}, device {device.name!r}"
        if device.block_size < 512 or device.block_size & (device.block_size - 1) or device.block_size > 65536:
            raise HandlerError(f"{who}: block_size {device.block_size} is no power of two from 512 to 65536")
        if device.size is None:
            raise ConfigError(f"{who}: no size: give one (tcmu serve --size 1G), the handler could not find it out")
        if device.size < 0 or (device.size < device.block_size and not device.removable):
            raise ConfigError(f"{who}: size {device.size} is less than one block of {device.block_size} bytes")
        physical = device.physical_block_size
        if physical and (physical < device.block_size or physical % device.block_size):
            raise HandlerError(f"{who}: physical_block_size {physical} is no multiple of {device.block_size}")

    def resolve(self) -> None:
        """Turn hooks into callables; again after the handler changed `device.threads`."""
        bind = self._bind
        self.read = bind("read", "offset", "buffers") or _cannot_read
        self.write = bind("write", "offset", "buffers")
        self.flush = bind("flush")
        self.discard = bind("discard", "offset", "length")
        self.write_zeroes = bind("write_zeroes", "offset", "length")
        self.extents = bind("extents", "offset", "length")
        self.handle_cmd = bind("handle_cmd", "command")
        if self.write is None:
            self.device.read_only = True
        if self.flush is None:
            self.device.write_cache = False

    def _bind(self, name: str, *args: str) -> Callable[..., Any] | None:
        """Return the hook as a callable of `args`: the handler's own function where nothing stands around it."""
        caller = getattr(self.manager.hook, name)
        impls = caller.get_hookimpls()
        if not impls:
            return None
        device = self.device
        if len(impls) == 1 and not impls[0].hookwrapper and not impls[0].wrapper:
            call = _adapt(impls[0].function, impls[0].argnames, device, args)
        else:
            call = _call_hook(caller, device, args)
        if device.threads and name in DATA_HOOKS:
            return functools.partial(device.offload, call)
        return call

    def reconfigure(self, change: Change) -> None:
        """Hand a change to the handler.

        Raises:
            NotImplementedError: the handler has no `reconfigure` hook.
        """
        if not self.manager.hook.reconfigure.get_hookimpls():
            raise NotImplementedError(f"handler {self.device.handler!r} can't reconfigure an open device")
        self.manager.hook.reconfigure(device=self.device, change=change)

    def close(self) -> None:
        """Let pooled work end, then close the device; does nothing for one that is not open."""
        self.device.shutdown()
        if self._opened:
            self._opened = False
            self.manager.hook.close(device=self.device)


def _cannot_read(offset: int, buffers: list[memoryview]) -> None:
    raise OSError("the handler has no read hook")


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


def _call_hook(caller: Any, device: Device, args: tuple[str, ...]) -> Callable[..., Any]:
    """Return the whole pluggy call as a callable: for a handler with filters around it."""

    def call(*values: Any) -> Any:
        return caller(device=device, **dict(zip(args, values, strict=True)))

    return call


def check_config(handler: object, name: str, cfgstring: str) -> None:
    """Ask the handler whether `cfgstring` can be right; raises `ConfigError` when not."""
    plugin_manager(handler, name).hook.check_config(cfgstring=cfgstring)
