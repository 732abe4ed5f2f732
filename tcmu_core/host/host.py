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
from tcmu_core.host.messages import (
    Ask,
    Changed,
    DiskStatus,
    FilterAnswer,
    FilterCommand,
    Missing,
    Ping,
    Pong,
    Reconfigure,
    Retry,
    Status,
    WayIn,
)
from tcmu_core.loop import Loop, Timer
from tcmu_core.scsi.engine import Engine

log = logging.getLogger("tcmu.host")

RETRY_SECONDS = 30.0  # between two attempts to open a disk that is missing
POLL = 0.01  # seconds between two looks whether the last command has ended


class Host:
    """What one process serves. `open_disk(spec)` opens a disk; all runs on the loop's thread."""

    def __init__(self, loop: Loop, open_disk: Callable[[DiskSpec], Disk], way: WayIn) -> None:
        self.loop = loop
        self.engines: dict[int, Engine] = {}
        self.specs: dict[int, DiskSpec] = {}  # as they were asked for, changes included
        self.missing: dict[int, Missing] = {}
        self.transport = transports.make(way, self)
        self.traced: Callable[[str], bool] = lambda _title: False
        self.altered: Callable[[], object] = _nothing  # called when a disk came or went later than it was asked to
        self.ended = False
        self._open_disk = open_disk
        self._prepared: dict[int, DiskSpec] = {}
        self._assigned: dict[int, DiskSpec] = {}  # as the job has them: what a person changed since then stays
        self._before: dict[int, DiskSpec] = {}  # of disks that are opened anew: how they were when that worked
        self._leaving: dict[int, Engine] = {}  # disks that are not served any more, and have commands in flight
        self._retry_timer: Timer | None = None

    # -- its life -----------------------------------------------------------------------------------------------------

    def open(self, disks: Mapping[int, DiskSpec], *, takes_over: bool = False, delay: float = 0.0) -> None:
        """Take hold of the way in, wait `delay` seconds, open the disks and serve them.

        A disk that can't be opened is missing until it can, unless the way in is of no use without it.

        Raises:
            OSError, TcmuError: there is nothing to serve; what was opened is closed again.
        """
        self.specs, self._assigned = dict(disks), dict(disks)
        self._prepared = dict(self.transport.prepare(disks, takes_over=takes_over))
        time.sleep(delay)
        try:
            for lun, spec in self._prepared.items():
                self._open(lun, spec)
            self.transport.start()
        except BaseException:
            self.close()
            raise
        self._retry_later()

    def _open(self, lun: int, spec: DiskSpec) -> Engine | None:
        try:
            spec = spec.configured(spec.cfgstring)
            disk = self._open_disk(spec)
            try:
                engine = Engine(disk, post=self.loop.post, store=self.transport.store(lun, disk))
            except BaseException:
                disk.close()
                raise
        except Exception as error:
            if self.transport.needs_all:
                raise
            before = self.missing.get(lun)
            self.missing[lun] = Missing(lun, spec.title, reason_of(error))
            if before is None or before.reason != self.missing[lun].reason:  # each reason is said once
                unexpected = not isinstance(error, TcmuError | OSError)
                log.error("LUN %d can't be opened: %s; it is tried again every %g s", lun, reason_of(error),
                          RETRY_SECONDS, exc_info=unexpected, extra={"device": spec.title})  # fmt: skip
            return None
        self.missing.pop(lun, None)
        self.engines[lun] = engine
        engine.trace = self.traced(spec.title)
        if spec.patience:
            self._look_for_slow(engine, spec.patience)
        return engine

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
                self._leave(lun)
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
        self._leave(lun)
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

    def _leave(self, lun: int) -> None:
        """Serve a disk no more, and close it when its last command has ended."""
        self.specs.pop(lun, None)
        self._prepared.pop(lun, None)
        self.missing.pop(lun, None)
        self._before.pop(lun, None)
        engine = self.engines.pop(lun, None)
        if engine is not None:
            if engine.device.ephemeral:
                log.warning("LUN %d goes, and what is on it", lun, extra={"device": engine.disk.title})
            else:
                log.info("LUN %d goes", lun, extra={"device": engine.disk.title})
            self._leaving[lun] = engine
            self.transport.remove(lun, lambda: self.loop.post(self._left, lun, engine))

    def _left(self, lun: int, engine: Engine) -> None:
        engine.close()
        if self._leaving.get(lun) is engine:
            del self._leaving[lun]
            if lun in self._prepared:
                self._join(lun)
            for other in list(self.missing):  # it may have what this one had
                self._join(other)
        self.altered()

    def _join(self, lun: int, *, patient: bool = True) -> None:
        """Serve a disk that came, or came back as another one; if `patient`, what is still to go may be in its way."""
        engine = self._open(lun, self._prepared[lun])
        if engine is None and self._leaving and patient:
            self._retry_later()
            return
        before = self._before.pop(lun, None)
        if engine is None and before is not None:
            log.error("LUN %d stays as it was", lun, extra={"device": before.title})
            self.specs[lun] = self._prepared[lun] = self._assigned[lun] = before
            engine = self._open(lun, before)
        if engine is not None:
            log.info("LUN %d is there", lun, extra={"device": engine.disk.title})
            self.transport.add(lun, engine)
        else:
            self._retry_later()

    def _retry_later(self) -> None:
        if self.missing and self._retry_timer is None:
            self._retry_timer = self.loop.call_later(RETRY_SECONDS, self.retry)

    def retry(self) -> None:
        """Try again to open the disks that are missing."""
        if self._retry_timer is not None:
            self._retry_timer.cancel()
            self._retry_timer = None
        before = len(self.missing)
        for lun in list(self.missing):
            self._join(lun, patient=False)
        self._retry_later()
        if len(self.missing) < before:
            self.altered()

    def set_traced(self, traced: Callable[[str], bool]) -> None:
        """Log every command of the disks for whose title `traced(title)` is true."""
        self.traced = traced
        for engine in self.engines.values():
            engine.trace = traced(engine.disk.title)

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
        done = [engine.close() for engine in (*self.engines.values(), *self._leaving.values())]
        self.engines.clear()
        self._leaving.clear()
        return all(done)

    def stop(self) -> None:
        """End: the way in is gone."""
        self.ended = True
        self.loop.stop()

    # -- what it is asked ---------------------------------------------------------------------------------------------

    def answer(self, message: Message) -> Message | None:
        """Answer a message of anybody who may ask; None where there is nothing to say."""
        match message:
            case Ping():
                self.transport.ping()
                return Pong(*self.transport.counters)
            case Ask():
                return self.status()
            case Reconfigure():
                return self._reconfigure(message)
            case Retry():
                self.retry()
            case FilterCommand():
                return self._filter(message)
        return None

    def status(self) -> Status:
        """Return what is served."""
        commands, in_flight = self.transport.counters
        return Status(
            pid=os.getpid(),
            title=self.transport.title,
            disks=tuple(self._disk(lun) for lun in sorted(self.engines)),
            missing=tuple(self.missing[lun] for lun in sorted(self.missing)),
            addresses=self.transport.addresses,
            commands=commands,
            in_flight=in_flight,
        )

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
            write_cache=device.write_cache,
            removable=device.removable,
            filters=engine.disk.spec.filters,
            initiators=tuple(nexus.initiator.name for nexus in engine.unit.nexuses),
            in_flight=len(engine.unit.tasks.active),
        )

    def _reconfigure(self, message: Reconfigure) -> Changed:
        code, reason = 0, ""
        try:
            self.change(message.lun, message.change)
        except Exception as error:
            code, reason = errno_of(error), reason_of(error)
            if not isinstance(error, TcmuError | OSError | NotImplementedError):
                log.exception("changing LUN %d failed", message.lun)
        disk = self._disk(message.lun) if message.lun in self.engines else None
        return Changed(message.id, code, reason, disk)

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

    def change(self, lun: int, change: Change) -> None:
        """Have the disk of a LUN take a change, of which a cfgstring is whole.

        Raises:
            ConfigError, OSError, NotImplementedError, CommandError: what the handler says.
        """
        engine = self._engine(lun)
        device = engine.device
        if change.size is not None and change.size != device.size:
            engine.change(change)
        elif change.cfgstring is not None:
            cfgstring = DiskSpec(device.handler).configured(change.cfgstring).cfgstring
            # A drive that an initiator emptied takes the disc back that it had.
            if cfgstring != device.cfgstring or (device.removable and not device.size):
                engine.change(Change(cfgstring=cfgstring))
                self.specs[lun] = dataclasses.replace(self.specs[lun], cfgstring=change.cfgstring)
        elif change.write_cache is not None and change.write_cache != device.write_cache:
            engine.change(change)
        self.transport.changed(lun)

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
