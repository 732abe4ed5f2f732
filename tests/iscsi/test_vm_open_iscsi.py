"""The kernel's own initiator (open-iscsi) on a disk of the portal."""

from __future__ import annotations

import os
import sys

import pytest

from tests.kernel.host import Host
from tests.release.lines import DOCUMENTS, commands
from tests.vm import Job, Machine

pytestmark = pytest.mark.vm

TCMU = [sys.executable, "-m", "tcmu_core.cli.tcmu"]
TARGET = "iqn.2026-01.test:disk"
PORTAL = "127.0.0.1:3260"
PATIENCE = 180
STATE = f"/tmp/state-{os.getpid()}"
IMAGE = f"/tmp/disk-{os.getpid()}.img"
NODE = f"iscsiadm -m node -T {TARGET} -p {PORTAL}"


# A session that breaks comes back at once, and its commands wait for that.
PATIENT = {"node.session.timeo.replacement_timeout": "120", "node.conn[0].timeo.login_timeout": "15"}


@pytest.fixture(scope="module")
def vm(kernel_host: Host) -> Machine:
    kernel_host.machine.modprobe("iscsi_tcp", "ext4", "crc32c")
    return kernel_host.machine


def wait(vm: Machine, condition: str) -> None:
    """Wait in the guest until a shell condition holds."""
    script = f"for i in $(seq 400); do if {condition}; then exit 0; fi; sleep 0.2; done; exit 1"
    vm.run(script, timeout=PATIENCE, check=True)


def serve(vm: Machine, *options: str) -> Job:
    """Serve a file of the guest at the portal's usual port."""
    place = ["--portal", PORTAL, "--target", TARGET, "--state-dir", STATE]
    job = vm.spawn([*TCMU, "serve", "file", IMAGE, "--size", "16M", *place, *options])
    wait(vm, "grep -q ' 0100007F:0CBC 00000000:0000 0A ' /proc/net/tcp")  # listening
    return job


def log_in(vm: Machine, **settings: str) -> str:
    """Make the disk appear with these settings of the node; return its device."""
    vm.run(f"iscsiadm -m node -o new -T {TARGET} -p {PORTAL}", check=True)
    for name, value in (PATIENT | settings).items():
        vm.run(f"{NODE} -o update -n '{name}' -v '{value}'", check=True)
    vm.run(f"{NODE} --login", timeout=PATIENCE, check=True)
    find = "ls -d /sys/class/iscsi_session/session*/device/target*/*/block/sd* 2>/dev/null"
    wait(vm, f"{find} | grep -q .")
    return "/dev/" + vm.run(find, check=True).stdout.split()[0].rpartition("/")[2]


def log_out(vm: Machine, job: Job) -> None:
    vm.run(f"{NODE} --logout; {NODE} -o delete", timeout=PATIENCE)
    job.terminate()
    job.wait(timeout=PATIENCE)
    vm.run(f"rm -f {IMAGE}")


CHAP = {
    "node.session.auth.authmethod": "CHAP",
    "node.session.auth.username": "joe",
    "node.session.auth.password": "twelve chars!",
}
DIGESTS = {"node.conn[0].iscsi.HeaderDigest": "CRC32C", "node.conn[0].iscsi.DataDigest": "CRC32C"}
SOLICITED = {
    "node.session.iscsi.InitialR2T": "Yes",
    "node.session.iscsi.ImmediateData": "No",
    "node.session.iscsi.MaxBurstLength": "16384",
    "node.conn[0].iscsi.MaxRecvDataSegmentLength": "4096",
}


@pytest.mark.parametrize(
    ("options", "settings"),
    [([], SOLICITED), (["--chap", "joe:twelve chars!"], CHAP | DIGESTS)],
    ids=["small solicited bursts", "CHAP and digests"],
)
def test_a_file_system_keeps_its_files(vm: Machine, options: list[str], settings: dict[str, str]) -> None:
    job = serve(vm, *options)
    try:
        disk = log_in(vm, **settings)
        vm.run(
            f"set -e; mkfs.ext4 -q {disk}; mkdir -p /mnt; mount {disk} /mnt; cp -r /usr/share/zoneinfo/Australia /mnt/;"
            "umount /mnt; echo 3 >/proc/sys/vm/drop_caches;"
            f"mount {disk} /mnt; diff -r /usr/share/zoneinfo/Australia /mnt/Australia; umount /mnt;"
            f"fsck.ext4 -fn {disk}",
            timeout=PATIENCE,
            check=True,
        )
    finally:
        log_out(vm, job)


def test_a_session_survives_the_death_of_the_portal(vm: Machine) -> None:
    job = serve(vm)
    try:
        disk = log_in(vm)
        vm.run(
            f"dd if=/dev/urandom of=/tmp/data bs=1M count=8 && dd if=/tmp/data of={disk} oflag=direct bs=64k",
            check=True,
        )
        job.kill()
        job.wait(timeout=PATIENCE)
        reading = vm.spawn(f"cmp -n 8388608 /tmp/data {disk}")
        job = serve(vm)
        assert reading.wait(timeout=PATIENCE).returncode == 0
    finally:
        log_out(vm, job)


@pytest.mark.parametrize("login", [[], ["--chap", "joe:twelve chars!"]], ids=["open", "CHAP"])
def test_the_lines_that_tcmu_serve_prints_work_when_they_are_pasted(vm: Machine, login: list[str]) -> None:
    job = vm.spawn([*TCMU, "serve", "file", IMAGE, "--size", "16M", "--state-dir", STATE, *login])
    try:
        wait(vm, "grep -q ' 0100007F:0CBC 00000000:0000 0A ' /proc/net/tcp")
        printed = [line.strip() for line in job.stdout.splitlines() if line.startswith("  ")]
        pasted = [line for line in printed if line.split()[0] in ("iscsi-ls", "iscsi-inq", "qemu-img", "iscsiadm")]
        exports = [line for line in printed if line.startswith("export ")]
        said = vm.run("\n".join(["set -e", *exports, *pasted]), timeout=PATIENCE, check=True).stdout
        assert len(exports) == bool(login)
        assert [line.split()[0] for line in pasted[:3]] == ["iscsi-ls", "iscsi-inq", "qemu-img"]
        for word in ("LIO-ORG", "16 MiB", "iqn.2025-01.local.tcmu:disk"):
            assert word in said
        assert said.count("successful") == 2, "logged in, and out again"
    finally:
        job.terminate()
        job.wait(timeout=PATIENCE)
        vm.run(f"rm -f {IMAGE}")


GUIDE = next(path for path in DOCUMENTS if path.name == "iscsi.md")
WAIT_FOR_DISK = """set -e
disk() {
    until ls -d /sys/class/iscsi_session/session*/device/target*/*/block/sd* 2>/dev/null; do sleep 0.2; done |
        sed 's:.*/:/dev/:'
}
"""


@pytest.mark.soak
@pytest.mark.parametrize("login", [False, True], ids=["open", "CHAP"])
def test_the_guides_lines_work(vm: Machine, login: bool) -> None:
    lines = [
        line for line in commands(GUIDE) if line.split()[0] in {"iscsiadm", "lsblk", "mkfs.ext4", "mount", "umount"}
    ]
    secret = [line for line in commands(GUIDE) if line.split()[0] in {"install", "echo"}]
    typed = "\n".join(line for line in lines if ("HOST" in line) == login)
    for word, meaning in (("HOST", PORTAL), ("IQN", "iqn.2025-01.local.tcmu:disk"), ("/dev/sdX", "$(disk)")):
        typed = typed.replace(word, meaning)
    vm.run("\n".join(["set -e; mkdir -p /etc/tcmu /mnt", *secret]), check=True)
    options = ["--portal", PORTAL, "--state-dir", STATE, *(["--chap-file", "/etc/tcmu/chap"] if login else [])]
    job = vm.spawn([*TCMU, "serve", "file", "/srv/disk.img", "--size", "10G", *options])
    try:
        wait(vm, "grep -q ' 0100007F:0CBC 00000000:0000 0A ' /proc/net/tcp")
        said = vm.run(WAIT_FOR_DISK + typed, timeout=PATIENCE, check=True).stdout
        assert "successful" in said
        assert ("TCMU" in said) != login  # lsblk sees the disk
    finally:
        vm.run(
            "iscsiadm -m node --logout; iscsiadm -m node -o delete; iscsiadm -m discoverydb -o delete -t sendtargets"
        )
        job.terminate()
        job.wait(timeout=PATIENCE)
        vm.run("rm -rf /srv/disk.img /etc/tcmu/chap")


@pytest.mark.soak
def test_the_guides_command_of_a_handlers_own_reaches_it(vm: Machine) -> None:
    (send,) = (line for path in DOCUMENTS if path.name == "command.md" for line in commands(path) if "sg_raw" in line)
    place = ["--portal", PORTAL, "--target", TARGET, "--state-dir", STATE, "--handler-path", "docs/examples"]
    job = vm.spawn([*TCMU, "serve", "counted", "--size", "64M", *place])
    try:
        wait(vm, "grep -q ' 0100007F:0CBC 00000000:0000 0A ' /proc/net/tcp")
        said = vm.run(send.replace("/dev/sdX", log_in(vm)), check=True)
        assert "SCSI Status: Good" in said.stdout + said.stderr
    finally:
        log_out(vm, job)
