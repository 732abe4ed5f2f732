"""Space: holes are told from data, made where the file system can, and written where it can't."""

import errno
import os
import tempfile

import pytest

from tcmu_core.posix import can_punch, discard, extents, fallocate, punch, read_to, reserve, syscalls, write_full, zero

MIB = 1 << 20
PLACES = {"disk": "/var/tmp", "memory": "/dev/shm"}


@pytest.fixture(params=PLACES)
def fd(request):
    with tempfile.TemporaryFile(dir=PLACES[request.param]) as file:
        os.ftruncate(file.fileno(), 4 * MIB)
        yield file.fileno()


def blocks(fd):
    os.fsync(fd)  # delayed allocation counts what is not yet written, too
    return os.fstat(fd).st_blocks * 512


def test_data_and_holes_are_told_in_order_and_all_of_the_range(fd):
    write_full(fd, MIB, [b"x" * 65536])
    assert list(extents(fd, 0, 4 * MIB)) == [
        (0, MIB, False),
        (MIB, 65536, True),
        (MIB + 65536, 3 * MIB - 65536, False),
    ]
    assert list(extents(fd, MIB + 4096, 4096)) == [(MIB + 4096, 4096, True)]
    assert list(extents(fd, 8 * MIB, MIB)) == [(8 * MIB, MIB, False)]


def test_a_file_that_can_not_tell_is_all_data(fd, monkeypatch):
    def lseek(fd, offset, whence):
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "lseek", lseek)
    assert list(extents(fd, 512, MIB)) == [(512, MIB, True)]


@pytest.mark.parametrize("change", [discard, zero], ids=["discard", "zero"])
@pytest.mark.parametrize("able", [True, False])
def test_a_range_reads_as_zeros_afterwards(fd, monkeypatch, change, able):
    write_full(fd, 0, [b"x" * 4 * MIB])
    if not able:
        monkeypatch.setattr(syscalls, "fallocate", unsupported)
    change(fd, 100, 2 * MIB)
    assert read_to(fd, 0, 4 * MIB) == b"x" * 100 + bytes(2 * MIB) + b"x" * (2 * MIB - 100)


def unsupported(fd, mode, offset, length):
    raise OSError(errno.EOPNOTSUPP, "Operation not supported")


def test_what_is_discarded_or_punched_takes_no_space(fd):
    write_full(fd, 0, [b"x" * 4 * MIB])
    full = blocks(fd)
    assert can_punch(fd)
    assert punch(fd, 0, MIB)
    discard(fd, MIB, MIB)
    assert blocks(fd) <= full - 2 * MIB
    assert os.fstat(fd).st_size == 4 * MIB


def test_where_nothing_can_be_punched_that_is_told(fd, monkeypatch):
    monkeypatch.setattr(syscalls, "fallocate", unsupported)
    assert not can_punch(fd)
    assert not punch(fd, 0, MIB)


def test_an_error_is_no_want_of_ability(fd, monkeypatch):
    def broken(fd, mode, offset, length):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(syscalls, "fallocate", broken)
    for change in (punch, discard, zero):
        with pytest.raises(OSError, match="Input/output"):
            change(fd, 0, MIB)


def test_space_that_was_reserved_is_there(fd):
    reserve(fd, 0, MIB)
    assert blocks(fd) >= MIB


def test_fallocate_fails_with_the_errno_of_the_kernel(fd):
    with pytest.raises(OSError, match="Invalid argument") as caught:
        fallocate(fd, 0, -1, 10)
    assert caught.value.errno == errno.EINVAL
