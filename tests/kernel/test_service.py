"""The service under a real systemd on a real kernel: restarted, stopped, and the machine powered off."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from tests.bus.systemd import PATIENCE, Systemd
from tests.vm import Machine

pytestmark = [pytest.mark.vm, pytest.mark.soak]

TCMU = f"{sys.executable} -m tcmu_core.cli.tcmu"


@pytest.fixture(scope="module")
def service() -> Iterator[Systemd]:
    """The service, with a disk that this machine itself uses."""
    with Machine(memory="2G") as machine:
        machine.modprobe("target_core_user", "tcm_loop", "target_core_file", "ext4")
        machine.run("mkdir -p /etc/rtslib-fb-target/pr /var/target/pr /etc/target/pr /srv/t", check=True)
        made = Systemd(machine, f'#!/bin/sh\nexec {sys.executable} -m tcmu_core.cli.runner "$@"\n')
        shell(made, "systemctl start tcmu-runner")
        yield made


def shell(service: Systemd, script: str) -> str:
    done = service.run("sh", "-ec", script)
    assert done.returncode == 0, done.stdout + done.stderr
    return str(done.stdout)


def test_a_restart_shows_no_error_and_a_stop_lets_nothing_hang(service: Systemd) -> None:
    shell(service, f"{TCMU} create one 16M file /srv/t/one.img")
    disk = shell(service, f"{TCMU} export one").splitlines()[0]
    read = f"dd if={disk} of=/dev/null bs=4k count=1 iflag=direct"
    shell(
        service,
        f"(while [ ! -e /run/enough ]; do {read} || echo failed > /run/failed; done 2> /dev/null) &"
        "systemctl restart tcmu-runner; sleep 2; touch /run/enough; wait; test ! -e /run/failed",
    )
    shell(service, "systemctl stop tcmu-runner")
    assert service.run("timeout", "60", *read.split()).returncode == 1
    shell(service, f"timeout 60 {TCMU} unexport one")
    shell(service, f"systemctl start tcmu-runner; {TCMU} delete one")


def test_what_a_file_system_has_not_written_yet_is_written_when_the_machine_is_powered_off(service: Systemd) -> None:
    # LIO's own service, which restores nothing here and clears everything when the machine goes down.
    shell(service, "echo '{}' > /etc/rtslib-fb-target/saveconfig.json; systemctl start rtslib-fb-targetctl")
    shell(service, f"{TCMU} create two 64M file /srv/t/two.img")
    disk, _, line = shell(service, f"{TCMU} export two").splitlines()
    name, *rest = line.split()
    assert name.startswith("/dev/disk/by-id/wwn-0x")  # without udev there is no such link here
    shell(
        service,
        f"mkfs.ext4 -q -O ^has_journal {disk}; mkdir -p /srv/mnt;"
        f"echo '{disk} /srv/mnt ext4 {rest[2]} 0 0' >> /etc/fstab;"
        "systemctl daemon-reload; mount /srv/mnt;"
        "echo 100000 > /proc/sys/vm/dirty_writeback_centisecs; echo 100000 > /proc/sys/vm/dirty_expire_centisecs;"
        "seq 200000 > /srv/mnt/numbers",
    )
    service.run("systemctl", "poweroff")
    service.job.wait(PATIENCE)
    seen = service.vm.run("sync; debugfs -R 'cat /numbers' /srv/t/two.img 2> /dev/null | md5sum; seq 200000 | md5sum")
    one, other = seen.stdout.splitlines()
    assert one == other
