"""What the supervisor is to what it keeps: one that is real but for its log, and a loop whose clock the test turns."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tcmu_core.daemon.spawner import Process, Spawner
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
    """Spawns real processes. `crash` is what happens to hosts when a supervisor is killed."""

    def __init__(self, runtime: Path) -> None:
        self.loop = Loop()
        self.runtime = runtime
        self.spawner = Spawner(self.loop, runtime)

    def spawn(self, job: Any, on_message: Any, on_death: Any) -> Process:
        return self.spawner.spawn(job, on_message, on_death)

    def adopt(self, path: Path, on_message: Any, on_death: Any) -> Process | None:
        return self.spawner.adopt(path, on_message, on_death)

    def rendezvous(self, key: str) -> Path:
        return self.spawner.rendezvous(key)

    def until(self, condition: Callable[[], object]) -> None:
        wait_for(self.loop, condition)

    def crash(self) -> Parent:
        """Go without a word, and return the next one."""
        self.spawner.abandon()
        self.loop.close()
        return Parent(self.runtime)


class ManualLoop:
    """A loop whose time passes when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0
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
