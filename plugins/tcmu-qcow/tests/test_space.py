"""What a disk takes: freed clusters go back, files shrink, extents tell the truth, sizes change."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from tcmu_qcow.chain import chain_extents
from tcmu_qcow.errors import ImageError, UnsupportedImage
from tcmu_qcow.resize import resize_image

MIB = 1 << 20


def stored(path: Path) -> int:
    return path.stat().st_blocks * 512


@pytest.mark.parametrize("options", [(), ("compat=0.10",), ("extended_l2=on",), ("lazy_refcounts=on",)])
def test_discarded_clusters_go_back_to_the_file_system(
    sparse_dir: Path, qemu: object, opened_image: Callable, disk: type, options: tuple[str, ...]
) -> None:
    path = qemu.create(sparse_dir / "disk.qcow2", 16 * MIB, *options)
    with opened_image(path) as image:
        disk(image).write(0, b"d" * 16 * MIB)
        image.flush()
        assert stored(path) > 16 * MIB
        image.discard(MIB, 4 * MIB)
        image.flush()
        assert stored(path) < 13 * MIB
        image.discard(0, 16 * MIB)
        image.flush()
        assert stored(path) < MIB
        assert path.stat().st_size < MIB
        assert disk(image).read() == bytes(16 * MIB)
    qemu.check(path)


@pytest.mark.parametrize(
    "options", [(), ("compat=0.10",), ("extended_l2=on", "cluster_size=64k"), ("cluster_size=4k",)]
)
@pytest.mark.parametrize("change", ["discard", "write_zeroes"])
def test_the_beginning_of_a_last_cluster_that_is_cut_short_outlives_its_end(
    sparse_dir: Path, qemu: object, opened_image: Callable, disk: type, options: tuple[str, ...], change: str
) -> None:
    size = MIB + 7 * 512
    path = qemu.create(sparse_dir / "disk.qcow2", size, *options)
    with opened_image(path) as image:
        disk(image).write(0, b"k" * size)
        getattr(image, change)(MIB + 512, size - MIB - 512)
        assert disk(image).read() == b"k" * (MIB + 512) + bytes(6 * 512)
    qemu.check(path)


def test_freed_clusters_are_used_again(sparse_dir: Path, qemu: object, opened_image: Callable, disk: type) -> None:
    path = qemu.create(sparse_dir / "disk.qcow2", 16 * MIB)
    with opened_image(path) as image:
        disk(image).write(0, b"1" * 8 * MIB)
        image.flush()
        size = path.stat().st_size
        for _ in range(5):
            image.discard(0, 4 * MIB)
            image.flush()
            disk(image).write(8 * MIB, b"2" * 4 * MIB)
            image.flush()
            image.discard(8 * MIB, 4 * MIB)
            image.flush()
            disk(image).write(0, b"3" * 4 * MIB)
            image.flush()
        assert path.stat().st_size <= size + MIB
    qemu.check(path)


def test_zeroes_keep_their_place(sparse_dir: Path, qemu: object, opened_image: Callable, disk: type) -> None:
    path = qemu.create(sparse_dir / "disk.qcow2", 4 * MIB)
    with opened_image(path) as image:
        disk(image).write(0, b"d" * 4 * MIB)
        image.flush()
        size = path.stat().st_size
        image.write_zeroes(0, 4 * MIB)
        image.flush()
        assert disk(image).read() == bytes(4 * MIB)
        disk(image).write(65536, b"e" * 512)
        assert disk(image).read(0, 131072) == bytes(65536) + b"e" * 512 + bytes(65536 - 512)
        image.flush()
        assert path.stat().st_size == size
    qemu.check(path)


def test_zeroes_on_an_empty_disk_take_no_space(sparse_dir: Path, qemu: object, opened_image: Callable) -> None:
    path = qemu.create(sparse_dir / "disk.qcow2", 1 << 40)
    size = path.stat().st_size
    with opened_image(path) as image:
        image.write_zeroes(0, 1 << 40)
        image.discard(0, 1 << 40)
    assert path.stat().st_size == size


@pytest.mark.parametrize("backed", [False, True], ids=["alone", "backed"])
@pytest.mark.parametrize("options", [("cluster_size=4096",), ("cluster_size=16384", "extended_l2=on")])
def test_extents_agree_with_qemu(
    sparse_dir: Path, qemu: object, opened_image: Callable, options: tuple[str, ...], backed: bool
) -> None:
    base = qemu.create(sparse_dir / "base.qcow2", 2 * MIB, "cluster_size=4096")
    qemu.io(base, "write 100k 50k", "write 1M 300k")
    backing = {"backing": base, "fmt": "qcow2"} if backed else {}
    path = qemu.create(sparse_dir / "disk.qcow2", 3 * MIB, *options, **backing)
    chance = random.Random(5)
    with opened_image(path) as image:
        for _ in range(40):
            offset = chance.randrange(3 * MIB // 512) * 512
            length = min(chance.randrange(1, 100) * 512, 3 * MIB - offset)
            what = chance.choice(("write", "write_zeroes", "discard"))
            if what == "write":
                image.write(offset, [memoryview(chance.randbytes(length))])
            else:
                getattr(image, what)(offset, length)
        ours = list(chain_extents(image, 0, 3 * MIB))
        part = list(chain_extents(image, 1000 * 512, 777 * 512))
    assert part[0][0] == 1000 * 512
    assert sum(length for _, length, _ in part) == 777 * 512
    theirs: list[tuple[int, int, bool]] = []
    for entry in json.loads(qemu.img("map", "--output=json", path)):
        if theirs and theirs[-1][2] == entry["data"]:
            theirs[-1] = (theirs[-1][0], theirs[-1][1] + entry["length"], entry["data"])
        else:
            theirs.append((entry["start"], entry["length"], entry["data"]))
    assert ours == theirs


# -- resize ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        ("cluster_size=512",),
        ("cluster_size=4096", "compat=0.10"),
        ("cluster_size=65536",),
        ("cluster_size=16384", "extended_l2=on"),
        ("cluster_size=4096", "data_file=%d/data.raw"),
        ("cluster_size=4096", "data_file=%d/data.raw", "data_file_raw=on"),
    ],
)
def test_a_disk_grows_and_shrinks(
    tmp_path: Path, qemu: object, opened_image: Callable, disk: type, options: tuple[str, ...]
) -> None:
    path = qemu.create(tmp_path / "disk.qcow2", MIB + 512, *(option.replace("%d", str(tmp_path)) for option in options))
    model = b"a" * (MIB + 512)
    with opened_image(path) as image:
        disk(image).write(0, model)
        for size in (3 * MIB + 1024, 2 * MIB, 700 * 1024 + 512, 40 * MIB, 512, 65536):
            resize_image(image, size)
            model = model[:size].ljust(size, b"\0")
            assert image.size == size
            assert disk(image).read() == model
            disk(image).write(size - 512, b"e" * 512)
            model = model[:-512] + b"e" * 512
    qemu.check(path)
    qemu.same(path, model)


@pytest.mark.parametrize("version", ["0.10", "1.1"])
def test_growing_does_not_bring_a_longer_backing_file_to_light(
    tmp_path: Path, qemu: object, opened_image: Callable, disk: type, version: str
) -> None:
    (tmp_path / "base.raw").write_bytes(b"b" * 2 * MIB)
    path = qemu.create(
        tmp_path / "disk.qcow2", MIB + 512, f"compat={version}", "cluster_size=4096", backing=tmp_path / "base.raw"
    )
    with opened_image(path) as image:
        resize_image(image, 3 * MIB)
        assert disk(image).read() == b"b" * (MIB + 512) + bytes(2 * MIB - 512)
    qemu.check(path)
    qemu.same(path, b"b" * (MIB + 512) + bytes(2 * MIB - 512))


def test_snapshots_survive_a_resize(tmp_path: Path, qemu: object, opened_image: Callable, disk: type) -> None:
    path = qemu.create(tmp_path / "disk.qcow2", MIB, "cluster_size=512")
    qemu.io(path, "write -P 1 0 1M")
    qemu.img("snapshot", "-c", "before", path)
    with opened_image(path) as image:
        resize_image(image, 20 * MIB)
        disk(image).write(0, b"n" * 20 * MIB)
        resize_image(image, 512 * 1024)
    qemu.check(path)
    with opened_image(path, snapshot="before") as image:
        assert disk(image).read() == b"\x01" * MIB


def test_an_image_with_bitmaps_keeps_its_size(tmp_path: Path, qemu: object, opened_image: Callable) -> None:
    path = qemu.create(tmp_path / "disk.qcow2", MIB)
    qemu.img("bitmap", "--add", path, "changes")
    with opened_image(path) as image, pytest.raises(UnsupportedImage, match="bitmaps"):
        resize_image(image, 2 * MIB)
    with opened_image(path) as image:
        assert image.size == MIB


def test_a_size_that_cannot_be_is_refused(tmp_path: Path, qemu: object, opened_image: Callable) -> None:
    path = qemu.create(tmp_path / "disk.qcow2", MIB, "cluster_size=512")
    with opened_image(path) as image:
        for size in (0, -512, 1 << 50):
            with pytest.raises(ImageError):
                resize_image(image, size)
    qemu.check(path)
