"""One host for each way in, with a handler of the test's own behind it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tcmu_core.disk.spec import DiskSpec
from tcmu_core.handlers import Registry
from tcmu_core.host.host import Host
from tcmu_core.iscsi.messages import TargetWay
from tcmu_core.iscsi.settings import PortalSettings
from tcmu_core.loop import Loop
from tests.kernel.device import FakeDevice

HANDLER = """
from concurrent.futures import Future
from tcmu_core import hookimpl


class Patient:
    @hookimpl
    def open(self, device):
        device.size = device.size or 1 << 20
        self.waits = []

    @hookimpl
    def read(self, offset, buffers):
        self.waits.append(Future())
        return self.waits[-1]

    @hookimpl
    def reconfigure(self, change):
        if change.size == 512:
            raise OSError(28, "full")

    @hookimpl
    def write(self, offset, buffers):
        pass
"""
Open = Callable[..., Host]


@pytest.fixture(params=["kernel", "target"])
def served(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Open]:
    """Open a host that serves one disk by this way in; `served(cfgstring)`."""
    (tmp_path / "handler_patient.py").write_text(HANDLER)
    registry = Registry([tmp_path])
    hosts: list[tuple[Host, Callable[[], None]]] = []

    def opened(cfgstring: str = "", **spec: Any) -> Host:
        disk = DiskSpec("patient", cfgstring, name="d", **spec)
        if request.param == "kernel":
            device = FakeDevice(tmp_path / "configfs", monkeypatch, registry)
            device.host.open({0: disk})
            hosts.append((device.host, device.close))
            return device.host
        loop = Loop()
        settings = PortalSettings(addresses=("127.0.0.1:0",))
        way = TargetWay("iqn.2026-01.org.example:d", settings, tmp_path / "state")
        host = Host(loop, lambda spec: registry.get(spec.handler).disk(spec), way)

        def close() -> None:
            host.close()
            loop.close()

        host.open({0: disk})
        hosts.append((host, close))
        return host

    yield opened
    for _, close in hosts:
        close()
