"""Formats and features: what is read, what is kept, and what is refused by its name."""

from __future__ import annotations

import json
import os
import random
import subprocess
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from tcmu_qcow import layout as q
from tcmu_qcow import opening
from tcmu_qcow.errors import CorruptImage, ImageError, ReadOnlyImage, UnsupportedImage
from tcmu_qcow.files import HostFile
from tcmu_qcow.formats import FOREIGN, TRAILERS, Format
from tcmu_qcow.opening import MOST_LAYERS, open_image
from tcmu_qcow.qcow1 import Qcow1Image
from tcmu_qcow.raw import RawImage
from tcmu_qcow.scope import Allowed

SIZE = 1 << 20


def patch(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


@pytest.fixture
def content() -> bytes:
    chance = random.Random(7)
    return b"".join(chance.choice((bytes(8192), chance.randbytes(4096) * 2, b"%8d" % at * 1024)) for at in range(128))


@pytest.fixture
def raw(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "source.raw"
    path.write_bytes(content)
    return path


# -- version 1 ---------------------------------------------------------------------------------------------------------


def version_1(content: bytes, cluster_bits: int, l2_bits: int) -> bytes:
    """A version 1 image whose clusters are compressed where that helps (qemu-img 7.2 can't make one)."""
    size, l1_at = len(content), q.HEADER_V1.size
    tables = -(-size >> (cluster_bits + l2_bits))
    l1, l2 = bytearray(8 * tables), bytearray(8 * tables << l2_bits)
    l2_at = l1_at + len(l1)
    data = bytearray()
    for number, at in enumerate(range(0, size, 1 << cluster_bits)):
        cluster = content[at : at + (1 << cluster_bits)]
        deflate = zlib.compressobj(9, zlib.DEFLATED, -12)
        packed = deflate.compress(cluster) + deflate.flush()
        if not any(cluster):
            continue
        host = l2_at + len(l2) + len(data)
        if len(packed) < len(cluster):
            entry = q.V1_COMPRESSED | len(packed) << (63 - cluster_bits) | host
            data += packed
        else:
            data += bytes(-host % q.SECTOR)
            entry = host + -host % q.SECTOR
            data += cluster
        l2[8 * number : 8 * number + 8] = entry.to_bytes(8, "big")
    for number in range(tables):
        l1[8 * number : 8 * number + 8] = (l2_at + (8 * number << l2_bits)).to_bytes(8, "big")
    header = q.HEADER_V1.pack(q.MAGIC, 1, 0, 0, 0, size, cluster_bits, l2_bits, 0, 0, l1_at)
    return header + l1 + l2 + data


@pytest.mark.parametrize("cluster_bits", [0, 9, 12, 16])
def test_version_1_is_read(
    raw: Path, content: bytes, qemu: object, opened_image: Callable, disk: type, cluster_bits: int
) -> None:
    path = raw.with_name("old.qcow")
    if cluster_bits:
        path.write_bytes(version_1(content, cluster_bits, 9))
        qemu.same(path, content, "qcow")
    else:
        qemu.img("convert", "-f", "raw", "-O", "qcow", raw, path)
    with opened_image(path) as image:
        assert isinstance(image, Qcow1Image)
        assert disk(image).read() == content
        assert disk(image).read(12345, 70000) == content[12345:82345]
        buffer = bytearray(512)
        assert image.read_nowait(8192, [memoryview(buffer)], 512)
        assert buffer == content[8192:8704]


def test_version_1_with_a_backing_file_is_read(
    raw: Path, content: bytes, qemu: object, opened_image: Callable, disk: type
) -> None:
    path = raw.with_name("old.qcow")
    qemu.img("create", "-q", "-f", "qcow", "-b", raw, "-F", "raw", path)
    qemu.run("qemu-io", "-f", "qcow", "-c", "write -P 9 4096 1024", path)
    with opened_image(path, backing_format=Format.RAW) as image:
        assert disk(image).read() == content[:4096] + b"\x09" * 1024 + content[5120:]


# -- by magic, or by word ----------------------------------------------------------------------------------------------


OTHERS = {
    "vmdk": "VMDK",
    "vhdx": "VHDX",
    "vpc": "VHD",
    "vdi": "VDI",
    "qed": "QED",
    "parallels": "Parallels",
}


@pytest.mark.parametrize("kind", OTHERS)
def test_an_image_of_another_format_is_refused_by_its_name_unless_it_is_to_be_raw(
    tmp_path: Path, qemu: object, opened_image: Callable, disk: type, kind: str
) -> None:
    path = tmp_path / "other"
    qemu.img("create", "-q", "-f", kind, path, "1M")
    with pytest.raises(UnsupportedImage, match=f"is a {OTHERS[kind]} image.*qemu-img convert.*format=raw"):
        open_image(str(path))
    with opened_image(path, format=Format.RAW) as image:
        assert disk(image).read(0, 512) == path.read_bytes()[:512].ljust(512, b"\0")


@pytest.mark.parametrize("magic", [magic for _, magic, _ in TRAILERS])
def test_a_format_whose_header_is_at_the_end_is_refused_too(
    raw: Path, opened_image: Callable, disk: type, magic: bytes
) -> None:
    looks = raw.with_name("looks")
    looks.write_bytes(bytes(SIZE) + magic.ljust(512, b"\0"))
    with pytest.raises(UnsupportedImage, match="format=raw"):
        open_image(str(looks))
    size = raw.stat().st_size
    with opened_image(raw) as image, pytest.raises(PermissionError, match="format=raw"):
        disk(image).write(size - 1024, bytes(512) + magic.ljust(512, b"\0"))
    with opened_image(raw) as image:
        disk(image).write(size - 1024, magic.ljust(1024, b"\0"))  # inside it may be anything


@pytest.mark.parametrize("start", [magic.rjust(at + len(magic), b"\0") for at, magic, _ in FOREIGN], ids=repr)
def test_a_guest_may_not_make_its_disk_look_like_another_format(
    raw: Path, opened_image: Callable, disk: type, start: bytes
) -> None:
    looks = raw.with_name("looks")
    looks.write_bytes(start.ljust(SIZE, b"\0"))
    with pytest.raises(UnsupportedImage, match="format=raw"):
        open_image(str(looks))
    before = raw.read_bytes()
    with opened_image(raw) as image, pytest.raises(PermissionError, match="format=raw"):
        disk(image).write(0, start.ljust(4096, b"\0"))
    assert raw.read_bytes() == before
    with opened_image(raw, format=Format.RAW) as image:
        disk(image).write(0, start.ljust(4096, b"\0"))
        disk(image).write(512, start.ljust(4096, b"\0"))


def test_a_file_without_magic_is_raw(raw: Path, content: bytes, opened_image: Callable, disk: type) -> None:
    with opened_image(raw) as image:
        assert isinstance(image, RawImage)
        assert disk(image).read() == content


def test_a_format_that_was_given_is_not_guessed(raw: Path, qemu: object, opened_image: Callable) -> None:
    with pytest.raises(CorruptImage, match="not a qcow2 image"), opened_image(raw, format=Format.QCOW2):
        pass
    path = qemu.create(raw.with_name("disk.qcow2"), SIZE)
    with opened_image(path, format=Format.RAW) as image:
        assert isinstance(image, RawImage)
        assert image.size == path.stat().st_size


def test_a_guest_cannot_turn_a_disk_of_guessed_format_into_an_image(
    raw: Path, qemu: object, opened_image: Callable, disk: type
) -> None:
    header = qemu.create(raw.with_name("evil.qcow2"), SIZE, backing=Path("/etc/passwd")).read_bytes()[:512]
    before = raw.read_bytes()
    with opened_image(raw) as image, pytest.raises(PermissionError, match="format=raw"):
        disk(image).write(0, header)
    assert raw.read_bytes() == before
    with opened_image(raw, format=Format.RAW) as image:
        disk(image).write(0, header)
    assert raw.read_bytes()[:512] == header


# -- backing chains ----------------------------------------------------------------------------------------------------


def test_a_chain_of_400_images_is_read_and_written(
    tmp_path: Path, qemu: object, opened_image: Callable, disk: type
) -> None:
    below = qemu.create(tmp_path / "0.qcow2", SIZE)
    qemu.io(below, "write -P 5 0 64k")
    template = qemu.create(tmp_path / "1.qcow2", SIZE, "cluster_size=4096", backing=Path("0.qcow2"), fmt="qcow2")
    data = template.read_bytes()
    (at,) = [data.index(b"0.qcow2")]
    for number in range(2, 400):
        name = f"{number - 1}.qcow2".encode()
        path = tmp_path / f"{number}.qcow2"
        path.write_bytes(data)
        patch(path, at, name)
        patch(path, 16, len(name).to_bytes(4, "big"))
    with opened_image(tmp_path / "399.qcow2") as image:
        assert len(list(image.layers())) == 400
        disk(image).write(512, b"\x06" * 512)
        assert disk(image).read() == b"\x05" * 512 + b"\x06" * 512 + b"\x05" * (65536 - 1024) + bytes(SIZE - 65536)


def chain(directory: Path, qemu: object, layers: int) -> Path:
    """Layers with refcount tables of 2 MiB each, copied from one and told which is the next below it."""
    qemu.create(directory / "00000.qcow2", SIZE, "cluster_size=2M")
    template = qemu.create(directory / "t.qcow2", SIZE, "cluster_size=2M", backing=Path("00000.qcow2"), fmt="qcow2")
    for number in range(1, layers):
        path = directory / f"{number:05}.qcow2"
        subprocess.run(["cp", "--sparse=always", template, path], check=True)
        patch(path, template.read_bytes()[:4096].index(b"00000.qcow2"), b"%05d" % (number - 1))
    return directory / f"{layers - 1:05}.qcow2"


def test_a_chain_of_600_images_opens_with_little_work_for_each(
    tmp_path: Path, qemu: object, opened_image: Callable, disk: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []

    class Counted(HostFile):
        def pread(self, length: int, offset: int) -> bytes:
            data = super().pread(length, offset)
            read.append(len(data))
            return data

    top = chain(tmp_path, qemu, 600)
    monkeypatch.setattr(opening, "HostFile", Counted)
    with opened_image(top) as image:
        assert len(list(image.layers())) == 600
        assert sum(read) < 600 * 16384 + (16 << 20), "tables that nobody needs were read"
        assert disk(image).read(0, 4096) == bytes(4096)
        room = bytearray(4096)
        assert image.read_nowait(0, [memoryview(room)], 4096)


def test_a_chain_that_is_too_long_is_refused_by_its_length(
    tmp_path: Path, qemu: object, opened_image: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert MOST_LAYERS >= 600
    monkeypatch.setattr(opening, "MOST_LAYERS", 20)
    top = chain(tmp_path, qemu, 21)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(ImageError, match="more than 20 images: merge some"), opened_image(top):
        pass
    assert len(os.listdir("/proc/self/fd")) == before
    with opened_image(tmp_path / "00019.qcow2") as image:
        assert len(list(image.layers())) == 20


def test_relative_names_start_where_the_image_is(
    tmp_path: Path, qemu: object, opened_image: Callable, disk: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bases").mkdir()
    (tmp_path / "base.raw").write_bytes(b"\x07" * SIZE)
    qemu.create(tmp_path / "bases/top.qcow2", SIZE, backing=Path("../base.raw"))
    monkeypatch.chdir(tmp_path)
    with opened_image("bases/top.qcow2", allowed=Allowed(directories=(str(tmp_path),))) as image:
        assert disk(image).read(0, 512) == b"\x07" * 512


def test_a_backing_file_is_never_changed(raw: Path, qemu: object, opened_image: Callable, disk: type) -> None:
    before = raw.read_bytes()
    top = qemu.create(raw.with_name("top.qcow2"), SIZE, backing=raw)
    with opened_image(top) as image:
        disk(image).write(0, b"\x01" * SIZE)
        image.discard(0, SIZE)
    assert raw.read_bytes() == before


def test_a_chain_that_comes_back_to_itself_is_refused(tmp_path: Path, qemu: object, opened_image: Callable) -> None:
    one = qemu.create(tmp_path / "one.qcow2", SIZE)
    two = qemu.create(tmp_path / "two.qcow2", SIZE, backing=one, fmt="qcow2")
    qemu.img("rebase", "-u", "-b", two, "-F", "qcow2", one)
    with pytest.raises(CorruptImage, match="backing file of itself"), opened_image(two):
        pass


@pytest.mark.parametrize(
    ("name", "fmt", "says"),
    [
        ("nbd://localhost/x", "raw", "only files"),
        ('json:{"driver":"raw"}', "raw", "json"),
        ("base.vmdk", "vmdk", "vmdk"),
        ("missing.raw", "raw", "missing.raw"),
        (".", "raw", "can't be opened"),
    ],
)
def test_what_cannot_back_an_image_is_named(
    tmp_path: Path, qemu: object, opened_image: Callable, name: str, fmt: str, says: str
) -> None:
    path = qemu.create(tmp_path / "top.qcow2", SIZE)
    qemu.img("rebase", "-u", "-b", name, "-F", fmt, path)
    with pytest.raises(ImageError, match=says), opened_image(path):
        pass


# -- features ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "name"), [(1, "AES"), (2, "LUKS"), (3, "method 3")])
def test_encrypted_images_are_refused(
    tmp_path: Path, qemu: object, opened_image: Callable, method: int, name: str
) -> None:
    path = qemu.create(tmp_path / "secret.qcow2", SIZE)
    patch(path, 32, method.to_bytes(4, "big"))
    with pytest.raises(UnsupportedImage, match=name), opened_image(path):
        pass


def test_an_unknown_feature_is_refused_by_the_name_that_the_image_has_for_it(
    tmp_path: Path, qemu: object, opened_image: Callable
) -> None:
    path = qemu.create(tmp_path / "new.qcow2", SIZE)
    patch(path, q.AT_INCOMPATIBLE, (1 << 13).to_bytes(8, "big"))
    with pytest.raises(UnsupportedImage, match="incompatible feature bit 13"), opened_image(path):
        pass
    at = path.read_bytes().index(b"corrupt bit") - 2
    patch(path, at, q.FEATURE_NAME.pack(0, 13, b"time travel"))
    with pytest.raises(UnsupportedImage, match="“time travel”"), opened_image(path):
        pass


def test_a_corrupt_image_is_refused_for_writing_and_read_to_be_rescued(
    tmp_path: Path, qemu: object, opened_image: Callable, disk: type, caplog: pytest.LogCaptureFixture
) -> None:
    path = qemu.create(tmp_path / "bad.qcow2", SIZE)
    qemu.io(path, "write -P 7 0 64k")
    patch(path, q.AT_INCOMPATIBLE, int(q.Incompatible.CORRUPT).to_bytes(8, "big"))
    with pytest.raises(CorruptImage, match=r"“corrupt bit”.*ro=1"), opened_image(path):
        pass
    before = path.read_bytes()
    with opened_image(path, read_only=True) as image:
        assert disk(image).read(0, 65536) == b"\x07" * 65536
        with pytest.raises(ReadOnlyImage):
            disk(image).write(0, bytes(512))
    assert f"{path} is marked as corrupt" in caplog.text
    assert path.read_bytes() == before
    qemu.create(tmp_path / "top.qcow2", SIZE, backing=path, fmt="qcow2")
    with opened_image(tmp_path / "top.qcow2") as image:
        assert disk(image).read(0, 512) == b"\x07" * 512


RESERVED = sum(1 << bit for bit in (*range(1, 9), *range(56, 62)))  # of an L2 entry (Standard Cluster Descriptor)


@pytest.mark.parametrize("options", [(), ("extended_l2=on",), ("data_file={}",)], ids=str)
def test_reserved_bits_of_tables_are_ignored_as_qemu_does(
    tmp_path: Path, qemu: object, opened_image: Callable, disk: type, options: tuple[str, ...]
) -> None:
    path = tmp_path / "disk.qcow2"
    qemu.create(path, SIZE, *(option.format(tmp_path / "data") for option in options))
    qemu.io(path, "write -P 7 0 192k")
    header = path.read_bytes()[:104]
    l1_at, table_at = int.from_bytes(header[40:48], "big"), int.from_bytes(header[48:56], "big")
    l1 = int.from_bytes(path.read_bytes()[l1_at : l1_at + 8], "big")
    l2_at, stride = l1 & q.OFFSET_MASK, 16 if "extended_l2=on" in options else 8
    for cluster in range(4):  # the last one is not allocated
        at = l2_at + cluster * stride
        entry = int.from_bytes(path.read_bytes()[at : at + 8], "big")
        patch(path, at, (entry | RESERVED).to_bytes(8, "big"))
    patch(path, l1_at, (l1 | RESERVED).to_bytes(8, "big"))
    table = int.from_bytes(path.read_bytes()[table_at : table_at + 8], "big")
    patch(path, table_at, (table | 0x1FF).to_bytes(8, "big"))
    content = b"\x07" * (192 << 10) + bytes(SIZE - (192 << 10))
    qemu.same(path, content)
    with opened_image(path) as image:
        assert disk(image).read() == content
        buffer = bytearray(192 << 10)
        assert image.read_nowait(0, [memoryview(buffer)], len(buffer))
        assert buffer == content[: len(buffer)]
        disk(image).write(196608, b"\x09" * 65536)
        assert image.write_nowait(4096, [memoryview(b"\x08" * 4096)], 4096)
        disk(image).write(512 << 10, b"\x0a" * 65536)
        image.discard(65536, 65536)
    model = bytearray(content)
    model[4096:8192] = b"\x08" * 4096
    model[196608:262144] = b"\x09" * 65536
    model[512 << 10 : 576 << 10] = b"\x0a" * 65536
    model[65536:131072] = bytes(65536)
    qemu.same(path, model)


def test_an_offset_that_is_not_aligned_is_no_reserved_bit(
    tmp_path: Path, qemu: object, opened_image: Callable, disk: type
) -> None:
    path = qemu.create(tmp_path / "disk.qcow2", SIZE)
    qemu.io(path, "write -P 7 0 64k")
    l1_at = int.from_bytes(path.read_bytes()[40:48], "big")
    at = int.from_bytes(path.read_bytes()[l1_at : l1_at + 8], "big") & q.OFFSET_MASK
    entry = int.from_bytes(path.read_bytes()[at : at + 8], "big")
    patch(path, at, (entry | 512).to_bytes(8, "big"))
    with opened_image(path, read_only=True) as image, pytest.raises(CorruptImage):
        disk(image).read(0, 512)


def test_unknown_autoclear_bits_are_cleared_by_the_first_change(
    tmp_path: Path, qemu: object, opened_image: Callable, disk: type
) -> None:
    path = qemu.create(tmp_path / "disk.qcow2", SIZE)
    patch(path, q.AT_AUTOCLEAR, (1 << 40).to_bytes(8, "big"))
    with opened_image(path) as image:
        disk(image).read(0, 512)
    assert int.from_bytes(path.read_bytes()[q.AT_AUTOCLEAR :][:8], "big") == 1 << 40
    with opened_image(path) as image:
        disk(image).write(0, bytes(512))
    assert int.from_bytes(path.read_bytes()[q.AT_AUTOCLEAR :][:8], "big") == 0


def flags_of_bitmaps(path: Path, qemu: object) -> dict[str, list[str]]:
    data = json.loads(qemu.img("info", "--output=json", path))["format-specific"]["data"]
    return {bitmap["name"]: bitmap["flags"] for bitmap in data["bitmaps"]}


def test_a_bitmap_that_we_do_not_keep_is_marked_in_use(
    tmp_path: Path, qemu: object, opened_image: Callable, disk: type
) -> None:
    path = qemu.create(tmp_path / "disk.qcow2", SIZE)
    qemu.img("bitmap", "--add", "--enable", path, "kept")
    qemu.img("bitmap", "--add", "--disable", path, "frozen")
    with opened_image(path) as image:
        disk(image).read(0, 512)
    assert flags_of_bitmaps(path, qemu) == {"kept": ["auto"], "frozen": []}
    with opened_image(path) as image:
        disk(image).write(0, b"x" * 512)
    qemu.check(path)
    assert flags_of_bitmaps(path, qemu) == {"kept": ["in-use", "auto"], "frozen": []}
    qemu.img("bitmap", "--remove", path, "kept")
    qemu.check(path)


def test_a_dirty_image_is_repaired_when_it_is_opened(
    tmp_path: Path, qemu: object, opened_image: Callable, disk: type
) -> None:
    path = qemu.create(tmp_path / "lazy.qcow2", SIZE, "lazy_refcounts=on", "cluster_size=4096")
    subprocess.run(
        ["qemu-io", "-f", "qcow2", "-c", "write -P 3 0 300k", "-c", "flush", "-c", "abort", str(path)],
        check=False,
        capture_output=True,
    )
    assert path.read_bytes()[q.AT_INCOMPATIBLE + 7] & q.Incompatible.DIRTY
    with opened_image(path, read_only=True) as image:
        assert disk(image).read(0, 300 << 10) == b"\x03" * (300 << 10)
    assert path.read_bytes()[q.AT_INCOMPATIBLE + 7] & q.Incompatible.DIRTY
    with opened_image(path) as image:
        assert disk(image).read(0, 300 << 10) == b"\x03" * (300 << 10)
        disk(image).write(300 << 10, b"\x04" * 4096)
    qemu.check(path)
    assert not path.read_bytes()[q.AT_INCOMPATIBLE + 7] & q.Incompatible.DIRTY


def test_leaks_are_repaired_when_asked(tmp_path: Path, qemu: object, opened_image: Callable, disk: type) -> None:
    path = qemu.create(tmp_path / "disk.qcow2", SIZE)
    qemu.io(path, "write -P 1 0 1M")
    header = path.read_bytes()[:104]
    l1 = int.from_bytes(header[40:48], "big")
    l2 = int.from_bytes(path.read_bytes()[l1 : l1 + 8], "big") & q.OFFSET_MASK
    patch(path, l2, bytes(16))  # forget two clusters
    qemu.img("check", path, fails=True)
    with opened_image(path, repair=True) as image:
        assert disk(image).read() == bytes(131072) + b"\x01" * (SIZE - 131072)
    qemu.check(path)


def test_a_snapshot_is_shown_by_name_or_id(tmp_path: Path, qemu: object, opened_image: Callable, disk: type) -> None:
    path = qemu.create(tmp_path / "disk.qcow2", SIZE)
    qemu.io(path, "write -P 1 0 64k")
    qemu.img("snapshot", "-c", "monday", path)
    qemu.io(path, "write -P 2 0 64k")
    before = path.read_bytes()
    for name in ("monday", "1"):
        with opened_image(path, snapshot=name) as image:
            assert disk(image).read(0, 65536) == b"\x01" * 65536
            with pytest.raises(ReadOnlyImage):
                disk(image).write(0, bytes(512))
    with pytest.raises(ImageError, match="“monday”"), opened_image(path, snapshot="tuesday"):
        pass
    assert path.read_bytes() == before


def test_a_snapshot_of_a_smaller_disk_has_its_own_size(tmp_path: Path, qemu: object, opened_image: Callable) -> None:
    path = qemu.create(tmp_path / "disk.qcow2", SIZE)
    qemu.img("snapshot", "-c", "small", path)
    qemu.img("resize", path, "3M")
    with opened_image(path, snapshot="small") as image:
        assert image.size == SIZE
