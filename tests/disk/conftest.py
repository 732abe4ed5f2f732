"""Handlers that the tests of a disk are about, and opening them."""

from __future__ import annotations

from typing import Any

from tcmu_core import hookimpl
from tcmu_core.disk.disk import Disk
from tcmu_core.disk.spec import DiskSpec
from tcmu_core.testing.harness import make_disk

SIZE = 1 << 20


class Minimal:
    """A handler of the two hooks that a disk needs."""

    @hookimpl
    def open(self, device):
        device.size = SIZE

    @hookimpl
    def read(self, offset, buffers):
        for buffer in buffers:
            buffer[:] = b"m" * len(buffer)


class Writable(Minimal):
    """One that can write and free, too."""

    @hookimpl
    def write(self, offset, buffers):
        pass

    @hookimpl
    def discard(self, offset, length):
        pass

    @hookimpl
    def write_zeroes(self, offset, length):
        pass

    @hookimpl
    def reconfigure(self, device, change):
        pass


def opened(handler: object, cfgstring: str = "", **attributes: Any) -> Disk:
    """Return an open disk; `attributes` are fields of `DiskSpec` or `Device`."""
    disk = make_disk(handler, DiskSpec("test", cfgstring), **attributes)
    disk.open()
    return disk
