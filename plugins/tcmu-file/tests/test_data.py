import errno
import os
import resource
import subprocess
from concurrent.futures import Future

import pytest

from tcmu_core.posix import syscalls, transfer
from tcmu_core.testing import open_device
from tcmu_file import FileHandler, handler

from .conftest import ROOT

MIB = 1 << 20


def opened(cfgstring, size=None):
    return open_device(FileHandler, str(cfgstring), size=size)


def room(length=4096):
    return [memoryview(bytearray(length))]


# -- at once, or on a thread ---------------------------------------------------------------------------------------


def test_what_the_page_cache_holds_is_read_at_once(disk_dir):
    with opened(disk_dir / "disk", MIB) as disk:
        disk.write(0, b"c" * 65536)
        buffers = room()
        assert disk.operations.read(4096, buffers) is None
        assert buffers[0] == b"c" * 4096


@pytest.fixture
def cold_cache(monkeypatch):
    """A page cache that holds nothing, as far as a reader that does not wait can see."""
    preadv = os.preadv

    def cold(fd, buffers, offset, flags=0):
        if flags & os.RWF_NOWAIT:
            raise BlockingIOError(errno.EAGAIN, "not in the page cache")
        return preadv(fd, buffers, offset, flags)

    monkeypatch.setattr(os, "preadv", cold)


def test_what_it_does_not_hold_is_read_on_a_thread(disk_dir, cold_cache):
    with opened(disk_dir / "disk", MIB) as disk:
        disk.write(4096, b"d" * 4096)
        buffers = room()
        pending = disk.operations.read(4096, buffers)
        assert isinstance(pending, Future)
        assert pending.result() is None
        assert buffers[0] == b"d" * 4096


def test_a_read_that_is_cached_in_part_is_completed_on_a_thread(disk_dir, monkeypatch):
    preadv = os.preadv
    data = os.urandom(65536)
    with opened(disk_dir / "disk", MIB) as disk:
        disk.write(0, data)
        monkeypatch.setattr(
            os, "preadv", lambda fd, views, offset, flags=0: preadv(fd, [views[0][:5000]] if flags else views, offset)
        )
        assert isinstance(disk.operations.read(0, room(65536)), Future)
        assert disk.read(0, 65536) == data
        assert disk.read(0, 65536, [6000, 1, 4096]) == data


@pytest.fixture
def steady(monkeypatch):
    """A clock that stands still: a busy machine shall not look like a write that was held back."""
    monkeypatch.setattr(handler, "monotonic", lambda: 100.0)


def test_whole_pages_are_written_at_once(disk_dir, steady):
    with opened(disk_dir / "disk", MIB) as disk:
        disk.write(0, b"1" * 4096)  # finds out what the file system knows
        assert disk.operations.write(8192, room()) is None


def test_part_of_a_page_is_written_at_once_if_that_is_cached(disk_dir, steady):
    with opened(disk_dir / "disk", MIB) as disk:
        disk.write(0, b"1" * 4096)
        assert disk.operations.write(512, room(512)) is None


def test_part_of_a_page_that_is_not_cached_is_written_on_a_thread(disk_dir, cold_cache):
    with opened(disk_dir / "disk", MIB) as disk:
        disk.write(0, b"1" * 4096)
        pending = disk.operations.write(512, room(512))
        assert isinstance(pending, Future)
        pending.result()
        assert disk.read(0, 1536) == b"1" * 512 + bytes(512) + b"1" * 512


def test_after_a_write_that_was_held_back_the_next_ones_go_to_the_threads_for_a_while(disk_dir, monkeypatch):
    with opened(disk_dir / "disk", MIB) as disk:
        monkeypatch.setattr(handler, "monotonic", lambda: 99.0)
        disk.write(0, b"1" * 4096)
        times = iter([100.0, 100.5, 101.0, 105.6, 105.6])
        monkeypatch.setattr(handler, "monotonic", lambda: next(times))
        assert disk.operations.write(0, room()) is None  # it took half a second
        pending = disk.operations.write(0, room())  # half a second later
        assert isinstance(pending, Future)
        pending.result()
        assert disk.operations.write(0, room()) is None  # five seconds later


def test_in_memory_nothing_waits(memory_dir):
    with opened(memory_dir / "disk", MIB) as disk:
        backend = disk.operations
        assert backend.read(0, room()) is None
        assert backend.write(512, room(512)) is None
        assert backend.flush() is None
        assert backend.discard(0, 65536) is None
        assert backend.write_zeroes(0, 65536) is None


def test_direct_io_is_never_done_on_the_loop(disk_dir):
    with opened(f"{disk_dir}/disk;direct=1", MIB) as disk:
        for pending in (disk.operations.write(0, room()), disk.operations.read(0, room()), disk.operations.flush()):
            assert isinstance(pending, Future)
            pending.result()


def test_direct_io_bypasses_the_page_cache(disk_dir):
    path = disk_dir / "disk"
    with opened(f"{path};direct=1", MIB) as disk:
        disk.write(0, b"d" * 65536, [1, 511])
        fd = os.open(path, os.O_RDONLY)
        try:
            with pytest.raises(BlockingIOError):
                os.preadv(fd, [bytearray(4096)], 0, os.RWF_NOWAIT)
        finally:
            os.close(fd)
        assert disk.read(0, 65536, [3]) == b"d" * 65536


# -- space ---------------------------------------------------------------------------------------------------------


def blocks(path):
    os.sync()  # delayed allocation counts what is not yet written, too
    return path.stat().st_blocks


def test_discard_gives_space_back(disk_dir):
    path = disk_dir / "disk"
    with opened(path, 4 * MIB) as disk:
        disk.write(0, b"x" * 4 * MIB)
        full = blocks(path)
        disk.discard(MIB, 2 * MIB)
        assert blocks(path) <= full - 2 * MIB // 512
        assert [extent.mapped for extent in disk.extents(0, 4 * MIB)] == [True, False, True]


def test_write_zeroes_keeps_the_space(disk_dir):
    path = disk_dir / "disk"
    with opened(path, 4 * MIB) as disk:
        disk.write(0, b"x" * 4 * MIB)
        disk.write_zeroes(0, 4 * MIB)
        assert blocks(path) >= 4 * MIB // 512
        assert disk.read(MIB, 4096) == bytes(4096)


@pytest.mark.parametrize("hook", ["discard", "write_zeroes"])
def test_where_the_storage_knows_neither_zeros_are_written(disk_dir, monkeypatch, hook):
    def unsupported(fd, mode, offset, length):
        raise OSError(errno.EOPNOTSUPP, "not supported")

    monkeypatch.setattr(syscalls, "fallocate", unsupported)
    monkeypatch.setattr(transfer, "ZEROS", transfer.ZEROS[:4096])
    with opened(disk_dir / "disk", MIB) as disk:
        assert not disk.device.thin
        disk.write(0, b"x" * MIB)
        getattr(disk, hook)(512, 9216)
        assert disk.read(0, 10240) == b"x" * 512 + bytes(9216) + b"x" * 512


def test_a_sparse_file_has_the_extents_that_were_written(disk_dir):
    with opened(disk_dir / "disk", 16 * MIB) as disk:
        assert [(e.offset, e.length, e.mapped) for e in disk.extents(0, 16 * MIB)] == [(0, 16 * MIB, False)]
        disk.write(MIB, b"x" * 65536)
        assert [(e.offset, e.length, e.mapped) for e in disk.extents(0, 16 * MIB)] == [
            (0, MIB, False),
            (MIB, 65536, True),
            (MIB + 65536, 15 * MIB - 65536, False),
        ]


# -- flushes -------------------------------------------------------------------------------------------------------


def test_a_flush_that_failed_fails_until_the_disk_is_opened_anew_and_the_log_says_so(disk_dir, monkeypatch, caplog):
    path = disk_dir / "disk"
    real, broken = os.fdatasync, [OSError(errno.EIO, "Input/output error")]

    def fdatasync(fd):
        if broken and os.path.samestat(os.fstat(fd), path.stat()):
            raise broken.pop()  # the kernel tells it once
        real(fd)

    monkeypatch.setattr(os, "fdatasync", fdatasync)

    def flush_thrice():
        with opened(path, MIB) as disk:
            disk.write(0, b"x" * 4096)
            for _ in range(3):
                with pytest.raises(OSError, match=r"Input/output error|an earlier flush failed") as caught:
                    disk.flush()
                assert caught.value.errno == errno.EIO

    with pytest.raises(OSError, match="an earlier flush failed"):  # close flushes too
        flush_thrice()
    assert sum("a flush failed" in message for message in caplog.messages) == 1
    assert str(path) in caplog.text
    with opened(path) as disk:
        disk.flush()


# -- errors --------------------------------------------------------------------------------------------------------


def test_a_limit_on_the_size_of_files_fails_the_write_with_its_own_errno(disk_dir):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with opened(disk_dir / "disk", MIB) as disk:
        disk.write(0, b"1" * 4096)
        os.truncate(disk_dir / "disk", 4096)
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, hard))
        try:
            with pytest.raises(OSError, match="File too large") as caught:
                disk.write(65536, b"2" * 4096)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert caught.value.errno == errno.EFBIG
        assert disk.read(0, 4096) == b"1" * 4096


if ROOT:

    def test_a_full_file_system_fails_the_write_with_enospc(disk_dir):
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tcmu-test", str(disk_dir)], check=True)
        try:
            with opened(disk_dir / "disk", 4 * MIB) as disk:
                with pytest.raises(OSError, match="No space") as caught:
                    disk.write(0, b"x" * 2 * MIB)
                assert caught.value.errno == errno.ENOSPC
                disk.discard(0, 4 * MIB)
                disk.write(0, b"x" * 4096)
                assert disk.read(0, 4096) == b"x" * 4096
        finally:
            subprocess.run(["umount", str(disk_dir)], check=True)
