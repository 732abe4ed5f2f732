"""A killed process loses no acknowledged write, flushed or not: its successor has them all."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tcmu_qcow import journal
from tcmu_qcow.files import HostFile

MIB = 1 << 20
SIZE = 4 * MIB

# Writes what a seed says, without a flush at the end, and kills itself.
VICTIM = """
import os, random, signal, sys
from tcmu_qcow.opening import OpenOptions, open_image
path, seed, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
chance = random.Random(seed)
image = open_image(path, OpenOptions(cache_bytes=16384))
for number in range(120):
    what = chance.choice(("write", "write", "write", "write_zeroes", "discard", "flush"))
    offset = chance.randrange(size // 512) * 512
    length = min(chance.randrange(1, 60) * 512, size - offset)
    data = chance.randbytes(length)
    if number > 100 and what == "flush":
        continue
    if what == "write":
        image.write(offset, [memoryview(data)])
    elif what == "flush":
        image.flush()
    else:
        getattr(image, what)(offset, length)
os.kill(os.getpid(), signal.SIGKILL)
"""


def die(path: Path, seed: int, content: bytes) -> bytearray:
    """Run the victim; returns what the disk has to hold afterwards."""
    done = subprocess.run([sys.executable, "-c", VICTIM, path, str(seed), str(SIZE)], check=False, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    model, chance = bytearray(content), random.Random(seed)
    for _ in range(120):
        what = chance.choice(("write", "write", "write", "write_zeroes", "discard", "flush"))
        offset = chance.randrange(SIZE // 512) * 512
        length = min(chance.randrange(1, 60) * 512, SIZE - offset)
        data = chance.randbytes(length)
        if what != "flush":
            model[offset : offset + length] = data if what == "write" else bytes(length)
    return model


def journals_of(path: Path) -> list[Path]:
    file = HostFile.open(str(path), read_only=True)
    names = journal.journals_of(file)
    file.close()
    return [Path(name) for name in names]


@pytest.mark.parametrize(
    "options",
    [
        ("cluster_size=4096",),
        ("cluster_size=512",),
        ("cluster_size=65536",),
        ("cluster_size=16384", "extended_l2=on"),
        ("cluster_size=4096", "lazy_refcounts=on"),
        ("cluster_size=4096", "compat=0.10"),
        ("cluster_size=4096", "snapshot"),
    ],
)
def test_a_killed_process_loses_nothing(
    fast_dir: Path, qemu: object, opened_image: Callable, disk: type, options: tuple[str, ...]
) -> None:
    (fast_dir / "base.raw").write_bytes(b"b" * SIZE)
    snapshot = "snapshot" in options
    options = tuple(option for option in options if option != "snapshot")
    path = qemu.create(fast_dir / "disk.qcow2", SIZE, *options, backing=fast_dir / "base.raw")
    model = bytearray(b"b" * SIZE)
    for seed in range(4):
        model = die(path, seed, model)
        if snapshot and seed == 1:
            with opened_image(path):
                pass
            qemu.img("snapshot", "-c", "now", path)
    with opened_image(path) as image:
        assert disk(image).read() == model
        assert image.lost is None
    qemu.check(path)
    qemu.same(path, model)
    assert not journals_of(path)


@pytest.mark.parametrize(("command", "byte"), [(f"write -P 2 0 {SIZE}", b"\x02"), (f"write -z 0 {SIZE}", b"\x00")])
def test_what_another_program_changed_since_is_not_undone(
    fast_dir: Path, qemu: object, opened_image: Callable, disk: type, command: str, byte: bytes
) -> None:
    path = qemu.create(fast_dir / "disk.qcow2", SIZE, "cluster_size=4096")
    qemu.io(path, "write -P 1 0 4k")
    die(path, 5, bytes(SIZE))
    assert journals_of(path)
    qemu.img("check", "-r", "all", path)
    qemu.io(path, command)
    with opened_image(path) as image:
        assert "lost" in image.lost
        assert disk(image).read() == byte * SIZE
        disk(image).write(0, b"\x03" * 512)
    qemu.check(path)
    assert not journals_of(path)


def test_the_records_of_another_boot_are_not_used(
    fast_dir: Path, qemu: object, opened_image: Callable, disk: type
) -> None:
    path = qemu.create(fast_dir / "disk.qcow2", SIZE, "cluster_size=4096")
    die(path, 6, bytes(SIZE))
    (records,) = journals_of(path)
    data = records.read_bytes()
    records.write_bytes(data[:8] + b"0" * 36 + data[44:])
    assert not qemu.corruptions(path)
    with opened_image(path, repair=True) as image:
        disk(image).read()
    qemu.check(path)


def test_a_record_that_is_cut_short_is_no_record(fast_dir: Path, qemu: object, opened_image: Callable) -> None:
    path = qemu.create(fast_dir / "disk.qcow2", SIZE, "cluster_size=4096")
    die(path, 7, bytes(SIZE))
    (records,) = journals_of(path)
    data = records.read_bytes()
    assert len(data) > 100
    records.write_bytes(data[:-3])
    with opened_image(path):
        pass
    qemu.check(path)
