"""A worker: the process behind one kernel device. It opens the storage and runs ring, engine and handler on one thread.

Its job names the device; over its channel it tells the supervisor how opening went, and takes these: `reconfigure`
(size, cfgstring or write_cache), `close` (the kernel removes the device), `drain` (stop serving and leave the device
blocked), `ping`, `log`. When the supervisor is gone it serves on, until a worker of the next one asks it to leave.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import select
import signal
import socket
import time
from pathlib import Path
from typing import Any

from tcmu_core.cfgstring import split_runner_options
from tcmu_core.channel import Channel, Message, send
from tcmu_core.disk.device import Change
from tcmu_core.disk.spec import DiskSpec
from tcmu_core.errors import CommandError, ConfigError, DataProtect, HandlerError, MediumRemovalPrevented, TcmuError
from tcmu_core.handlers.registry import Registry
from tcmu_core.kernel.configfs import Backstore, ConfigfsError
from tcmu_core.kernel.ring import Ring
from tcmu_core.kernel.uio import UioDevice, holders
from tcmu_core.log import Level, Log
from tcmu_core.loop import READ, Loop, Pace, spin_time
from tcmu_core.scsi.command import Command, Initiator
from tcmu_core.scsi.engine import Engine

log = logging.getLogger("tcmu.runner")

DRAIN_SECONDS = 8.0  # for commands in flight, when the worker is to stop
LEAVE_SECONDS = 12.0  # for another worker to let go of the uio device, before it is killed
GONE_SECONDS = 8.0  # for a killed one to be gone
POLL = 0.02
COMM = "tcmu:"  # what the names of workers in `ps -o comm` begin with
# The kernel does not say which initiator a command came from, and keeps nexuses and reservations itself.
INITIATOR = Initiator("kernel", b"")


class Worker:
    """Runs one job to its end. `job`: minor, hba, name, handler, cfgstring, adopt, delay, options, log."""

    def __init__(self, registry: Registry, job: Message, control: socket.socket) -> None:
        self.registry = registry
        self.job = job
        self.control = control
        self.backstore = Backstore(job["hba"], job["name"])
        self.log_name = f"{job['handler']}/{job['name']}"
        self.config = f"{job['handler']}/{job['cfgstring']}"
        self.loop: Loop
        self.log: Log
        self.uio: UioDevice
        self.unit: Engine
        self.ring: Ring
        self.channel: Channel
        self._pace = Pace(spin_time())
        self._drain_until = 0.0
        self._patience = 0  # seconds; 0: as long as it takes

    def run(self) -> int:
        """Serve until told to stop; returns the exit status."""
        _rename(f"{COMM}{self.job['name']}")
        told = self.job["log"]
        self.log = Log(Level(told["level"]), directory=told["directory"], stderr=told["stderr"])
        self._set_log(told)
        self.loop = Loop()
        try:
            if self.job.get("park"):
                self._take_over()
                return 0
            if self.job["adopt"]:
                self._take_over()
                time.sleep(self.job["delay"])
            self._open()
        except Exception as error:
            code = errno_of(error)
            if not isinstance(error, TcmuError | OSError):
                log.exception("opening %s failed", self.log_name)
            send(self.control, {"failed": code, "reason": str(error) or repr(error)})
            return 0
        self.channel = Channel(self.loop, self.control, self._message, self._orphaned)
        device = self.unit.device
        self.channel.send({"opened": True, "size": device.size, "write_cache": device.write_cache})
        self.loop.on_signal(signal.SIGTERM, self._drain)
        self.loop.register(self.uio.fd, READ | select.EPOLLET, self._event)
        self.loop.post(self._event, READ)
        if self.job["adopt"]:
            self.backstore.unblock()
        if self._patience:
            self.loop.call_later(self._patience, self._look_for_slow, set())
        self.loop.run()
        self.unit.close()
        return 0

    # -- opening ----------------------------------------------------------------------------------------------------

    def _take_over(self) -> None:
        """Have the device to ourselves, and its initiators told BUSY, until it is served."""
        self.uio = self._open_uio()
        self.backstore.block()
        self.backstore.reset_ring()
        if self.backstore.has("attrib/nl_reply_supported"):
            self.backstore.write("attrib/nl_reply_supported", 1)  # it may be older than any daemon that answers

    def _open_uio(self) -> UioDevice:
        """Open the uio device; where another worker has it, ask that to leave, in the end with force."""
        minor = self.job["minor"]
        try:
            return UioDevice(minor)
        except TcmuError as error:
            if not self.job["adopt"]:
                raise
            busy = error
        # It is on its way out, or serves on since its supervisor died.
        for number, seconds in ((signal.SIGTERM, LEAVE_SECONDS), (signal.SIGKILL, GONE_SECONDS)):
            for pid in holders(Path(f"/dev/uio{minor}")):
                _signal_worker(pid, number)
            deadline = time.monotonic() + seconds
            while time.monotonic() < deadline:
                time.sleep(POLL)
                try:
                    return UioDevice(minor)
                except TcmuError as error:
                    busy = error
        raise busy

    def _open(self) -> None:
        job, store = self.job, self.backstore
        handler = self.registry.get(job["handler"])
        spec = DiskSpec(
            job["handler"],
            name=job["name"],
            size=store.size or None,
            block_size=store.block_size,
            serial=self._serial(),
            place=("kernel", str(job["hba"]), job["name"]),
            options=job["options"],
            max_transfer=store.max_transfer,
        ).configured(job["cfgstring"])
        self._patience = spec.patience
        if not job["adopt"]:
            self.uio = self._open_uio()
        log.debug(
            "Got block_size %d, size in bytes %d", spec.block_size, spec.size or 0, extra={"device": self.log_name}
        )
        disk = handler.open(spec, self.loop)
        try:
            self.unit = Engine(disk, post=self.loop.post)
            self.unit.trace = self.log.level_of(self.log_name) is Level.DEBUG_SCSI_CMD
            nexus = self.unit.attach(INITIATOR)
            nexus.attentions.clear()  # the kernel reports power-on and reset to each of its nexuses itself
            self.ring = Ring(self.uio.memory, self.unit, nexus, post=self.loop.post, doorbell=self.uio.ring_doorbell)
            if not job["adopt"]:
                self._record()
        except BaseException:
            disk.close()
            raise

    def _serial(self) -> str:
        """Return the serial number in configfs, empty while there is none."""
        try:
            return self.backstore.serial
        except ConfigfsError:
            return ""

    def _record(self) -> None:
        """Let configfs show what the handler made of the device; once it is enabled, the kernel asks us about that."""
        device = self.unit.device
        if device.size is not None and device.size != self.backstore.size:
            self.backstore.write("attrib/dev_size", device.size)
        if self.backstore.read("attrib/dev_config") != self.config:
            self.backstore.write("attrib/dev_config", self.config)
        if bool(int(self.backstore.read("attrib/emulate_write_cache"))) != device.write_cache:
            self.backstore.write("attrib/emulate_write_cache", int(device.write_cache))

    # -- serving ----------------------------------------------------------------------------------------------------

    def _event(self, events: int) -> None:
        if events & ~READ:
            log.info("the kernel took the device away", extra={"device": self.log_name})
            self.loop.stop()
            return
        ring = self.ring
        before = ring.commands
        try:
            ring.process()
        except Exception:
            # The ring can't be trusted any more: leave, and the next worker starts with an empty one.
            log.exception("the ring of %s is broken", self.log_name)
            logging.shutdown()
            os._exit(1)
        self.loop.spin = self._pace.after(ring.commands - before)

    def _look_for_slow(self, before: set[Command]) -> None:
        """Report commands that were in flight at the last look, and so for longer than the cfgstring allows."""
        now = set(self.ring.in_flight.values())
        for command in now & before:
            log.warning(
                "command %d (%s) takes longer than %d s",
                command.tag,
                command.cdb.hex(" "),
                self._patience,
                extra={"device": self.log_name},
            )
        self.loop.call_later(self._patience, self._look_for_slow, now)

    def _message(self, message: Message, _fds: list[int]) -> None:
        match message["op"]:
            case "ping":
                self.uio.acknowledge()
                self.ring.process()
                self.channel.send({"pong": True, "commands": self.ring.commands, "in_flight": len(self.ring.in_flight)})
            case "reconfigure":
                self._reconfigure(message)
            case "record":
                self._record()
            case "log":
                self._set_log(message)
            case "close":
                self.loop.stop()
            case "drain":
                self._drain()

    def _orphaned(self) -> None:
        log.warning("the supervisor has gone: serving on until the next one comes", extra={"device": self.log_name})

    def _drain(self) -> None:
        """Answer what is in flight, take nothing new, then end. Initiators hear BUSY and try again."""
        if self._drain_until:
            return
        self._drain_until = time.monotonic() + DRAIN_SECONDS
        try:
            self.backstore.block()
        except ConfigfsError as error:
            log.error("%s", error, extra={"device": self.log_name})
        self._drained()

    def _drained(self) -> None:
        self.ring.process()
        late = time.monotonic() > self._drain_until
        if late or (self.unit.idle and not self.ring.in_flight):
            if late:
                log.error("%d commands did not end in time", len(self.ring.in_flight), extra={"device": self.log_name})
                logging.shutdown()
                os._exit(1)
            self.loop.stop()
            return
        self.loop.call_later(POLL, self._drained)

    def _set_log(self, told: Message) -> None:
        devices = {name: Level(level) for name, level in told["devices"].items()}
        self.log.set_directory(told["directory"])
        self.log.set_syslog(told["syslog"])
        self.log.set_level(Level(told["level"]), devices)
        self.log.reopen()
        if hasattr(self, "unit"):
            self.unit.trace = self.log.level_of(self.log_name) is Level.DEBUG_SCSI_CMD

    # -- changes ----------------------------------------------------------------------------------------------------

    def _reconfigure(self, message: Message) -> None:
        answer: dict[str, Any] = {"reconfigured": message["id"], "errno": 0, "reason": ""}
        try:
            self._change(Change(message.get("size"), message.get("cfgstring"), message.get("write_cache")))
        except Exception as error:
            if not isinstance(error, TcmuError | OSError | NotImplementedError):
                log.exception("reconfiguring %s failed", self.log_name)
            answer["errno"] = errno_of(error)
            answer["reason"] = str(error) or repr(error)
        device = self.unit.device
        self.channel.send({**answer, "size": device.size, "write_cache": device.write_cache})

    def _change(self, change: Change) -> None:
        engine = self.unit
        device = engine.device
        if change.size is not None and change.size != device.size:
            engine.change(change)
        elif change.cfgstring is not None:
            _, cfgstring = split_runner_options(change.cfgstring)
            # A drive that an initiator emptied takes the disc back that it had.
            if cfgstring != device.cfgstring or (device.removable and not device.size):
                engine.change(Change(cfgstring=cfgstring))
                self.config = f"{device.handler}/{change.cfgstring}"
        elif change.write_cache is not None and change.write_cache != device.write_cache:
            engine.change(change)


def errno_of(error: BaseException) -> int:
    """Return the errno that tells the kernel, and so the administrator, best what went wrong."""
    if isinstance(error, OSError | ConfigfsError):
        return error.errno or errno.EIO
    if isinstance(error, ConfigError | ValueError):
        return errno.EINVAL
    if isinstance(error, NotImplementedError):
        return errno.EOPNOTSUPP
    if isinstance(error, DataProtect):
        return errno.EROFS
    if isinstance(error, MediumRemovalPrevented):
        return errno.EBUSY
    if isinstance(error, MemoryError):
        return errno.ENOMEM
    if isinstance(error, HandlerError):
        return errno.ENOENT
    if isinstance(error, CommandError):
        return errno.EIO
    return errno.EIO


def _signal_worker(pid: int, number: signal.Signals) -> None:
    """Send a signal to a process if it is a worker: another program's hold on a device is not ours to end."""
    with contextlib.suppress(OSError):
        if Path(f"/proc/{pid}/comm").read_text().startswith(COMM):
            os.kill(pid, number)


def _rename(name: str) -> None:
    """Show the device in `ps -o comm` and `top`: 15 bytes (prctl(2), PR_SET_NAME)."""
    Path("/proc/self/comm").write_bytes(name.encode()[:15])
