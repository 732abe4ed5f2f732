"""The supervisor: what it has its hosts told, what it shows, and how it begins and ends."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tcmu_core.config.configuration import Config, LunConfig, TargetConfig
from tcmu_core.daemon import managed, supervisor
from tcmu_core.daemon.managed import CLOSE_SECONDS, State
from tcmu_core.daemon.supervisor import LOOK_SECONDS, Supervisor
from tcmu_core.host.messages import Drain, LogSettings, Retry
from tcmu_core.kernel.abi import Netlink
from tcmu_core.log import Level, Log
from tests.daemon.conftest import NAME, Kernel
from tests.daemon.parent import ScriptedParent, ScriptedProcess

IQN = "iqn.2026-01.org.example:d"
TARGETS = (TargetConfig(IQN, (LunConfig(0, "ram", size=4096), LunConfig(1, "ram", size=4096))),)


class ScriptedSpawner:
    """A spawner whose processes are scripted; `left` are paths at which hosts of an earlier one are found."""

    def __init__(self, _loop: Any, _runtime: Path, _paths: Any) -> None:
        self.parent = ScriptedParent()
        self.closed = False
        self.left: list[Path] = []
        self.dismissed: list[ScriptedProcess] = []

    def spawn(self, job: Any, on_message: Any, on_death: Any) -> Any:
        return self.parent.spawn(job, on_message, on_death)

    def adopt(self, path: Path, on_message: Any, on_death: Any) -> Any:
        if path not in self.left:
            return None
        process = ScriptedProcess(Any, on_message, on_death)  # type: ignore[arg-type]  # nobody knows what it does
        self.dismissed.append(process)
        return process

    def rendezvous(self, key: str) -> Path:
        return Path(key)

    def leftovers(self, known: list[str]) -> list[Path]:
        return [path for path in self.left if str(path) not in known]

    def close(self) -> None:
        self.closed = True


class Case:
    def __init__(self, patch: pytest.MonkeyPatch, logs: Log) -> None:
        patch.setattr(supervisor, "Spawner", ScriptedSpawner)
        self.kernel = Kernel(patch)
        self.parent = ScriptedParent()
        self.loop = self.kernel.loop = self.parent.loop
        self.made = Supervisor(
            self.loop, [], logs, Config(targets=TARGETS, memory_limits={"ram": 64 << 20}), runtime=Path("/run/nowhere")
        )
        self.made.handlers = self.parent.handlers
        self.spawner: Any = self.made._spawner

    def serve(self) -> Case:
        """Serve a device and a target."""
        self.made.serve_devices()
        self.made.serve_targets()
        self.kernel.present = {0: NAME}
        self.kernel.ask(Netlink.ADDED_DEVICE)
        for process in self.spawner.parent.processes:
            process.opened()
        self.made.begin()
        return self

    def host(self, key: str) -> ScriptedProcess:
        return self.spawner.parent.of(key)  # type: ignore[no-any-return]


@pytest.fixture
def case(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Case]:
    with Log(Level.INFO, directory=tmp_path, stderr=False) as logs:
        yield Case(monkeypatch, logs)


def test_it_says_how_many_disks_are_served_and_what_is_not(case: Case) -> None:
    assert case.made.summary == "nothing to serve"
    case.serve()
    assert case.made.summary == "1 device, 2 disks of targets"
    device = case.made.devices
    assert device is not None
    process = device.by_minor[0].process
    while process.state is not State.QUARANTINED:
        case.host("uio0").die("killed by SIGSEGV")
    assert case.made.summary == "0 devices, 2 disks of targets, 1 given up"


def test_what_is_served_is_looked_at_every_so_often(case: Case) -> None:
    seen: list[str] = []
    case.made.looked = lambda: seen.append(case.made.summary)
    case.serve()
    case.loop.advance(3 * LOOK_SECONDS)
    assert seen == ["1 device, 2 disks of targets"] * 4


def test_limits_of_memory_hold_for_devices_and_targets(case: Case) -> None:
    case.serve()
    for key in ("uio0", f"target {IQN}"):
        case.host(key).memory = 200 << 20
    case.loop.advance(LOOK_SECONDS)
    for key in ("uio0", f"target {IQN}"):
        assert Drain() in case.host(key).told
    assert Drain() not in case.host("redirector").told


def test_a_host_that_nobody_asks_for_any_more_ends(case: Case, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    case.spawner.left = [Path("uio7"), Path("target gone")]
    case.serve()
    assert [process.told for process in case.spawner.dismissed] == [[Drain()], [Drain()]]
    assert "serves what nobody asks for any more" in caplog.text
    ends, hangs = case.spawner.dismissed
    ends.die("it ended")
    case.loop.advance(CLOSE_SECONDS)
    assert (ends.killed, hangs.killed) == (False, True)
    assert "does not end: killed" in caplog.text


def test_every_host_is_told_of_the_logs_settings(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []
    monkeypatch.setattr(ScriptedProcess, "send", lambda _process, message, fds=(): told.append(message))
    case.serve()
    case.made.logs.set_level(Level.DEBUG, {"ram/d": Level.CRIT})
    case.made.tell_log()
    settings = [message for message in told if isinstance(message, LogSettings)]
    assert settings == [LogSettings(4, {"ram/d": 0}, None, syslog=False, stderr=True)] * 3


def test_a_new_configuration_reaches_the_targets_and_leaves_devices_alone(case: Case) -> None:
    case.serve()
    case.made.configure(Config())
    assert case.host(f"target {IQN}").told[-1] == Drain()
    assert case.host("redirector").told[-1] == Drain()
    assert Drain() not in case.host("uio0").told


def test_a_hangup_has_everything_tried_again(case: Case) -> None:
    case.serve()
    case.made.reopen_logs()
    case.made.retry()
    for key in ("uio0", f"target {IQN}", "redirector"):
        assert case.host(key).told[-1] == Retry()


def test_it_ends_when_every_host_has_ended(case: Case) -> None:
    case.serve()
    ended: list[bool] = []
    for _ in range(2):  # a second request changes nothing
        case.made.stop(lambda: ended.append(True))
    processes = list(case.spawner.parent.processes)
    assert all(process.told[-1] == Drain() for process in processes)
    for process in processes:
        assert not case.spawner.closed
        process.die("it ended")
        case.loop.advance(0.0)
    assert (ended, case.spawner.closed) == ([True], True)


def test_hosts_that_hang_do_not_hold_up_its_end(case: Case) -> None:
    case.serve()
    ended: list[bool] = []
    case.made.stop(lambda: ended.append(True))
    case.loop.advance(60.0 + managed.HOPELESS_SECONDS)
    assert ended == [True]
    assert all(process.killed for process in case.spawner.parent.processes if not hasattr(process.job.way, "park"))


def test_a_medium_can_not_be_changed_where_no_devices_are_served(case: Case) -> None:
    with pytest.raises(OSError, match="kernel devices are not served here"):
        case.made.change_medium("fbo", "d", 0, "x")
