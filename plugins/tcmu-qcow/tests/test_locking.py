"""QEMU's image locking: both sides refuse what the other one has."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tcmu_qcow.errors import ImageInUse


@contextmanager
def held_by_qemu(path: Path, *flags: str) -> Iterator[None]:
    """A qemu-io that has the image open, from its first answer to its end."""
    process = subprocess.Popen(
        ["qemu-io", *flags, "-f", "qcow2", str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=0,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write("length\n")
        while "MiB" not in (line := process.stdout.readline()):
            assert line, "qemu-io ended"
        yield
        process.stdin.write("quit\n")
    finally:
        process.stdin.close()
        process.stdout.close()
        process.wait(30)


@pytest.fixture
def image(tmp_path: Path, qemu: object) -> Path:
    return qemu.create(tmp_path / "disk.qcow2", "8M")


def test_qemu_refuses_to_write_an_image_that_we_write(image: Path, qemu: object, opened_image: Callable) -> None:
    with opened_image(image):
        assert "lock" in qemu.io(image, "write 0 512", fails=True)
        assert "lock" in qemu.img("check", image, fails=True)
        assert "lock" in qemu.img("snapshot", "-c", "now", image, fails=True)
    qemu.io(image, "write 0 512")


def test_qemu_refuses_to_write_an_image_that_we_read(image: Path, qemu: object, opened_image: Callable) -> None:
    with opened_image(image, read_only=True):
        assert "lock" in qemu.io(image, "write 0 512", fails=True)
        qemu.img("check", image)


@pytest.mark.parametrize("read_only", [False, True], ids=["write", "read"])
def test_we_refuse_an_image_that_qemu_writes(image: Path, opened_image: Callable, read_only: bool) -> None:
    with (
        held_by_qemu(image),
        pytest.raises(ImageInUse, match="another program"),
        opened_image(image, read_only=read_only),
    ):
        pass
    with opened_image(image):
        pass


def test_we_refuse_to_write_an_image_that_qemu_reads(image: Path, opened_image: Callable) -> None:
    with held_by_qemu(image, "-r"):
        with pytest.raises(ImageInUse, match="another program"), opened_image(image):
            pass
        with opened_image(image, read_only=True):
            pass


def test_we_refuse_an_image_that_we_have_open_ourselves(image: Path, opened_image: Callable) -> None:
    with opened_image(image), pytest.raises(ImageInUse), opened_image(image):
        pass


def test_a_backing_file_is_shared_by_readers_and_kept_from_writers(
    image: Path, tmp_path: Path, qemu: object, opened_image: Callable
) -> None:
    one = qemu.create(tmp_path / "one.qcow2", "8M", backing=image, fmt="qcow2")
    two = qemu.create(tmp_path / "two.qcow2", "8M", backing=image, fmt="qcow2")
    with opened_image(one), held_by_qemu(two):
        assert "lock" in qemu.io(image, "write 0 512", fails=True)
        with pytest.raises(ImageInUse), opened_image(image):
            pass


def test_a_data_file_is_locked_too(tmp_path: Path, qemu: object, opened_image: Callable) -> None:
    path = qemu.create(tmp_path / "disk.qcow2", "8M", f"data_file={tmp_path}/data.raw")
    with opened_image(path):
        assert "lock" in qemu.run("qemu-io", "-f", "raw", "-c", "write 0 512", tmp_path / "data.raw", fails=True)


def test_locks_can_be_left_out(image: Path, qemu: object, opened_image: Callable) -> None:
    with held_by_qemu(image, "-r"), opened_image(image, lock=False):
        pass


def test_an_image_is_free_again_after_a_refusal(image: Path, opened_image: Callable, qemu: object) -> None:
    with held_by_qemu(image, "-r"), pytest.raises(ImageInUse), opened_image(image):
        pass
    qemu.io(image, "write 0 512")
