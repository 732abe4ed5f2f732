"""Keeps the portal of `[targets]` running: its door and each target's worker, which crash and change on their own."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Protocol

from tcmu_core import channel
from tcmu_core.channel import Message
from tcmu_core.config.configuration import Config
from tcmu_core.daemon.spawner import WorkerProcess
from tcmu_core.daemon.watchdog import Watch
from tcmu_core.host.jobs import DOOR, jobs, memory_limits
from tcmu_core.loop import Loop, Timer

log = logging.getLogger("tcmu.runner")

MEMORY_SECONDS = 2.0  # between two looks at workers whose memory is limited
STOP_SECONDS = 10.0  # before a worker that does not end is killed
LONGEST_DELAY = 30.0  # before the next worker starts; one that ran as long has not crashed repeatedly


class Parent(Protocol):
    """What the keeper needs of the supervisor."""

    loop: Loop

    def log_settings(self) -> Message:
        """Return the settings of the log."""

    def spawn(
        self, job: Message, on_message: Callable[[Message], object], on_death: Callable[[str], object]
    ) -> WorkerProcess:
        """Start a worker."""


class Kept:
    """A process of the portal that is kept running: started, again after each crash, until it is to end."""

    def __init__(self, keeper: PortalKeeper, key: str, job: Message) -> None:
        self.key = key
        self.job = job
        self.worker: WorkerProcess | None = None
        self.opened: Message | None = None  # what it said when it was ready, while it is
        self.ending = False
        self._keeper = keeper
        self._parent = keeper.parent
        self._title = f"the worker of {key}" if key else "the portal's door"
        self._crashes = 0
        self._started = 0.0
        self._timer: Timer | None = None
        self.watch = Watch(keeper.parent.loop, self._title)
        self._excess = ""  # why it is being replaced

    def start(self) -> None:
        """Start it."""
        self._started = time.monotonic()
        job = {**self.job, "log": self._parent.log_settings()}
        self.worker = self._parent.spawn(job, self._message, self._died)
        self._keeper.started(self)

    def end(self) -> None:
        """Have it end after what is in flight, in bounded time; the keeper hears of it."""
        if self.ending:
            return
        self.ending = True
        self._cancel_timer()
        if self.worker is None:
            self._parent.loop.post(self._keeper.ended, self)
            return
        self.worker.send({"op": "drain"})
        self._timer = self._parent.loop.call_later(STOP_SECONDS, self.worker.kill)

    def hold_to(self, limit: int) -> None:
        """Replace it if it has more than `limit` bytes of memory: it answers what is in flight, then ends."""
        if self.worker is None or self.opened is None or self.ending:
            return
        self._excess = self.watch.excess(limit)
        if not self._excess:
            return
        log.error("%s is replaced: %s", self._title, self._excess)
        self.opened = None
        self.worker.send({"op": "drain"})
        self._timer = self._parent.loop.call_later(STOP_SECONDS, self.worker.kill)

    def _message(self, message: Message) -> None:
        if "pong" in message:
            self.watch.answered()
        elif "opened" in message:
            self.opened = message
            if self.worker is not None:
                self.watch.begin(self.worker)
            if self.key == DOOR:
                log.info("the portal listens at %s", ", ".join(message["addresses"]))
            else:
                log.info("%s is served, LUN %s", self.key, ", ".join(map(str, message["luns"])) or "none")
        elif "failed" in message:
            log.error("%s can't do its work: %s", self._title, message["reason"])

    def _died(self, reason: str) -> None:
        self.worker = self.opened = None
        self._cancel_timer()
        self.watch.end()
        reason, self._excess = self._excess or reason, ""
        if self.ending:
            self._keeper.ended(self)
            return
        if time.monotonic() - self._started > LONGEST_DELAY:
            self._crashes = 0
        delay = min(2.0 ** (self._crashes - 1), LONGEST_DELAY) if self._crashes else 0.0
        self._crashes += 1
        log.error("%s ended: %s; the next one starts in %g s", self._title, reason, delay)
        self._timer = self._parent.loop.call_later(delay, self.start)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class PortalKeeper:
    """The portal's processes, as long as there are targets."""

    def __init__(self, parent: Parent) -> None:
        self.parent = parent
        self.kept: dict[str, Kept] = {}
        self._jobs: dict[str, Message] = {}
        self._limits: dict[str, int] = {}
        self._look: Timer | None = None
        self._then: Callable[[], object] | None = None

    @property
    def addresses(self) -> list[str]:
        """Where the portal listens."""
        door = self.kept.get(DOOR)
        return door.opened["addresses"] if door is not None and door.opened is not None else []

    def configure(self, config: Config) -> None:
        """Serve what `config` asks for from now on. Targets that are in it as before don't notice."""
        self._jobs = jobs(config)
        for key, kept in list(self.kept.items()):
            if self._jobs.get(key) != kept.job:
                kept.end()
        self._start_missing()
        self._limits = memory_limits(config)
        if self._limits and self._look is None:
            self._limit_memory()

    def _limit_memory(self) -> None:
        """Hold workers to their handlers' limits, from outside: one that leaks may well hang, too."""
        self._look = None
        for key, limit in self._limits.items():
            if key in self.kept:
                self.kept[key].hold_to(limit)
        if self._limits:
            self._look = self.parent.loop.call_later(MEMORY_SECONDS, self._limit_memory)

    def stop(self, then: Callable[[], object]) -> None:
        """End all processes, then call `then()`, in bounded time."""
        self._then = then
        self.configure(Config())
        if not self.kept:
            then()

    def send(self, message: Message) -> None:
        """Tell every process something."""
        for kept in self.kept.values():
            if kept.worker is not None:
                kept.worker.send(message)

    def _start_missing(self) -> None:
        # A disk may have moved to another target: no worker starts before the last one has let go of its devices.
        busy = any(kept.ending for kept in self.kept.values() if kept.key != DOOR)
        for key, job in self._jobs.items():
            if key not in self.kept and (key == DOOR or not busy):
                self.kept[key] = Kept(self, key, job)
                self.kept[key].start()

    def started(self, one: Kept) -> None:
        """A process has started: give the door and the worker of each target the ends of a channel between them."""
        door = self.kept.get(DOOR)
        for kept in self.kept.values() if one is door else [one]:
            if kept is door or door is None or door.worker is None or kept.worker is None:
                continue
            ours, theirs = channel.pair()
            with ours, theirs:
                door.worker.send({"op": "way", "target": kept.key}, [ours.fileno()])
                kept.worker.send({"op": "door"}, [theirs.fileno()])

    def ended(self, one: Kept) -> None:
        """A process has ended that was to."""
        del self.kept[one.key]
        self._start_missing()
        if self._then is not None and not self.kept:
            self._then()
