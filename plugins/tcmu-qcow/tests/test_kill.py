"""A killed process loses no acknowledged write, flushed or not: its successor has them all."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tcmu_qcow import journal
from tcmu_qcow.files import HostFile

MIB = 1 << 20
SIZE = 4 * MIB
ROOT = os.geteuid() == 0  # a file system can be mounted

# Writes what a seed says, without a flush at the end, and kills itself.
VICTIM = """
import os, random, signal, sys
from tcmu_qcow.opening import OpenOptions, open_image
path, seed, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
chance = random.Random(seed)
if len(sys.argv) > 4:
    from tcmu_qcow import journal
    journal.RUN, journal.SHARED_MEMORY = sys.argv[4:]
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


def die(path: Path, seed: int, content: bytes, *memory: Path) -> bytearray:
    """Run the victim, with `memory` in the place of /run and /dev/shm; returns what the disk has to hold afterwards."""
    command = [sys.executable, "-c", VICTIM, path, str(seed), str(SIZE), *memory]
    done = subprocess.run(command, check=False, capture_output=True)
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


# -- where the journal is, and where it can't be -----------------------------------------------------------------------


@pytest.fixture
def small_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A tmpfs of 256 KiB that takes the place of /run and /dev/shm."""
    directory = tmp_path / "memory"
    directory.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k,mode=755", "tcmu-test", directory], check=True)
    monkeypatch.setattr(journal, "RUN", str(directory))
    monkeypatch.setattr(journal, "SHARED_MEMORY", str(directory))
    try:
        yield directory
    finally:
        subprocess.run(["umount", directory], check=True)


if ROOT:

    def fill(directory: Path, leave: int) -> Path:
        ballast = directory / f"ballast-{len(list(directory.iterdir()))}"
        free = os.statvfs(directory)
        with ballast.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, free.f_bavail * free.f_frsize - leave)
        return ballast

    @pytest.mark.parametrize("leave", [0, 4096, 80 << 10], ids=["full", "one page", "little"])
    def test_memory_that_is_full_fails_no_write_and_a_kill_loses_nothing(
        fast_dir: Path, qemu: object, opened_image: Callable, disk: type, small_memory: Path, leave: int
    ) -> None:
        fill(small_memory, leave)
        path = qemu.create(fast_dir / "disk.qcow2", SIZE, "cluster_size=4096")
        model = bytearray(SIZE)
        for seed in range(3):
            model = die(path, seed, model, small_memory, small_memory)
        with opened_image(path) as image:
            assert disk(image).read() == model
            assert image.lost is None
        assert not qemu.corruptions(path)  # clusters leak with the process, as in a power cut
        assert not journals_of(path)

    def test_memory_that_becomes_full_and_free_again_is_told_and_used_again(
        fast_dir: Path,
        qemu: object,
        opened_image: Callable,
        disk: type,
        small_memory: Path,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        caplog.set_level("INFO")
        path = qemu.create(fast_dir / "disk.qcow2", SIZE, "cluster_size=4096")
        with opened_image(path) as image:
            disk(image).write(0, b"1" * 65536)
            assert journals_of(path)
            fill(small_memory, 0)
            image.flush()  # what was set aside is given back, and taken by somebody else
            ballast = fill(small_memory, 0)
            for number in range(1, 60):
                disk(image).write(number * 65536, b"%d" % (number % 10) * 65536)
            assert caplog.text.count("there is no room in memory for the journal") == 1
            assert not journals_of(path)
            ballast.unlink()
            disk(image).write(60 * 65536, b"x" * 65536)
            assert caplog.text.count("there is room for its journal again") == 1
            assert journals_of(path)
        qemu.check(path)


def test_without_any_memory_of_ours_a_kill_loses_nothing(
    fast_dir: Path,
    qemu: object,
    opened_image: Callable,
    disk: type,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    path = qemu.create(fast_dir / "disk.qcow2", SIZE, "cluster_size=4096")
    model = bytearray(SIZE)
    for seed in range(2):
        model = die(path, seed, model, tmp_path / "missing", tmp_path / "missing")
    with opened_image(path) as image:
        assert disk(image).read() == model
    assert not qemu.corruptions(path)


def test_names_in_shared_memory_can_not_be_taken_by_others(
    fast_dir: Path,
    qemu: object,
    opened_image: Callable,
    disk: type,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shared = fast_dir / "shm"
    shared.mkdir()
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.setattr(journal, "RUN", str(tmp_path / "missing"))
    monkeypatch.setattr(journal, "SHARED_MEMORY", str(shared))
    (shared / "tcmu-qcow.file").touch()  # what another user may have put there
    (shared / "tcmu-qcow.link").symlink_to(tmp_path)
    (shared / "tcmu-qcow.open").mkdir()
    (shared / "tcmu-qcow.open").chmod(0o777)
    path = qemu.create(fast_dir / "disk.qcow2", SIZE, "cluster_size=4096")
    model = bytearray(SIZE)
    model = die(path, 5, model, tmp_path / "missing", shared)
    (left,) = journals_of(path)
    assert left.parent.parent == shared
    assert left.parent.name not in ("tcmu-qcow.link", "tcmu-qcow.open")
    assert left.parent.stat().st_mode & 0o777 == 0o700
    model = die(path, 6, model, tmp_path / "missing", shared)
    assert len(list(shared.iterdir())) == 4, "one directory serves every image"
    with opened_image(path) as image:
        assert disk(image).read() == model
    assert not journals_of(path)
    assert len(list(shared.iterdir())) == 3, "it goes with the last journal in it"
