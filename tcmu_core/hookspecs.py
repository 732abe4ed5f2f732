"""The hooks that a handler implements; these docstrings are their reference.

Mark each with `tcmu_core.hookimpl`. A hook may leave out arguments that it does not need. `open` to `flush` and
`handle_cmd` are the public shape of a handler; the others are optional, and what is implemented is what the disk
advertises. Data hooks return None when they are done, or a `concurrent.futures.Future` when they will be.
They raise a `CommandError`, or any `OSError`, to fail a command.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from tcmu_core.disk.device import Change, Device, Extent
    from tcmu_core.scsi.command import Command

PROJECT = "tcmu"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


class HandlerHooks:
    """The hook specifications, in the order of a device's life."""

    @hookspec(firstresult=True)
    def check_config(self, cfgstring: str) -> None:
        """Raise `ConfigError` when `cfgstring` can't be right; open nothing, and look at no file."""

    @hookspec(firstresult=True)
    def open(self, device: Device) -> Future[None] | None:
        """Open the storage that `device.cfgstring` names; a Future where that may take long, for nobody waits for it.

        May set `device.size`, `block_size`, `read_only`, `write_cache`, the limits and `threads`. `device.size` is
        what was asked for (bytes), or None when nothing was: then open must set it. Raise `ConfigError` or `OSError`.
        """

    @hookspec(firstresult=True)
    def close(self, device: Device) -> None:
        """Flush and let go of the storage. Called once, after the last data hook has ended."""

    @hookspec(firstresult=True)
    def read(self, device: Device, offset: int, buffers: list[memoryview]) -> Future[None] | None:
        """Fill every buffer from `offset` (bytes) on. The range lies within the device and is whole blocks."""

    @hookspec(firstresult=True)
    def write(self, device: Device, offset: int, buffers: list[memoryview]) -> Future[None] | None:
        """Write every buffer at `offset` (bytes) on. A handler without this hook is a read-only disk."""

    @hookspec(firstresult=True)
    def flush(self, device: Device) -> Future[None] | None:
        """Return when all that was written before is on stable storage. Without it the disk has no write cache."""

    @hookspec(firstresult=True)
    def handle_cmd(self, device: Device, command: Command) -> object:
        """See each CDB before the engine does; one that a reservation or `--read-only` forbids comes to nobody.

        Return None or `NotHandled` to pass it on, a `Status` (or a Future of one) when it is answered, or raise.
        `command.put(data)` answers with data, `command.take()` gives what the initiator sent.
        """

    @hookspec(firstresult=True)
    def discard(self, device: Device, offset: int, length: int) -> Future[None] | None:
        """Free `length` bytes at `offset`; they read as zeros afterwards. For UNMAP and WRITE SAME with UNMAP."""

    @hookspec(firstresult=True)
    def write_zeroes(self, device: Device, offset: int, length: int) -> Future[None] | None:
        """Make `length` bytes at `offset` read as zeros, keeping them allocated where the storage can."""

    @hookspec(firstresult=True)
    def extents(self, device: Device, offset: int, length: int) -> Iterable[Extent] | Future[Iterable[Extent]] | None:
        """Say what is allocated in the range, in order and without gaps; None: all of it. For GET LBA STATUS."""

    @hookspec(firstresult=True)
    def reconfigure(self, device: Device, change: Change) -> None:
        """Take a new size, cfgstring or write-cache mode while the device is open; raise what prevents it."""


@dataclass(frozen=True, slots=True)
class Hook:
    """One hook: its name and arguments (beside the device), and what it is to the others.

    `data` hooks move or free data: they may return a Future, and run on the device's threads if it has any.
    `operation`: the engine calls it for a command. `capability`: having it or not is worth being told to a person.
    """

    name: str
    arguments: tuple[str, ...]
    data: bool
    operation: bool
    capability: bool


def _hooks() -> Mapping[str, Hook]:
    data = {"read", "write", "flush", "discard", "write_zeroes"}
    found = {}
    for name, function in vars(HandlerHooks).items():
        if not name.startswith("_"):
            arguments = tuple(name for name in inspect.signature(function).parameters if name not in ("self", "device"))
            operation = name in data | {"extents", "handle_cmd"}
            found[name] = Hook(name, arguments, name in data, operation, name not in ("open", "close", "read"))
    return found


HOOKS = _hooks()
