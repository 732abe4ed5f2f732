"""A device of the kernel over anonymous memory and a directory that looks like configfs, and its host."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tcmu_core.codec import Message
from tcmu_core.disk.spec import DiskSpec
from tcmu_core.handlers import Registry
from tcmu_core.host.host import Host
from tcmu_core.kernel import transport
from tcmu_core.kernel.configfs import Backstore
from tcmu_core.kernel.transport import KernelDevice
from tcmu_core.loop import Loop
from tcmu_core.testing.fake_kernel import FakeKernel

SIZE = 1 << 20
ATTRIBUTES = {
    "attrib/dev_size": SIZE, "attrib/hw_block_size": 512, "attrib/hw_max_sectors": 128, "attrib/max_data_area_mb": 1024,
    "attrib/cmd_time_out": 30, "attrib/dev_config": "ram/", "attrib/emulate_write_cache": 0, "action/block_dev": 0,
    "action/reset_ring": 0, "wwn/vpd_unit_serial": "T10 VPD Unit Serial Number: ",
}  # fmt: skip
INQUIRY_SERIAL = bytes([0x12, 1, 0x80, 0, 255, 0])


class FakeDevice:
    def __init__(self, directory: Path, patch: pytest.MonkeyPatch, registry: Registry | None = None) -> None:
        self.kernel = FakeKernel()
        self.loop = Loop()
        self.fd = os.eventfd(0, os.EFD_NONBLOCK)
        self.store = Backstore(1, "d", directory)
        for attribute, value in ATTRIBUTES.items():
            path = self.store.path / attribute
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{value}\n")
        uio = SimpleNamespace(
            fd=self.fd, memory=self.kernel.memory, ring_doorbell=self.kernel.bell, acknowledge=lambda: None
        )
        patch.setattr(transport, "UioDevice", lambda _minor: uio)
        patch.setattr(transport, "Backstore", functools.partial(Backstore, core=directory))
        handlers = registry or Registry()
        self.host = Host(self.loop, lambda spec: handlers.get(spec.handler).disk(spec), KernelDevice(0, 1, "d"))

    def open(self, *, takes_over: bool = False, **spec: Any) -> FakeDevice:
        self.host.open({0: DiskSpec("ram", name="d", place=("kernel", "1", "d"), **spec)}, takes_over=takes_over)
        return self

    def set(self, attribute: str, value: object) -> None:
        (self.store.path / attribute).write_text(f"{value}\n")

    def ask(self, cdb: bytes, room: int = 256) -> bytes:
        """Have an initiator send a command; returns the data of its answer."""
        number = self.kernel.command(cdb, room=room)
        assert number is not None
        os.eventfd_write(self.fd, 1)
        self.turn()
        return self.kernel.answer_of(number).data

    def turn(self) -> None:
        self.loop.call_later(0.02, self.loop.stop)
        self.loop.run()

    def tell(self, message: Message) -> Message | None:
        return self.host.answer(message)

    @property
    def serial(self) -> str:
        data = self.ask(INQUIRY_SERIAL)
        return data[4 : 4 + data[3]].decode().strip()

    def close(self) -> None:
        self.host.close()
        self.loop.close()
        os.close(self.fd)
