"""open_device: a handler's device with blocking helpers, for tests."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import fields, replace
from time import monotonic
from types import ModuleType
from typing import Any

from tcmu_core.disk.device import Change, Extent
from tcmu_core.disk.disk import Disk
from tcmu_core.disk.layers import Operations
from tcmu_core.disk.spec import DiskSpec
from tcmu_core.errors import HandlerError
from tcmu_core.filters.registry import make

TIMEOUT = 60.0  # seconds that a hook, or its Future, may take
CLOSING = 1.0  # seconds for the close of a device whose hook is known to hang

# What a promise asks of the devices that are opened for it, over what their maker says: `read_only`, `block_size` …
_asked: ContextVar[dict[str, Any] | None] = ContextVar("asked", default=None)


class PromiseBroken(AssertionError):
    """A handler does not keep a promise; `doing` is the call that showed it, with its offset and length in bytes."""

    def __init__(self, message: str, doing: str = "") -> None:
        super().__init__(f"{doing}: {message}" if doing else message)
        self.doing = doing


class Hangs(PromiseBroken):
    """A call has not ended in time."""


class OpenDevice:
    """An open device: `device`, its `disk`, and the hooks as calls that return when the work is done.

    Offsets and lengths are bytes, whole blocks, and lie within the device: the engine never asks for anything else.
    `doing` is the last call, as messages have it.
    """

    def __init__(self, disk: Disk) -> None:
        self.disk = disk
        self.device = disk.device
        self.doing = "open"

    @property
    def doing(self) -> str:
        """Return the last call."""
        return self._doing

    @doing.setter
    def doing(self, call: str) -> None:
        self._doing = call
        Latest.since = monotonic()

    @property
    def operations(self) -> Operations:
        """Return the hooks as the engine calls them."""
        return self.disk.operations

    @property
    def size(self) -> int:
        """Return the device's size in bytes."""
        assert self.device.size is not None
        return self.device.size

    def start(self, name: str, *arguments: Any) -> Future[Any] | None:
        """Call a data hook and return what it returns: None, or its Future; for commands that are in flight together.

        Raises:
            HandlerError: it returned something else.
        """
        self.doing = call(name, arguments)
        pending = self.hook(name)(*arguments)
        if pending is not None and not isinstance(pending, Future):
            kind = type(pending).__name__
            raise HandlerError(f"{self.doing} returned a {kind}: it must be None or a concurrent.futures.Future")
        return pending

    def finish(self, pending: Future[Any] | None) -> None:
        """Wait for what a data hook returned."""
        if pending is None:
            return
        try:
            result = pending.result(TIMEOUT)
        except FutureTimeoutError:
            if pending.done():  # the storage's own timeout
                raise
            raise Hangs(f"its Future has not ended within {TIMEOUT:g} s", self.doing) from None
        if result is not None:
            raise HandlerError(f"the Future of {self.doing} ended with a {type(result).__name__}: it must be None")

    def read(self, offset: int, length: int, parts: Sequence[int] = ()) -> bytes:
        """Return `length` bytes from `offset`; `parts` are the lengths of the first buffers to read into."""
        # What is in a buffer before must not matter: a handler has to fill it, with zeros too.
        buffers = split(bytearray(b"\xa5") * length, parts)
        given = list(buffers)
        self.finish(self.start("read", offset, buffers))
        return b"".join(given)

    def write(self, offset: int, data: bytes, parts: Sequence[int] = ()) -> None:
        """Write `data` at `offset`; `parts` are the lengths of the first buffers that hold it."""
        self.finish(self.start("write", offset, split(bytearray(data), parts)))

    def flush(self) -> None:
        """Flush."""
        self.finish(self.start("flush"))

    def discard(self, offset: int, length: int) -> None:
        """Discard a range."""
        self.finish(self.start("discard", offset, length))

    def write_zeroes(self, offset: int, length: int) -> None:
        """Write zeros over a range."""
        self.finish(self.start("write_zeroes", offset, length))

    def extents(self, offset: int, length: int) -> list[Extent]:
        """Return the extents of a range."""
        self.doing = call("extents", (offset, length))
        found = self.hook("extents")(offset, length)
        if isinstance(found, Future):
            found = found.result(TIMEOUT)
        return [Extent(offset, length, mapped=True)] if found is None else list(_sound(found, offset, offset + length))

    def reconfigure(
        self, *, size: int | None = None, cfgstring: str | None = None, write_cache: bool | None = None
    ) -> None:
        """Ask for one change."""
        change = Change(size, cfgstring, write_cache)
        self.doing = f"reconfigure({change})"
        self.disk.change(change)

    def has(self, name: str) -> bool:
        """Say whether the handler has the hook `name`."""
        return self.disk.has(name)

    def hook(self, name: str) -> Any:
        """Return the hook `name` as the engine calls it; raises HandlerError if the handler has none."""
        found = getattr(self.disk.operations, name)
        if found is None:
            raise HandlerError(f"handler {self.device.handler!r} has no {name} hook")
        return found


def make_disk(plugin: object, spec: DiskSpec, **attributes: Any) -> Disk:
    """Return a disk, still to be opened; `attributes` are fields of `DiskSpec`, or of `Device`."""
    filters = attributes.get("filters", ())
    of_spec = {field.name for field in fields(DiskSpec)} & attributes.keys()
    disk = Disk(replace(spec, **{name: attributes.pop(name) for name in of_spec}), plugin, make(filters))
    for name, value in attributes.items():
        setattr(disk.device, name, value)
    return disk


class Latest:
    """The device that was opened last, for what is said when a call never returns."""

    device: OpenDevice | None = None
    since = 0.0  # when its last call began (monotonic)

    @classmethod
    def now(cls) -> OpenDevice | None:
        """Return it."""
        return cls.device


@contextmanager
def open_device(
    handler: type | ModuleType, cfgstring: str = "", *, size: int | None = None, name: str = "test", **attributes: Any
) -> Iterator[OpenDevice]:
    """Open a device with `handler`, a class or a module, and close it at the end.

    `attributes` are fields of `DiskSpec` and `Device` that the runner would set, such as `block_size` or `filters`.
    Raises what the handler's open raises.
    """
    plugin = handler() if isinstance(handler, type) else handler
    subtype = str(getattr(handler, "__name__", "handler")).rpartition(".")[2]
    asked = {**attributes, "size": size, **(_asked.get() or {})}
    disk = make_disk(plugin, DiskSpec(subtype, cfgstring, name), **asked)
    Latest.since = monotonic()
    disk.open()
    opened = OpenDevice(disk)
    Latest.device = opened
    try:
        yield opened
    except Hangs:
        # A close that waits for what hangs would hide it.
        closing = threading.Thread(target=disk.close, daemon=True)
        closing.start()
        closing.join(CLOSING)
        raise
    except BaseException:
        disk.close()
        raise
    else:
        opened.doing = "close"
        disk.close()


@contextmanager
def asking(**attributes: Any) -> Iterator[None]:
    """Have every device that is opened meanwhile opened with these attributes, whatever its maker says."""
    token = _asked.set(attributes)
    try:
        yield
    finally:
        _asked.reset(token)


def _sound(found: Iterable[Extent], at: int, end: int) -> Iterator[Extent]:
    """Yield extents as far as they are in order and lie below `end`, and one more: there may be no end of them."""
    for extent in found:
        yield extent
        if extent.offset != at or extent.length <= 0 or at >= end:
            return
        at += extent.length


def split(data: bytearray, parts: Sequence[int]) -> list[memoryview]:
    """Return `data` as buffers: of the lengths `parts` as far as they go, and one for the rest."""
    view = memoryview(data)
    buffers = []
    at = 0
    for part in parts:
        if part > 0 and at + part < len(data):
            buffers.append(view[at : at + part])
            at += part
    return [*buffers, view[at:]]


def call(name: str, arguments: Sequence[Any]) -> str:
    """Return a call as a message has it: buffers by their length in bytes, never by what is in them."""
    shown = [
        f"{sum(map(len, one))} bytes in {len(one)} buffers" if isinstance(one, list) else str(one) for one in arguments
    ]
    return f"{name}({', '.join(shown)})"
