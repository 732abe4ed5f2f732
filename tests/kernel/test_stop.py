"""What initiators meet while nobody serves, for a moment or for good, and the limits that the kernel sets."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from tests.kernel.host import CORE, Host

pytestmark = pytest.mark.vm

MIB = 1 << 20
BOUND = 60.0  # seconds: what hangs takes minutes
RELEASE = [sys.executable, "-m", "tcmu_core.cli.runner", "--release"]
NOIO = 0x80000  # PF_MEMALLOC_NOIO, linux/sched.h: what PR_SET_IO_FLUSHER sets


def direct(disk: str, way: str, count: int = 1, size: str = "4k") -> str:
    one, other = (disk, "/dev/null") if way == "read" else ("/dev/zero", disk)
    return f"dd if={one} of={other} bs={size} count={count} {'i' if way == 'read' else 'o'}flag=direct 2>&1"


def test_after_a_stop_that_is_meant_nothing_hangs_and_the_next_start_serves_again(host: Host) -> None:
    assert host.create("here", 8 * MIB, "file//var/tmp/t/here.img").returncode == 0
    assert host.create("gone", 8 * MIB, "file//var/tmp/t/gone.img", hba=2).returncode == 0
    here, gone = host.plug("here"), host.plug("gone", hba=2, number=2)
    host.sh(direct(here, "write"))
    host.sh(f"echo dirty > {gone}")  # in the page cache: what is removed wants to be flushed
    assert host.stop().returncode == 0
    waits = host.machine.spawn(direct(here, "read"))
    released = host.run(RELEASE)
    assert (released.returncode, "2 devices answer with an error" in released.stderr) == (0, True), released.stderr
    assert waits.wait(BOUND).returncode != 0
    assert "error" in host.sh(direct(here, "read"), timeout=BOUND, check=False)
    host.sh("true", timeout=BOUND)
    host.unplug(number=2)
    assert host.remove("gone", hba=2).returncode == 0
    host.start()
    host.wait(lambda: host.run(direct(here, "read")).returncode == 0, BOUND, "the disk is served again")


def test_a_release_leaves_devices_that_are_served_alone(host: Host) -> None:
    assert host.create("served", 8 * MIB, "ram/").returncode == 0
    disk = host.plug("served")
    refused = host.run(RELEASE)
    assert (refused.returncode, "already running" in refused.stderr) == (1, True)
    host.sh(direct(disk, "read"))


def test_a_stop_answers_whoever_makes_or_removes_a_device_meanwhile(host: Host) -> None:
    assert host.create("ill", 8 * MIB, "moody/close=hang").returncode == 0
    slow = f"{CORE}/user_9/slow"
    making: Any = host.machine.spawn(
        f"mkdir -p {slow}; cd {slow}; echo -n dev_size={8 * MIB} > control;"
        "echo -n dev_config=moody/open=hang > control; echo -n 1 > enable"
    )
    removing: Any = host.machine.spawn(f"rmdir {CORE}/user_1/ill")
    host.wait(
        lambda: "says ADDED_DEVICE uio1" in host.log() and "uio0 is removed" in host.log(), BOUND, "both are asked"
    )
    host.stop(BOUND)
    assert removing.wait(BOUND).returncode == 0
    assert making.wait(BOUND).returncode != 0
    host.sh(f"rmdir {slow}")


def test_a_worker_that_hangs_for_longer_than_the_kernel_waits_is_told_and_costs_no_error(host: Host) -> None:
    assert host.create("hung", 16 * MIB, "file//var/tmp/t/hung.img").returncode == 0
    assert host.sh(f"cat {CORE}/user_1/hung/attrib/cmd_time_out").strip() == "300"
    disk = host.plug("hung")
    worker = host.worker("hung")
    job: Any = host.machine.spawn(
        f"fio --name=v --filename={disk} --rw=randrw --bs=4k --size=8M --verify=crc32c --verify_fatal=1"
        " --ioengine=libaio --direct=1 --iodepth=4 --verify_backlog=64 --time_based --runtime=45"
    )
    host.wait(lambda: host.sh(f"cut -d' ' -f1 /sys/block/{disk[5:]}/stat").strip() != "0", 60, "it reads")
    host.sh(f"kill -STOP {worker}")
    host.wait(lambda: f"(kill -9 {worker} replaces it)" in host.log(), BOUND, "the hang is told")
    host.sh("sleep 40", timeout=80)
    host.sh(f"kill -9 {worker}")
    result = job.wait(240)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]


@pytest.mark.parametrize("area", [1, 8])
def test_a_small_data_area_limits_commands_and_refuses_none(host: Host, area: int) -> None:
    made = host.create("small", 64 * MIB, "ram/", extra=f"echo -n max_data_area_mb={area} > control")
    assert made.returncode == 0
    disk = host.plug("small")
    host.sh(f"echo 32767 > /sys/block/{disk[5:]}/queue/max_sectors_kb; true")
    for way in ("write", "read"):
        for size in ("1280k", "16M"):
            assert "error" not in host.sh(direct(disk, way, 2, size))


def test_a_worker_never_waits_for_dirty_pages_that_wait_for_it(host: Host) -> None:
    assert host.create("flusher", 8 * MIB, "ram/").returncode == 0
    flags = int(host.sh(f"cut -d' ' -f9 /proc/{host.worker('flusher')}/stat"))
    assert flags & NOIO


def test_a_device_that_configfs_alone_made_keeps_its_serial_number(host: Host) -> None:
    def kept() -> str:
        return host.sh(f"cat {CORE}/user_1/bare/wwn/vpd_unit_serial").rpartition(":")[2].strip()

    assert host.create("bare", 8 * MIB, "file//var/tmp/t/bare.img").returncode == 0
    serial = kept()
    assert len(serial) == 32
    assert host.remove("bare").returncode == 0
    assert host.create("bare", 8 * MIB, "file//var/tmp/t/bare.img").returncode == 0
    assert kept() == serial
    disk = host.plug("bare")
    assert serial in host.sh(f"sg_inq --page=0x80 {disk}")


def test_a_size_that_no_disk_has_fails_and_leaves_nothing(host: Host) -> None:
    for size in (18446744073709551104, 100):
        before = len(host.log())
        assert host.create("odd", size, "file//var/tmp/t/odd.img").returncode != 0
        assert "Traceback" not in host.log()[before:]
        assert host.run("test -e /var/tmp/t/odd.img").returncode != 0
