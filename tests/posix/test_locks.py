"""Locks: who may use a file beside whom, whoever looks, QEMU included."""

import errno
import fcntl
import os
import subprocess
import tempfile
from contextlib import contextmanager

import pytest

from tcmu_core.posix import InUse, lock, unlock, users


@pytest.fixture
def path():
    with tempfile.NamedTemporaryFile(dir="/var/tmp") as file:
        file.truncate(1 << 20)
        yield file.name


@contextmanager
def locked(path, *, write):
    fd = os.open(path, os.O_RDWR if write else os.O_RDONLY)
    try:
        assert lock(fd, write=write)
        yield fd
    finally:
        os.close(fd)


@pytest.mark.parametrize(
    ("first", "second", "together"),
    [("r", "r", True), ("r", "w", False), ("w", "r", False), ("w", "w", False)],
)
def test_readers_share_and_a_writer_is_alone(path, first, second, together):
    with locked(path, write=first == "w"):
        if together:
            with locked(path, write=second == "w"):
                pass
        else:
            with pytest.raises(InUse, match="another program"), locked(path, write=second == "w"):
                pass
    with locked(path, write=second == "w"):
        pass


def test_what_was_let_go_of_is_free_while_the_file_is_open(path):
    with locked(path, write=True) as fd:
        unlock(fd)
        with locked(path, write=True), pytest.raises(InUse):
            lock(fd, write=False)
        assert lock(fd, write=True)


def test_qemu_sees_them(path):
    write = ["qemu-io", "-f", "raw", "-c", "write 0 512", path]
    for writing in (True, False):
        with locked(path, write=writing):
            refused = subprocess.run(write, capture_output=True, text=True, check=False)
            assert "Is another process using the image" in refused.stderr
    subprocess.run(write, check=True, capture_output=True)


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL])
def test_a_file_system_without_locks_is_used_without(path, monkeypatch, code):
    def refuse(*arguments):
        raise OSError(code, os.strerror(code))

    fd = os.open(path, os.O_RDWR)
    try:
        monkeypatch.setattr(fcntl, "fcntl", refuse)
        assert not lock(fd, write=True)
        unlock(fd)
    finally:
        os.close(fd)


def test_an_error_is_no_want_of_locks(path, monkeypatch):
    def fail(*arguments):
        raise OSError(errno.EIO, "Input/output error")

    fd = os.open(path, os.O_RDWR)
    try:
        monkeypatch.setattr(fcntl, "fcntl", fail)
        with pytest.raises(OSError, match="Input/output"):
            lock(fd, write=True)
    finally:
        os.close(fd)


def test_who_has_a_file_open_is_told_by_process_and_name(path):
    with locked(path, write=False):
        assert f"process {os.getpid()} (" in users(path)
        assert users("/var/tmp/missing") == ""


def test_so_it_is_when_its_descriptor_comes_behind_the_one_that_lists_them(tmp_path):
    path = tmp_path / "disk"
    path.touch()
    low = os.open(path, os.O_RDONLY)
    high = fcntl.fcntl(low, fcntl.F_DUPFD, 500)
    os.close(low)
    try:
        assert f"process {os.getpid()} (" in users(str(path))
    finally:
        os.close(high)
