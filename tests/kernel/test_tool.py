"""`tcmu create | delete | resize | export | unexport | devices` on a real kernel."""

from __future__ import annotations

import json
import sys

import pytest

from tests.kernel.host import CORE, INITIATOR, Host
from tests.vm import Result

pytestmark = pytest.mark.vm

MIB = 1 << 20


def tcmu(host: Host, *arguments: str) -> Result:
    return host.run([sys.executable, "-m", "tcmu_core.cli.tcmu", *arguments])


def test_a_device_from_create_to_delete(host: Host) -> None:
    made = tcmu(host, "create", "disk", "64M", "file", "/var/tmp/t/disk.img")
    assert (made.returncode, made.stdout) == (0, "disk: 64 MiB, file//var/tmp/t/disk.img\n"), made.stderr
    shown = tcmu(host, "export", "disk")
    assert shown.returncode == 0, shown.stderr
    disk, _, fstab = shown.stdout.splitlines()
    assert fstab.startswith("/dev/disk/by-id/wwn-0x6001405")
    host.sh(f"set -e; test -b {disk}; echo Hello World | dd of={disk}; sync")
    assert host.sh("head -c 12 /var/tmp/t/disk.img") == "Hello World\n"

    assert tcmu(host, "resize", "disk", "128M").returncode == 0
    assert host.sh(f"cat {CORE}/user_*/disk/attrib/dev_size").strip() == str(128 * MIB)
    (listed,) = json.loads(tcmu(host, "devices", "--json").stdout)
    assert (listed["name"], listed["size"], listed["config"]) == ("disk", 128 * MIB, "file//var/tmp/t/disk.img")
    assert listed["uio"].startswith("uio")
    assert listed["exports"][0].startswith("loopback naa.")

    refused = tcmu(host, "delete", "disk")
    assert refused.returncode == 1
    assert "is exported: loopback" in refused.stderr
    assert tcmu(host, "unexport", "disk").returncode == 0
    assert tcmu(host, "delete", "disk").returncode == 0
    assert host.sh(f"ls {CORE} | grep -c user_ || true").strip() == "0"
    assert host.sh("stat -c %s /var/tmp/t/disk.img").strip() == str(128 * MIB)


def test_an_iscsi_export_can_be_logged_in_to(host: Host) -> None:
    assert tcmu(host, "create", "shared", "16M", "ram").returncode == 0
    nobody = tcmu(host, "export", "shared", "--iscsi")
    assert nobody.returncode == 1
    assert "--acl" in nobody.stderr
    shown = tcmu(host, "export", "shared", "--iscsi", "--acl", INITIATOR)
    assert shown.returncode == 0, shown.stderr
    _, discover, login = shown.stdout.splitlines()
    try:
        host.sh(f"{discover} && {login}")
        assert "TCMU device" in host.sh("for i in $(seq 100); do lsscsi | grep TCMU && break; sleep 0.1; done")
    finally:
        host.sh("iscsiadm -m node -u; iscsiadm -m node -o delete; true")
    assert tcmu(host, "delete", "--force", "shared").returncode == 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["create", "x", "8M", "moody", "open=nospace"], "No space left on device: there is no space"),
        (["create", "x", "8M", "nosuch"], "No such file or directory: tcmu-runner has no such handler"),
        (["resize", "nosuch", "8M"], "there is no device 'nosuch'; there are: none"),
    ],
)
def test_errors_are_explained(host: Host, arguments: list[str], says: str) -> None:
    said = tcmu(host, *arguments)
    assert says in said.stderr
    assert said.returncode == 1
    assert host.sh(f"ls -d {CORE}/user_*/* 2> /dev/null | grep -v hba_ || true") == ""


def test_without_a_runner_create_says_so(host: Host) -> None:
    assert host.stop().returncode == 0
    said = tcmu(host, "create", "x", "8M", "ram")
    assert (said.returncode, "tcmu-runner is not running" in said.stderr) == (1, True)


def test_the_write_cache_of_a_device_is_set_and_its_initiator_hears_of_it(host: Host) -> None:
    assert host.create("cached", 16 * MIB, "file//var/tmp/t/cached.img").returncode == 0
    disk = host.plug("cached")
    kept = f"{CORE}/user_*/cached/attrib/emulate_write_cache"
    page = f"sg_modes --page=8 --raw {disk} | od -An -tx1"
    assert host.sh(f"cat {kept}").strip() == "1"
    before = host.sh(page)
    said = tcmu(host, "set", "cached", "write_cache=off")
    assert (said.returncode, said.stdout) == (0, "cached: write_cache=off\n"), said.stderr
    assert host.sh(f"cat {kept}").strip() == "0"
    heard = host.run(f"sg_turs -v {disk}")
    assert "Mode parameters changed" in heard.stdout + heard.stderr
    assert host.run(f"sg_turs {disk}").returncode == 0
    assert host.sh(page) != before
    host.sh(f"echo Hello World | dd of={disk} oflag=direct conv=sync 2> /dev/null")
    assert tcmu(host, "set", "cached", "write_cache=on").returncode == 0
    host.run(f"sg_turs {disk}")
    assert (host.sh(f"cat {kept}").strip(), host.sh(page)) == ("1", before)

    # Its initiator chooses another mode, which is no change for the kernel.
    cache = f"/sys/block/{disk.removeprefix('/dev/')}/device/scsi_disk/*/cache_type"
    host.sh(f"for f in {cache}; do echo 'write through' > $f; done")
    assert host.sh(page) != before
    said = tcmu(host, "set", "cached", "write_cache=on")
    assert (said.returncode, said.stdout) == (0, "cached: write_cache=on\n"), said.stderr
    host.run(f"sg_turs {disk}")
    assert host.sh(page) == before
    host.sh(f"for f in {cache}; do echo 'write through' > $f; done")
    assert host.sh(page) != before
    host.sh(f"for f in {kept}; do echo 1 > $f; done")  # the value that it has for the kernel
    host.run(f"sg_turs {disk}")
    assert host.sh(page) == before

    assert host.stop().returncode == 0
    said = tcmu(host, "set", "cached", "write_cache=off")
    assert (said.returncode, "is tcmu-runner running" in said.stderr) == (1, True), said.stderr
    host.start()
