"""Host: disks, their engines, and the way in to them, on one loop; it answers typed messages.

`tcmu serve` is a host in the foreground; a process of tcmu-runner is one with a supervisor (`host.process`).
"""

from __future__ import annotations

import dataclasses
import errno
import json
import logging
import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from functools import partial

from tcmu_core.codec import Message
from tcmu_core.disk.device import Change
from tcmu_core.disk.disk import Disk
from tcmu_core.disk.spec import DiskSpec
from tcmu_core.errors import (
    CommandError,
    ConfigError,
    DataProtect,
    HandlerError,
    MediumRemovalPrevented,
    TcmuError,
    text_of,
)
from tcmu_core.filters.control import command as filter_command
from tcmu_core.host import transports
from tcmu_core.host.counting import Ledgers, counters
from tcmu_core.host.messages import (
    OPENING,
    Ask,
    AskCounters,
    Changed,
    Counters,
    DiskStatus,
    FilterAnswer,
    FilterCommand,
    LoggedOut,
    LogLevel,
    Logout,
    Look,
    Looked,
    Missing,
    Ping,
    Pong,
    Reconfigure,
    Retry,
    SessionList,
    Sessions,
    SetLevel,
    Status,
    WayIn,
)
from tcmu_core.host.opening import Opening
from tcmu_core.host.telling import looked
from tcmu_core.host.traces import Reader, Trace, Traces
from tcmu_core.log import Level, Log
from tcmu_core.loop import Loop, Timer
from tcmu_core.scsi.engine import Engine

log = logging.getLogger("tcmu.host")

RETRY_SECONDS = 30.0  # between two attempts to open a disk that is missing
START_SECONDS = 5.0  # for all disks to be opened, before those that are there are served
LAST_SECONDS = 2.0  # for one that is being opened when the host ends
POLL = 0.01  # seconds between two looks whether the last command has ended


class Host:
    """What one process serves. `make_disk(spec)` makes a disk that is to be opened; all runs on the loop's thread."""

    def __init__(self, loop: Loop, make_disk: Callable[[DiskSpec], Disk], way: WayIn) -> None:
        self.loop = loop
        self.engines: dict[int, Engine] = {}
        self.specs: dict[int, DiskSpec] = {}  # as they were asked for, changes included
        self.missing: dict[int, Missing] = {}
        self.transport = transports.make(way, self)
        self.logs: Log | None = None
        self.altered: Callable[[], object] = _nothing  # called when a disk came or went later than it was asked to
        # What surrounds a handler's code that may take long, so that somebody tells of it meanwhile.
        self.standing_in: Callable[[], AbstractContextManager[None]] = nullcontext
        self._ledgers = Ledgers()
        self.traces = Traces(loop, self.engines, self.transport.watched)
        self.ended = False
        self._make_disk = make_disk
        self._opening: dict[int, Opening] = {}
        self._abandoned: list[Opening] = []  # those whose LUN is gone, or another one
        self._prepared: dict[int, DiskSpec] = {}
        self._assigned: dict[int, DiskSpec] = {}  # as the job has them: what a person changed since then stays
        self._before: dict[int, DiskSpec] = {}  # of disks that are opened anew: how they were when that worked
        self._leaving: dict[int, Engine] = {}  # disks that are not served any more, and have commands in flight
        self._retry_timer: Timer | None = None

    # -- its life -----------------------------------------------------------------------------------------------------

    def open(self, disks: Mapping[int, DiskSpec], *, takes_over: bool = False, delay: float = 0.0) -> None:
        """Take hold of the way in, wait `delay` seconds, open the disks and serve them.

        A disk that can't be opened is missing until it can, unless the way in is of no use without it; and so is one
        whose handler takes long to open it.

        Raises:
            OSError, TcmuError: there is nothing to serve; what was opened is closed again.
        """
        self.specs, self._assigned = dict(disks), dict(disks)
        self._prepared = dict(self.transport.prepare(disks, takes_over=takes_over))
        with self.standing_in():
            time.sleep(delay)
        try:
            until = self.loop.clock() + START_SECONDS
            for lun in self._prepared:
                self._begin(lun)
            for lun, opening in list(self._opening.items()):
                with self.standing_in():
                    over = opening.wait(None if self.transport.needs_all else max(0.0, until - self.loop.clock()))
                if over:
                    self._opened(lun, opening)
                else:
                    self._takes_long(lun, opening)
            self.transport.start()
        except BaseException:
            self.close()
            raise
        self._retry_later()

    def _begin(self, lun: int) -> None:
        """Begin to open the disk of a LUN; `_opened` is to be called when that is over."""
        spec = self._prepared[lun]
        try:
            disk = self._make_disk(spec.configured(spec.cfgstring))
            opening = self._opening[lun] = Opening(disk, early=bool(self._leaving))
        except Exception as error:
            self._is_missing(lun, error)
        else:
            with self.standing_in():
                opening.advance()

    def _opened(self, lun: int, opening: Opening) -> Engine | None:
        """The opening of a LUN's disk is over, or is waited for: return its engine, or None where it is missing."""
        opening.wait()
        del self._opening[lun]
        disk = opening.disk
        if opening.error is not None:
            self._is_missing(lun, opening.error)
            return None
        try:
            engine = Engine(disk, post=self.loop.post, store=self.transport.store(lun, disk))
        except Exception as error:
            disk.close_quietly()
            self._is_missing(lun, error)
            return None
        self.missing.pop(lun, None)
        self.engines[lun] = engine
        engine.trace = self._is_traced(disk.title)
        if disk.spec.patience:
            self._look_for_slow(engine, disk.spec.patience)
        return engine

    def _is_missing(self, lun: int, error: Exception) -> None:
        """Note that a disk can't be opened, and say why, each reason once; raises where nothing is of use without."""
        if self.transport.needs_all:
            raise error
        title, before = self._prepared[lun].title, self.missing.get(lun)
        self.missing[lun] = Missing(lun, title, reason_of(error))
        if before is None or before.reason != self.missing[lun].reason:
            unexpected = error if not isinstance(error, TcmuError | OSError) else None
            log.error("LUN %d can't be opened: %s; it is tried again every %g s", lun, reason_of(error),
                      RETRY_SECONDS, exc_info=unexpected, extra={"device": title})  # fmt: skip

    def _takes_long(self, lun: int, opening: Opening, *, patient: bool = True) -> None:
        """Let an opening go on, while others are served."""
        self.missing.setdefault(lun, Missing(lun, opening.disk.title, OPENING))
        opening.watch(lambda: self.loop.post(self._went_on, lun, opening, patient))

    def _went_on(self, lun: int, opening: Opening, patient: bool) -> None:
        if not opening.advance():
            self._takes_long(lun, opening, patient=patient)
        elif opening in self._abandoned:
            self._abandoned.remove(opening)
            opening.abandon()
            self._try_missing()  # one of them may need what this one had
        elif self._opening.get(lun) is opening:  # it was not waited for when the host ended
            engine = self._opened(lun, opening)
            if engine is None and opening.early and not self._leaving:
                self._join(lun, patient=patient)  # what stood in its way when it began has gone
            else:
                self._joined(lun, engine, patient=patient)
            self.altered()

    # -- another job ------------------------------------------------------------------------------------------------

    def reassign(self, disks: Mapping[int, DiskSpec], way: WayIn) -> None:
        """Serve this from now on. A disk that is as it was does not notice, nor do its initiators.

        A disk that ends with this process is not opened anew for another name, option or filter: it would be empty.

        Raises:
            OSError: the way in can't be as it is asked for; it stays as it was, and the disks are changed all the same.
        """
        before, self._assigned = self._assigned, dict(disks)
        for lun in before.keys() - disks.keys():
            self._leave(lun)
        for lun, spec in disks.items():
            old = before.get(lun)
            if old == spec:
                continue
            only_size = old is not None and dataclasses.replace(old, size=spec.size) == spec
            if only_size and lun in self.engines:
                self._grow(lun, spec)
            elif old is not None and lun in self.engines:
                self._change_place(lun, old, spec)
            else:
                self._leave(lun, comes_back=True)
                self.specs[lun] = self._prepared[lun] = spec
                if lun not in self._leaving:
                    self._join(lun)
        self.transport.reassign(way)
        self._retry_later()

    def _change_place(self, lun: int, old: DiskSpec, spec: DiskSpec) -> None:
        """Serve another disk in the place of one, or the same one opened otherwise; where that can't be, the old one.

        What changes, and what of it can't be, is said: nobody's disk is opened anew or emptied without a word.
        """
        engine = self.engines[lun]
        names = [one.name for one in dataclasses.fields(spec) if getattr(old, one.name) != getattr(spec, one.name)]
        what, extra = ", ".join(names), {"device": engine.disk.title}
        if engine.device.ephemeral and old.handler == spec.handler:
            log.error("LUN %d stays as it was, for another %s would empty it: take it out of the configuration, and "
                      "put it in again, if that is meant", lun, what, extra=extra)  # fmt: skip
            self._assigned[lun] = old
            return
        log.warning("LUN %d is opened anew: another %s", lun, what, extra=extra)
        self._leave(lun, comes_back=True)
        if not engine.device.ephemeral:
            self._before[lun] = old
        self.specs[lun] = self._prepared[lun] = spec

    def _grow(self, lun: int, spec: DiskSpec) -> None:
        """Give a disk its new size while it is served."""
        self.specs[lun] = self._prepared[lun] = spec
        engine = self.engines[lun]
        before = engine.device.size or 0
        if spec.size is None or spec.size == before:
            return
        if spec.size < before:  # a handler may cut off what is behind: no slip of a hand in a file does that
            log.error("LUN %d keeps its size of %d bytes, for what is on it behind %d could be lost: if that is meant, "
                      "`tcmu resize` does it", lun, before, spec.size, extra={"device": engine.disk.title})  # fmt: skip
            return
        try:
            self.change(lun, Change(size=spec.size))
        except Exception as error:
            log.error("LUN %d keeps its size of %d bytes: %s", lun, engine.device.size, text_of(error),
                      extra={"device": engine.disk.title})  # fmt: skip
        else:
            log.info("LUN %d has %d bytes now", lun, spec.size, extra={"device": engine.disk.title})

    def _leave(self, lun: int, *, comes_back: bool = False) -> None:
        """Serve a disk no more, and close it when its last command has ended; initiators wait if it `comes_back`."""
        self.specs.pop(lun, None)
        self._prepared.pop(lun, None)
        self.missing.pop(lun, None)
        self._before.pop(lun, None)
        opening = self._opening.pop(lun, None)
        if opening is not None:
            self._abandoned.append(opening)
        engine = self.engines.pop(lun, None)
        if engine is not None:
            if engine.device.ephemeral:
                log.warning("LUN %d goes, and what is on it", lun, extra={"device": engine.disk.title})
            else:
                log.info("LUN %d goes", lun, extra={"device": engine.disk.title})
            self._leaving[lun] = engine
            self.traces.left(engine)
            self.transport.remove(lun, lambda: self.loop.post(self._left, lun, engine), comes_back=comes_back)
        elif not comes_back:
            self.transport.give_up(lun)

    def _left(self, lun: int, engine: Engine) -> None:
        engine.close()
        if self._leaving.get(lun) is engine:
            del self._leaving[lun]
            if lun in self._prepared:
                self._join(lun)
            self._try_missing()  # one of them may need what this one had
        self.altered()

    def _join(self, lun: int, *, patient: bool = True) -> None:
        """Serve a disk that came, or came back as another one, when it is open.

        If `patient`, what is still to go may be in its way.
        """
        if lun in self._opening:
            return
        self._begin(lun)
        opening = self._opening.get(lun)
        if opening is None:
            self._joined(lun, None, patient=patient)
        elif self.transport.needs_all or opening.over:
            self._joined(lun, self._opened(lun, opening), patient=patient)
        else:
            self._takes_long(lun, opening, patient=patient)

    def _joined(self, lun: int, engine: Engine | None, *, patient: bool) -> None:
        """Serve a disk that was opened; one that could not be is tried again, or served as it was before."""
        if engine is not None:
            self._before.pop(lun, None)
            log.info("LUN %d is there", lun, extra={"device": engine.disk.title})
            self.transport.add(lun, engine)
            return
        before = None if self._leaving and patient else self._before.pop(lun, None)
        if before is None:
            if lun not in self._before:
                self.transport.give_up(lun)
            self._retry_later()
            return
        log.error("LUN %d stays as it was", lun, extra={"device": before.title})
        self.specs[lun] = self._prepared[lun] = self._assigned[lun] = before
        self._join(lun)

    def _try_missing(self, *, patient: bool = True) -> None:
        for lun in list(self.missing):
            self._join(lun, patient=patient)

    def _retry_later(self) -> None:
        if self.missing and self._retry_timer is None:
            self._retry_timer = self.loop.call_later(RETRY_SECONDS, partial(self.retry, patient=False))

    def retry(self, *, patient: bool = True) -> None:
        """Try again to open the disks that are missing; `patient` as `_join` has it."""
        if self._retry_timer is not None:
            self._retry_timer.cancel()
            self._retry_timer = None
        before = len(self.missing)
        self._try_missing(patient=patient)
        self._retry_later()
        if len(self.missing) < before:
            self.altered()

    def log_by(self, logs: Log) -> None:
        """Take the log whose levels say of which disks every command is logged; again after they have changed."""
        self.logs = logs
        for engine in self.engines.values():
            engine.trace = self._is_traced(engine.disk.title)

    def _is_traced(self, title: str) -> bool:
        return self.logs is not None and self.logs.level_of(title) is Level.DEBUG_SCSI_CMD

    def drain(self, logout: float, patience: float, then: Callable[[bool], object]) -> None:
        """Take nothing new, have initiators leave within `logout` seconds and what is in flight end in `patience` more.

        Then `then(idle)` is called, with whether all commands have ended.
        """
        until = self.loop.clock() + logout + patience
        self.transport.drain(logout, lambda: self._drained(until, then))

    def _drained(self, until: float, then: Callable[[bool], object]) -> None:
        idle = all(engine.idle for engine in self.engines.values()) and not self.transport.counters[1]
        if idle or self.loop.clock() >= until:
            then(idle)
        else:
            self.loop.call_later(POLL, self._drained, until, then)

    def close(self) -> bool:
        """Close the way in and the disks, when they are idle; returns whether all of their data is where it belongs."""
        if self._retry_timer is not None:
            self._retry_timer.cancel()
        self.transport.close()
        until = self.loop.clock() + LAST_SECONDS
        for opening in (*self._opening.values(), *self._abandoned):
            opening.wait(max(0.0, until - self.loop.clock()))
            opening.abandon()
        self._opening.clear()
        self._abandoned.clear()
        done = [engine.close() for engine in (*self.engines.values(), *self._leaving.values())]
        self.engines.clear()
        self._leaving.clear()
        return all(done)

    def stop(self) -> None:
        """End: the way in is gone."""
        self.ended = True
        self.loop.stop()

    # -- what it is asked ---------------------------------------------------------------------------------------------

    def answer(self, message: Message, asker: Reader | None = None) -> Message | None:
        """Answer a message of anybody who may ask; None where there is nothing to say, or `asker` hears it by and by.

        `gone(asker)` is to be called when that is gone.
        """
        match message:
            case Trace() if asker is not None:
                self.traces.begin(message, asker)
            case Ping():
                self.transport.ping()
                return Pong(*self.transport.counters)
            case Ask():
                return self.status()
            case Sessions():
                return SessionList(self.transport.sessions())
            case Logout():
                return LoggedOut(self.transport.log_out(message))
            case AskCounters():
                engine = self.engines.get(message.lun)
                if engine is None:
                    return Counters()
                self.transport.watched(message.lun)
                return Counters(counters(engine.unit, message.number))
            case Look() if asker is not None:
                return self._looked(asker, message.after)
            case Reconfigure():
                return self._reconfigure(message, asker)
            case SetLevel():
                return self._set_level(message)
            case Retry():
                self.retry()
            case FilterCommand():
                return self._filter(message)
        return None

    def _looked(self, asker: Reader, after: int) -> Looked:
        """Tell an asker all but the last part of what there is to see, and return that."""
        for lun in self.engines:
            self.transport.watched(lun)
        counted = list(self._ledgers.look({lun: engine.unit for lun, engine in self.engines.items()}, after))
        *parts, last = looked(self.status(), counted, self.transport.sessions(), self._ledgers.number)
        for part in parts:
            asker.send(part)
        return last

    def gone(self, asker: Reader) -> None:
        """Somebody who has asked something is gone."""
        self.traces.forget(asker)

    def status(self) -> Status:
        """Return what is served."""
        commands, in_flight = self.transport.counters
        return Status(
            pid=os.getpid(),
            title=self.transport.title,
            disks=tuple(self._disk(lun) for lun in sorted(self.engines)),
            missing=tuple(self._missing(lun) for lun in sorted(self._prepared.keys() - self.engines.keys())),
            addresses=self.transport.addresses,
            commands=commands,
            in_flight=in_flight,
            passes_on=self.transport.passes_on,
        )

    def _missing(self, lun: int) -> Missing:
        """Return why a disk is missing: it could not be opened, or that goes on, or what was there before goes yet."""
        opening = self._opening.get(lun)
        doing = opening.disk.device.doing if opening is not None else None
        missing = self.missing.get(lun) or Missing(lun, self._prepared[lun].title, OPENING)
        return dataclasses.replace(missing, progress=doing)

    def _disk(self, lun: int) -> DiskStatus:
        engine = self.engines[lun]
        device = engine.device
        return DiskStatus(
            lun=lun,
            handler=device.handler,
            name=device.name,
            cfgstring=device.cfgstring,
            size=device.size or 0,
            block_size=device.block_size,
            read_only=engine.disk.read_only,
            write_cache=engine.unit.write_cache,
            removable=device.removable,
            filters=engine.disk.filter_texts,
            initiators=tuple(nexus.initiator.name for nexus in engine.unit.nexuses),
            in_flight=len(engine.unit.tasks.active),
            progress=device.doing,
        )

    def _reconfigure(self, message: Reconfigure, asker: Reader | None) -> Changed | None:
        pending, problem = None, None
        try:
            pending = self.change(message.lun, message.change)
        except Exception as error:
            problem = error
        if pending is None or asker is None:
            return self._changed(message, problem)

        def ended() -> None:
            asker.send(self._changed(message, pending.exception()))

        pending.add_done_callback(lambda _: self.loop.post(ended))
        return None

    def _changed(self, message: Reconfigure, problem: BaseException | None) -> Changed:
        code, reason = 0, ""
        if problem is not None:
            code, reason = errno_of(problem), reason_of(problem)
            if not isinstance(problem, TcmuError | OSError | NotImplementedError):
                log.error("changing LUN %d failed", message.lun, exc_info=problem)
        disk = self._disk(message.lun) if message.lun in self.engines else None
        return Changed(message.id, code, reason, disk)

    def _set_level(self, message: SetLevel) -> LogLevel | None:
        if self.logs is None:
            return None
        if message.level is not None:
            level = Level(min(max(message.level, Level.CRIT), Level.DEBUG_SCSI_CMD))
            self.logs.set_level(level)
            self.log_by(self.logs)
            log.info("logging at level %s now, until the process ends or tcmu.conf says otherwise", level.name)
        return LogLevel(int(self.logs.level))

    def _filter(self, message: FilterCommand) -> FilterAnswer:
        try:
            engine = self._engine(message.lun)
            answer = filter_command(engine.disk, json.loads(message.command))
            engine.refresh()
        except Exception as error:
            if not isinstance(error, TcmuError | OSError):
                log.exception("a command to the filters of LUN %d failed", message.lun)
            return FilterAnswer(error=text_of(error), mistaken=isinstance(error, ConfigError))
        return FilterAnswer(json.dumps(answer))

    def _engine(self, lun: int) -> Engine:
        """Return the engine of a LUN; raises `OSError`."""
        engine = self.engines.get(lun)
        if engine is None:
            missing = self.missing.get(lun)
            raise OSError(errno.ENODEV, f"LUN {lun} is missing: {missing.reason}" if missing else f"no LUN {lun} here")
        return engine

    def change(self, lun: int, change: Change) -> Future[None] | None:
        """Have the disk of a LUN take a change, of which a cfgstring is whole; return what has to end yet, if anything.

        Raises:
            ConfigError, OSError, NotImplementedError, CommandError: what the handler says.
        """
        engine = self._engine(lun)
        device = engine.device
        pending = None
        if change.size is not None and change.size != device.size:
            engine.change(change)
        elif change.cfgstring is not None:
            cfgstring = DiskSpec(device.handler).configured(change.cfgstring).cfgstring
            # A drive that an initiator emptied takes the disc back that it had.
            if cfgstring != device.cfgstring or (device.removable and not device.size):
                engine.change(Change(cfgstring=cfgstring))
                self.specs[lun] = dataclasses.replace(self.specs[lun], cfgstring=change.cfgstring)
        elif change.write_cache is not None:  # whatever the device has: an initiator may have chosen another mode
            pending = engine.change(change)
        self.transport.changed(lun)
        return pending

    def _look_for_slow(self, engine: Engine, patience: int) -> None:
        """Report commands that are in flight for longer than the cfgstring allows."""
        for command in engine.slow(patience):
            log.warning(
                "command %d (%s) takes longer than %d s",
                command.tag,
                command.cdb.hex(" "),
                patience,
                extra={"device": engine.disk.title},
            )
        self.loop.call_later(patience / 4, self._look_for_slow, engine, patience)


def reason_of(error: BaseException) -> str:
    """Return what to tell a person of an exception, without the number that `OSError` puts before it."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename is not None else error.strerror
    return text_of(error)


def _nothing() -> None:
    pass


def errno_of(error: BaseException) -> int:
    """Return the errno that tells the kernel, and so the administrator, best what went wrong."""
    code = getattr(error, "errno", None)  # of an OSError, and of what configfs said
    if isinstance(code, int) and code:
        return code
    if isinstance(error, HandlerError) and error.__cause__ is not None:  # it broke: what it raised says more
        return errno_of(error.__cause__)
    for kind, number in _ERRNOS.items():
        if isinstance(error, kind):
            return number
    return errno.EIO


_ERRNOS: Mapping[type[BaseException], int] = {
    ConfigError: errno.EINVAL,
    ValueError: errno.EINVAL,
    NotImplementedError: errno.EOPNOTSUPP,
    DataProtect: errno.EROFS,
    MediumRemovalPrevented: errno.EBUSY,
    MemoryError: errno.ENOMEM,
    CommandError: errno.EIO,
    HandlerError: errno.ENOENT,
}
