"""The targets of tcmu.conf, served by a worker that a real zygote forks; the client is libiscsi's."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tcmu_core.config.settings import Config, LunConfig, TargetConfig
from tcmu_core.iscsi.settings import PortalSettings
from tcmu_core.loop import Loop
from tcmu_core.runner.keeper import PortalKeeper
from tcmu_core.runner.nursery import Nursery

IQN = "iqn.2026-01.org.example:disk"
PATIENCE = 30.0


class Parent:
    """What the supervisor is to the keeper."""

    def __init__(self) -> None:
        self.loop = Loop()
        self.nursery = Nursery(self.loop)

    def log_settings(self) -> Any:
        return {"level": 3, "devices": {}, "directory": None, "syslog": False, "stderr": False}

    def spawn(self, job: Any, on_message: Callable[[Any], object], on_death: Callable[[str], object]) -> Any:
        return self.nursery.spawn(job, on_message, on_death)

    def until(self, condition: Callable[[], object]) -> None:
        """Run the loop until `condition()` holds."""
        timer = self.loop.call_later(PATIENCE, self.loop.stop)

        def look() -> None:
            if condition():
                self.loop.stop()
            else:
                self.loop.call_later(0.01, look)

        look()
        self.loop.run()
        timer.cancel()
        assert condition()


@pytest.fixture
def parent() -> Iterator[Parent]:
    made = Parent()
    yield made
    made.nursery.close()
    made.loop.close()


@pytest.fixture
def keeper(parent: Parent) -> Iterator[PortalKeeper]:
    made = PortalKeeper(parent)
    yield made
    ended: list[bool] = []
    made.stop(lambda: ended.append(True))
    parent.until(lambda: ended)


def config(*luns: LunConfig) -> Config:
    return Config(portal=PortalSettings(addresses=("127.0.0.1:0",)), targets=(TargetConfig(IQN, luns),) if luns else ())


def listing(keeper: PortalKeeper) -> str:
    command = ["iscsi-ls", "-s", f"iscsi://{keeper.addresses[0]}"]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=PATIENCE).stdout


def test_targets_are_served_by_a_worker(parent: Parent, keeper: PortalKeeper) -> None:
    keeper.configure(config(LunConfig(0, "ram", size=1 << 20), LunConfig(3, "ram", size=2 << 20)))
    parent.until(lambda: keeper.addresses)
    said = listing(keeper)
    assert f"Target:{IQN}" in said
    assert "Lun:0" in said
    assert "Lun:3" in said


def test_a_lun_that_does_not_open_leaves_the_others(parent: Parent, keeper: PortalKeeper) -> None:
    luns = LunConfig(0, "ram", size=1 << 20), LunConfig(1, "nosuch"), LunConfig(2, "file", "/no/where")
    keeper.configure(config(*luns))
    parent.until(lambda: keeper.addresses)
    said = listing(keeper)
    assert "Lun:0" in said
    assert "Lun:1" not in said
    assert "Lun:2" not in said


def test_a_worker_that_dies_is_followed_by_another(parent: Parent, keeper: PortalKeeper) -> None:
    keeper.configure(config(LunConfig(0, "ram", size=1 << 20)))
    parent.until(lambda: keeper.addresses)
    assert keeper.worker is not None
    first = keeper.worker.pid
    os.kill(first, signal.SIGKILL)
    parent.until(lambda: not keeper.addresses)
    parent.until(lambda: keeper.addresses)
    assert keeper.worker.pid != first
    assert "Lun:0" in listing(keeper)


def test_new_settings_take_the_place_of_old_ones(parent: Parent, keeper: PortalKeeper) -> None:
    keeper.configure(config(LunConfig(0, "ram", size=1 << 20)))
    parent.until(lambda: keeper.addresses)
    before = keeper.addresses
    keeper.configure(config(LunConfig(5, "ram", size=1 << 20)))
    parent.until(lambda: keeper.addresses and keeper.addresses is not before)
    assert "Lun:5" in listing(keeper)
    keeper.configure(config())
    parent.until(lambda: keeper.worker is None)


def test_the_zygote_can_die_and_workers_live_on(parent: Parent, keeper: PortalKeeper) -> None:
    keeper.configure(config(LunConfig(0, "ram", size=1 << 20)))
    parent.until(lambda: keeper.addresses)
    zygote = parent.nursery._process
    assert zygote is not None
    zygote.kill()
    parent.until(lambda: parent.nursery._process is not zygote)
    assert "Lun:0" in listing(keeper)
    keeper.configure(config(LunConfig(6, "ram", size=1 << 20)))
    parent.until(lambda: not keeper.addresses)
    parent.until(lambda: keeper.addresses)
    assert "Lun:6" in listing(keeper)
