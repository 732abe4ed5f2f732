"""A host with the kernel's ring as its way in, over anonymous memory and a directory that looks like configfs."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tcmu_core.disk.device import Change
from tcmu_core.errors import ConfigError
from tcmu_core.handlers import Registry
from tcmu_core.host.host import Host
from tcmu_core.host.messages import Changed, Ping, Pong, Reconfigure
from tcmu_core.kernel import release
from tcmu_core.kernel.configfs import Backstore, ConfigfsError
from tcmu_core.kernel.transport import KernelDevice, Record
from tests.kernel.device import INQUIRY_SERIAL, SIZE, FakeDevice
from tests.scsi.harness import Looker
from tests.waiting import wait_for

READ_ONE = bytes([0x28, 0, 0, 0, 0, 2, 0, 0, 1, 0])


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeDevice]:
    made = FakeDevice(tmp_path, monkeypatch)
    yield made
    made.close()


# -- who it is --------------------------------------------------------------------------------------------------------


def test_a_serial_that_is_given_after_the_device_was_made_is_the_one_that_initiators_see(bench: FakeDevice) -> None:
    bench.open()
    bench.set("wwn/vpd_unit_serial", "T10 VPD Unit Serial Number: 0c5b")
    assert bench.serial == "0c5b"


def test_the_identity_stays_once_an_initiator_has_asked(bench: FakeDevice) -> None:
    bench.set("wwn/vpd_unit_serial", "T10 VPD Unit Serial Number: 0c5b")
    bench.open()
    assert bench.serial == "0c5b"
    bench.set("wwn/vpd_unit_serial", "T10 VPD Unit Serial Number: ffff")
    bench.tell(Ping())
    assert bench.serial == "0c5b"
    (bench.store.path / "wwn/vpd_unit_serial").unlink()
    bench.tell(Ping())
    assert bench.serial == "0c5b"


def test_a_device_whose_serial_can_not_be_read_is_not_served_under_another_one(bench: FakeDevice) -> None:
    (bench.store.path / "wwn/vpd_unit_serial").unlink()
    with pytest.raises(ConfigfsError):
        bench.open(takes_over=True)


def test_a_serial_that_nobody_gave_is_kept_in_configfs_for_the_next_boot(bench: FakeDevice, tmp_path: Path) -> None:
    bench.open(cfgstring=str(tmp_path / "image"))
    kept = bench.store.serial
    assert len(kept) == 32
    assert bench.serial == kept


# -- its limits -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sectors", "area", "most"),
    [(128, 1024, 16 << 20), (128, 1, 1 << 20), (256, 1024, 128 << 10), (65535, 8, 8 << 20), (65535, 64, 16 << 20)],
)
def test_no_command_may_move_more_than_the_smallest_of_all_limits(
    bench: FakeDevice, sectors: int, area: int, most: int
) -> None:
    bench.set("attrib/hw_max_sectors", sectors)
    bench.set("attrib/max_data_area_mb", area)
    bench.open()
    limits = bench.ask(bytes([0x12, 1, 0xB0, 0, 64, 0]))
    told = int.from_bytes(limits[8:12], "big") * 512
    assert told == most


def test_commands_wait_longer_for_a_worker_than_the_kernel_has_them_wait(bench: FakeDevice) -> None:
    bench.open()
    assert bench.store.read("attrib/cmd_time_out") == "300"


@pytest.mark.parametrize("chosen", ["0", "29", "31", "900"])
def test_an_administrators_time_out_stays(bench: FakeDevice, chosen: str) -> None:
    bench.set("attrib/cmd_time_out", chosen)
    bench.open()
    assert bench.store.read("attrib/cmd_time_out") == chosen


@pytest.mark.parametrize("size", [18446744073709551104, 100])
def test_a_size_that_no_disk_has_is_refused_before_the_handler_sees_it(bench: FakeDevice, size: int) -> None:
    bench.set("attrib/dev_size", size)
    with pytest.raises(ConfigError, match=f"size {size} is "):
        bench.open()


# -- its life ---------------------------------------------------------------------------------------------------------


def test_what_the_handler_made_of_a_new_device_is_shown_in_configfs(bench: FakeDevice) -> None:
    bench.open()
    assert bench.store.read("attrib/emulate_write_cache") == str(int(bench.host.engines[0].device.write_cache))
    assert bench.store.read("action/block_dev") == "0"


def test_a_device_that_is_taken_over_is_blocked_until_it_is_served(
    bench: FakeDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[tuple[str, str]] = []
    write = Backstore.write

    def noted(store: Backstore, attribute: str, value: str | int) -> None:
        said.append((attribute, str(value)))
        write(store, attribute, value)

    monkeypatch.setattr(Backstore, "write", noted)
    bench.open(takes_over=True)
    actions = [pair for pair in said if pair[0].startswith("action/")]
    assert actions == [("action/block_dev", "1"), ("action/reset_ring", "1"), ("action/block_dev", "0")]


def test_it_is_pinged_and_counts(bench: FakeDevice) -> None:
    bench.open()
    assert bench.tell(Ping()) == Pong(0, 0)
    bench.ask(bytes(6))
    assert bench.tell(Ping()) == Pong(1, 0)


def test_an_entry_whose_event_was_missed_is_taken_at_the_next_ping(bench: FakeDevice) -> None:
    bench.open()
    bench.turn()
    number = bench.kernel.command(bytes(6))
    assert number is not None
    bench.tell(Ping())
    assert bench.kernel.answer_of(number).status == 0


def test_a_change_of_size_is_answered_and_told(bench: FakeDevice) -> None:
    bench.open()
    answer = bench.tell(Reconfigure(Change(size=2 * SIZE), 0, 5))
    assert isinstance(answer, Changed)
    assert (answer.id, answer.errno, answer.disk and answer.disk.size) == (5, 0, 2 * SIZE)
    assert bench.host.transport.message(Record(), [])
    wait_for(lambda: bench.store.size == 2 * SIZE, 10)


def test_a_device_is_served_while_the_kernel_asks_the_daemon_about_what_is_recorded(
    bench: FakeDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.open()
    asked, answered = threading.Event(), threading.Event()
    write = Backstore.write

    def waits(store: Backstore, attribute: str, value: str | int) -> None:
        asked.set()
        assert answered.wait(60)
        write(store, attribute, value)

    cached = bench.host.engines[0].device.write_cache
    bench.set("attrib/emulate_write_cache", int(not cached))
    monkeypatch.setattr(Backstore, "write", waits)
    assert bench.host.transport.message(Record(), [])
    assert asked.wait(60)
    answer = bench.tell(Reconfigure(Change(write_cache=cached), 0, 5))
    assert isinstance(answer, Changed)
    assert answer.errno == 0
    answered.set()
    wait_for(lambda: bench.store.read("attrib/emulate_write_cache") == str(int(cached)), 10)


def test_what_configfs_does_not_take_is_said(bench: FakeDevice, caplog: pytest.LogCaptureFixture) -> None:
    bench.open()
    (bench.store.path / "attrib/dev_size").unlink()
    assert bench.host.transport.message(Record(), [])
    wait_for(lambda: "configfs does not show what the handler made of the device: reading" in caplog.text, 10)


def test_a_drain_takes_what_is_in_the_ring_and_leaves_the_device_blocked(bench: FakeDevice) -> None:
    bench.open()
    bench.turn()
    numbers = [bench.kernel.command(bytes(6)) for _ in range(20)]
    ended: list[bool] = []

    def then(idle: bool) -> None:
        ended.append(idle)
        bench.loop.stop()

    bench.host.drain(1.0, 30.0, then)
    bench.loop.run()
    assert ended == [True]
    assert bench.store.read("action/block_dev") == "1"
    assert all(number is not None and bench.kernel.answer_of(number).status == 0 for number in numbers)


def test_a_parked_device_is_left_blocked_with_an_empty_ring(bench: FakeDevice) -> None:
    host = Host(bench.loop, lambda spec: Registry().get(spec.handler).disk(spec), KernelDevice(0, 1, "d", park=True))
    host.open({}, takes_over=True)
    assert host.ended
    assert bench.store.read("action/block_dev") == "1"
    assert bench.store.read("action/reset_ring") == "1"


# -- when nobody comes back -------------------------------------------------------------------------------------------


def test_a_released_device_has_a_ring_that_the_kernel_takes_for_broken(bench: FakeDevice) -> None:
    memory = bench.kernel.memory
    uio: Any = SimpleNamespace(memory=memory, ring_doorbell=lambda: None)
    release.release(uio, bench.store)
    assert bench.kernel.tail == release.ENTRY
    assert memory[128:136] == bytes([release.ENTRY | 1, 0, 0, 0, 0, 0, 0, 0])
    assert bench.store.read("action/block_dev") == "0"
    assert bench.store.read("action/reset_ring") == "1"


@pytest.mark.parametrize(
    ("environment", "jobs", "meant"),
    [
        ({}, None, True),
        ({"SERVICE_RESULT": "signal"}, "", False),
        ({"SERVICE_RESULT": "success"}, "12 tcmu-runner.service restart running\n", False),
        ({"SERVICE_RESULT": "success"}, "12 tcmu-runner.service stop running\n", True),
        ({"SERVICE_RESULT": "success"}, "9 other.service restart running\n1 reboot.target start waiting\n", True),
        ({"SERVICE_RESULT": "success"}, "", True),
    ],
)
def test_a_stop_is_meant_unless_systemd_starts_the_service_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], jobs: str | None, meant: bool
) -> None:
    if jobs is not None:
        (tmp_path / "jobs").write_text(jobs)
        (tmp_path / "systemctl").write_text(f"#!/bin/sh\n[ $1 = list-jobs ] && cat {tmp_path}/jobs\n")
        (tmp_path / "systemctl").chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert release.is_meant(environment) is meant


def test_the_commands_of_the_ring_are_told_to_who_looks(bench: FakeDevice, tmp_path: Path) -> None:
    bench.open(cfgstring=str(tmp_path / "image"))
    looker = Looker()
    engine = bench.host.engines[0]
    bench.host.transport.watched(0)  # as who looks has it
    bench.ask(INQUIRY_SERIAL)
    engine.follow(looker)
    bench.ask(READ_ONE, room=512)
    bench.ask(INQUIRY_SERIAL)
    assert [(one.name, one.lba, one.initiator) for one in looker.found] == [
        ("READ(10)", 2, "kernel"),
        ("INQUIRY", None, "kernel"),
    ]
    assert len(looker.out) == 2
    assert all(seconds >= 0 for seconds in looker.out)
    engine.unfollow(looker)
    bench.ask(READ_ONE, room=512)
    assert len(looker.found) == 2
