"""The kernel's requests about its devices, and what it is answered."""

from __future__ import annotations

import errno

import pytest

from tcmu_core.config.configuration import Config, ForeignDevices
from tcmu_core.daemon import managed
from tcmu_core.daemon.managed import State
from tcmu_core.disk.device import Change
from tcmu_core.host.messages import Changed, Drain, Failed, Reconfigure
from tcmu_core.kernel.abi import Netlink
from tcmu_core.kernel.transport import KernelDevice
from tcmu_core.kernel.uio import UioName
from tests.daemon.conftest import NAME, DeviceCase

ADDED, REMOVED, RECONFIG = Netlink.ADDED_DEVICE, Netlink.REMOVED_DEVICE, Netlink.RECONFIG_DEVICE


def way(device: DeviceCase) -> KernelDevice:
    made = device.host.job.way
    assert isinstance(made, KernelDevice)
    return made


def test_the_kernel_hears_of_success_when_the_host_has_opened(device: DeviceCase) -> None:
    device.begin()
    assert device.kernel.answers == []
    device.host.opened()
    assert device.kernel.answers == [(ADDED, 0)]


def test_a_failed_open_is_answered_with_its_errno_when_the_host_is_gone(device: DeviceCase) -> None:
    device.begin()
    device.host.say(Failed(errno.ENOSPC, "full"))
    assert device.kernel.answers == []
    device.host.die("it ended")
    assert device.kernel.answers == [(ADDED, -errno.ENOSPC)]
    assert not device.exists


def test_a_host_that_dies_while_it_opens_is_an_io_error(device: DeviceCase) -> None:
    device.begin()
    device.host.die("killed by SIGSEGV")
    assert device.kernel.answers == [(ADDED, -errno.EIO)]


def test_an_open_that_takes_too_long_is_answered(device: DeviceCase) -> None:
    device.begin()
    device.parent.loop.advance(managed.OPEN_SECONDS)
    device.host.die("killed by SIGKILL")
    assert device.kernel.answers == [(ADDED, -errno.ETIMEDOUT)]


def test_removal_during_an_open_answers_both_questions(device: DeviceCase) -> None:
    device.begin()
    device.kernel.ask(REMOVED)
    assert device.host.killed
    device.host.die("killed by SIGKILL")
    assert device.kernel.answers == [(ADDED, -errno.ECANCELED), (REMOVED, 0)]


def test_a_stop_during_an_open_answers_with_what_nobody_tries_again_by_itself(device: DeviceCase) -> None:
    device.begin()
    device.source.stop(lambda: None)
    device.host.die("killed by SIGKILL")
    assert device.kernel.answers == [(ADDED, -errno.ECANCELED)]  # a shell writes once more after EINTR: nobody is asked


@pytest.mark.parametrize("first", ["remove", "stop"])
def test_a_removal_is_answered_while_the_daemon_stops(device: DeviceCase, first: str) -> None:
    device.serving()
    stopped: list[bool] = []
    acts = [lambda: device.kernel.ask(REMOVED), lambda: device.source.stop(lambda: stopped.append(True))]
    for act in acts if first == "remove" else reversed(acts):
        act()
    assert not stopped
    assert not device.host.killed
    device.host.die("it ended")
    device.parent.loop.advance(0.0)
    assert device.kernel.answers == [(ADDED, 0), (REMOVED, 0)]
    assert stopped
    assert device.kernel.closed


def test_a_device_that_is_given_up_is_left_blocked(device: DeviceCase) -> None:
    device.serving()
    while device.managed.state is not State.QUARANTINED:
        device.host.die("killed by SIGSEGV")
    assert way(device).park
    device.host.die("it ended")
    assert device.managed.state is State.QUARANTINED


def test_a_drain_that_hangs_leaves_the_device_blocked(device: DeviceCase) -> None:
    device.serving()
    hanging = device.host
    device.managed.drain(10.0, lambda: None)
    device.parent.loop.advance(10.0)
    assert hanging.killed
    assert way(device).park


def test_an_adopted_device_that_does_not_open_is_tried_again(device: DeviceCase) -> None:
    device.kernel.present = {0: NAME}
    device.begin()
    assert device.host.job.takes_over
    device.host.say(Failed(errno.ENOENT, "no file"))
    device.host.die("it ended")
    assert device.managed.state is State.STARTING


@pytest.mark.parametrize(
    "change",
    [Change(size=4096), Change(cfgstring="ram/x")],
    ids=["size", "cfgstring"],
)
def test_a_value_that_is_so_already_does_not_reach_the_handler(device: DeviceCase, change: Change) -> None:
    device.serving()
    device.kernel.ask(RECONFIG, change=change)
    assert device.kernel.answers[-1] == (RECONFIG, 0)
    assert device.host.told == []


def test_the_mode_of_the_write_cache_is_asked_of_its_process_for_an_initiator_may_have_chosen_another(
    device: DeviceCase,
) -> None:
    device.serving()
    device.kernel.ask(RECONFIG, change=Change(write_cache=True))
    asked = device.host.told[-1]
    assert isinstance(asked, Reconfigure)
    assert asked.change == Change(write_cache=True)
    device.host.say(Changed(asked.id, 0, ""))
    assert device.kernel.answers[-1] == (RECONFIG, 0)


def test_a_mode_that_the_write_cache_had_is_so_while_there_is_no_process_to_ask(device: DeviceCase) -> None:
    device.serving()
    device.host.die("killed by SIGKILL")
    device.kernel.ask(RECONFIG, change=Change(write_cache=True))
    assert device.kernel.answers[-1] == (RECONFIG, 0)


def test_a_changed_cfgstring_is_the_devices_from_then_on(device: DeviceCase) -> None:
    device.serving()
    device.kernel.ask(RECONFIG, change=Change(cfgstring="ram/y"))
    asked = device.host.told[-1]
    assert isinstance(asked, Reconfigure)
    assert asked.change == Change(cfgstring="y")
    device.host.say(Changed(asked.id, 0, ""))
    assert device.kernel.answers[-1] == (RECONFIG, 0)
    device.host.die("killed by SIGKILL")
    assert device.host.job.disks[0].cfgstring == "y"


@pytest.mark.parametrize(
    ("change", "status"),
    [(Change(cfgstring="file/y"), -errno.EINVAL), (None, -errno.ENODEV)],
    ids=["another handler", "nothing"],
)
def test_a_change_that_can_not_be_is_refused(device: DeviceCase, change: Change | None, status: int) -> None:
    device.serving()
    device.kernel.ask(RECONFIG, change=change)
    assert device.kernel.answers[-1] == (RECONFIG, status)


def test_a_device_of_no_handler_is_refused_or_left_to_others(device: DeviceCase) -> None:
    device.source.start()
    other = UioName(1, "o", "zbc/x")
    for kind in (ADDED, REMOVED, RECONFIG):
        device.kernel.ask(kind, 5, other)
    assert device.kernel.answers == [(ADDED, -errno.ENOENT), (REMOVED, 0), (RECONFIG, -errno.ENODEV)]
    device.parent.config = Config(foreign_devices=ForeignDevices.IGNORE)
    for kind in (ADDED, REMOVED, RECONFIG):
        device.kernel.ask(kind, 5, other)
    assert len(device.kernel.answers) == 3


def test_while_devices_are_looked_at_the_kernel_asks_nothing(device: DeviceCase) -> None:
    device.source.start()
    assert device.kernel.parameters == [("block_netlink", 1), ("reset_netlink", 1), ("block_netlink", 0)]


def test_requests_that_were_lost_end_and_the_devices_are_looked_at_anew(
    device: DeviceCase, caplog: pytest.LogCaptureFixture
) -> None:
    device.serving()
    gone = device.host
    device.kernel.parameters.clear()
    device.kernel.present = {3: UioName(1, "new", "ram/n")}
    device.kernel.fails = OSError(errno.ENOBUFS, "No buffer space available")
    device.kernel.wake()
    assert device.kernel.parameters == [("block_netlink", 1), ("reset_netlink", 1), ("block_netlink", 0)]
    assert "requests of the kernel were lost" in caplog.text
    gone.die("it ended")
    assert list(device.source.by_minor) == [3]
    assert device.parent.of("uio3").job.takes_over


def test_a_failing_netlink_socket_is_told_and_nothing_else(
    device: DeviceCase, caplog: pytest.LogCaptureFixture
) -> None:
    device.serving()
    device.kernel.fails = OSError(errno.EIO, "broken")
    device.kernel.wake()
    assert "broken" in caplog.text
    assert device.managed.serving


def test_a_medium_is_changed_by_name(device: DeviceCase) -> None:
    device.serving()
    assert device.source.change_medium("ram", "other", 0, "y").result(0)[0] == -errno.ENODEV
    future = device.source.change_medium("ram", "d", 0, "y")
    asked = device.host.told[-1]
    assert isinstance(asked, Reconfigure)
    device.host.say(Changed(asked.id, errno.EBUSY, "held"))
    assert future.result(0) == (-errno.EBUSY, "held")
    assert Drain() not in device.host.told
