"""The life of one host process in the supervisor: started or adopted, kept running, changed, ended.

Kernel devices and targets live it alike. A process that ends is followed by the next one, at once, then after longer
and longer; after nine ends in a row it is given up: quarantined, with its reason shown, and tried again every so often.
"""

from __future__ import annotations

import dataclasses
import errno
import logging
from collections.abc import Callable
from concurrent.futures import Future
from enum import Enum
from pathlib import Path
from typing import Protocol

from tcmu_core.codec import Message
from tcmu_core.daemon.spawner import Process
from tcmu_core.daemon.watchdog import Watchdog
from tcmu_core.disk.device import Change
from tcmu_core.host.messages import (
    OPENING,
    Changed,
    Close,
    Drain,
    Failed,
    Job,
    Opened,
    Pong,
    Reassign,
    Reconfigure,
    Retry,
    Status,
)
from tcmu_core.loop import Loop, Timer

log = logging.getLogger("tcmu.runner")

ADOPT_SECONDS = 15.0  # for a host that an earlier supervisor left to say what it does, before it is replaced
OPEN_SECONDS = 60.0  # for a handler's open; a kernel's request fails with ETIMEDOUT then
SLOW_SECONDS = 10.0  # of an open, after which that is said
CHANGE_SECONDS = 60.0  # for its reconfigure
CLOSE_SECONDS = 20.0  # for its close, before the process is killed
HOPELESS_SECONDS = 2.0  # for a killed process to be gone, before we go on without it
STEADY_SECONDS = 60.0  # of service, after which earlier crashes are forgotten
MAX_CRASHES = 8  # in a row; one more, and it is given up
LONGEST_DELAY = 30.0
RETRY_SECONDS = 60.0  # between two attempts at what was given up


class State(Enum):
    """What a managed process is doing."""

    STARTING = "starting"
    SERVING = "serving"
    ENDING = "ending"
    QUARANTINED = "quarantined"
    GONE = "gone"


class Source(Protocol):
    """Who wants a process to run: it knows the job, and hears of what comes of it."""

    def job(self, process: ManagedProcess) -> Job:
        """Return the job as it is now; `log`, `takes_over` and `delay` are the process's to set."""

    def parked(self, process: ManagedProcess) -> Job | None:
        """Return the job of a process that makes initiators wait where nobody serves; None where none can."""

    def opened(self, process: ManagedProcess, *, adopted: bool) -> None:
        """It serves."""

    def failed(self, process: ManagedProcess, code: int, reason: str) -> None:
        """It could not begin, and it is not tried again."""

    def gone(self, process: ManagedProcess) -> None:
        """It is over."""


class Parent(Protocol):
    """What a managed process needs of the supervisor."""

    loop: Loop

    def spawn(self, job: Job, on_message: Callable[[Message], object], on_death: Callable[[str], object]) -> Process:
        """Start a process; the log's settings are filled in."""

    def adopt(
        self, path: Path, on_message: Callable[[Message], object], on_death: Callable[[str], object]
    ) -> Process | None:
        """Take over the process that an earlier supervisor left at `path`, if there is one."""

    def rendezvous(self, key: str) -> Path:
        """Return where the process of this key can be found."""


@dataclasses.dataclass(slots=True)
class _Asked:
    change: Change
    answer: Future[tuple[int, str]]
    timer: Timer


class ManagedProcess:
    """One process that is kept running. `device` is what its lines in the log are for, if they are for one.

    Not `tenacious`: an open that fails is not tried again. It is tenacious from the first open that succeeds.
    """

    def __init__(
        self, parent: Parent, source: Source, key: str, title: str, device: str = "", *, tenacious: bool = True
    ) -> None:
        self.parent = parent
        self.source = source
        self.key = key
        self.title = title
        self.device = device
        self.tenacious = tenacious
        self.exists = tenacious  # whether somebody may wait at the way in, or still serve it
        self.state = State.STARTING
        self.status: Status | None = None  # as of its last word
        self.reason = ""  # why it ended last
        self.crashes = 0
        self.process: Process | None = None
        self._job: Job | None = None
        self._adopting = False
        self._since = 0.0  # on the loop's clock
        self._failure: Failed | None = None  # what the process said of its failed open
        self._asked: dict[int, _Asked] = {}
        self._count = 0
        self._timer: Timer | None = None
        self._replaced = ""  # why the process is being replaced
        self._then: list[Callable[[], object]] = []  # to be called when it has ended
        self._watchdog = Watchdog(parent.loop, f"the worker of {title}", device)

    @property
    def extra(self) -> dict[str, str]:
        """Return what the log's lines about it carry."""
        return {"device": self.device} if self.device else {}

    @property
    def serving(self) -> bool:
        """Whether it serves and is to go on."""
        return self.state is State.SERVING and not self._replaced

    @property
    def unserved(self) -> str:
        """Return why it does not serve what it is to; nothing where it does, or is to end."""
        if self.serving or self.state in (State.ENDING, State.GONE):
            return ""
        if self.state is State.QUARANTINED:
            return f"given up: {self.reason}; it is tried again every {RETRY_SECONDS:g} s, and on SIGHUP"
        return self._replaced or self.reason or OPENING

    @property
    def silent(self) -> bool:
        """Whether its host owes an answer."""
        return self._watchdog.silent

    # -- its start ----------------------------------------------------------------------------------------------------

    def start(self, *, delay: float = 0.0, adopt: bool = False) -> None:
        """Start a process; with `adopt` take the one that an earlier supervisor left, if it does what is wanted."""
        self.state = State.STARTING
        self._failure = None
        self._job = job = dataclasses.replace(self._now(), takes_over=self.exists, delay=delay)
        self._adopting = False
        if adopt:
            process = self._follow(lambda heard, died: self.parent.adopt(self.parent.rendezvous(self.key), heard, died))
            if process is not None:
                self._adopting = True
                self._set_timer(ADOPT_SECONDS, self._adoption_is_late)
                return
        self._spawn(job)
        self._set_timer(SLOW_SECONDS + delay, self._open_is_slow)

    def _now(self) -> Job:
        return dataclasses.replace(self.source.job(self), rendezvous=str(self.parent.rendezvous(self.key)))

    def _spawn(self, job: Job) -> None:
        self._follow(lambda heard, died: self.parent.spawn(job, heard, died))

    def _follow(
        self,
        make: Callable[[Callable[[Message], object], Callable[[str], object]], Process | None],
    ) -> Process | None:
        """Have a process made whose word counts as long as no other has taken its place."""
        made: Process | None
        made = make(
            lambda message: self._message(made, message),
            lambda reason: self._died(made, reason),
        )
        self.process = made
        return made

    def _adoption_is_late(self) -> None:
        log.error("the worker of %s that an earlier supervisor left does not answer: it is replaced", self.title,
                  extra=self.extra)  # fmt: skip
        self._kill()

    def _open_is_slow(self) -> None:
        left = OPEN_SECONDS - SLOW_SECONDS
        log.warning("%s is still being opened after %g s: its handler's open is ended in %g s", self.title,
                    SLOW_SECONDS, left, extra=self.extra)  # fmt: skip
        self._set_timer(left, self._open_is_late)

    def _open_is_late(self) -> None:
        self._failure = Failed(errno.ETIMEDOUT, f"the handler's open did not return within {OPEN_SECONDS:g} s")
        self._kill()

    # -- what the process says ----------------------------------------------------------------------------------------

    def _message(self, process: Process | None, message: Message) -> None:
        if process is None or process is not self.process:
            return
        match message:
            case Opened():
                self._opened(process, message)
            case Failed():
                self._failure = message
            case Changed():
                asked = self._asked.pop(message.id, None)
                if message.disk is not None and self.status is not None:
                    disks = tuple(message.disk if one.lun == message.disk.lun else one for one in self.status.disks)
                    self.status = dataclasses.replace(self.status, disks=disks)
                if asked is not None:
                    self._answer(asked, message.errno, message.reason)
            case Pong():
                self._watchdog.answered()
                if self.status is not None:
                    self.status = dataclasses.replace(
                        self.status, commands=message.commands, in_flight=message.in_flight
                    )
            case Status():
                self.status = message

    def _opened(self, process: Process, message: Opened) -> None:
        if self.state is State.SERVING:  # it does another job now
            self.status = message.status
            self.source.opened(self, adopted=False)
            return
        if self.state is not State.STARTING:
            return
        self._cancel_timer()
        adopted, self._adopting = self._adopting, False
        differs = adopted and not _same(message.job, self._job)
        if differs and self._job is not None and message.job.version != self._job.version:
            log.info("%s is to be served anew: its worker is of version %s", self.title, message.job.version,
                     extra=self.extra)  # fmt: skip
            self.state = State.SERVING
            self.replace("it is of another version")
            return
        self.status = message.status
        self.state, self.reason, self._since = State.SERVING, "", self.parent.loop.clock()
        log.info("%s is %s process %d", self.title, "served on by" if adopted else "served by", process.pid,
                 extra=self.extra)  # fmt: skip
        if differs and self._job is not None:
            self.send(Reassign(self._job))
        self.source.opened(self, adopted=adopted)
        self.tenacious = self.exists = True
        self._watchdog.begin(process)

    def send(self, message: Message, fds: tuple[int, ...] = ()) -> None:
        """Tell the process something, if there is one."""
        if self.process is not None:
            self.process.send(message, fds)

    # -- its end ------------------------------------------------------------------------------------------------------

    def hold_to(self, limit: int) -> None:
        """Replace the process if it has more than `limit` bytes of memory."""
        if self.serving:
            excess = self._watchdog.excess(limit)
            if excess:
                log.error("the worker of %s is replaced: %s", self.title, excess, extra=self.extra)
                self.replace(excess)

    def replace(self, reason: str) -> None:
        """Have the process answer what is in flight and end; the next one follows at once."""
        if self.serving:
            self._replaced = reason
            self.send(Drain())
            self._set_timer(CLOSE_SECONDS, self._kill)

    def reassign(self) -> None:
        """Have the process do its job as it is now, without ending what does not change."""
        self._job = job = self._now()
        if self.serving:
            self.send(Reassign(job))
        elif self.state is State.STARTING and not self._adopting:
            self.send(Reassign(job))  # it hears of it when it has opened
        elif self.state is State.QUARANTINED:
            self.retry()

    def _died(self, process: Process | None, reason: str) -> None:
        if process is None or process is not self.process:
            return
        self.process = None
        self._watchdog.end()
        self._cancel_timer()
        reason, self._replaced = self._replaced or reason, ""
        for asked in list(self._asked.values()):
            self._answer(asked, errno.EIO, f"the worker ended: {reason}")
        self._asked.clear()
        if self._failure is not None:
            reason = self._failure.reason
        match self.state:
            case State.ENDING:
                self._ended()
            case State.STARTING if not self.tenacious:
                self.state, self.reason = State.GONE, reason
                code = self._failure.errno if self._failure is not None else errno.EIO
                log.error("%s can't be served: %s", self.title, reason, extra=self.extra)
                self.source.failed(self, code, reason)
                self.source.gone(self)
            case State.STARTING | State.SERVING:
                self._recover(reason)

    def _recover(self, reason: str) -> None:
        if self.state is State.SERVING and self.parent.loop.clock() - self._since > STEADY_SECONDS:
            self.crashes = 0
        self.reason = reason
        self.crashes += 1
        if self.crashes > MAX_CRASHES:
            log.critical(
                "%s is given up after %d attempts, the last one: %s; it is tried again every %g s, and on SIGHUP",
                self.title,
                self.crashes,
                self.reason,
                RETRY_SECONDS,
                extra=self.extra,
            )
            self._quarantine()
            return
        delay = 0.0 if self.crashes == 1 else min(2.0 ** (self.crashes - 2), LONGEST_DELAY)
        log.error(
            "the worker of %s ended: %s; the next one starts in %g s", self.title, reason, delay, extra=self.extra
        )
        self.start(delay=delay)

    def _quarantine(self) -> None:
        self.state = State.QUARANTINED
        self._park()
        self._set_timer(RETRY_SECONDS, self._retry)

    def _park(self) -> None:
        job = self.source.parked(self)
        if job is not None:
            self._spawn(job)

    def _retry(self) -> None:
        """Try once more; where that fails, it is given up again at once."""
        self.crashes = MAX_CRASHES
        self._kill()
        self.start()

    def retry(self) -> None:
        """Try again now what was given up, and disks that are missing."""
        if self.state is State.QUARANTINED:
            self.crashes = 0
            self._kill()
            self.start()
        elif self.serving:
            self.send(Retry())

    # -- changes ------------------------------------------------------------------------------------------------------

    def change(self, change: Change, lun: int = 0) -> Future[tuple[int, str]]:
        """Have a disk take a change; the future is an errno (0: done) and what to tell the person."""
        future: Future[tuple[int, str]] = Future()
        if not self.serving:
            future.set_result((errno.EAGAIN, f"{self.title} is {self.state.value}: {self.reason}"))
            return future
        self._count += 1
        key = self._count
        timer = self.parent.loop.call_later(CHANGE_SECONDS, self._change_is_late, key)
        self._asked[key] = _Asked(change, future, timer)
        self.send(Reconfigure(change, lun, key))
        return future

    def _change_is_late(self, key: int) -> None:
        asked = self._asked.pop(key, None)
        if asked is not None:
            self._answer(asked, errno.ETIMEDOUT, f"the handler did not answer within {CHANGE_SECONDS:g} s")

    def _answer(self, asked: _Asked, code: int, reason: str) -> None:
        asked.timer.cancel()
        if code:
            log.error("%s: %s", asked.change, reason, extra=self.extra)
        else:
            log.info("%s: done", asked.change, extra=self.extra)
        asked.answer.set_result((code, reason))

    # -- when it is not wanted any more -------------------------------------------------------------------------------

    def close(self, then: Callable[[], object]) -> None:
        """Nobody uses the way in any more: end the process, then call `then()`, in bounded time."""
        self._end(Close(), CLOSE_SECONDS, then)

    def drain(self, seconds: float, then: Callable[[], object]) -> None:
        """Stop serving, leave the way in to whoever comes next, then call `then()`, in bounded time."""
        self._end(Drain(), seconds, then)

    def _end(self, message: Close | Drain, seconds: float, then: Callable[[], object]) -> None:
        self._then.append(then)
        if self.state is State.ENDING:  # a daemon stops while a device is removed, or the other way round
            return
        serving = self.state is State.SERVING
        self.state = State.ENDING
        self._watchdog.end()
        if self.process is None:
            self._cancel_timer()
            self.parent.loop.post(self._ended)
        elif serving:
            self.send(message)
            self._set_timer(seconds, self._end_is_late, isinstance(message, Drain))
        else:
            self._kill()
            self._set_timer(HOPELESS_SECONDS, self._ended)

    def _end_is_late(self, park: bool) -> None:
        log.error("the worker of %s does not end: killed", self.title, extra=self.extra)
        self._kill()
        if park:
            self._park()
        self._set_timer(HOPELESS_SECONDS, self._ended)

    def _ended(self) -> None:
        if self.state is State.GONE:
            return
        self._cancel_timer()
        self.state = State.GONE
        self.source.failed(self, errno.ECANCELED, "it was ended")
        self.source.gone(self)
        for then in self._then:
            then()

    def _kill(self) -> None:
        if self.process is not None:
            self.process.kill()

    def _set_timer(self, seconds: float, fn: Callable[..., object], *args: object) -> None:
        self._cancel_timer()
        self._timer = self.parent.loop.call_later(seconds, fn, *args)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _same(one: Job, other: Job | None) -> bool:
    """Return whether two jobs come to the same, however they are begun."""
    if other is None:
        return False
    return one == dataclasses.replace(
        other, log=one.log, takes_over=one.takes_over, delay=one.delay, rendezvous=one.rendezvous
    )
