"""The kernel's own CD-ROM driver on the drive: by open-iscsi to the portal, and by LIO's loopback to tcmu-runner."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.kernel.host import Host
from tests.vm import Job, Machine, Result

pytestmark = pytest.mark.vm

BLOCK = 2048
TCMU = [sys.executable, "-m", "tcmu_core.cli.tcmu"]
PATIENCE = 300


@pytest.fixture(scope="module")
def host(kernel_host: Host) -> Host:
    """Return a host with LIO, open-iscsi and a system bus; the runner is started when it is first needed."""
    kernel_host.machine.modprobe("isofs", "ext4")
    return kernel_host


@pytest.fixture(scope="module")
def vm(host: Host) -> Machine:
    return host.machine


def wait(vm: Machine, condition: str) -> Result:
    """Wait in the guest until a shell condition holds; returns what it said."""
    script = f"for i in $(seq 300); do if {condition}; then exit 0; fi; sleep 0.2; done; exit 1"
    return vm.run(script, timeout=PATIENCE, check=True)


class Drive(ABC):
    """A drive that is served in the guest: its node there, and ways to change its disc from outside."""

    node: str

    def __init__(self, host: Host, cfgstring: str) -> None:
        self.host = host
        self.vm = host.machine
        self.cfgstring = cfgstring

    def run(self, script: str, *, check: bool = True) -> str:
        """Run shell commands in the guest, `$sr` being the drive; returns what they wrote."""
        done = self.vm.run(f"sr={self.node}\n{script}", timeout=PATIENCE)
        if check:
            done.check()
        return done.stdout + done.stderr

    @abstractmethod
    def connect(self) -> None:
        """Make it appear in the guest."""

    def insert(self, cfgstring: str) -> Result:
        """Change the disc from outside; an empty cfgstring takes it out."""
        done = self.change(cfgstring)
        if done.returncode == 0:
            self.cfgstring = cfgstring
        return done

    @abstractmethod
    def change(self, cfgstring: str) -> Result:
        """Ask whoever serves the drive for another disc."""

    @abstractmethod
    def close(self) -> None:
        """End what serves it."""


class Portal(Drive):
    """`tcmu serve` and open-iscsi."""

    state = "/tmp/serve-state"

    def connect(self) -> None:
        vm = self.vm
        address = ["--portal", "127.0.0.1:3260", "--state-dir", self.state, "--name", "cd"]
        self.job: Job = vm.spawn([*TCMU, "serve", "fbo", self.cfgstring, *address])
        wait(vm, "grep -q ' 0100007F:0CBC 00000000:0000 0A ' /proc/net/tcp")  # port 3260, listening
        vm.run("iscsiadm -m discovery -t st -p 127.0.0.1:3260 && iscsiadm -m node --login", check=True)
        wait(vm, "ls /dev/sr* >/dev/null 2>&1")
        self.node = vm.run("ls /dev/sr*", check=True).stdout.split()[0]

    def change(self, cfgstring: str) -> Result:
        words = ["insert", "cd", cfgstring] if cfgstring else ["eject", "cd"]
        return self.vm.run([*TCMU, *words, "--state-dir", self.state])

    def close(self) -> None:
        self.vm.run("iscsiadm -m node --logout; iscsiadm -m node -o delete")
        self.job.terminate()
        self.job.wait(timeout=PATIENCE)
        wait(self.vm, f"[ ! -e {self.node} ]")


class Lio(Drive):
    """`tcmu-runner` and LIO's loopback; ChangeMedium over D-Bus."""

    def connect(self) -> None:
        if not self.host.runs():
            self.host.start()
        self.host.create("cd", BLOCK, f"fbo/{self.cfgstring}").check()
        self.node = self.host.plug("cd")

    def change(self, cfgstring: str) -> Result:
        where = "org.kernel.TCMUService1 /org/kernel/TCMUService1/fbo org.kernel.TCMUService1"
        done = self.vm.run(f"busctl call {where} ChangeMedium sts cd 0 'fbo/{cfgstring}'", timeout=PATIENCE).check()
        _, code, message = done.stdout.split(maxsplit=2)  # "is" 0 "…"
        return replace(done, returncode=-int(code), stderr=message)

    def close(self) -> None:
        self.host.unplug()
        self.host.remove("cd").check()


TRANSPORTS: dict[str, type[Drive]] = {"portal": Portal, "lio": Lio}


@pytest.fixture(scope="module", params=TRANSPORTS)
def connected(host: Host, request: pytest.FixtureRequest) -> Iterator[Callable[[str], Drive]]:
    """Return the one drive of a way in, with the disc that is asked for: starting a server is what takes long."""
    made: list[Drive] = []

    def make(cfgstring: str) -> Drive:
        if not made:
            made.append(TRANSPORTS[request.param](host, cfgstring))
            made[0].connect()
        elif made[0].cfgstring != cfgstring:
            made[0].insert(cfgstring).check()
        return made[0]

    yield make
    for each in made:
        each.close()


@pytest.fixture
def drive(host: Host, connected: Callable[[str], Drive]) -> Iterator[Callable[[str], Drive]]:
    yield connected
    host.run("umount /mnt 2>/dev/null")


@pytest.fixture(scope="module")
def tree(vm: Machine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make files to put on a disc."""
    root = tmp_path_factory.mktemp("tree")
    for number in range(30):
        path = root / f"dir{number % 4}" / f"file {number}.bin"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(os.urandom(1 + number * 7919))
    return root


@pytest.fixture(scope="module")
def iso(vm: Machine, tree: Path) -> Path:
    """Make an ISO 9660 image of them."""
    path = vm.share / "disc.iso"
    words = ["xorriso", "-as", "mkisofs", "-quiet", "-R", "-J", "-V", "FIRST", "-o", str(path), str(tree)]
    subprocess.run(words, check=True, capture_output=True)
    return path


@pytest.fixture(scope="module")
def other_iso(vm: Machine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("other")
    (root / "another").write_text("disc\n")
    path = vm.share / "other.iso"
    words = ["genisoimage", "-quiet", "-R", "-V", "SECOND", "-o", str(path), str(root)]
    subprocess.run(words, check=True, capture_output=True)
    return path


def sums(tree: Path) -> list[str]:
    """Return what sha256sum says of every file below `tree`, sorted."""
    files = sorted(path for path in tree.rglob("*") if path.is_file())
    return sorted(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  ./{path.relative_to(tree)}" for path in files)


SUMS = "cd /mnt && find . -type f -print0 | xargs -0 sha256sum | sort"


def test_an_iso_is_a_cd_whose_every_file_is_whole(drive: Callable[[str], Drive], iso: Path, tree: Path) -> None:
    cd = drive(f"ro/{iso}")
    assert "cd/dvd" in cd.run("lsscsi")
    assert "LIO-ORG  Optical drive" in cd.run("lsscsi")
    cd.run("mount -o ro $sr /mnt")
    assert cd.run(SUMS).splitlines() == sums(tree)


def test_the_tools_for_cds_read_it(drive: Callable[[str], Drive], iso: Path) -> None:
    cd = drive(f"ro/{iso}")
    blocks = iso.stat().st_size // BLOCK
    assert "Volume id: FIRST" in cd.run("isoinfo -d -i $sr")
    assert "/dir0/file 0.bin" in cd.run("isoinfo -R -f -i $sr")
    config = cd.run("sg_get_config $sr")
    assert "Current profile: CD-ROM" in config
    assert "Removable media feature" in config
    info = cd.run("cd-info --no-cddb --no-header $sr")
    assert f"{blocks:06d} leadout" in info
    assert "CD-ROM with ISO 9660 filesystem" in info
    assert "Read TOC" in cd.run("sg_opcodes $sr")
    assert int(cd.run("blockdev --getsize64 $sr")) == iso.stat().st_size


def test_eject_opens_the_tray_and_closes_it(drive: Callable[[str], Drive], iso: Path) -> None:
    cd = drive(f"ro/{iso}")
    cd.run("eject $sr")
    assert "device not ready" in cd.run("sg_turs $sr", check=False)
    # MECHANISM STATUS: door open
    assert " 00 10 00 " in cd.run("sg_raw -r 8 $sr bd 00 00 00 00 00 00 00 00 08 00 00")
    cd.run("eject -t $sr && sg_turs $sr && mount -o ro $sr /mnt && umount /mnt")
    cd.run("eject $sr && mount -o ro $sr /mnt")  # which makes the kernel close the tray


def test_a_mounted_disc_is_held_and_let_go(drive: Callable[[str], Drive], iso: Path) -> None:
    cd = drive(f"ro/{iso}")
    cd.run("mount -o ro $sr /mnt")
    refused = cd.insert("")
    assert refused.returncode != 0
    assert "has been asked" in refused.stderr
    # GET EVENT STATUS NOTIFICATION, media class: an eject request, as udev hears it
    asked = cd.run("sg_raw -r 8 $sr 4a 01 00 00 10 00 00 00 08 00")
    cd.run("umount /mnt && eject $sr")
    assert cd.insert("").returncode == 0
    assert " 00 06 04 56 " in asked


def test_another_disc_is_noticed(drive: Callable[[str], Drive], iso: Path, other_iso: Path) -> None:
    cd = drive(f"ro/{iso}")
    cd.run("mount -o ro $sr /mnt && umount /mnt")
    assert cd.insert(f"ro/{other_iso}").returncode == 0
    cd.run("mount -o ro $sr /mnt")
    assert cd.run("cat /mnt/another") == "disc\n"
    assert int(cd.run("blockdev --getsize64 $sr")) == other_iso.stat().st_size
    cd.run("umount /mnt")
    assert cd.insert("").returncode == 0
    assert "no medium found" in cd.run("mount -o ro $sr /mnt", check=False)


@pytest.mark.parametrize("connected", ["lio"], indirect=True)
def test_targetcli_changes_the_disc(host: Host, drive: Callable[[str], Drive], iso: Path, other_iso: Path) -> None:
    cd = drive(f"ro/{iso}")
    words = f"/backstores/user:fbo changemedium cd {other_iso.stat().st_size} ro/{other_iso}\nexit\n"
    said = host.run(["targetcli"], stdin=words, timeout=PATIENCE)
    assert "Medium Changed" in said.stdout, said
    cd.cfgstring = f"ro/{other_iso}"
    assert "Volume id: SECOND" in cd.run("isoinfo -d -i $sr")


@pytest.mark.parametrize("connected", ["lio"], indirect=True)
def test_tcmu_eject_and_insert_reach_the_kernels_device(
    vm: Machine, drive: Callable[[str], Drive], iso: Path, other_iso: Path
) -> None:
    cd = drive(f"ro/{iso}")
    cd.run("mount -o ro $sr /mnt")
    held = vm.run([*TCMU, "eject", "cd"])
    assert "an initiator holds the disc" in held.stderr
    cd.run("umount /mnt")
    vm.run([*TCMU, "eject", "cd"], check=True)
    assert "device not ready" in cd.run("sg_turs $sr", check=False)
    vm.run([*TCMU, "insert", "cd", f"ro/{other_iso}"], check=True)
    cd.cfgstring = f"ro/{other_iso}"
    assert "Volume id: SECOND" in cd.run("isoinfo -d -i $sr")


def test_a_dvd_ram_is_formatted_given_a_file_system_written_and_verified(
    drive: Callable[[str], Drive], vm: Machine, tree: Path
) -> None:
    blocks = 16384
    image = vm.share / "ram.img"
    with image.open("wb") as file:
        file.write(os.urandom(1 << 20))
        file.truncate(blocks * BLOCK)
    shutil.copytree(tree, vm.share / "tree", dirs_exist_ok=True)
    ram = drive(str(image))
    assert "Current profile: DVD-RAM" in ram.run("sg_get_config $sr")
    # FORMAT UNIT: one descriptor of all blocks, format type 00h
    ram.run(f"printf '\\0\\0\\0\\10\\0\\0\\{blocks >> 8:o}\\0\\0\\0\\10\\0' | sg_raw -s 12 $sr 04 11 00 00 00 00")
    assert ram.run("cmp -n 1048576 $sr /dev/zero") == ""
    ram.run("mkfs.ext4 -q -F -b 2048 $sr && mount $sr /mnt")
    ram.run(f"cp -r {vm.share}/tree/. /mnt && umount /mnt")
    ram.run(f"sg_verify --lba=0 --count={blocks // 2} $sr")
    ram.run("blockdev --flushbufs $sr; mount -o ro $sr /mnt")
    assert ram.run(SUMS).splitlines() == sums(tree)
    ram.run("umount /mnt")
