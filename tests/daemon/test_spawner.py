"""What the supervisor sees of a host process."""

from __future__ import annotations

import mmap
import os
import subprocess

from tcmu_core.daemon.spawner import Process

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
