"""Stable storage: what failed once is never said to be good again."""

import errno
import os
import tempfile
import threading

import pytest

from tcmu_core.posix import Stable


@pytest.fixture
def fd():
    with tempfile.TemporaryFile(dir="/var/tmp") as file:
        yield file.fileno()


def test_a_flush_reaches_the_disk(fd, monkeypatch):
    flushed = []
    monkeypatch.setattr(os, "fdatasync", flushed.append)
    Stable(fd, "/disk").flush()
    assert flushed == [fd]


def test_once_a_flush_has_failed_each_later_one_fails_without_asking_and_the_log_says_it_once(fd, monkeypatch, caplog):
    answers = [OSError(errno.ENOSPC, "No space left on device"), None, None]

    def fdatasync(fd):
        answer = answers.pop(0)
        if answer is not None:
            raise answer

    monkeypatch.setattr(os, "fdatasync", fdatasync)
    stable = Stable(fd, "/srv/disk")
    with pytest.raises(OSError, match="No space") as caught:
        stable.flush()
    assert caught.value.errno == errno.ENOSPC
    for _ in range(2):
        with pytest.raises(OSError, match=r"/srv/disk: an earlier flush failed: .*No space") as caught:
            stable.flush()
        assert caught.value.errno == errno.EIO
    assert len(answers) == 2
    assert caplog.text.count("a flush failed") == 1
    assert "/srv/disk" in caplog.text


def test_a_flush_beside_one_that_fails_does_not_say_good(fd, monkeypatch):
    """The kernel may tell the failure to one of the two alone."""
    began, failed = threading.Event(), threading.Event()

    def fdatasync(fd):
        if threading.current_thread() is threading.main_thread():
            began.wait(60)
            raise OSError(errno.EIO, "Input/output error")
        began.set()
        failed.wait(60)

    monkeypatch.setattr(os, "fdatasync", fdatasync)
    stable = Stable(fd, "/disk")
    results = []

    def other():
        try:
            stable.flush()
        except OSError as error:
            results.append(error.errno)
        else:
            results.append(0)

    thread = threading.Thread(target=other)
    thread.start()
    with pytest.raises(OSError, match="Input/output"):
        stable.flush()
    failed.set()
    thread.join(60)
    assert results == [errno.EIO]
