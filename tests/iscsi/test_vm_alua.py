"""Two portals of a target in groups, with the kernel's initiator: what sg3-utils read of them, and do with them."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from tests.kernel.host import Host
from tests.vm import Machine

pytestmark = pytest.mark.vm

TARGET = "iqn.2026-01.test:disk"
PORTALS = ("127.0.0.1:3260", "127.0.0.2:3260")
PATIENCE = 240
RESERVATION_CONFLICT = 24  # an exit status of sg3_utils(8)


def configuration(first: str, second: str) -> str:
    """Return a tcmu.conf with the groups 1 and 2 in these states."""
    return f"""
[portal]
listen = {PORTALS[0]}, {PORTALS[1]}
[targets]
[[{TARGET}]]
[[[groups]]]
access = both
[[[[1]]]]
portals = {PORTALS[0]}
state = {first}
[[[[2]]]]
portals = {PORTALS[1]}
state = {second}
[[[lun 0]]]
handler = ram
size = 16M
"""


def wait(vm: Machine, condition: str) -> None:
    """Wait in the guest until a shell condition holds."""
    script = f"for i in $(seq 800); do if {condition}; then exit 0; fi; sleep 0.2; done; exit 1"
    vm.run(script, timeout=PATIENCE, check=True)


class Paths:
    """The guest with the disk by two paths: the device at each portal."""

    def __init__(self, host: Host) -> None:
        self.vm = host.machine
        self.devices = [self._device(portal) for portal in PORTALS]

    def _device(self, portal: str) -> str:
        """Wait for the disk that came by this portal; return its node."""
        find = (
            "for s in /sys/class/iscsi_session/session*; do "
            f"grep -qx {portal.partition(':')[0]} $s/device/connection*/iscsi_connection/*/persistent_address && "
            "ls -d $s/device/target*/*/block/sd*; done 2>/dev/null"
        )
        wait(self.vm, f"{find} | grep -q .")
        return "/dev/" + self.vm.run(find, check=False).stdout.split()[0].rpartition("/")[2]

    def reported(self, device: str) -> dict[int, int]:
        """Return what sg_rtpg says: the state of each group."""
        text = self.vm.run(f"sg_rtpg -vd {device} || sg_rtpg -vd {device}", check=True).stdout
        groups = [int(number, 16) for number in re.findall(r"target port group id : (0x[0-9a-f]+)", text)]
        found = [int(number, 16) for number in re.findall(r"asymmetric access state : (0x[0-9a-f]+)", text)]
        return dict(zip(groups, found, strict=True))


@pytest.fixture(scope="module")
def paths(kernel_host: Host) -> Iterator[Paths]:
    host = kernel_host
    if host.runs():
        host.stop()
    host.machine.modprobe("iscsi_tcp", "crc32c", "scsi_dh_alua")
    host.configure(configuration("optimized", "non-optimized"))
    host.start()
    wait(host.machine, "[ $(grep -c ':0CBC 00000000:0000 0A ' /proc/net/tcp) = 2 ]")  # listening
    host.sh(f"iscsiadm -m discovery -t sendtargets -p {PORTALS[0]} && iscsiadm -m node --login", timeout=PATIENCE)
    yield Paths(host)
    host.sh("iscsiadm -m node --logout; iscsiadm -m node -o delete", timeout=PATIENCE)
    host.stop()
    host.configure()


def test_sg_utils_read_the_groups(paths: Paths) -> None:
    first, second = paths.devices
    assert paths.reported(first) == paths.reported(second) == {1: 0, 2: 1}
    extended = paths.vm.run(f"sg_rtpg -e -d {first}", check=True).stdout
    assert "60" in extended
    for device, number in ((first, 1), (second, 2)):
        page = paths.vm.run(f"sg_vpd -p di {device}", check=True).stdout
        assert f"Relative target port: 0x{number}" in page
        assert f"Target port group: 0x{number}" in page


@pytest.mark.soak
def test_multipath_sees_both_paths(paths: Paths) -> None:
    paths.vm.modprobe("dm_multipath", "dm_service_time")
    paths.vm.run("/lib/systemd/systemd-udevd --daemon; udevadm trigger; udevadm settle", check=True)
    try:
        paths.vm.run("multipath -a $(/lib/udev/scsi_id -g -u -d /dev/sda); multipath", timeout=PATIENCE)
        said = paths.vm.run("multipath -ll", check=True).stdout
        assert "prio=50" in said
        assert "prio=10" in said
    finally:
        paths.vm.run("multipath -F; udevadm control --exit", timeout=PATIENCE)


def test_sg_stpg_moves_the_groups(paths: Paths) -> None:
    first, second = paths.devices
    paths.vm.run(f"sg_stpg --tp 1,2 --state an,ao {first}", check=True)
    assert paths.reported(first) == paths.reported(second) == {1: 1, 2: 0}
    paths.vm.run(f"sg_stpg --tp 1,2 --state ao,an {second}", check=True)
    assert paths.reported(first) == paths.reported(second) == {1: 0, 2: 1}
    refused = paths.vm.run(f"sg_stpg --tp 7 --state ao {first}", check=False)
    assert "Illegal request" in refused.stderr  # sg_stpg does not tell by its exit status


def test_sg_persist_reserves_by_one_path_and_sees_it_by_the_other(paths: Paths) -> None:
    first, second = paths.devices

    def persist(device: str, words: str, status: int = 0) -> str:
        # Unit attentions are taken first: sg_persist does not send a command again.
        script = f"sg_turs {device}; sg_turs {device}; sg_persist --no-inquiry {words} {device}"
        done = paths.vm.run(script, check=False)
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout

    def keys(device: str) -> list[str]:
        return re.findall(r"^\s+(0x[0-9a-f]+)$", persist(device, "--in --read-keys"), re.MULTILINE)

    told = persist(first, "--in --report-capabilities")
    for bit in ("SIP_C", "ATP_C", "PTPL_C"):
        assert f"({bit}): 1" in told
    persist(first, "--out --register-ignore --param-sark=0xa1")
    persist(second, "--out --register-ignore --param-sark=0xa2")
    assert keys(first) == keys(second) == ["0xa1", "0xa2"]
    persist(first, "--out --reserve --param-rk=0xa1 --prout-type=5")
    held = persist(second, "--in --read-reservation")
    assert "Key=0xa1" in held
    assert "Write Exclusive, registrants only" in held
    persist(second, "--out --reserve --param-rk=0xa2 --prout-type=5", RESERVATION_CONFLICT)
    status = persist(second, "--in --read-full-status")
    assert re.findall(r"Relative port address: (0x[0-9a-f]+)", status) == ["0x1", "0x2"]
    persist(second, "--out --preempt-abort --param-rk=0xa2 --param-sark=0xa1 --prout-type=5")
    assert keys(first) == ["0xa2"]
    assert "Key=0xa2" in persist(first, "--in --read-reservation")
    persist(second, "--out --clear --param-rk=0xa2")
    persist(first, "--out --register-ignore --param-sark=0xa3 --param-alltgpt")
    assert keys(second) == ["0xa3", "0xa3"]
    # At both ports, and of the first session's initiator port: open-iscsi has an ISID of its own for each session.
    persist(second, "--out --clear --param-rk=0xa3", RESERVATION_CONFLICT)
    persist(first, "--out --clear --param-rk=0xa3")
    assert keys(second) == []
