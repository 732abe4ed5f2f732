"""The life of one kernel device in the supervisor: opened, served, recovered after a crash, changed, removed."""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

from tcmu_core.channel import Message
from tcmu_core.daemon.spawner import WorkerProcess
from tcmu_core.daemon.watchdog import Watch
from tcmu_core.disk.device import Change
from tcmu_core.kernel.uio import UioName
from tcmu_core.loop import Loop, Timer

log = logging.getLogger("tcmu.runner")

OPEN_SECONDS = 60.0  # for a handler's open, before the kernel's request fails with ETIMEDOUT
CHANGE_SECONDS = 60.0  # for its reconfigure
CLOSE_SECONDS = 20.0  # for its close, before the worker is killed
HOPELESS_SECONDS = 2.0  # for a killed worker to be gone, before we go on without it
STEADY_SECONDS = 60.0  # of service, after which earlier crashes are forgotten
MAX_CRASHES = 8
LONGEST_DELAY = 30.0

Answer = Callable[[int], object]


class State(Enum):
    """What a device is doing."""

    OPENING = "opening"
    SERVING = "serving"
    CLOSING = "closing"
    FAILED = "failed"
    GONE = "gone"


class Parent(Protocol):
    """What a device needs of the supervisor."""

    loop: Loop

    def job(self, device: ManagedDevice, *, adopt: bool, delay: float, park: bool) -> Message:
        """Return the job of a worker for this device."""

    def spawn(
        self, job: Message, on_message: Callable[[Message], object], on_death: Callable[[str], object]
    ) -> WorkerProcess:
        """Start a worker."""

    def forget(self, device: ManagedDevice) -> None:
        """Strike the device off the list."""


@dataclass(eq=False)
class ManagedDevice:
    """One device. `answer` is the kernel's open question, to be called with 0 or a negative errno."""

    parent: Parent
    minor: int
    name: UioName
    answer: Answer | None = None
    adopted: bool = False  # the kernel has it configured: a failed open is tried again
    state: State = State.OPENING
    size: int | None = None
    write_cache: bool | None = None
    reason: str = ""  # why it failed
    commands: int = 0
    worker: WorkerProcess | None = None
    crashes: int = 0
    _since: float = 0.0
    _status: int | None = None  # what the worker said of its failed open
    _changes: dict[int, tuple[Change, Future[tuple[int, str]], Timer]] = field(default_factory=dict)
    _count: int = 0
    _timer: Timer | None = None
    _excess: str = ""  # why the worker is being replaced
    _then: Callable[[], object] | None = None

    def __post_init__(self) -> None:
        self._watch = Watch(self.parent.loop, "its worker", self.title)

    @property
    def title(self) -> str:
        """Return `subtype/name`, as log lines have it."""
        return f"{self.name.subtype}/{self.name.device}"

    # -- opening ----------------------------------------------------------------------------------------------------

    def start(self, *, delay: float = 0.0) -> None:
        """Start a worker that opens the device."""
        self.state = State.OPENING
        self._status = None
        self._spawn(delay=delay)
        self._set_timer(OPEN_SECONDS + delay, self._open_is_late)

    def _spawn(self, *, delay: float = 0.0, park: bool = False) -> None:
        job = self.parent.job(self, adopt=self.adopted, delay=delay, park=park)
        worker: WorkerProcess
        worker = self.parent.spawn(
            job, lambda message: self._message(worker, message), lambda reason: self._died(worker, reason)
        )
        self.worker = worker

    def _open_is_late(self) -> None:
        self._fail(errno.ETIMEDOUT, f"the handler's open did not return within {OPEN_SECONDS:g} s")
        self._kill()

    def _fail(self, code: int, reason: str) -> None:
        self._status, self.reason = code, reason
        log.error("%s can't be opened: %s", self.name.config, reason, extra={"device": self.title})

    # -- what the worker says ---------------------------------------------------------------------------------------

    def _message(self, worker: WorkerProcess, message: Message) -> None:
        if worker is not self.worker:
            return
        if "opened" in message:
            self._learn(message)
            if self.state is not State.OPENING:
                return
            self.state, self.reason, self._since = State.SERVING, "", time.monotonic()
            self._cancel_timer()
            log.info("%s is served by process %d", self.name.config, worker.pid, extra={"device": self.title})
            self._answer(0)
            if self.adopted:
                worker.send({"op": "record"})
            self.adopted = True
            self._watch.begin(worker)
        elif "failed" in message:
            self._fail(message["failed"], message["reason"])
        elif "reconfigured" in message:
            change = self._changes.pop(message["reconfigured"], None)
            self._learn(message)
            if change is not None:
                self._changed(change[0], change[1], change[2], message["errno"], message["reason"])
        elif "pong" in message:
            self._watch.answered()
            self.commands = message["commands"]

    def _learn(self, message: Message) -> None:
        self.size, self.write_cache = message["size"], message["write_cache"]

    def hold_to(self, limit: int) -> None:
        """Replace the worker if it has more than `limit` bytes of memory: it answers what is in flight, then ends."""
        if self.worker is None or self.state is not State.SERVING or self._excess:
            return
        self._excess = self._watch.excess(limit)
        if not self._excess:
            return
        log.error("its worker is replaced: %s", self._excess, extra={"device": self.title})
        self.worker.send({"op": "drain"})
        self._set_timer(CLOSE_SECONDS, self._kill)

    # -- its end ----------------------------------------------------------------------------------------------------

    def _died(self, worker: WorkerProcess, reason: str) -> None:
        if worker is not self.worker:
            return
        self.worker = None
        self._watch.end()
        reason, self._excess = self._excess or reason, ""
        for change, future, timer in list(self._changes.values()):
            self._changed(change, future, timer, errno.EIO, f"the worker ended: {reason}")
        self._changes.clear()
        if self.state is State.CLOSING:
            self._closed()
        elif self.state is State.OPENING and not self.adopted:
            if self._status is None:
                self._fail(errno.EIO, f"the worker ended while it opened the device: {reason}")
            self._cancel_timer()
            self.state = State.GONE
            self._answer(-(self._status or errno.EIO))
            self.parent.forget(self)
        elif self.state in (State.OPENING, State.SERVING):
            self._recover(reason)

    def _recover(self, reason: str) -> None:
        """Start the next worker: the first one at once, later ones after longer and longer waits."""
        self._cancel_timer()
        if self.state is State.SERVING:
            self.reason = reason
            if time.monotonic() - self._since > STEADY_SECONDS:
                self.crashes = 0
        elif self._status is None:
            self.reason = reason
        self.crashes += 1
        where = {"device": self.title}
        if self.crashes > MAX_CRASHES:
            log.critical(
                "given up after %d attempts, the last one: %s; initiators get BUSY; SIGHUP tries again",
                self.crashes,
                self.reason,
                extra=where,
            )
            self.state = State.FAILED
            self._spawn(park=True)
            return
        delay = 0.0 if self.crashes == 1 else min(2.0 ** (self.crashes - 2), LONGEST_DELAY)
        log.error("its worker ended: %s; the next one starts in %g s", self.reason, delay, extra=where)
        self.start(delay=delay)

    def retry(self) -> None:
        """Try again to serve a device that was given up."""
        if self.state is State.FAILED:
            self.crashes = 0
            self._kill()
            self.start()

    # -- changes ----------------------------------------------------------------------------------------------------

    def change(self, change: Change) -> Future[tuple[int, str]]:
        """Have the handler take a change; the future is an errno (0: done) and what to tell the person."""
        future: Future[tuple[int, str]] = Future()
        if self._is_so(change):
            future.set_result((0, ""))
        elif self.state is not State.SERVING or self.worker is None:
            future.set_result((errno.EAGAIN, f"the device is {self.state.value}: {self.reason}"))
        else:
            self._count += 1
            key = self._count
            timer = self.parent.loop.call_later(CHANGE_SECONDS, self._change_is_late, key)
            self._changes[key] = (change, future, timer)
            self.worker.send(
                {
                    "op": "reconfigure",
                    "id": key,
                    "size": change.size,
                    "cfgstring": None if change.cfgstring is None else change.cfgstring.partition("/")[2],
                    "write_cache": change.write_cache,
                }
            )
        return future

    def _is_so(self, change: Change) -> bool:
        """Return whether the device is already as `change` asks: restoreconfig writes every value again."""
        if change.size is not None:
            return change.size == self.size
        if change.cfgstring is not None:
            return change.cfgstring == self.name.config
        return change.write_cache == self.write_cache

    def _change_is_late(self, key: int) -> None:
        found = self._changes.pop(key, None)
        if found is not None:
            self._changed(*found, errno.ETIMEDOUT, f"the handler did not answer within {CHANGE_SECONDS:g} s")

    def _changed(self, change: Change, future: Future[tuple[int, str]], timer: Timer, code: int, reason: str) -> None:
        timer.cancel()
        if not code and change.cfgstring is not None:
            self.name = UioName(self.name.hba, self.name.device, change.cfgstring)
        if code:
            log.error("%s: %s", change, reason, extra={"device": self.title})
        else:
            log.info("%s: done", change, extra={"device": self.title})
        future.set_result((code, reason))

    # -- removal ----------------------------------------------------------------------------------------------------

    def close(self, then: Callable[[], object]) -> None:
        """The kernel removes the device (it is idle): close it, then call `then()`, in bounded time."""
        self._end("close", CLOSE_SECONDS, then)

    def drain(self, seconds: float, then: Callable[[], object]) -> None:
        """Stop serving and leave the device to the next supervisor, then call `then()`, in bounded time."""
        self._end("drain", seconds, then)

    def _end(self, op: str, seconds: float, then: Callable[[], object]) -> None:
        serving = self.state is State.SERVING
        self.state, self._then = State.CLOSING, then
        self._watch.end()
        if self.worker is None:
            self._closed()
            return
        if serving:
            self.worker.send({"op": op})
            self._set_timer(seconds, self._end_is_late, op)
        else:
            self._kill()
            self._set_timer(HOPELESS_SECONDS, self._closed)

    def _end_is_late(self, op: str) -> None:
        log.error("its worker does not end: killed", extra={"device": self.title})
        self._kill()
        if op == "drain":
            self._spawn(park=True)
        self._set_timer(HOPELESS_SECONDS, self._closed)

    def _closed(self) -> None:
        if self.state is State.GONE:
            return
        self._cancel_timer()
        self.state = State.GONE
        self._answer(-errno.EINTR)
        self.parent.forget(self)
        if self._then is not None:
            self._then()

    def _kill(self) -> None:
        if self.worker is not None:
            self.worker.kill()

    def _answer(self, status: int) -> None:
        answer, self.answer = self.answer, None
        if answer is not None:
            answer(status)

    def _set_timer(self, seconds: float, fn: Callable[..., object], *args: object) -> None:
        self._cancel_timer()
        self._timer = self.parent.loop.call_later(seconds, fn, *args)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
