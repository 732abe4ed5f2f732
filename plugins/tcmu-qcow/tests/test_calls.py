"""What reaches the file: one vectored call for a contiguous run, few barriers, tables within a bound."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tcmu_qcow import opening
from tcmu_qcow.files import HostFile

KIB, MIB = 1 << 10, 1 << 20
FAR = MIB + 512 * KIB


class Calls(list):
    """(what, bytes) for each call, in order."""

    def of(self, *kinds: str) -> list:
        return [call for call in self if call[0] in kinds]

    def drain(self) -> None:
        self.clear()


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    seen = Calls()

    class Seen(HostFile):
        def pread(self, length: int, offset: int) -> bytes:
            seen.append(("table read", length))
            return super().pread(length, offset)

        def preadv(self, buffers: list, offset: int) -> None:
            seen.append(("read", sum(map(len, buffers))))
            super().preadv(buffers, offset)

        def preadv_nowait(self, buffers: list, offset: int, length: int) -> bool:
            seen.append(("read at once", length))
            return super().preadv_nowait(buffers, offset, length)

        def pwritev(self, buffers: list, offset: int) -> None:
            seen.append(("write", sum(map(len, buffers))))
            super().pwritev(buffers, offset)

        def flush(self) -> None:
            seen.append(("flush", 0))
            super().flush()

    monkeypatch.setattr(opening, "HostFile", Seen)
    return seen


def buffers(length: int, parts: int = 4) -> list[memoryview]:
    data = memoryview(bytearray(b"x" * length))
    return [data[at : at + length // parts] for at in range(0, length, length // parts)]


@pytest.mark.parametrize("options", [(), ("extended_l2=on",), ("cluster_size=4096",), ("data_file=%d/data.raw",)])
def test_a_contiguous_run_is_one_call(
    tmp_path: Path, qemu: object, opened_image: Callable, calls: Calls, options: tuple[str, ...]
) -> None:
    path = qemu.create(tmp_path / "disk.qcow2", 8 * MIB, *(option.replace("%d", str(tmp_path)) for option in options))
    with opened_image(path) as image:
        image.write(0, buffers(4 * KIB))  # tables are there now
        image.write(MIB, buffers(4 * KIB))
        calls.drain()
        image.write(FAR, buffers(256 * KIB))
        assert calls.of("write", "flush") == [("write", 256 * KIB)]  # new clusters
        calls.drain()
        image.write(FAR, buffers(256 * KIB))
        assert calls == [("write", 256 * KIB)]  # in place
        calls.drain()
        image.read(FAR, buffers(256 * KIB))
        assert calls == [("read", 256 * KIB)]
        calls.drain()
        assert image.read_nowait(FAR + 4 * KIB, buffers(4 * KIB), 4 * KIB)
        assert calls == [("read at once", 4 * KIB)]
        calls.drain()
        image.read(6 * MIB, buffers(256 * KIB))
        assert calls == []  # no clusters: zeros


def test_a_flush_has_one_barrier_more_when_clusters_were_allocated(
    tmp_path: Path, qemu: object, opened_image: Callable, calls: Calls
) -> None:
    path = qemu.create(tmp_path / "disk.qcow2", 8 * MIB)
    with opened_image(path) as image:
        image.write(0, buffers(4 * KIB))
        calls.drain()
        image.flush()
        assert [kind for kind, _ in calls] == ["write", "flush", "write", "write", "flush"]  # refcounts | L2, L1 |
        assert max(length for _, length in calls) <= 4096  # slices, not tables
        calls.drain()
        image.write(8 * KIB, buffers(4 * KIB))
        image.flush()
        assert [kind for kind, _ in calls] == ["write", "flush"]


def test_the_caches_stay_within_their_bound(tmp_path: Path, qemu: object, opened_image: Callable, calls: Calls) -> None:
    path = qemu.create(tmp_path / "disk.qcow2", 8 * MIB, "cluster_size=512")
    with opened_image(path, cache_bytes=16 * 512) as image:
        for round_ in range(2):
            for offset in range(0, 8 * MIB, 32 * KIB):
                image.write(offset, buffers(512))
                assert len(image.meta.l2) <= 16, round_
        image.meta.refcounts.blocks.capacity = 4
        image.discard(0, 8 * MIB)
        image.flush()
    qemu.check(path)


def test_a_table_in_the_cache_is_not_read_again(
    tmp_path: Path, qemu: object, opened_image: Callable, calls: Calls
) -> None:
    path = qemu.create(tmp_path / "disk.qcow2", 8 * MIB)
    qemu.io(path, "write 0 8M")
    with opened_image(path) as image:
        image.read(0, buffers(4 * KIB))
        calls.drain()
        for offset in range(0, 8 * MIB, 64 * KIB):
            image.read(offset, buffers(4 * KIB))
        assert calls.of("table read") == []


def test_a_failed_flush_is_never_followed_by_a_good_one(
    tmp_path: Path, qemu: object, opened_image: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = qemu.create(tmp_path / "disk.qcow2", 8 * MIB)
    real = os.fdatasync
    broken = [True]

    def fdatasync(fd: int) -> None:
        if broken:
            raise OSError(5, "the disk lost it")
        real(fd)

    image = opening.open_image(str(path))
    image.write(0, buffers(4 * KIB))
    monkeypatch.setattr("os.fdatasync", fdatasync)
    with pytest.raises(OSError, match="lost it"):
        image.flush()
    broken.clear()
    for act in (image.flush, image.close):
        with pytest.raises(OSError, match="an earlier flush failed"):
            act()
    with opened_image(path) as image:  # what was in the page cache all the time is found again
        data = bytearray(4 * KIB)
        image.read(0, [memoryview(data)])
        assert data == b"x" * 4 * KIB
    qemu.check(path)


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (1, 0, 2, 3), (0, 1, 3, 2), (3, 2, 1, 0)])
def test_what_is_read_at_once_is_right_wherever_the_clusters_lie(
    tmp_path: Path, qemu: object, opened_image: Callable, calls: Calls, order: tuple[int, ...]
) -> None:
    cluster = 64 * KIB
    content = b"".join(bytes([number + 1]) * cluster for number in range(4))
    with opened_image(qemu.create(tmp_path / "disk.qcow2", 8 * MIB)) as image:
        for number in order:
            image.write(number * cluster, [memoryview(content)[number * cluster : (number + 1) * cluster]])
        calls.drain()
        back = bytearray(len(content) - 1024)
        assert image.read_nowait(512, [memoryview(back)], len(back))
        assert back == content[512:-512]
        if order == (0, 1, 2, 3):
            assert calls == [("read at once", len(back))]
