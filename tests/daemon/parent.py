"""Supervisors for tests: one with real processes, and one with scripted ones and a clock that the test turns."""

from __future__ import annotations

import contextlib
import heapq
import itertools
import os
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tcmu_core.channel import connect
from tcmu_core.codec import Message
from tcmu_core.config.configuration import Config
from tcmu_core.daemon.spawner import Process, Spawner
from tcmu_core.host.messages import DiskStatus, Job, LogSettings, Opened, Status
from tcmu_core.iscsi.messages import Feed, Link
from tcmu_core.kernel.transport import Record
from tcmu_core.loop import Loop, Timer

PATIENCE = 30.0


def wait_for(loop: Loop, condition: Callable[[], object]) -> None:
    """Run the loop until `condition()` holds."""
    guard = loop.call_later(PATIENCE, loop.stop)

    def look() -> None:
        if condition():
            loop.stop()
        else:
            loop.call_later(0.01, look)

    look()
    loop.run()
    guard.cancel()
    assert condition()


class Parent:
    """Spawns real processes. After `crash` it is the next supervisor."""

    def __init__(self, runtime: Path) -> None:
        self.runtime = runtime
        self.crashes = 0
        self._begin()

    def _begin(self) -> None:
        self.loop = Loop()
        self.spawner = Spawner(self.loop, self.runtime)

    def spawn(self, job: Any, on_message: Any, on_death: Any) -> Process:
        return self.spawner.spawn(job, on_message, on_death)

    def adopt(self, path: Path, on_message: Any, on_death: Any) -> Process | None:
        return self.spawner.adopt(path, on_message, on_death)

    def rendezvous(self, key: str) -> Path:
        return self.spawner.rendezvous(key)

    def until(self, condition: Callable[[], object]) -> None:
        wait_for(self.loop, condition)

    def crash(self) -> None:
        """Go without a word, and come as the next one."""
        spawner = self.spawner
        assert spawner._channel is not None
        assert spawner._zygote is not None
        spawner._channel.close()
        for process in [*spawner._living.values(), *spawner._unborn.values()]:
            spawner._forget(process)
        spawner._zygote.wait(PATIENCE)
        self.loop.close()
        self.crashes += 1
        self._begin()

    def close(self) -> None:
        """End, with whatever a test that failed has left."""
        self.spawner.close()
        self.loop.close()
        for path in self.runtime.glob("*.sock"):
            with contextlib.suppress(OSError):
                sock, pid = connect(path)
                sock.close()
                os.kill(pid, signal.SIGKILL)


class ManualLoop:
    """A loop whose time passes when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.callbacks: dict[int, Callable[[int], object]] = {}
        self._timers: list[tuple[float, int, Timer]] = []
        self._count = itertools.count()

    def clock(self) -> float:
        return self.now

    def post(self, fn: Callable[..., object], *args: Any) -> None:
        self.call_later(0.0, fn, *args)

    def call_later(self, delay: float, fn: Callable[..., object], *args: Any) -> Timer:
        timer = Timer(self.now + delay, fn, args)
        heapq.heappush(self._timers, (timer.when, next(self._count), timer))
        return timer

    def register(self, fd: int, events: int, callback: Callable[[int], object]) -> None:
        self.callbacks[fd] = callback

    def unregister(self, fd: int) -> None:
        self.callbacks.pop(fd, None)

    def advance(self, seconds: float) -> None:
        """Let time pass, and what is due happen when it is due."""
        end = self.now + seconds
        while self._timers and self._timers[0][0] <= end:
            when, _, timer = heapq.heappop(self._timers)
            self.now = max(self.now, when)
            fn, timer.fn = timer.fn, None
            if fn is not None:
                fn(*timer.args)
        self.now = end


class ScriptedProcess:
    """A host process that does what the test says."""

    pids = itertools.count(1000)

    def __init__(self, job: Job, on_message: Callable[[Message], object], on_death: Callable[[str], object]) -> None:
        self.job, self.say, self.die = job, on_message, on_death
        self.pid = next(self.pids)
        self.told: list[Message] = []
        self.killed = False
        self.memory = 20 << 20

    def send(self, message: Message, fds: tuple[int, ...] = ()) -> None:
        if not isinstance(message, Link | Feed | Record | LogSettings):
            self.told.append(message)

    def kill(self) -> None:
        self.killed = True

    def opened(self, job: Job | None = None, size: int = 4096) -> None:
        """Say that it serves."""
        disks = [
            DiskStatus(lun, disk.handler, disk.name, disk.cfgstring, size, 512, False, True, False)
            for lun, disk in self.job.disks.items()
        ]
        self.say(Opened(job or self.job, Status(self.pid, tuple(disks), addresses=("127.0.0.1:3260",))))


class ScriptedParent:
    """A supervisor whose processes are scripted. `left` are those that an earlier one left, by key."""

    def __init__(self) -> None:
        self.loop: Any = ManualLoop()
        self.handlers: dict[str, Any] = {"ram": SimpleNamespace(error="")}
        self.config = Config()
        self.bus = None
        self.processes: list[ScriptedProcess] = []
        self.left: dict[str, Job] = {}

    def spawn(self, job: Job, on_message: Any, on_death: Any) -> Any:
        self.processes.append(ScriptedProcess(job, on_message, on_death))
        return self.processes[-1]

    def adopt(self, path: Path, on_message: Any, on_death: Any) -> Any:
        job = self.left.pop(str(path), None)
        return None if job is None else self.spawn(job, on_message, on_death)

    def rendezvous(self, key: str) -> Path:
        return Path(key)

    def of(self, key: str) -> ScriptedProcess:
        """Return the last process of a key."""
        return next(one for one in reversed(self.processes) if one.job.key == key)
