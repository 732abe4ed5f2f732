"""A real file system: compressed base, overlay on top, served by the portal, mounted by a real kernel."""

from __future__ import annotations

import hashlib
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.kernel.host import Host

pytestmark = pytest.mark.vm

MIB = 1 << 20
LEAST = 200 * MIB  # of files
SOURCES = ("/usr/bin", "/usr/sbin", "/usr/lib/python3", "/usr/share/doc", "/usr/share/perl", "/usr/share", "/usr/lib")
TCMU = [sys.executable, "-m", "tcmu_core.cli.tcmu"]
PATIENCE = 600


@dataclass(frozen=True)
class Base:
    """The compressed image, and some of its files with their digests (sha256sum's lines)."""

    path: Path
    digests: str


@pytest.fixture(scope="module")
def host(kernel_host: Host) -> Host:
    kernel_host.machine.modprobe("ext4")
    return kernel_host


def some_files(root: Path) -> str:
    files = sorted(path for path in root.rglob("*") if path.is_file() and not path.is_symlink())
    chosen = random.Random(1).sample(files, 150)
    return "".join(f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.relative_to(root)}\n" for file in chosen)


@pytest.fixture(scope="module")
def base(host: Host, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Base]:
    directory = tmp_path_factory.mktemp("root")
    root, raw = directory / "files", directory / "root.raw"
    image = host.share / "base.qcow2"
    size = 0
    for source in map(Path, SOURCES):
        if size < LEAST and source.is_dir():
            shutil.copytree(source, root / source.name, symlinks=True, ignore_dangling_symlinks=True)
            size = sum(path.lstat().st_size for path in root.rglob("*") if path.is_file() and not path.is_symlink())
    assert size >= LEAST
    room = (size + size // 2 + 256 * MIB) // MIB
    subprocess.run(["mke2fs", "-q", "-t", "ext4", "-d", root, raw, f"{room}M"], check=True)
    digests = some_files(root)
    shutil.rmtree(root)
    subprocess.run(
        ["qemu-img", "convert", "-c", "-o", "compression_type=zstd", "-f", "raw", "-O", "qcow2", raw, image], check=True
    )
    raw.unlink()
    yield Base(image, digests)
    image.unlink()


def test_a_file_system_on_an_overlay_is_mounted_written_and_found_clean(host: Host, base: Base, qemu: object) -> None:
    vm = host.machine
    (host.share / "digests").write_text(base.digests)
    before = hashlib.sha256(base.path.read_bytes()).hexdigest()
    overlay = f"/tmp/overlay.qcow2;create=1;backing={base.path};backing_format=qcow2"
    server = vm.spawn([*TCMU, "serve", "qcow", overlay, "--portal", "127.0.0.1:3260"], cwd="/tmp")
    host.sh(
        f"""
        for i in $(seq 300); do grep -q ' 0100007F:0CBC 00000000:0000 0A ' /proc/net/tcp && break; sleep 0.2; done
        ls /sys/block > /tmp/before
        iscsiadm -m discovery -t st -p 127.0.0.1:3260 && iscsiadm -m node --login
        for i in $(seq 300); do
            disk=$(ls /sys/block | grep -vxFf /tmp/before | grep '^sd') && [ -b /dev/$disk ] && break; sleep 0.2
        done
        set -e
        mkdir -p /mnt; mount -t ext4 -o discard /dev/$disk /mnt; cd /mnt
        sha256sum --quiet -c {host.share}/digests
        mkdir new; find . -xdev -type f | sort | head -200 | xargs cp --parents -t new
        head -c 20000000 /dev/urandom > new/noise; sha256sum new/noise > new/noise.sum
        find . -xdev -type f | sort | grep -v ^./new | tail -200 | xargs rm; sync
        find new -type f | head -50 | xargs sha256sum > /tmp/new.sums
        cd /; umount /mnt; mount -t ext4 /dev/$disk /mnt; cd /mnt
        sha256sum --quiet -c new/noise.sum; sha256sum --quiet -c /tmp/new.sums
        fstrim -v /mnt
        cd /; umount /mnt
        e2fsck -f -n /dev/$disk
        iscsiadm -m node --logout; iscsiadm -m node -o delete
        """,
        timeout=PATIENCE,
    )
    server.terminate()
    assert server.wait(60).returncode == 0, server.stderr
    host.sh(f"set -e; cd /tmp; qemu-img check -q overlay.qcow2; cp overlay.qcow2 {host.share}; rm overlay.qcow2; sync")
    assert hashlib.sha256(base.path.read_bytes()).hexdigest() == before

    overlay_here, raw = host.share / "overlay.qcow2", host.share / "overlay.raw"
    qemu.check(overlay_here)
    qemu.img("convert", "-f", "qcow2", "-O", "raw", overlay_here, raw)
    qemu.run("e2fsck", "-f", "-n", raw)
    noise = subprocess.run(["debugfs", "-R", "cat new/noise", raw], check=True, capture_output=True).stdout
    told = subprocess.run(
        ["debugfs", "-R", "cat new/noise.sum", raw], check=True, capture_output=True, text=True
    ).stdout
    assert hashlib.sha256(noise).hexdigest() == told.split()[0]
    raw.unlink()
    overlay_here.unlink()
