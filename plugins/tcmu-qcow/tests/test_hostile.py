"""Images made to do harm: a clear error, bounded time and memory, and no write."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tcmu_qcow import layout as q
from tcmu_qcow import opening
from tcmu_qcow.errors import CorruptImage, ImageError
from tcmu_qcow.files import HostFile

SIZE = 256 << 10
CLUSTER = 4096
MEMORY = 160 << 20  # bytes; the largest legal tables together take less
READS = 4000  # system calls to open a hostile image of this size and to read 64 KiB of it
NUMBERS = {
    1: [0, 1, 0x7F, 0x80, 0xFF],
    4: [0, 1, 2, 7, 63, 64, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF],
    8: [0, 1, 511, 512, 4096, 4097, 8192, 1 << 20, 1 << 32, 1 << 55, 1 << 56, 1 << 62, 1 << 63, (1 << 64) - 1],
}
FIELDS = {
    "magic": (0, 4),
    "version": (4, 4),
    "backing_file_offset": (8, 8),
    "backing_file_size": (16, 4),
    "cluster_bits": (20, 4),
    "size": (24, 8),
    "crypt_method": (32, 4),
    "l1_size": (36, 4),
    "l1_table_offset": (40, 8),
    "refcount_table_offset": (48, 8),
    "refcount_table_clusters": (56, 4),
    "nb_snapshots": (60, 4),
    "snapshots_offset": (64, 8),
    "incompatible_features": (72, 8),
    "compatible_features": (80, 8),
    "autoclear_features": (88, 8),
    "refcount_order": (96, 4),
    "header_length": (100, 4),
    "compression_type": (104, 1),
    "extension type": (112, 4),
    "extension length": (116, 4),
}


class Counted(HostFile):
    """A file that counts what is asked of it."""

    reads = 0
    writes = 0

    def pread(self, length: int, offset: int) -> bytes:
        Counted.reads += 1
        return super().pread(length, offset)

    def preadv(self, buffers: object, offset: int) -> None:
        Counted.reads += 1
        super().preadv(buffers, offset)

    def pwritev(self, buffers: object, offset: int) -> None:
        Counted.writes += 1
        super().pwritev(buffers, offset)


@pytest.fixture(autouse=True)
def bounded(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(opening, "HostFile", Counted)
    tracemalloc.start()
    yield
    tracemalloc.stop()


@pytest.fixture(scope="module")
def seed_images(tmp_path_factory: pytest.TempPathFactory, qemu: object) -> dict[str, bytes]:
    """Small images with something in every table."""
    directory = tmp_path_factory.mktemp("seeds")
    images = {}
    for name, options in {
        "plain": (),
        "v2": ("compat=0.10",),
        "extended": ("cluster_size=16384", "extended_l2=on"),
        "lazy": ("lazy_refcounts=on",),
    }.items():
        path = qemu.create(
            directory / f"{name}.qcow2",
            SIZE,
            *(options or ()),
            *(("cluster_size=4096",) * ("cluster" not in str(options))),
        )
        qemu.io(path, "write -P 1 0 32k", "write -z 40k 8k")
        qemu.img("snapshot", "-c", "one", path)
        qemu.io(path, "write -P 2 8k 8k")
        if name == "plain":
            qemu.img("bitmap", "--add", path, "changes")
        images[name] = path.read_bytes()
    source = directory / "text.raw"
    source.write_bytes(b"hello world, " * (SIZE // 13) + bytes(SIZE % 13))
    for name, kind in {"zlib": "zlib", "zstd": "zstd"}.items():
        path = directory / f"{name}.qcow2"
        options = f"cluster_size=4096,compression_type={kind}"
        qemu.img("convert", "-c", "-f", "raw", "-O", "qcow2", "-o", options, source, path)
        images[name] = path.read_bytes()
    return images


def handle(path: Path, image_bytes: bytes, opened_image: Callable, *, write: bool = False) -> OSError | None:
    """Open and read (and write) the image; the error it ends with. Anything but an OSError fails the test."""
    path.write_bytes(image_bytes)
    Counted.reads = Counted.writes = 0
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    failure: OSError | None = None
    try:
        with opened_image(path, cache_bytes=1 << 20) as image:
            length = min(64 << 10, image.size)
            for offset in (0, max(0, image.size - length)):
                try:
                    image.read(offset, [memoryview(bytearray(length))])
                except OSError as error:
                    failure = error
            if write and hasattr(image, "write") and image.size >= 512:
                try:
                    at = min(8192, (image.size - 512) // 512 * 512)
                    image.write(at, [memoryview(b"w" * 512)])
                    image.discard(0, length)
                    image.flush()
                except OSError as error:
                    failure = error
    except OSError as error:
        failure = error
    assert Counted.reads < READS
    assert tracemalloc.get_traced_memory()[1] - before < MEMORY
    if not write:
        dirty = image_bytes[7:8] == b"\x03" and image_bytes[79:80] and image_bytes[79] & q.Incompatible.DIRTY
        assert path.read_bytes() == image_bytes or (dirty and failure is None)
    return failure


@pytest.mark.parametrize("field", FIELDS)
def test_no_value_of_a_header_field_does_harm(
    field: str, tmp_path: Path, seed_images: dict[str, bytes], opened_image: Callable
) -> None:
    at, width = FIELDS[field]
    for name, data in seed_images.items():
        for number in NUMBERS[width]:
            hostile = data[:at] + number.to_bytes(width, "big") + data[at + width :]
            handle(tmp_path / "hostile", hostile, opened_image)
            failure = handle(tmp_path / "hostile", hostile, opened_image, write=True)
            assert failure is None or str(failure), (name, number)


@pytest.mark.parametrize("name", ["plain", "v2", "extended", "lazy", "zlib", "zstd"])
def test_no_table_entry_does_harm(
    name: str, tmp_path: Path, seed_images: dict[str, bytes], opened_image: Callable
) -> None:
    data = seed_images[name]
    chance = random.Random(11)
    places = [at for at in range(4096, len(data), 8) if any(data[at : at + 8])]
    for _ in range(120):
        hostile = bytearray(data)
        for _ in range(chance.choice((1, 1, 2, 5))):
            at = chance.choice(places)
            number = chance.choice(
                (
                    *NUMBERS[8],
                    q.COPIED,
                    q.COPIED | 4096,
                    q.COPIED | (len(data) & ~4095),
                    q.COPIED | 1 << 40,
                    q.COMPRESSED | chance.getrandbits(62),
                    int.from_bytes(data[at : at + 8], "big") ^ (1 << chance.randrange(64)),
                    chance.getrandbits(64),
                )
            )
            hostile[at : at + 8] = number.to_bytes(8, "big")
        if chance.random() < 0.2:
            del hostile[chance.randrange(512, len(hostile)) :]
        handle(tmp_path / "hostile", bytes(hostile), opened_image)
        handle(tmp_path / "hostile", bytes(hostile), opened_image, write=True)


def test_garbage_after_the_magic_does_no_harm(tmp_path: Path, opened_image: Callable) -> None:
    chance = random.Random(3)
    for version in (1, 1, 2, 3):
        for _ in range(60):
            data = q.PREFIX.pack(q.MAGIC, version) + chance.randbytes(chance.choice((0, 40, 64, 100, 5000)))
            handle(tmp_path / "hostile", data, opened_image)


def l2_of(data: bytes) -> int:
    """Where the first L2 table is."""
    l1 = int.from_bytes(data[40:48], "big")
    return int.from_bytes(data[l1 : l1 + 8], "big") & q.OFFSET_MASK


@pytest.mark.parametrize("victim", ["header", "L1 table", "L2 table", "refcount table", "refcount block"])
def test_guest_data_is_never_written_over_a_table(
    victim: str, tmp_path: Path, qemu: object, opened_image: Callable
) -> None:
    path = qemu.create(tmp_path / "hostile.qcow2", SIZE, "cluster_size=4096")
    qemu.io(path, "write 0 32k")
    data = bytearray(path.read_bytes())
    refcounts = int.from_bytes(data[48:56], "big")
    host = {
        "header": 0,
        "L1 table": int.from_bytes(data[40:48], "big"),
        "L2 table": l2_of(data),
        "refcount table": refcounts,
        "refcount block": int.from_bytes(data[refcounts : refcounts + 8], "big"),
    }[victim]
    at = l2_of(data)
    data[at : at + 8] = (q.COPIED | host).to_bytes(8, "big")
    path.write_bytes(data)
    with opened_image(path) as image:
        for act in (lambda: image.write(0, [memoryview(bytes(512))]), lambda: image.discard(0, 4096)):
            with pytest.raises(CorruptImage):
                act()
        with pytest.raises(CorruptImage):
            image.write(4096, [memoryview(bytes(512))])  # once corrupt, nothing is written at all
        image.read(4096, [memoryview(bytearray(4096))])
    assert path.read_bytes() == data


def test_a_new_cluster_is_never_a_table(tmp_path: Path, qemu: object, opened_image: Callable) -> None:
    path = qemu.create(tmp_path / "hostile.qcow2", SIZE, "cluster_size=4096")
    qemu.io(path, "write 0 32k")
    data = bytearray(path.read_bytes())
    refcounts = int.from_bytes(data[48:56], "big")
    block = int.from_bytes(data[refcounts : refcounts + 8], "big")
    data[block : block + 64] = bytes(64)  # everything claims to be free
    path.write_bytes(data)
    with opened_image(path) as image, pytest.raises(CorruptImage):
        image.write(64 << 10, [memoryview(bytes(512))])
    assert path.read_bytes() == data


def test_a_dirty_image_in_a_huge_sparse_file_costs_little(tmp_path: Path, qemu: object, opened_image: Callable) -> None:
    path = qemu.create(tmp_path / "hostile.qcow2", SIZE, "cluster_size=4096", "lazy_refcounts=on")
    data = bytearray(path.read_bytes())
    l1 = int.from_bytes(data[40:48], "big")
    data[79] |= q.Incompatible.DIRTY
    data[l1 : l1 + 8] = (q.COPIED | 1 << 42).to_bytes(8, "big")
    path.write_bytes(data)
    with path.open("r+b") as file:
        file.truncate((1 << 42) + 8192)
    Counted.reads = 0
    with opened_image(path) as image:
        image.read(0, [memoryview(bytearray(4096))])
    assert Counted.reads < READS
    assert tracemalloc.get_traced_memory()[1] < MEMORY


def test_a_decompression_bomb_gives_one_cluster(tmp_path: Path, seed_images: dict[str, bytes], qemu: object) -> None:
    import zlib

    import zstandard

    from tcmu_qcow.compression import decompress

    bomb = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = bomb.compress(bytes(64 << 20)) + bomb.flush()
    assert decompress(packed, CLUSTER, q.Compression.ZLIB) == bytes(CLUSTER)
    packed = zstandard.compress(bytes(64 << 20))
    tracemalloc.reset_peak()
    assert decompress(packed, CLUSTER, q.Compression.ZSTD) == bytes(CLUSTER)
    assert tracemalloc.get_traced_memory()[1] < MEMORY
    for kind in q.Compression:
        with pytest.raises(ImageError):
            decompress(b"\x12\x34" * 100, CLUSTER, kind)
