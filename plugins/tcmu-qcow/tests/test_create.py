"""New images: QEMU finds them in order, as they were asked for, and empty."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tcmu_core import ConfigError, Device
from tcmu_core.testing import open_device
from tcmu_qcow import Handler, create
from tcmu_qcow.create import CreateOptions, Preallocation, create_image
from tcmu_qcow.errors import ImageError
from tcmu_qcow.formats import Format

MIB = 1 << 20


def info(qemu: object, path: Path) -> dict:
    return json.loads(qemu.img("info", "--output=json", path))


@pytest.mark.parametrize(
    ("cluster_size", "version", "extended", "lazy", "bits"),
    [
        (size, version, extended, lazy, bits)
        for size, version, extended, lazy, bits in itertools.product(
            (512, 4096, 65536, 2 * MIB), (2, 3), (False, True), (False, True), (1, 16, 64)
        )
        if version == 3 or not (extended or lazy or bits != 16)
        if size >= 16384 or not extended
    ],
)
def test_an_image_is_as_it_was_asked_for(
    fast_dir: Path,
    qemu: object,
    opened_image: Callable,
    disk: type,
    cluster_size: int,
    version: int,
    extended: bool,
    lazy: bool,
    bits: int,
) -> None:
    path = fast_dir / "new.qcow2"
    options = CreateOptions(5 * MIB + 512, cluster_size, None, None, version, extended, lazy, bits)
    create_image(str(path), options)
    qemu.check(path)
    told = info(qemu, path)
    data = told["format-specific"]["data"]
    assert (told["virtual-size"], told["cluster-size"]) == (5 * MIB + 512, cluster_size)
    assert data["compat"] == {2: "0.10", 3: "1.1"}[version]
    assert (data["refcount-bits"], data.get("lazy-refcounts", False)) == (bits, lazy)
    assert data.get("extended-l2", False) == extended
    with opened_image(path) as image:
        assert disk(image).read() == bytes(5 * MIB + 512)
        disk(image).write(4 * MIB - 512, b"x" * 1024)
    qemu.check(path)
    qemu.io(path, f"read -P 120 {4 * MIB - 512} 1024")


@pytest.mark.parametrize("extended", [False, True])
@pytest.mark.parametrize("how", list(Preallocation))
def test_preallocation_gives_clusters_a_place(
    sparse_dir: Path, qemu: object, opened_image: Callable, disk: type, how: Preallocation, extended: bool
) -> None:
    path = sparse_dir / "new.qcow2"
    create_image(str(path), CreateOptions(6 * MIB + 512, 65536, extended_l2=extended, preallocation=how))
    qemu.check(path)
    qemu.same(path, bytes(6 * MIB + 512))
    stored = path.stat().st_blocks * 512
    assert (path.stat().st_size > 6 * MIB) == (how is not Preallocation.OFF)
    assert (stored > 6 * MIB) == (how in (Preallocation.FALLOC, Preallocation.FULL))
    with opened_image(path) as image:
        size = path.stat().st_size
        disk(image).write(0, b"y" * (6 * MIB))
        image.flush()
        assert (path.stat().st_size == size) == (how is not Preallocation.OFF)
    qemu.check(path)


def test_a_large_disk_of_small_clusters_can_be_made(fast_dir: Path, qemu: object) -> None:
    path = fast_dir / "new.qcow2"
    create_image(str(path), CreateOptions(64 << 30, 512))
    qemu.check(path)
    assert info(qemu, path)["virtual-size"] == 64 << 30


@pytest.mark.parametrize("fmt", ["raw", "qcow2", "qcow"])
def test_an_overlay_takes_size_and_format_from_its_backing_file(
    fast_dir: Path, qemu: object, opened_image: Callable, disk: type, fmt: str
) -> None:
    (fast_dir / "raw").write_bytes(b"z" * MIB)
    qemu.img("convert", "-f", "raw", "-O", fmt, fast_dir / "raw", fast_dir / "base")
    path = fast_dir / "new.qcow2"
    create_image(str(path), CreateOptions(backing="base"))
    told = info(qemu, path)
    assert (told["virtual-size"], told["backing-filename"], told["backing-filename-format"]) == (MIB, "base", fmt)
    qemu.check(path)
    with opened_image(path) as image:
        assert disk(image).read() == b"z" * MIB


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (CreateOptions(), "needs a size"),
        (CreateOptions(MIB, 1000), "power of two"),
        (CreateOptions(MIB, 4 * MIB), "power of two"),
        (CreateOptions(MIB, refcount_bits=3), "refcount_bits"),
        (CreateOptions(MIB, version=2, lazy_refcounts=True), "compat=1.1"),
        (CreateOptions(MIB, 4096, extended_l2=True), "16384"),
        (CreateOptions(MIB, backing="missing.raw"), "missing.raw"),
        (CreateOptions(1 << 50, 512), "too many"),
    ],
)
def test_what_cannot_be_made_is_explained_and_leaves_nothing(fast_dir: Path, options: CreateOptions, says: str) -> None:
    with pytest.raises(ImageError, match=says):
        create_image(str(fast_dir / "new.qcow2"), options)
    assert list(fast_dir.iterdir()) == []


def test_a_file_that_is_there_is_not_replaced(fast_dir: Path) -> None:
    path = fast_dir / "new.qcow2"
    path.write_bytes(b"precious")
    with pytest.raises(FileExistsError):
        create_image(str(path), CreateOptions(MIB))
    assert path.read_bytes() == b"precious"


def test_a_given_backing_format_is_recorded(fast_dir: Path, qemu: object) -> None:
    base = qemu.create(fast_dir / "base.qcow2", MIB)
    create_image(str(fast_dir / "new.qcow2"), CreateOptions(MIB, backing=str(base), backing_format=Format.RAW))
    assert info(qemu, fast_dir / "new.qcow2")["backing-filename-format"] == "raw"


def test_a_read_only_disk_makes_no_image(tmp_path: Path) -> None:
    path = tmp_path / "new"
    with (
        pytest.raises(ConfigError, match="read-only nothing is created"),
        open_device(Handler, f"{path};create=1", size=1 << 20, read_only=True),
    ):
        pass
    assert not path.exists()


def test_blocks_of_64_kib(tmp_path: Path) -> None:
    with open_device(Handler, f"{tmp_path / 'new'};create=1", size=1 << 20, block_size=65536) as opened:
        assert opened.device.physical_block_size == 65536


# -- progress --------------------------------------------------------------------------------------------------------

DOES = {
    "metadata": ["allocating clusters"],
    "falloc": ["allocating clusters", "reserving space"],
    "full": ["allocating clusters", "writing zeros"],
}


@pytest.mark.parametrize("how", DOES)
def test_preallocation_tells_how_far_it_is(sparse_dir: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    told: list[tuple[str, int, int]] = []
    monkeypatch.setattr(create, "PIECE", MIB)
    monkeypatch.setattr(Device, "progress", lambda _, done, total, what="": told.append((what, done, total)))
    config = f"{sparse_dir / 'new'};create=1;preallocation={how};cluster_size=4096"
    with open_device(Handler, config, size=6 * MIB):
        steps = [one for one in told if one[0]]
    assert list(dict.fromkeys(what for what, _, _ in steps)) == DOES[how]
    for what in DOES[how]:
        done = [at for name, at, _ in steps if name == what]
        (total,) = {of for name, _, of in steps if name == what}
        assert len(done) >= 3  # of a table of 512 clusters each, or of a piece
        assert done == sorted(set(done))
        assert 0 <= done[0] <= done[-1] < total


@pytest.mark.parametrize("how", DOES)
def test_an_interrupted_preallocation_leaves_nothing(
    sparse_dir: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr(create, "PIECE", MIB)
    config = f"{sparse_dir / 'new'};create=1;preallocation={how};cluster_size=4096"
    for what in DOES[how]:

        def interrupted(_: Device, done: int, total: int, doing: str = "", stop: str = what) -> None:
            if doing == stop and done:
                raise KeyboardInterrupt

        monkeypatch.setattr(Device, "progress", interrupted)
        with pytest.raises(Exception, match="KeyboardInterrupt"), open_device(Handler, config, size=6 * MIB):
            pass
        assert list(sparse_dir.iterdir()) == []
