"""The processes of the portal: a door, which listens, and a worker for each target, which gets its connections.

Between the door and each worker there is a channel of their own; the keeper gives them its two ends, and new ones when
one of them is replaced. So neither the supervisor nor another target has a part in a login.
"""

from __future__ import annotations

import abc
import base64
import logging
import os
import socket
import time
from pathlib import Path

from tcmu_core.channel import Channel, Message, send
from tcmu_core.disk.spec import DiskSpec
from tcmu_core.errors import TcmuError
from tcmu_core.handlers.registry import Registry
from tcmu_core.host.jobs import settings_of
from tcmu_core.host.worker import errno_of
from tcmu_core.iscsi.portal import Portal
from tcmu_core.iscsi.redirector import Redirector
from tcmu_core.log import Level, Log
from tcmu_core.loop import Loop, spin_time
from tcmu_core.scsi.engine import Engine
from tcmu_core.scsi.target import Target
from tcmu_core.state import aptpl_file, default_directory

log = logging.getLogger("tcmu.runner")

LOGOUT_SECONDS = 1.0  # for initiators to log out when we stop
DRAIN_SECONDS = 5.0  # for commands in flight
POLL = 0.02


class PortalProcess(abc.ABC):
    """Runs a job of `jobs` to its end. The supervisor says `ping`, `log`, `drain`, and what its kind understands."""

    portal: Portal

    def __init__(self, registry: Registry, told: Message, control: socket.socket) -> None:
        self.registry = registry
        self.job = told
        self.control = control
        self.units: list[Engine] = []
        self.loop: Loop
        self.log: Log
        self.channel: Channel
        self._stop_until = 0.0

    def run(self) -> int:
        """Serve until told to stop, or until the supervisor is gone; returns the exit status."""
        Path("/proc/self/comm").write_bytes(self.job["title"].encode()[:15])  # prctl(2), PR_SET_NAME
        told = self.job["log"]
        self.log = Log(Level(told["level"]), directory=told["directory"], stderr=told["stderr"])
        self.loop = Loop(spin_time())
        try:
            opened = self.open()
            self._set_log(told)
        except (TcmuError, OSError) as error:
            send(self.control, {"failed": errno_of(error), "reason": str(error)})
            self._close()
            return 0
        self.channel = Channel(self.loop, self.control, self.message, self.stop)
        self.channel.send({"opened": True, **opened})
        self.loop.run()
        self._close()
        return 0

    @abc.abstractmethod
    def open(self) -> Message:
        """Make `portal`; return what the supervisor is to know of it."""

    def message(self, message: Message, fds: list[int]) -> None:
        """Do what the supervisor says."""
        match message["op"]:
            case "ping":
                self.channel.send({"pong": True})
            case "log":
                self._set_log(message)
            case "drain":
                self.stop()

    def stop(self) -> None:
        """End, in bounded time, after what is in flight."""
        if not self._stop_until:
            self._stop_until = time.monotonic() + LOGOUT_SECONDS + DRAIN_SECONDS
            self.portal.shutdown(LOGOUT_SECONDS, self._drained)

    def _drained(self) -> None:
        if all(unit.idle for unit in self.units) or time.monotonic() > self._stop_until:
            self.loop.stop()
        else:
            self.loop.call_later(POLL, self._drained)

    def _close(self) -> None:
        for unit in self.units:
            unit.close()

    def _set_log(self, told: Message) -> None:
        self.log.set_directory(told["directory"])
        self.log.set_syslog(told["syslog"])
        self.log.set_level(Level(told["level"]), {name: Level(level) for name, level in told["devices"].items()})
        self.log.reopen()
        for unit in self.units:
            title = f"{unit.device.handler}/{unit.device.name}"
            unit.trace = self.log.level_of(title) is Level.DEBUG_SCSI_CMD


class DoorWorker(PortalProcess):
    """The process that listens. It opens no storage and runs no handler's code."""

    def open(self) -> Message:
        """Listen."""
        self._ways: dict[str, Channel] = {}  # to the targets' workers
        self.portal = Redirector(self.loop, settings_of(self.job), self.job["targets"], self._pass_on)
        return {"addresses": self.portal.listen()}

    def message(self, message: Message, fds: list[int]) -> None:
        """Do what the supervisor says; `way` brings the door's end of a channel to a target's worker."""
        if message["op"] != "way":
            super().message(message, fds)
            return
        old = self._ways.get(message["target"])
        if old is not None:
            old.close()
        for fd in fds:
            self._ways[message["target"]] = Channel(self.loop, socket.socket(fileno=fd), _ignore, _nothing)

    def _pass_on(self, target: str, fd: int, heard: bytes, told: int) -> bool:
        way = self._ways.get(target)
        if way is None or way.closed or way.busy:  # it has died, or is so busy that those before still wait
            return False
        way.send({"heard": base64.b64encode(heard).decode(), "told": told}, [fd])
        return True


class TargetWorker(PortalProcess):
    """The process behind one target: its devices, their handlers, and the sessions of its initiators."""

    _door: Channel | None = None

    def open(self) -> Message:
        """Open the target's devices; one that can't be opened is missing, and the log says why."""
        target = self.job["name"]
        units: dict[int, Engine] = {}
        for lun in self.job["luns"]:
            name = f"{lun['handler']}/{lun['name'] or lun['lun']}"
            try:
                units[lun["lun"]] = self._unit(target, lun)
            except Exception as error:
                unexpected = not isinstance(error, TcmuError | OSError)
                log.error("%s LUN %d can't be opened: %s", target, lun["lun"], error, exc_info=unexpected,
                          extra={"device": name})  # fmt: skip
        self.units += units.values()
        self.portal = Portal(self.loop, settings_of(self.job), {target: Target(target, units)})
        return {"luns": sorted(units)}

    def _unit(self, target: str, lun: Message) -> Engine:
        handler = self.registry.get(lun["handler"])
        name = lun["name"] or f"{target}-{lun['lun']}"
        spec = DiskSpec(
            lun["handler"],
            name=name,
            size=lun["size"],
            block_size=lun["block_size"],
            read_only=lun["read_only"],
            options=lun["options"],
            place=(target, str(lun["lun"])),
        ).configured(lun["cfgstring"])
        store = aptpl_file(default_directory(), name, lun["handler"], spec.cfgstring, target)
        return Engine(handler.open(spec, self.loop), post=self.loop.post, store=store)

    def message(self, message: Message, fds: list[int]) -> None:
        """Do what the supervisor says; `door` brings the worker's end of a channel to the door."""
        if message["op"] != "door":
            super().message(message, fds)
            return
        if self._door is not None:
            self._door.drain()  # the last that the door before has passed on
        self._close_door()
        for fd in fds:
            if self._stop_until:
                os.close(fd)
            else:
                self._door = Channel(self.loop, socket.socket(fileno=fd), self._visit, _nothing)

    def _visit(self, message: Message, fds: list[int]) -> None:
        for fd in fds:
            self.portal.take(socket.socket(fileno=fd), base64.b64decode(message["heard"]), message["told"])

    def stop(self) -> None:
        """End, in bounded time, after what is in flight; who comes now is told to come again."""
        self._close_door()
        super().stop()

    def _close_door(self) -> None:
        if self._door is not None:
            self._door.close()
            self._door = None


def _ignore(_message: Message, _fds: list[int]) -> None:
    pass


def _nothing() -> None:
    pass
