"""The registry: which handlers there are, where each comes from, and why one is broken."""

from __future__ import annotations

import dataclasses
import difflib
import importlib.util
import inspect
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from tcmu_core.cfgstring import split_runner_options
from tcmu_core.disk.disk import Disk
from tcmu_core.disk.disk import check_config as ask_handler
from tcmu_core.disk.layers import plugin_manager
from tcmu_core.disk.spec import DiskSpec
from tcmu_core.entrypoints import announced, reason
from tcmu_core.errors import ConfigError, HandlerError, repr_of, text_of
from tcmu_core.filters.registry import installed, make
from tcmu_core.handlers.api import check_api
from tcmu_core.hookspecs import HOOKS
from tcmu_core.log import Level
from tcmu_core.options import Options, declared
from tcmu_core.posix import Reactor

ENTRY_POINT_GROUP = "tcmu.handlers"
OURS = frozenset({"fbo", "file", "glfs", "nbd", "qcow", "ram", "rbd"})  # whose distributions are this project's
CAPABILITIES = tuple(hook.name for hook in HOOKS.values() if hook.capability)


@dataclass(frozen=True, slots=True)
class Handler:
    """A handler that was found: usable when `error` is empty."""

    name: str
    source: str  # the distribution with its version, or the drop-in file
    version: str = ""
    directory: str = ""  # where the distribution is installed
    factory: object = None  # a class (one instance per device) or a module
    error: str = ""
    config_desc: str = ""
    capabilities: tuple[str, ...] = ()
    options: Options | None = None  # what its cfgstring may hold, where it declares that

    def make(self) -> object:
        """Return the plugin for one device: a new instance of a class, or the module itself."""
        if isinstance(self.factory, type):
            return self.factory()
        return self.factory

    def open(self, spec: DiskSpec, reactor: Reactor | None = None) -> Disk:
        """Open a disk with this handler, to be used on the loop `reactor`; raises as `Disk.open` does."""
        disk = self.disk(spec, reactor)
        disk.open()
        return disk

    def disk(self, spec: DiskSpec, reactor: Reactor | None = None) -> Disk:
        """Make a disk with this handler that is to be opened yet; raises `HandlerError` and `ConfigError`."""
        disk = Disk(spec, self._made(), make(spec.filters))
        disk.device.reactor = reactor
        return disk

    def check_config(self, cfgstring: str, defaults: Mapping[str, str] | None = None) -> None:
        """Raise `ConfigError` when `cfgstring`, or one of its `defaults` from tcmu.conf, can't be right."""
        ask_handler(self._made(), self.name, cfgstring, defaults)

    def _made(self) -> object:
        """Return a plugin; raises `HandlerError` where the class can't make one."""
        try:
            return self.make()
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            raise HandlerError(f"handler {self.name!r} can't be made: {text_of(error)}") from error

    def absolute(self, cfgstring: str, directory: Path) -> str:
        """Return the cfgstring with the paths in it, which are relative to `directory`, made absolute."""
        if self.options is None:
            return cfgstring
        options, body = split_runner_options(cfgstring)
        runner = cfgstring[: len(cfgstring) - len(body)] if options else ""
        return runner + self.options.absolute(body, directory)

    def names_storage(self, cfgstring: str) -> bool:
        """Whether the handler's own part of a cfgstring says which storage is meant: the same one, the same data."""
        return self.options is not None and self.options.names_storage(cfgstring)


class Registry:
    """All handlers, loaded and broken ones, by name."""

    def __init__(self, handler_paths: Iterable[str | Path] = ()) -> None:
        self.handlers: dict[str, Handler] = {}
        self._paths = tuple(handler_paths)
        for path in self._paths:
            self._add_path(Path(path))
        self._add_distributions(None)

    def renewed(self) -> Registry:
        """Look again in the same places: what was installed meanwhile is there, and what was removed is not.

        A handler that is as it was stays the very same one. The code of a distribution that was upgraded is not loaded
        again into this process. Raises `ConfigError` as at first.
        """
        importlib.invalidate_caches()
        installed.cache_clear()
        fresh = Registry(self._paths)
        for name, handler in fresh.handlers.items():
            known = self.handlers.get(name)
            if known is not None and dataclasses.replace(handler, factory=known.factory) == known and not known.error:
                fresh.handlers[name] = known
        return fresh

    def __iter__(self) -> Iterator[Handler]:
        return iter(sorted(self.handlers.values(), key=lambda handler: handler.name))

    def get(self, name: str) -> Handler:
        """Return the handler called `name`.

        Raises:
            HandlerError: there is none, or it is broken; the message names the ones that there are.
        """
        handler = self.handlers.get(name)
        if handler is None:
            known = sorted(name for name, found in self.handlers.items() if not found.error)
            close = difflib.get_close_matches(name, [*known, *sorted(OURS - {name, *known})], 1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            # A name that we don't know may be anybody's: no word that could have a stranger's package installed.
            bring = f"; `pip install tcmu-{name}` brings it" if name in OURS else ""
            raise HandlerError(f"no handler {name!r}: {hint}installed are {', '.join(known) or 'none'}{bring}")
        if handler.error:
            raise HandlerError(f"handler {name!r} of {handler.source} is broken: {handler.error}")
        return handler

    # -- finding ----------------------------------------------------------------------------------------------------

    def _add_path(self, path: Path) -> None:
        """Add what `pip install --target` put into `path`, then the drop-in files in it."""
        if not path.is_dir():
            raise ConfigError(f"handler path {str(path)!r} is no directory")
        directory = str(path.resolve())
        if directory not in sys.path:
            sys.path.insert(0, directory)
            importlib.invalidate_caches()
        self._add_distributions([directory])
        for file in sorted(path.glob("handler_*.py")):
            self._add(_from_file(file))

    def _add_distributions(self, paths: list[str] | None) -> None:
        for found in announced(ENTRY_POINT_GROUP, paths):
            if found.error:
                self._add(Handler(found.name, found.source, found.version, found.directory, error=found.error))
            else:
                made = _inspect(found.name, found.source, found.version, found.value)
                self._add(dataclasses.replace(made, directory=found.directory))

    def _add(self, handler: Handler) -> None:
        known = self.handlers.get(handler.name)
        if known is None:
            self.handlers[handler.name] = handler
        elif known.source != handler.source:
            both = f"{known.source} and {handler.source}"
            where = f"{_place(known)} and {_place(handler)}"
            error = f"two handlers have this name: {where}; remove one of them"
            self.handlers[handler.name] = Handler(handler.name, both, directory=where, error=error)


def news(before: Registry, after: Registry) -> Iterator[tuple[Level, str]]:
    """Yield what somebody who looks again has to say of the handlers that came, went, broke or were upgraded."""
    for name in sorted(before.handlers.keys() | after.handlers.keys()):
        old, new = before.handlers.get(name), after.handlers.get(name)
        if new is None:
            yield Level.INFO, f"handler {name!r} is gone"
        elif new.error:
            if old is None or old.error != new.error:
                yield Level.ERROR, f"handler {name!r} of {new.source} is broken: {new.error}"
        elif old is None or old.error:
            yield Level.INFO, f"handler {name!r} of {new.source} is there now"
        elif old.source != new.source:
            runs = f"the code of {old.source} runs until this process is started again"
            yield Level.WARN, f"handler {name!r}: {new.source} is installed, {runs}"


def _place(handler: Handler) -> str:
    """Return what tells a handler from another of its name: its distribution, version and directory, or its file."""
    if handler.error and " and " in handler.directory:
        return handler.directory  # several already
    return f"{handler.source} in {handler.directory}" if handler.directory else handler.source


def _from_file(file: Path) -> Handler:
    """Load a drop-in file: it has one class with hooks, or hooks of its own as a module."""
    name = file.stem.removeprefix("handler_")
    source = str(file)
    if not file.is_file():  # a FIFO would keep whoever reads it waiting
        return Handler(name, source, error="it is no regular file")
    module_name = f"tcmu_dropin_{name}"
    spec = importlib.util.spec_from_file_location(module_name, file)
    if spec is None or spec.loader is None:
        return Handler(name, source, error="the file can't be loaded")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    try:
        spec.loader.exec_module(module)
        classes = [
            value
            for value in {id(one): one for one in vars(module).values() if isinstance(one, type)}.values()
            if value.__module__ == module_name and _has_hooks(value)
        ]
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return Handler(name, source, error=reason(error))
    if len(classes) > 1:
        names = ", ".join(found.__name__ for found in classes)
        return Handler(name, source, error=f"more than one class has hooks: {names}; keep one in the file")
    return _inspect(name, source, "", classes[0] if classes else module)


def _has_hooks(owner: object) -> bool:
    return any(hasattr(member, "tcmu_impl") for _, member in inspect.getmembers(owner))


def _inspect(name: str, source: str, version: str, factory: object) -> Handler:
    """Check the hooks of a loaded handler and note what it can do."""
    if not isinstance(factory, type | ModuleType):
        return Handler(
            name, source, version, error=f"the entry point names {repr_of(factory)}: it must be a class or a module"
        )
    if not name.replace("_", "").replace("-", "").isalnum():
        return Handler(name, source, version, error=f"the name {name!r} may hold letters, digits, - and _ only")
    try:
        check_api(factory)  # before anything else of it is judged by what holds today
        manager = plugin_manager(factory() if isinstance(factory, type) else factory, name)
        able = tuple(hook for hook in CAPABILITIES if getattr(manager.hook, hook).get_hookimpls())
        options = declared(factory)
        told = getattr(factory, "config_desc", "") or (options.description if options else inspect.getdoc(factory))
        desc = str(told or "")
    except HandlerError as error:
        return Handler(name, source, version, error=str(error))
    except BaseException as error:  # what its constructor does, and what its attributes do when they are looked at
        if isinstance(error, KeyboardInterrupt):
            raise
        return Handler(name, source, version, error=f"it can't be made: {reason(error)}")
    return Handler(name, source, version, factory=factory, config_desc=desc, capabilities=able, options=options)
