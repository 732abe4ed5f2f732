"""Stable storage: what failed once is never said to be good again."""

import errno
import os
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor

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


@pytest.mark.parametrize("fails", [False, True])
def test_those_that_come_while_a_flush_runs_share_the_next_one(fd, monkeypatch, fails):
    running, go_on = threading.Event(), threading.Event()
    calls = []

    def fdatasync(fd):
        calls.append(fd)
        if len(calls) == 1:
            running.set()
            go_on.wait(60)
        elif fails:
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fdatasync", fdatasync)
    stable = Stable(fd, "/disk")
    with ThreadPoolExecutor(6) as pool:
        first = pool.submit(stable.flush)
        assert running.wait(60)
        rest = [pool.submit(stable.flush) for _ in range(5)]
        while stable._turns._waiters is None or len(stable._turns._waiters) < 5:
            time.sleep(0.001)
        go_on.set()
        first.result(60)
        for future in rest:
            error = future.exception(60)
            assert (error is not None) == fails
    assert len(calls) == 2
