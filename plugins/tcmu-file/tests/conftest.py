"""What the tests keep their disks on: a file system on a disk, one in memory, and a block device."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

MIB = 1 << 20
# A loop device needs root. Without it the block device promises are kept in the virtual machine's tests alone.
ROOT = os.geteuid() == 0 and Path("/dev/loop-control").exists()


@dataclass(frozen=True)
class Place:
    """Where a disk can be opened: by this cfgstring, with this size (None: the storage has one)."""

    cfgstring: str
    size: int | None


@pytest.fixture
def disk_dir() -> Iterator[Path]:
    # /tmp is in memory on many machines; /var/tmp outlives a reboot, so it is on a disk.
    with tempfile.TemporaryDirectory(prefix="tcmu-test-", dir="/var/tmp") as name:
        yield Path(name)


@pytest.fixture
def memory_dir() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="tcmu-test-", dir="/dev/shm") as name:
        yield Path(name)


def attach(file: Path, *options: str) -> str:
    return subprocess.run(
        ["losetup", "--find", "--show", *options, str(file)], check=True, capture_output=True, text=True
    ).stdout.strip()


@pytest.fixture
def loop_device(disk_dir: Path) -> Iterator[str]:
    backing = disk_dir / "backing"
    with backing.open("wb") as file:
        file.truncate(4 * MIB)
    device = attach(backing)
    try:
        yield device
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)


@pytest.fixture(params=["disk", "direct", "memory", *(["block", "block-direct"] if ROOT else [])])
def place(request: pytest.FixtureRequest, disk_dir: Path, memory_dir: Path) -> Place:
    direct = ";direct=1" if "direct" in request.param else ""
    if request.param.startswith("block"):
        return Place(request.getfixturevalue("loop_device") + direct, None)
    return Place(f"{memory_dir if request.param == 'memory' else disk_dir}/disk{direct}", 4 * MIB)
