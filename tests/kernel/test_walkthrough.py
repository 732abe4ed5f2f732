"""The walkthrough on a real kernel: devices through configfs, targetcli, open-iscsi, and the words in the file."""

from __future__ import annotations

import pytest

from tests.kernel.host import CORE, INITIATOR, Host

pytestmark = pytest.mark.vm

IQN = "iqn.2017-06.com.test:target"
ISCSI = "/sys/kernel/config/target/iscsi"


def export(host: Host, target: str, *stores: str) -> None:
    """What the walkthrough's target_setup.sh does."""
    tpg = f"{ISCSI}/{target}/tpgt_1"
    host.sh(
        f"mkdir -p {tpg}/np/0.0.0.0:3260; mkdir -p {tpg}/acls/{INITIATOR}; echo -n 0 > {tpg}/attrib/authentication;"
        + "".join(
            f"mkdir {tpg}/lun/lun_{number}; ln -s {CORE}/{store} {tpg}/lun/lun_{number}/x;"
            f"mkdir {tpg}/acls/{INITIATOR}/lun_{number};"
            f"ln -s {tpg}/lun/lun_{number} {tpg}/acls/{INITIATOR}/lun_{number}/x;"
            for number, store in enumerate(stores)
        )
        + f"echo -n 1 > {tpg}/enable"
    )


def targetcli(host: Host, *commands: str) -> str:
    """Run commands in one targetcli; returns all that it says."""
    result = host.run(["targetcli"], stdin="\n".join((*commands, "exit")) + "\n", timeout=180)
    return result.stdout + result.stderr


def test_the_start_is_logged_line_by_line(host: Host) -> None:
    log = host.log()
    for words in (
        "Module 'target_core_user' is already loaded",
        "runner handlers found",
        "bus org.kernel.TCMUService1 acquired",
        "name org.kernel.TCMUService1 acquired",
    ):
        assert words in log
    assert "[DEBUG] " in log


def test_the_walkthrough(host: Host) -> None:
    assert host.create("test", 4096, "file//var/tmp/t/test").returncode == 0
    assert host.sh("stat -c %s /var/tmp/t/test").strip() == "4096"
    export(host, IQN, "user_1/test")
    found = host.sh("iscsiadm -m discovery -t sendtargets -p 127.0.0.1")
    assert found.strip() == f"127.0.0.1:3260,1 {IQN}"
    assert "successful" in host.sh(f"iscsiadm -m node -T {IQN} -p 127.0.0.1 --login")
    try:
        disks = host.sh("for i in $(seq 100); do lsscsi | grep TCMU && break; sleep 0.1; done")
        assert disks.split()[2:6] == ["LIO-ORG", "TCMU", "device", "0002"]
        disk = disks.split()[-1]
        host.sh(f"echo Hello World | dd of={disk}; sync")
    finally:
        host.sh(f"iscsiadm -m node -T {IQN} -p 127.0.0.1 -u; iscsiadm -m node -o delete")
    assert host.sh("head -c 12 /var/tmp/t/test") == "Hello World\n"

    said = targetcli(
        host, "ls /", "saveconfig /tmp/saved.json", "clearconfig confirm=True", "restoreconfig /tmp/saved.json", "ls /"
    )
    before, _, after = said.partition("All configuration cleared")
    for listing in (before, after):
        assert "user:file" in listing
        assert "user:ram" in listing
        assert "test (4.0KiB) activated" in listing
        assert IQN in listing
    assert "rror" not in said
    assert "annot" not in said
    assert host.sh("head -c 12 /var/tmp/t/test") == "Hello World\n"
    assert "All configuration cleared" in targetcli(host, "clearconfig confirm=True")


def test_three_backstores_two_targets_and_two_luns_on_one(host: Host) -> None:
    for number, size in ((1, 8192), (2, 4096), (3, 4096)):
        assert host.create(f"test_{number}", size, f"file//var/tmp/t/test_{number}").returncode == 0
    export(host, f"{IQN}-52", "user_1/test_1", "user_1/test_3")
    export(host, f"{IQN}-53", "user_1/test_2")
    try:
        found = host.sh("iscsiadm -m discovery -t sendtargets -p 127.0.0.1")
        assert sorted(line.split()[1] for line in found.splitlines()) == [f"{IQN}-52", f"{IQN}-53"]
        host.sh(f"iscsiadm -m node -T {IQN}-52 -p 127.0.0.1 --login")
        disks = host.sh(
            "for i in $(seq 100); do [ $(lsscsi | grep -c /dev/sd) = 2 ] && break; sleep 0.1; done; lsscsi -s"
        ).splitlines()
        assert [line.split()[0].rpartition(":")[2] for line in disks] == ["0]", "1]"]
        assert ["8.19kB" in disks[0], "4.09kB" in disks[1]] == [True, True]
    finally:
        host.sh("iscsiadm -m node -u; iscsiadm -m node -o delete; true")
        targetcli(host, "clearconfig confirm=True")


def test_targetcli_creates_changes_and_deletes_and_shows_our_message_for_a_bad_cfgstring(host: Host) -> None:
    said = targetcli(
        host,
        "/backstores/user:moody create wrong 8M bad-mood",
        "/backstores/user:file create good 8M /var/tmp/t/good",
        "/backstores/user:ram create",
        "ls /backstores",
        "/backstores/user:file delete good",
        "ls /backstores",
    )
    assert "moody does not like 'bad-mood'" in said
    assert "Created user-backed storage object good size 8388608" in said
    assert said.count("good (8.0MiB) deactivated") == 1
    assert "Deleted storage object good" in said
    assert host.sh(f"ls {CORE} | grep user_ || true") == ""


def test_targetcli_changes_the_medium_of_an_optical_drive(host: Host) -> None:
    host.sh("for n in a b; do yes disc $n | head -c 4194304 > /var/tmp/t/$n.iso; done; modprobe sr_mod")
    said = targetcli(host, "/backstores/user:fbo create disc 4M ro//var/tmp/t/a.iso")
    assert "Created user-backed storage object disc" in said
    drive = host.plug("disc", hba=0)
    assert drive.startswith("/dev/sr")
    assert host.sh(f"head -c 6 {drive}") == "disc a"
    said = targetcli(host, "/backstores/user:fbo changemedium disc 4M ro//var/tmp/t/b.iso")
    assert "Medium Changed" in said
    assert host.sh(f"head -c 6 {drive}") == "disc b"
    assert host.sh(f"cat {CORE}/user_0/disc/attrib/dev_config").strip() == "fbo/ro//var/tmp/t/b.iso"
    said = targetcli(host, "/backstores/user:fbo changemedium disc 4M ro//var/tmp/t/none.iso")
    assert "none.iso" in said
    assert host.sh(f"head -c 6 {drive}") == "disc b"
