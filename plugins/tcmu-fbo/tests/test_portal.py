"""The drive through the portal, without a kernel target: libiscsi's tools, QEMU's block layer, and a QEMU guest."""

from __future__ import annotations

import hashlib
import json
import lzma
import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.vm.initramfs import Archive
from tests.vm.kernel import Kernel
from tests.vm.qemu import TCG_CPU

BLOCK = 2048
GUEST_SECONDS = 240  # an emulated guest on a busy machine
BOOTED = b"booted from the optical drive\r\n"
DEBUG_EXIT = 0x10  # what the boot code writes to isa-debug-exit: QEMU's status is twice that and one


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Callable[[str], str]]:
    """Serve drives on free ports; returns their URLs."""
    started: list[subprocess.Popen[str]] = []

    def serve(cfgstring: str) -> str:
        words = [sys.executable, "-m", "tcmu_core.cli.tcmu", "serve", "fbo", cfgstring, "--json"]
        words += ["--portal", "127.0.0.1:0", "--state-dir", str(tmp_path / "state")]
        process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout is not None
        return str(json.loads(process.stdout.readline())["uri"])

    yield serve
    for process in started:
        process.terminate()
        with process:
            assert process.wait() == 0


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    for number in range(12):
        path = root / f"dir{number % 3}" / f"file{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.urandom(1 + number * 12345))
    return root


def burn(tree: Path, iso: Path, *options: str) -> Path:
    words = ["xorriso", "-as", "mkisofs", "-quiet", "-R", "-J", "-V", "TCMU", *options, "-o", str(iso), str(tree)]
    subprocess.run(words, check=True, capture_output=True)
    return iso


def run(*words: str) -> str:
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout


def test_the_tools_of_libiscsi_and_qemu_read_an_iso(served: Callable[[str], str], tree: Path, tmp_path: Path) -> None:
    iso = burn(tree, tmp_path / "disc.iso")
    uri = served(f"ro/{iso}")
    inquiry = run("iscsi-inq", uri)
    assert "Peripheral Device Type:MMC" in inquiry
    assert "Removable:1" in inquiry
    assert run("iscsi-readcapacity16", "-s", uri).strip() == str(iso.stat().st_size)
    copy = tmp_path / "copy.iso"
    run("qemu-img", "convert", "-f", "raw", "-O", "raw", uri, str(copy))
    assert copy.read_bytes() == iso.read_bytes()


def guest(uri: str, *options: str) -> subprocess.CompletedProcess[bytes]:
    """Run a guest whose SCSI controller has the drive itself, by `scsi-generic`; its serial port is our stdout."""
    words = ["qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
    words += ["-machine", "pc", "-accel", "tcg", "-cpu", TCG_CPU, "-m", "512M", "-serial", "stdio"]
    words += ["-drive", f"file={uri},format=raw,if=none,id=cd,readonly=on", "-device", "virtio-scsi-pci"]
    words += ["-device", "scsi-generic,drive=cd,bootindex=1", *options]
    return subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, timeout=GUEST_SECONDS, check=False)


def boot_code() -> bytes:
    """Return code for a PC's BIOS to start: it writes BOOTED to the serial port and ends the machine."""
    code = bytes.fromhex(
        "fc"  # cld
        "31c0 8ed8"  # ds = 0
        "be 1a7c"  # si = where BOOTED stands
        "ac 84c0 7406"  # lodsb; until zero
        "ba f803 ee ebf5"  # out 3F8h, al
        "b010 baf400 ee f4"  # out F4h, DEBUG_EXIT; hlt
    )
    assert len(code) == 0x1A
    return (code + BOOTED + b"\0").ljust(BLOCK, b"\0")


def test_a_guest_boots_from_the_disc(served: Callable[[str], str], tree: Path, tmp_path: Path) -> None:
    (tree / "boot.img").write_bytes(boot_code())
    iso = burn(tree, tmp_path / "boot.iso", "-b", "boot.img", "-no-emul-boot", "-boot-load-size", "4")
    done = guest(served(f"ro/{iso}"), "-device", "isa-debug-exit,iobase=0xf4,iosize=1")
    assert (done.returncode, done.stdout) == (2 * DEBUG_EXIT + 1, BOOTED), done.stderr


INIT = """#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
for module in $(cat /mod/order); do insmod /mod/$module.ko; done
for i in $(seq 300); do [ -b /dev/sr0 ] && break; sleep 0.1; done
mount -t iso9660 -o ro /dev/sr0 /mnt && cd /mnt && find . -type f | sort | xargs sha256sum | sed 's/^/SUM /'
cd /; umount /mnt; eject -T /dev/sr0; echo "TRAY $?"
poweroff -f
"""
MODULES = ("virtio_pci", "virtio_scsi", "sr_mod", "isofs")


def initramfs(kernel: Kernel) -> bytes:
    """Return an initramfs that mounts the disc and says what is on it."""
    archive = Archive()
    for directory in ("bin", "dev", "mnt", "mod", "proc", "sys"):
        archive.add(directory, stat.S_IFDIR | 0o755)
    archive.add("bin/busybox", stat.S_IFREG | 0o755, Path("/bin/busybox").read_bytes())
    archive.add("init", stat.S_IFREG | 0o755, INIT.encode())
    order = []
    for file in kernel.module_files(MODULES):
        order.append(file.name.partition(".ko")[0])
        data = file.read_bytes()
        archive.add(
            f"mod/{order[-1]}.ko", stat.S_IFREG | 0o644, lzma.decompress(data) if file.suffix == ".xz" else data
        )
    archive.add("mod/order", stat.S_IFREG | 0o644, "\n".join(order).encode())
    return archive.finish()


@pytest.mark.vm
def test_a_linux_guest_mounts_the_disc(served: Callable[[str], str], tree: Path, tmp_path: Path) -> None:
    kernel = Kernel.newest()
    (tmp_path / "initramfs").write_bytes(initramfs(kernel))
    uri = served(f"ro/{burn(tree, tmp_path / 'disc.iso')}")
    options = ["-kernel", str(kernel.unpack(tmp_path)), "-initrd", str(tmp_path / "initramfs")]
    done = guest(uri, *options, "-append", "console=ttyS0 quiet panic=-1 mitigations=off")
    said = done.stdout.decode(errors="replace").splitlines()
    files = sorted(path for path in tree.rglob("*") if path.is_file())
    sums = {f"SUM {hashlib.sha256(path.read_bytes()).hexdigest()}  ./{path.relative_to(tree)}" for path in files}
    assert {line.rstrip() for line in said if line.startswith("SUM ")} == sums, (done.stderr, done.stdout[-3000:])
