"""The handler's promises to the core: the conformance kit on every kind of image, and what a device is told."""

from __future__ import annotations

import errno
import functools
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing
from pathlib import Path

import pytest

from tcmu_core import Change, ConfigError, WriteProtected, posix
from tcmu_core.loop import Loop
from tcmu_core.testing import WAYS, OpenDevice, check_handler, open_device
from tcmu_qcow import Handler
from tests.waiting import drop_cache, wait_for

MIB = 1 << 20
KINDS = {
    "default": "create=1;size=8M",
    "512": "create=1;size=8M;cluster_size=512",
    "2M": "create=1;size=8M;cluster_size=2M",
    "extended": "create=1;size=8M;extended_l2=1",
    "v2": "create=1;size=8M;compat=0.10",
    "lazy": "create=1;size=8M;lazy_refcounts=1",
    "preallocated": "create=1;size=8M;preallocation=falloc",
    "small cache": "create=1;size=8M;cluster_size=512;l2_cache=4K",
    "4096-byte blocks": "create=1;size=8M;block_size=4096",
}


QUICK = {"default", "extended", "small cache"}  # the others are tried by `make soak`


@pytest.mark.parametrize(
    "kind", [kind if kind in QUICK else pytest.param(kind, marks=pytest.mark.soak) for kind in KINDS]
)
def test_it_keeps_the_promises(kind: str, sparse_dir: Path, qemu: object) -> None:
    path = sparse_dir / "disk.qcow2"
    make = functools.partial(open_device, Handler, f"{path};{KINDS[kind]}")
    claims = ["own block size"] if "block_size" in KINDS[kind] else []  # the cfgstring's
    ways = WAYS if kind == "default" else ["engine"]  # what kind an image is makes no difference to a way in
    check_handler(make, persistent=True, examples=10, claims=claims, ways=ways)
    qemu.check(path)


def test_it_keeps_the_promises_in_memory_and_on_a_raw_image(tmp_path: Path) -> None:
    path = tmp_path / "disk.raw"
    path.write_bytes(bytes(4 * MIB))
    check_handler(lambda: open_device(Handler, f"{path};format=raw"), persistent=True, examples=10)


def test_it_keeps_the_promises_on_an_overlay(sparse_dir: Path, qemu: object) -> None:
    (sparse_dir / "base.raw").write_bytes(b"b" * 8 * MIB)
    path = sparse_dir / "disk.qcow2"
    check_handler(lambda: open_device(Handler, f"{path};create=1;backing=base.raw"), persistent=True, examples=10)
    qemu.check(path)


def test_the_device_learns_its_geometry(tmp_path: Path, qemu: object) -> None:
    path = qemu.create(tmp_path / "disk.qcow2", 6 * MIB, "cluster_size=8192")
    with open_device(Handler, str(path)) as disk:
        device = disk.device
        assert (device.size, device.block_size, device.physical_block_size) == (6 * MIB, 512, 4096)
        assert (device.discard_granularity, device.thin, device.read_only) == (8192, True, False)


@pytest.mark.parametrize("how", ["ro", "snapshot", "version 1"])
def test_a_read_only_image_is_a_read_only_device(tmp_path: Path, qemu: object, how: str) -> None:
    path = qemu.create(tmp_path / "disk.qcow2", MIB)
    qemu.img("snapshot", "-c", "s", path)
    options = {"ro": ";ro=1", "snapshot": ";snapshot=s", "version 1": ""}[how]
    if how == "version 1":
        path = tmp_path / "disk.qcow"
        qemu.img("create", "-q", "-f", "qcow", path, "1M")
    before = path.read_bytes()
    with open_device(Handler, f"{path}{options}") as disk:
        assert disk.device.read_only
        assert disk.read(0, 4096) == bytes(4096)
        with pytest.raises((OSError, WriteProtected)):
            disk.write(0, bytes(512))
    assert path.read_bytes() == before


def opening(cfgstring: str, size: int | None = None) -> AbstractContextManager[OpenDevice]:
    return open_device(Handler, cfgstring, size=size)


@pytest.mark.parametrize(
    ("options", "size", "says"),
    [
        ("", 2 * MIB, "is a disk of 1048576 bytes"),
        (";size=2M", None, "is a disk of 1048576 bytes"),
        (";size=2M", MIB, "leave it out"),
        (";block_size=4096", None, None),
    ],
)
def test_a_size_that_is_not_the_image_s_is_refused(
    tmp_path: Path, qemu: object, options: str, size: int | None, says: str | None
) -> None:
    path = qemu.create(tmp_path / "disk.qcow2", MIB)
    if says is None:
        with opening(f"{path}{options}", size) as disk:
            assert disk.device.size == MIB
        return
    with pytest.raises(ConfigError, match=says), opening(f"{path}{options}", size):
        pass
    with opening(str(path), MIB):
        pass


def test_a_size_of_odd_blocks_is_explained(tmp_path: Path, qemu: object) -> None:
    path = qemu.create(tmp_path / "disk.qcow2", MIB + 512)
    with pytest.raises(ConfigError, match="qemu-img resize"), opening(f"{path};block_size=4096"):
        pass
    with opening(f"{path};block_size=4096;ro=1") as disk:
        assert disk.device.size == MIB + 4096
        assert disk.read(MIB, 4096) == bytes(4096)


def test_an_image_that_is_missing_is_explained(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="create=1"), opening(f"{tmp_path}/disk.qcow2"):
        pass
    with pytest.raises(ConfigError, match="directory"), opening(str(tmp_path)):
        pass


def test_create_leaves_an_image_that_is_there_as_it_is(tmp_path: Path) -> None:
    config = f"{tmp_path}/disk.qcow2;create=1;size=1M"
    with opening(config) as disk:
        disk.write(0, b"k" * 512)
    with opening(config) as disk:
        assert disk.read(0, 512) == b"k" * 512


def test_the_size_of_a_new_image_may_come_from_the_device(tmp_path: Path, qemu: object) -> None:
    with opening(f"{tmp_path}/disk.qcow2;create=1", 3 * MIB) as disk:
        assert disk.device.size == 3 * MIB
    qemu.same(tmp_path / "disk.qcow2", bytes(3 * MIB))


def test_an_open_device_takes_a_new_size(tmp_path: Path, qemu: object) -> None:
    path = qemu.create(tmp_path / "disk.qcow2", MIB)
    with opening(str(path)) as disk:
        disk.write(0, b"1" * MIB)
        disk.disk.change(Change(size=2 * MIB))
        assert disk.device.size == 2 * MIB
        assert disk.read(0, 2 * MIB) == b"1" * MIB + bytes(MIB)
        with pytest.raises(ConfigError):
            disk.disk.change(Change(size=MIB + 1))
        with pytest.raises(ConfigError):
            disk.disk.change(Change(cfgstring="/other"))
        disk.disk.change(Change(write_cache=False))
        assert not disk.device.write_cache
    qemu.same(path, b"1" * MIB + bytes(MIB))
    qemu.check(path)


def test_the_file_may_be_full(
    qemu: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opened_image: Callable
) -> None:
    import errno

    from tcmu_qcow import opening as module
    from tcmu_qcow.files import HostFile

    class Full(HostFile):
        limit = 1 << 60

        class NoSpace(OSError):
            pass

        def pwritev(self, buffers: object, offset: int) -> None:
            if offset + sum(map(len, buffers)) > Full.limit:
                raise Full.NoSpace(errno.ENOSPC, "full")
            super().pwritev(buffers, offset)

    monkeypatch.setattr(module, "HostFile", Full)
    path = qemu.create(tmp_path / "disk.qcow2", 4 * MIB, "cluster_size=4096")
    model = bytearray(4 * MIB)
    chance = random.Random(2)
    with opened_image(path) as image:
        Full.limit = 900 << 10
        refused = 0
        for number in range(400):
            offset = chance.randrange(1000) * 4096
            data = bytes([number % 255 + 1]) * 4096
            try:
                image.write(offset, [memoryview(data)])
            except Full.NoSpace:
                refused += 1
            else:
                model[offset : offset + 4096] = data
            if number % 50 == 0:
                image.flush()
        assert refused > 50
        Full.limit = 1 << 60
    qemu.check(path)
    qemu.same(path, model)


def test_many_threads_at_once_keep_their_data_apart(sparse_dir: Path, qemu: object, opened_image: Callable) -> None:
    path = qemu.create(sparse_dir / "disk.qcow2", 8 * MIB, "cluster_size=4096")
    lanes, span = 8, MIB

    def lane(image: object, number: int) -> bytes:
        chance, model = random.Random(number), bytearray(span)
        for step in range(250):
            offset = chance.randrange(span // 512) * 512
            length = min(chance.randrange(1, 40) * 512, span - offset)
            what = chance.choice(("write", "write", "write", "read", "discard", "write_zeroes", "flush"))
            if what == "write":
                data = chance.randbytes(length)
                if step % 2 or not image.write_nowait(number * span + offset, [memoryview(data)], length):
                    image.write(number * span + offset, [memoryview(data)])
                model[offset : offset + length] = data
            elif what == "read":
                data = bytearray(length)
                image.read(number * span + offset, [memoryview(data)])
                assert data == model[offset : offset + length]
            elif what == "flush":
                image.flush()
            else:
                getattr(image, what)(number * span + offset, length)
                model[offset : offset + length] = bytes(length)
        return bytes(model)

    with opened_image(path, cache_bytes=8192) as image, ThreadPoolExecutor(lanes) as pool:
        models = list(pool.map(lane, [image] * lanes, range(lanes)))
    qemu.check(path)
    qemu.same(path, b"".join(models))


def test_a_new_image_that_is_no_disk_is_not_left_behind(tmp_path: Path) -> None:
    path = tmp_path / "new.qcow2"
    with pytest.raises(ConfigError, match="not whole blocks"), opening(f"{path};create=1;size=1000"):
        pass
    assert not path.exists()


@pytest.mark.parametrize("failing", ["disk.qcow2", "data"])
def test_once_a_flush_has_failed_each_later_one_fails_until_the_image_is_opened_anew(
    qemu: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, failing: str
) -> None:
    path = qemu.create(tmp_path / "disk.qcow2", 4 * MIB, f"data_file={tmp_path}/data")
    real, broken = os.fdatasync, [OSError(errno.EIO, "Input/output error")]

    def fdatasync(fd: int) -> None:
        if broken and os.path.samestat(os.fstat(fd), (tmp_path / failing).stat()):
            raise broken.pop()  # the kernel tells it once
        real(fd)

    def flush_thrice() -> None:
        with opening(str(path)) as disk:
            disk.write(0, b"x" * 4096)
            monkeypatch.setattr(os, "fdatasync", fdatasync)
            for _ in range(3):
                with pytest.raises(OSError, match=r"Input/output error|an earlier flush failed"):
                    disk.flush()
            disk.read(0, 4096)

    with pytest.raises(OSError, match="an earlier flush failed"):  # close flushes too
        flush_thrice()
    assert sum("a flush failed" in message for message in caplog.messages) == 1
    assert str(tmp_path / failing) in caplog.text
    with opening(str(path)) as disk:
        disk.flush()


def test_what_happens_to_a_layer_that_is_served_is_mentioned(
    qemu: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("tcmu_core.posix.watch.INTERVAL", 0.01)
    base = tmp_path / "base.raw"
    base.write_bytes(bytes(MIB))
    path = qemu.create(tmp_path / "disk.qcow2", MIB, backing=base)
    with opening(str(path)) as disk:
        disk.write(0, b"x" * MIB)
        disk.discard(0, MIB)
        disk.flush()  # what the handler cuts off itself is its own business
        os.truncate(base, 4096)
        base.unlink()
        until = time.monotonic() + 60
        while len(caplog.messages) < 2:
            assert time.monotonic() < until
            time.sleep(0.01)
    assert f"{base} was truncated while it is served" in caplog.text
    assert f"{base} was deleted or moved while it is served" in caplog.text
    assert str(path) not in caplog.text


@pytest.fixture
def disk_path() -> Iterator[Path]:
    """Where an image lies on a disk: what is in memory never waits."""
    with tempfile.TemporaryDirectory(prefix="tcmu-test-", dir="/var/tmp") as name:
        yield Path(name) / "disk.qcow2"


@pytest.fixture
def loop() -> Iterator[Loop]:
    with closing(Loop()) as loop:
        yield loop


@pytest.mark.parametrize("kind", ["default", "extended", pytest.param("small cache", marks=pytest.mark.soak)])
def test_it_keeps_the_promises_on_a_loop(kind: str, disk_path: Path, qemu: object, loop: Loop) -> None:
    check_handler(
        lambda: open_device(Handler, f"{disk_path};{KINDS[kind]}", reactor=loop),
        persistent=True,
        examples=10,
        ways=WAYS if kind == "default" else ["engine"],
    )
    qemu.check(disk_path)


@pytest.mark.uring
def test_mapped_clusters_that_are_not_cached_are_read_and_written_without_a_thread(
    disk_path: Path, qemu: object, loop: Loop
) -> None:
    qemu.create(disk_path, 4 * MIB)
    qemu.io(disk_path, "write -P 7 0 4M")
    with open_device(Handler, str(disk_path), reactor=loop) as disk:
        disk.write(MIB, b"x" * 65536)  # the tables are in memory from now on
        disk.flush()
        pool = disk.device._threads._pool
        threads = len(pool._threads) if pool is not None else 0
        room = bytearray(131072)

        def uncached(hook: Callable[..., object], offset: int, buffer: bytearray) -> None:
            """Carry out a command on what is not cached; again, where the kernel kept it and nobody had to wait."""

            def begin() -> object:
                with open(disk_path, "rb") as file:
                    drop_cache(file.fileno())
                return hook(offset, [memoryview(buffer)])

            pending = wait_for(begin)
            assert isinstance(pending, posix.Completion)
            disk.finish(pending)

        uncached(disk.operations.read, 2 * MIB, room)
        assert room == b"\x07" * 131072
        uncached(disk.operations.write, 3 * MIB + 100 * 512, bytearray(b"y" * 512))
        pool = disk.device._threads._pool
        assert threads == (len(pool._threads) if pool is not None else 0)
        disk.flush()
    content = bytearray(b"\x07" * 4 * MIB)
    content[MIB : MIB + 65536] = b"x" * 65536
    content[3 * MIB + 51200 : 3 * MIB + 51712] = b"y" * 512
    qemu.same(disk_path, content)


def test_extents_and_a_resize_wait_for_nobody_who_waits_for_a_read(disk_path: Path, qemu: object, loop: Loop) -> None:
    qemu.create(disk_path, 4 * MIB)
    qemu.io(disk_path, "write -P 7 0 4M")
    with open_device(Handler, str(disk_path), reactor=loop) as disk:
        disk.write(0, b"x" * 512)
        disk.flush()
        for step in range(10):
            with open(disk_path, "rb") as file:
                drop_cache(file.fileno())
            disk.discard(step * 65536, 65536)
            reads = [disk.operations.read(MIB + n * 4096, [memoryview(bytearray(4096))]) for n in range(64)]
            flush = disk.operations.flush()  # frees what was discarded
            assert disk.extents(0, 4 * MIB)
            if step == 5:
                disk.reconfigure(size=8 * MIB)
            for pending in [*reads, flush]:
                disk.finish(pending)
    qemu.check(disk_path)


def test_a_cluster_that_is_read_is_not_given_to_others_meanwhile(disk_path: Path, qemu: object, loop: Loop) -> None:
    qemu.create(disk_path, 4 * MIB)
    qemu.io(disk_path, "write -P 7 0 4M")
    with open_device(Handler, str(disk_path), reactor=loop) as disk:
        image = disk.operations
        disk.write(0, b"x" * 512)
        disk.flush()
        for round_ in range(20):
            with open(disk_path, "rb") as file:
                drop_cache(file.fileno())
            rooms = [bytearray(65536) for _ in range(8)]
            reads = [image.read(MIB + n * 65536, [memoryview(room)]) for n, room in enumerate(rooms)]
            discarded = image.discard(2 * MIB, 65536) if round_ == 10 else None
            for pending in [*reads, discarded]:
                disk.finish(pending)
            assert all(room == b"\x07" * 65536 for room in rooms)
    qemu.check(disk_path)
