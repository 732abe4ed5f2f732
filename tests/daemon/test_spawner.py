"""What the supervisor sees of a host process."""

from __future__ import annotations

import contextlib
import mmap
import os
import socket
import subprocess
from contextlib import closing
from pathlib import Path

import pytest

from tcmu_core import channel
from tcmu_core.daemon.spawner import Process, Spawner
from tcmu_core.loop import Loop

MIB = 1 << 20


def _worker(pid: int) -> Process:
    worker = Process(lambda _message: None, lambda _reason: None)
    worker.pid = pid
    return worker


def test_the_memory_that_a_host_touched_for_itself_is_counted() -> None:
    worker = _worker(os.getpid())
    before = worker.memory
    assert before > 0
    with mmap.mmap(-1, 32 * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        assert worker.memory < before + 16 * MIB
        memory.write(b"x" * (32 * MIB))
        assert worker.memory >= before + 24 * MIB


def test_a_host_that_has_ended_takes_no_memory() -> None:
    process = subprocess.Popen(["true"])
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert _worker(process.pid).memory == 0
    process.wait()
    assert _worker(process.pid).memory == 0


def test_a_host_that_takes_no_connection_is_told_of_and_its_socket_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(channel, "CONNECT_SECONDS", 0.1)
    monkeypatch.setattr(Spawner, "start", lambda self: None)  # it needs no zygote
    path = tmp_path / "host.sock"
    taken: list[socket.socket] = []
    with closing(Loop()) as loop, socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
        listening.bind(str(path))
        listening.listen(1)
        with contextlib.suppress(TimeoutError):
            while len(taken) < 10:
                taken.append(channel.connect(path)[0])
        found = Spawner(loop, tmp_path).adopt(path, lambda _message: None, lambda _reason: None)
        assert (found, path.exists()) == (None, True)
        assert "the process that listens there hangs" in caplog.text
    for one in taken:
        one.close()
