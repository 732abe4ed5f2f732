"""open_device: a handler's device with blocking helpers, for tests."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import fields, replace
from types import ModuleType
from typing import Any

from tcmu_core.disk.device import Change, Extent
from tcmu_core.disk.disk import Disk
from tcmu_core.disk.layers import Operations
from tcmu_core.disk.spec import DiskSpec
from tcmu_core.errors import HandlerError
from tcmu_core.loop import Loop

TIMEOUT = 60.0  # seconds that a hook's Future may take


class OpenDevice:
    """An open device: `device`, its `disk`, and the hooks as calls that return when the work is done.

    Offsets and lengths are bytes, whole blocks, and lie within the device: the engine never asks for anything else.
    """

    def __init__(self, disk: Disk) -> None:
        self.disk = disk
        self.device = disk.device

    @property
    def operations(self) -> Operations:
        """Return the hooks as the engine calls them."""
        return self.disk.operations

    @property
    def size(self) -> int:
        """Return the device's size in bytes."""
        assert self.device.size is not None
        return self.device.size

    def read(self, offset: int, length: int, parts: Sequence[int] = ()) -> bytes:
        """Return `length` bytes from `offset`; `parts` are the lengths of the first buffers to read into."""
        # What is in a buffer before must not matter: a handler has to fill it, with zeros too.
        buffers = split(bytearray(b"\xa5") * length, parts)
        given = list(buffers)
        self.wait(self.operations.read(offset, buffers))
        return b"".join(given)

    def write(self, offset: int, data: bytes, parts: Sequence[int] = ()) -> None:
        """Write `data` at `offset`; `parts` are the lengths of the first buffers that hold it."""
        self.wait(self.hook("write")(offset, split(bytearray(data), parts)))

    def flush(self) -> None:
        """Flush."""
        self.wait(self.hook("flush")())

    def discard(self, offset: int, length: int) -> None:
        """Discard a range."""
        self.wait(self.hook("discard")(offset, length))

    def write_zeroes(self, offset: int, length: int) -> None:
        """Write zeros over a range."""
        self.wait(self.hook("write_zeroes")(offset, length))

    def wait(self, pending: Future[Any] | None) -> None:
        """Wait for what a data hook returned; the device's loop, if it was given one as `reactor`, runs meanwhile."""
        loop = self.device.reactor
        if isinstance(loop, Loop) and isinstance(pending, Future):
            guard = loop.call_later(TIMEOUT, loop.stop)
            pending.add_done_callback(lambda _done: loop.stop())
            loop.run()
            guard.cancel()
        wait(pending)

    def extents(self, offset: int, length: int) -> list[Extent]:
        """Return the extents of a range."""
        return list(self.hook("extents")(offset, length))

    def reconfigure(
        self, *, size: int | None = None, cfgstring: str | None = None, write_cache: bool | None = None
    ) -> None:
        """Ask for one change."""
        self.disk.change(Change(size, cfgstring, write_cache))

    def has(self, name: str) -> bool:
        """Say whether the handler has the hook `name`."""
        return self.disk.has(name)

    def hook(self, name: str) -> Any:
        """Return the hook `name` as the engine calls it; raises HandlerError if the handler has none."""
        found = getattr(self.operations, name)
        if found is None:
            raise HandlerError(f"handler {self.device.handler!r} has no {name} hook")
        return found


def make_disk(plugin: object, spec: DiskSpec, **attributes: Any) -> Disk:
    """Return a disk, still to be opened; `attributes` are fields of `DiskSpec`, or of `Device`."""
    of_spec = {field.name for field in fields(DiskSpec)} & attributes.keys()
    disk = Disk(replace(spec, **{name: attributes.pop(name) for name in of_spec}), plugin)
    for name, value in attributes.items():
        setattr(disk.device, name, value)
    return disk


@contextmanager
def open_device(
    handler: type | ModuleType, cfgstring: str = "", *, size: int | None = None, name: str = "test", **attributes: Any
) -> Iterator[OpenDevice]:
    """Open a device with `handler`, a class or a module, and close it at the end.

    `attributes` are fields of `DiskSpec` and `Device` that the runner would set, such as `block_size` or `options`.
    Raises what the handler's open raises.
    """
    plugin = handler() if isinstance(handler, type) else handler
    subtype = str(getattr(handler, "__name__", "handler")).rpartition(".")[2]
    disk = make_disk(plugin, DiskSpec(subtype, cfgstring, name, size), **attributes)
    disk.open()
    try:
        yield OpenDevice(disk)
    finally:
        disk.close()


def wait(pending: Future[Any] | None) -> None:
    """Wait for what a data hook returned."""
    if pending is None:
        return
    if not isinstance(pending, Future):
        raise HandlerError(f"a hook returned {pending!r}: it must be None or a concurrent.futures.Future")
    pending.result(TIMEOUT)


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
