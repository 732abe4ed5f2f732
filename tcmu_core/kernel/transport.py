"""The kernel as a way in: a TCM-user device's ring, event and doorbell, and its directory in configfs."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import logging
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, ClassVar

from tcmu_core.codec import Message
from tcmu_core.disk.spec import DiskSpec
from tcmu_core.errors import TcmuError
from tcmu_core.host.messages import Logout, SessionStatus, WayIn
from tcmu_core.host.transport import Served
from tcmu_core.kernel.configfs import Backstore, ConfigfsError
from tcmu_core.kernel.ring import Ring
from tcmu_core.kernel.uio import UioDevice, holders
from tcmu_core.loop import READ, Pace, spin_time
from tcmu_core.scsi.command import Initiator
from tcmu_core.scsi.engine import Engine
from tcmu_core.scsi.limits import MAX_TRANSFER

if TYPE_CHECKING:
    from tcmu_core.disk.disk import Disk

log = logging.getLogger("tcmu.kernel")

LEAVE_SECONDS = 12.0  # for another host to let go of the uio device, before it is killed
GONE_SECONDS = 8.0  # for a killed one to be gone
POLL = 0.02
WATCHED_SECONDS = 300.0  # for which the ring counts after somebody has looked: Prometheus asks more often
SERIAL = "wwn/vpd_unit_serial"
PR_SET_IO_FLUSHER = 57  # linux/prctl.h
COMM = "tcmu:"  # what the names of hosts in `ps -o comm` begin with
# The kernel does not say which initiator a command came from, and keeps nexuses and reservations itself.
INITIATOR = Initiator("kernel", b"")


@dataclass(frozen=True, slots=True)
class KernelDevice(WayIn):
    """A TCM-user device. `park`: it is to have nobody who serves it, and initiators that wait."""

    KIND: ClassVar[str] = "kernel"

    minor: int
    hba: int
    name: str
    park: bool = False


@dataclass(frozen=True, slots=True)
class Record(Message):
    """Let configfs show what the handler made of the device."""


class KernelTransport:
    """Serves the one unit of its host by the ring of a device."""

    needs_all = True
    passes_on: tuple[str, ...] = ()

    def __init__(self, way: KernelDevice, served: Served) -> None:
        self.way = way
        self.served = served
        self.backstore = Backstore(way.hba, way.name)
        self.uio: UioDevice | None = None
        self.ring: Ring | None = None
        self.title = f"kernel device {way.name}"
        self._title = way.name
        self._taken_over = False
        self._settled = False  # whether initiators may have seen the identity
        self._pace = Pace(spin_time())
        self._watched_until: float | None = None
        self._recording = threading.Lock()

    # -- opening ------------------------------------------------------------------------------------------------------

    def prepare(self, disks: Mapping[int, DiskSpec], *, takes_over: bool) -> Mapping[int, DiskSpec]:
        """Have the device to ourselves; return the spec with what configfs says.

        Raises:
            TcmuError, OSError: another program has it, or it is gone.
        """
        self._taken_over = takes_over
        if not disks:
            self._take_over()
            self.served.stop()
            return {}
        ((lun, spec),) = disks.items()
        self._title = spec.title
        if takes_over:
            self._take_over()
        else:
            self.uio = self._open_uio()
        _be_io_flusher()
        store = self.backstore
        store.keep_commands()
        completed = dataclasses.replace(
            spec,
            size=store.size // store.block_size * store.block_size or store.size or None,  # as LIO counts
            block_size=store.block_size,
            serial=store.serial,
            max_transfer=min(store.max_transfer or MAX_TRANSFER, store.data_area),
        )
        log.debug("Got block_size %d, size in bytes %d", completed.block_size, completed.size or 0, extra=self._extra)
        return MappingProxyType({lun: completed})

    @property
    def _extra(self) -> dict[str, str]:
        return {"device": self._title}

    def _take_over(self) -> None:
        """Have the device to ourselves, and its initiators told BUSY, until it is served."""
        self.uio = self._open_uio()
        self.backstore.block()
        self.backstore.reset_ring()
        if self.backstore.has("attrib/nl_reply_supported"):
            self.backstore.write("attrib/nl_reply_supported", 1)  # it may be older than any daemon that answers

    def _open_uio(self) -> UioDevice:
        """Open the uio device; where another host has it, ask that to leave, in the end with force."""
        minor = self.way.minor
        try:
            return UioDevice(minor)
        except TcmuError as error:
            if not self._taken_over:
                raise
            busy = error
        # It is on its way out, or serves on since its supervisor died.
        for number, seconds in ((signal.SIGTERM, LEAVE_SECONDS), (signal.SIGKILL, GONE_SECONDS)):
            for pid in holders(Path(f"/dev/uio{minor}")):
                _signal_host(pid, number)
            deadline = time.monotonic() + seconds
            while time.monotonic() < deadline:
                time.sleep(POLL)
                try:
                    return UioDevice(minor)
                except TcmuError as error:
                    busy = error
        raise busy

    def store(self, _lun: int, _disk: Disk) -> None:
        """Return None: the kernel keeps reservations itself."""

    def start(self) -> None:
        """Serve the unit by the ring."""
        if self.uio is None or not self.served.engines:
            return
        (engine,) = self.served.engines.values()
        loop = self.served.loop
        nexus = engine.attach(INITIATOR)
        nexus.attentions.clear()  # the kernel reports power-on and reset to each of its nexuses itself
        self.ring = Ring(self.uio.memory, engine, nexus, post=loop.post, doorbell=self.uio.ring_doorbell)
        self._unwatch()
        self._record_serial(engine)
        if not self._taken_over:
            self.backstore.show(*self._made())  # it is being enabled: the kernel does not ask
        loop.register(self.uio.fd, READ | select.EPOLLET, self._first_event)
        loop.post(self._first_event, READ)
        if self._taken_over:
            self.backstore.unblock()

    def add(self, lun: int, engine: Engine) -> None:
        """Refuse: a device has one unit, and is nothing without it."""
        raise NotImplementedError

    def _made(self) -> tuple[int | None, str, bool]:
        """Return what the handler made of the device, as `Backstore.show` takes it."""
        (engine,) = self.served.engines.values()
        (spec,) = self.served.specs.values()
        device = engine.device
        return device.size, f"{device.handler}/{spec.cfgstring}", device.write_cache

    def _record(self, made: tuple[int | None, str, bool]) -> None:
        """Have configfs show it of a device that is enabled; not for the loop's thread.

        For each value the kernel asks the daemon, which may have to ask this process: who writes waits for its answer.
        """
        with self._recording:
            try:
                self.backstore.show(*made)
            except ConfigfsError as error:
                log.error("configfs does not show what the handler made of the device: %s", error, extra=self._extra)

    # -- serving ------------------------------------------------------------------------------------------------------

    def remove(self, lun: int, then: Callable[[], object], *, comes_back: bool) -> None:
        """Refuse: a kernel device has one disk, and goes with it."""
        raise NotImplementedError

    def give_up(self, lun: int) -> None:
        """Refuse: nothing was taken away."""
        raise NotImplementedError

    def reassign(self, way: WayIn) -> None:
        """Do nothing: a kernel device's way in is its minor number, which stays."""

    @property
    def addresses(self) -> tuple[str, ...]:
        """Return the device's node."""
        return (f"/dev/uio{self.way.minor}",)

    @property
    def counters(self) -> tuple[int, int]:
        """Return the commands taken since the start, and those in flight now."""
        return (self.ring.commands, len(self.ring.in_flight)) if self.ring is not None else (0, 0)

    def _record_serial(self, engine: Engine) -> None:
        """Let configfs have the serial number that the unit shows: what is saved there is restored at the next boot."""
        if engine.device.serial != self.backstore.serial:
            with contextlib.suppress(ConfigfsError):  # it is exported: what initiators saw of it stays
                self.backstore.write(SERIAL, engine.device.serial)

    def _first_event(self, events: int) -> None:
        """Settle the identity before anybody can ask for it: from the first export on, the kernel keeps what it has."""
        ring = self.ring
        assert ring is not None
        if ring.pending and not events & ~READ:
            (engine,) = self.served.engines.values()
            try:
                serial = self.backstore.serial
            except ConfigfsError as error:
                log.error("its serial number stays %s: %s", engine.device.serial, error, extra=self._extra)
                serial = ""
            if serial and serial != engine.device.serial and not engine.disk.own_serial:
                engine.unit.identify(serial)
            assert self.uio is not None
            loop = self.served.loop
            loop.unregister(self.uio.fd)
            loop.register(self.uio.fd, READ | select.EPOLLET, self._event)
            self._settled = True
        self._event(events)

    def _event(self, events: int) -> None:
        if events & ~READ:
            log.info("the kernel took the device away", extra=self._extra)
            self.served.stop()
            return
        ring = self.ring
        assert ring is not None
        before = ring.commands
        try:
            ring.process()
        except Exception:
            # The ring can't be trusted any more: leave, and the next host starts with an empty one.
            log.exception("the ring of %s is broken", self._title)
            logging.shutdown()
            os._exit(1)
        self.served.loop.spin = self._pace.after(ring.commands - before)

    def message(self, message: Message, _fds: list[int]) -> bool:
        """Take `Record`."""
        if isinstance(message, Record):
            threading.Thread(target=self._record, args=(self._made(),), name="tcmu-record", daemon=True).start()
            return True
        return False

    def sessions(self) -> tuple[SessionStatus, ...]:
        """Return none: they are the kernel's."""
        return ()

    def log_out(self, _wanted: Logout) -> int:
        """Send nobody away: sessions are the kernel's."""
        return 0

    def watched(self, _lun: int) -> None:
        """Count what passes the ring for `WATCHED_SECONDS` from now on; without that nothing is."""
        if self.ring is None:
            return
        loop, before = self.served.loop, self._watched_until
        self._watched_until = loop.clock() + WATCHED_SECONDS
        if before is None:
            (engine,) = self.served.engines.values()
            self.ring.watch(engine.unit.tallies.anew(INITIATOR.name))
            loop.call_later(WATCHED_SECONDS, self._look_whether_watched)

    def _look_whether_watched(self) -> None:
        assert self._watched_until is not None
        left = self._watched_until - self.served.loop.clock()
        if left > 0:
            self.served.loop.call_later(left, self._look_whether_watched)
        else:
            self._unwatch()

    def _unwatch(self) -> None:
        """Count no more, and forget what was counted: what would be missing from it is unknown."""
        self._watched_until = None
        assert self.ring is not None
        self.ring.watch(None)
        (engine,) = self.served.engines.values()
        engine.unit.tallies.drop(INITIATOR.name)

    def ping(self) -> None:
        """Acknowledge the kernel's events, and take what is in the ring, should an event have been missed."""
        if self.uio is not None and self.ring is not None:
            self.uio.acknowledge()
            if self._settled:
                self.ring.process()
            else:
                self._first_event(READ)

    def changed(self, _lun: int) -> None:
        """Do nothing: the kernel asked for the change, or the supervisor says `Record`."""

    def drain(self, _seconds: float, then: Callable[[], object]) -> None:
        """Have the kernel answer BUSY from now on, so that initiators try again, and take what was in the ring."""
        try:
            self.backstore.block()
        except ConfigfsError as error:
            log.error("%s", error, extra=self._extra)
        self._empty(-1, then)

    def _empty(self, before: int, then: Callable[[], object]) -> None:
        """Take what is in the ring, turn by turn."""
        ring = self.ring
        if ring is None or ring.commands == before:
            then()
            return
        before = ring.commands
        ring.process()
        self.served.loop.post(self._empty, before, then)

    def close(self) -> None:
        """Hear the device no more. It stays open until the process has ended, and so has let go of its storage."""
        if self.uio is not None:
            self.served.loop.unregister(self.uio.fd)


def _be_io_flusher() -> None:
    """Never wait for dirty pages that may themselves wait for this disk (prctl(2)); threads made later inherit it."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0):
        log.debug("PR_SET_IO_FLUSHER: %s", os.strerror(ctypes.get_errno()))  # without CAP_SYS_RESOURCE


def _signal_host(pid: int, number: signal.Signals) -> None:
    """Send a signal to a process if it is a host: another program's hold on a device is not ours to end."""
    with contextlib.suppress(OSError):
        if Path(f"/proc/{pid}/comm").read_text().startswith(COMM):
            os.kill(pid, number)
