"""The two sources of processes, each with one process that a test looks at."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tcmu_core.config.configuration import Config, LunConfig, TargetConfig
from tcmu_core.daemon import devices
from tcmu_core.daemon.devices import Devices
from tcmu_core.daemon.managed import ManagedProcess
from tcmu_core.daemon.targets import REDIRECTOR, Targets
from tcmu_core.kernel.abi import Netlink
from tcmu_core.kernel.netlink import Request
from tcmu_core.kernel.uio import UioName
from tests.daemon.parent import Parent, ScriptedParent, ScriptedProcess
from tests.daemon.running import stop

NAME = UioName(1, "d", "ram/x")


class Kernel:
    """What the kernel's side is to the devices: its requests, the answers to them, and what there is."""

    FD = 77

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.present: dict[int, UioName] = {}
        self.answers: list[tuple[Netlink, int]] = []
        self.parameters: list[tuple[str, int]] = []
        self.fails: OSError | None = None
        self.closed = False
        self._requests: list[Request] = []
        self.loop: Any = None
        patch.setattr(devices, "NetlinkSocket", lambda: self)
        patch.setattr(devices, "set_parameter", lambda name, value: self.parameters.append((name, value)))
        patch.setattr(devices.uio, "devices", lambda: iter(sorted(self.present.items())))

    def fileno(self) -> int:
        return self.FD

    def set_features(self, answers: bool = True) -> bool:
        return True

    def receive(self) -> list[Request]:
        failure, self.fails = self.fails, None
        if failure is not None:
            raise failure
        requests, self._requests = self._requests, []
        return requests

    def reply(self, request: Request, status: int) -> None:
        assert not self.closed
        self.answers.append((request.kind, status))

    def close(self) -> None:
        self.closed = True

    def ask(self, kind: Netlink, minor: int = 0, name: UioName = NAME, change: Any = None) -> None:
        """Have the kernel ask."""
        self._requests.append(Request(kind, minor, 1, name, change))
        self.wake()

    def wake(self) -> None:
        self.loop.callbacks[self.FD](1)


class Case:
    """One process of a source, not yet opened; `begin` makes it, or adopts the one that is left."""

    key: str
    source: Any

    def __init__(self) -> None:
        self.parent = ScriptedParent()

    @property
    def managed(self) -> ManagedProcess:
        found: ManagedProcess = next(one for one in self.source.processes.values() if one.key == self.key)
        return found

    @property
    def exists(self) -> bool:
        return any(one.key == self.key for one in self.source.processes.values())

    @property
    def host(self) -> ScriptedProcess:
        return self.parent.of(self.key)

    @property
    def started(self) -> list[ScriptedProcess]:
        return [one for one in self.parent.processes if one.job.key == self.key]

    def begin(self) -> None:
        raise NotImplementedError

    def next(self) -> Case:
        """Return the case of the supervisor that follows this one, which was killed: its hosts are left."""
        raise NotImplementedError

    def serving(self) -> Case:
        self.begin()
        self.host.opened()
        return self

    def _leave_to(self, other: Case) -> None:
        other.parent.left = {one.job.key: one.job for one in self.parent.processes if not one.killed}


class DeviceCase(Case):
    """A kernel device that is added."""

    key = "uio0"

    def __init__(self, patch: pytest.MonkeyPatch, present: dict[int, UioName] | None = None) -> None:
        super().__init__()
        self.patch = patch
        self.kernel = Kernel(patch)
        self.kernel.loop = self.parent.loop
        self.kernel.present = present or {}
        self.source = Devices(self.parent)

    def begin(self) -> None:
        there = bool(self.kernel.present)
        self.source.start()
        if not there:
            self.kernel.present = {0: NAME}
            self.kernel.ask(Netlink.ADDED_DEVICE)

    def next(self) -> Case:
        other = DeviceCase(self.patch, {0: NAME})
        self._leave_to(other)
        return other


class TargetCase(Case):
    """A target of tcmu.conf, behind a redirector that serves."""

    IQN = "iqn.2026-01.org.example:d"
    key = f"target {IQN}"

    def __init__(self) -> None:
        super().__init__()
        self.source = Targets(self.parent)
        self.config = Config(targets=(TargetConfig(self.IQN, (LunConfig(0, "ram", "x", size=4096),)),))

    def begin(self) -> None:
        self.source.configure(self.config)
        assert self.source.processes[REDIRECTOR]
        self.parent.of("redirector").opened()

    def next(self) -> Case:
        other = TargetCase()
        self._leave_to(other)
        return other


@pytest.fixture(params=["device", "target"])
def case(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Case:
    return DeviceCase(monkeypatch) if request.param == "device" else TargetCase()


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> DeviceCase:
    return DeviceCase(monkeypatch)


# -- real processes ----------------------------------------------------------------------------------------------------


@pytest.fixture
def parent(tmp_path: Path) -> Iterator[Parent]:
    made = Parent(tmp_path / "run")
    yield made
    made.close()


@pytest.fixture
def targets(parent: Parent, tmp_path: Path) -> Iterator[Targets]:
    made = Targets(parent, tmp_path / "state")
    number = parent.crashes
    yield made
    if parent.crashes == number:
        stop(parent, made)
