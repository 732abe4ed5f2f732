"""Real images through the portal, by QEMU's tools: what goes in comes out, and what is discarded is freed."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.conformance.conftest import Serve

MIB = 1 << 20


def tool(*words: object) -> str:
    """Run a program that must succeed; returns what it printed."""
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A directory with files of many sizes, a link and a directory in it."""
    root = tmp_path / "tree"
    (root / "sub").mkdir(parents=True)
    for number in range(60):
        seed = hashlib.sha256(str(number).encode()).digest()
        (root / ("sub" if number % 3 else ".") / f"file{number}").write_bytes(seed * (number * number * 8))
    os.symlink("file3", root / "link")
    return root


@pytest.fixture
def ext4(tmp_path: Path, tree: Path) -> Path:
    """An ext4 file system image, made from the tree."""
    image = tmp_path / "fs.ext4"
    tool("mke2fs", "-q", "-t", "ext4", "-d", tree, image, "64M")
    return image


@pytest.fixture
def qcow2(tmp_path: Path, ext4: Path) -> Path:
    """A compressed qcow2 image of the same file system."""
    image = tmp_path / "fs.qcow2"
    tool("qemu-img", "convert", "-q", "-c", "-O", "qcow2", ext4, image)
    return image


@pytest.mark.parametrize("handler", ["file", "ram"])
@pytest.mark.parametrize("source", ["ext4", "qcow2"])
def test_an_image_is_copied_to_a_disk_and_compares_identical(
    serve: Serve, tmp_path: Path, request: pytest.FixtureRequest, ext4: Path, handler: str, source: str
) -> None:
    image: Path = request.getfixturevalue(source)
    disk = tmp_path / "disk.img"
    uri = serve(*(["file", disk] if handler == "file" else ["ram"]), "--size", "64M")
    tool("qemu-img", "convert", "-n", "-O", "raw", image, uri)
    assert "identical" in tool("qemu-img", "compare", "-F", "raw", image, uri)
    back = tmp_path / "back.img"
    tool("qemu-img", "convert", "-f", "raw", "-O", "raw", uri, back)
    assert back.read_bytes() == ext4.read_bytes()
    tool("e2fsck", "-f", "-n", back)
    if handler == "file":
        tool("e2fsck", "-f", "-n", disk)


def test_patterns_that_qemu_io_writes_are_read_back_and_lie_in_the_file(serve: Serve, tmp_path: Path) -> None:
    disk = tmp_path / "disk.img"
    uri = serve("file", disk, "--size", "16M")
    steps = ["write -P 0xa5 1M 3M", "write -P 0x11 1536k 512", "aio_write -P 0x77 8M 1M", "aio_flush", "flush"]
    steps += ["read -P 0xa5 1M 512k", "read -P 0x11 1536k 512", "read -P 0xa5 1573376 2620928", "read -P 0x77 8M 1M"]
    steps += ["read -P 0 4M 4M", "write -z 2M 64k", "read -P 0 2M 64k", "write -zu 8M 512k", "read -P 0 8M 512k"]
    told = tool("qemu-io", "-f", "raw", *[word for step in steps for word in ("-c", step)], uri)
    assert "Pattern verification failed" not in told
    data = disk.read_bytes()
    assert data[MIB : MIB + 512 * 1024] == b"\xa5" * (512 * 1024)
    assert data[8 * MIB + 512 * 1024 : 9 * MIB] == b"\x77" * (512 * 1024)
    assert not any(data[8 * MIB : 8 * MIB + 512 * 1024])


def test_a_discard_frees_blocks_of_the_file_and_shows_in_the_map(serve: Serve, tmp_path: Path) -> None:
    disk = tmp_path / "disk.img"
    uri = serve("file", disk, "--size", "32M")
    tool("qemu-io", "-f", "raw", "-c", "write -P 1 0 16M", "-c", "flush", uri)
    before = disk.stat().st_blocks
    assert before >= 16 * MIB // 512
    tool("qemu-io", "-f", "raw", "-d", "unmap", "-c", "discard 4M 8M", uri)
    assert disk.stat().st_blocks <= before - 8 * MIB // 512
    extents = json.loads(tool("qemu-img", "map", "-f", "raw", "--output=json", uri))
    runs: list[tuple[int, int, bool]] = []
    for extent in extents:
        start, length, data = extent["start"], extent["length"], extent["data"]
        if runs and runs[-1][2] == data:
            runs[-1] = (runs[-1][0], runs[-1][1] + length, data)
        else:
            runs.append((start, length, data))
    assert runs == [
        (0, 4 * MIB, True),
        (4 * MIB, 8 * MIB, False),
        (12 * MIB, 4 * MIB, True),
        (16 * MIB, 16 * MIB, False),
    ]
