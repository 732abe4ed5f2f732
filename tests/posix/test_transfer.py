"""Transfers: carried to their end whatever the kernel does, and in the way that direct I/O asks for."""

import errno
import mmap
import os
import tempfile

import pytest

from tcmu_core.posix import (
    IOV_MAX,
    PAGE,
    Alignment,
    direct_alignment,
    in_memory,
    knows_nowait,
    read_available,
    read_cached,
    read_full,
    read_to,
    takes_at_once,
    write_full,
    write_zeroes,
)
from tests.waiting import drop_cache, wait_for

DATA = bytes(range(1, 251)) * 40


@pytest.fixture
def fd():
    # /tmp is in memory on many machines; /var/tmp outlives a reboot, so it is on a disk.
    with tempfile.TemporaryFile(dir="/var/tmp") as file:
        yield file.fileno()


@pytest.fixture
def short(monkeypatch):
    """A kernel that never moves more than 7 bytes at once."""
    preadv, pwritev, pread = os.preadv, os.pwritev, os.pread
    monkeypatch.setattr(os, "preadv", lambda fd, buffers, *rest: preadv(fd, [memoryview(buffers[0])[:7]], *rest))
    monkeypatch.setattr(os, "pwritev", lambda fd, buffers, *rest: pwritev(fd, [memoryview(buffers[0])[:7]], *rest))
    monkeypatch.setattr(os, "pread", lambda fd, length, offset: pread(fd, min(length, 7), offset))


def room(*sizes):
    return [memoryview(bytearray(b"?" * size)) for size in sizes]


def test_short_transfers_are_resumed(fd, short):
    write_full(fd, 5, [DATA[:20], b"", DATA[20:50]])
    buffers = room(9, 0, 30, 11)
    read_full(fd, 5, buffers)
    assert b"".join(buffers) == DATA[:50]
    assert read_to(fd, 5, 50) == DATA[:50]


def test_more_buffers_than_one_call_takes_are_transferred(fd):
    pieces = [DATA[number % 100 : number % 100 + 3] for number in range(IOV_MAX * 2 + 5)]
    write_full(fd, 0, pieces)
    buffers = room(*[3] * len(pieces))
    read_full(fd, 0, buffers)
    assert [bytes(buffer) for buffer in buffers] == pieces


def test_what_lies_behind_the_end_reads_as_zeros_and_can_be_told(fd):
    write_full(fd, 0, [DATA[:10]])
    buffers = room(6, 6)
    read_full(fd, 0, buffers)
    assert b"".join(buffers) == DATA[:10] + bytes(2)
    buffers = room(6, 6)
    assert read_available(fd, 0, buffers) == 10
    assert b"".join(buffers) == DATA[:10] + b"??"
    assert read_to(fd, 8, 100) == DATA[8:10]
    assert read_available(fd, 100, room(6)) == 0


def test_a_device_that_takes_no_more_is_full(fd, monkeypatch):
    monkeypatch.setattr(os, "pwritev", lambda *arguments: 0)
    with pytest.raises(OSError, match="no more data") as caught:
        write_full(fd, 0, [b"x"])
    assert caught.value.errno == errno.ENOSPC


@pytest.mark.parametrize("sizes", [(8192,), (1, 4095, 4096), (4096, 3000, 1096)], ids=str)
def test_direct_io_moves_unaligned_buffers_through_aligned_memory(sizes):
    with tempfile.NamedTemporaryFile(dir="/var/tmp") as file:
        fd = os.open(file.name, os.O_RDWR | os.O_DIRECT)
        try:
            alignment = Alignment(*(direct_alignment(fd) or (PAGE, PAGE)))
            buffers = [memoryview(bytearray(size + 1))[1:] for size in sizes]  # no address is even
            for number, buffer in enumerate(buffers):
                buffer[:] = bytes([number + 1]) * len(buffer)
            write_full(fd, 4096, buffers, alignment)
            again = [memoryview(bytearray(size + 1))[1:] for size in sizes]
            read_full(fd, 4096, again, alignment)
            assert again == buffers
            os.truncate(file.name, 4096 + 5000)
            assert read_available(fd, 4096, again, alignment) == 5000
            read_full(fd, 4096, again, alignment)
            assert b"".join(again) == b"".join(buffers)[:5000] + bytes(3192)
        finally:
            os.close(fd)


def test_memory_fits_direct_io_where_its_addresses_and_lengths_do():
    page = memoryview(mmap.mmap(-1, 8192))
    alignment = Alignment(512, 512)
    assert alignment.fits([page, page[512:1024]])
    assert not alignment.fits([page[1:513]])
    assert not alignment.fits([page[:100]])
    assert not alignment.fits([bytes(512)])


def test_the_page_cache_answers_at_once_or_not_at_all(fd):
    write_full(fd, 0, [DATA])
    buffers = room(len(DATA))
    assert read_cached(fd, 0, buffers) == len(DATA)
    assert b"".join(buffers) == DATA
    wait_for(lambda: drop_cache(fd) or read_cached(fd, 0, room(4096)) == 0)
    assert knows_nowait(fd)


def test_whole_pages_are_taken_at_once_and_parts_of_pages_that_are_cached(fd):
    write_full(fd, 0, [bytes(4 * PAGE)])
    drop_cache(fd)
    assert takes_at_once(fd, PAGE, 2 * PAGE)
    wait_for(lambda: drop_cache(fd) or not takes_at_once(fd, 100, 100))
    read_full(fd, 100, room(1))
    assert takes_at_once(fd, 100, 100)
    assert not takes_at_once(10**6, 100, 100), "no such descriptor"


def test_zeros_are_written_over_what_was_there(fd):
    write_full(fd, 0, [DATA])
    write_zeroes(fd, 10, 5000)
    assert read_to(fd, 0, len(DATA)) == DATA[:10] + bytes(5000) + DATA[5010:]


def test_a_file_system_in_memory_is_told_from_one_on_a_disk(fd):
    assert not in_memory(fd)
    with tempfile.TemporaryFile(dir="/dev/shm") as file:
        assert in_memory(file.fileno())
