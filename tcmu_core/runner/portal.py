"""The portal's worker: serves the `[targets]` of tcmu.conf by iSCSI, in a process of its own."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import os
import socket
import time
from pathlib import Path

from tcmu_core.config.cfgstring import split_runner_options
from tcmu_core.config.settings import Config, LunConfig
from tcmu_core.device import Device
from tcmu_core.errors import TcmuError
from tcmu_core.handlers.registry import Registry
from tcmu_core.iscsi.chap import Algorithm
from tcmu_core.iscsi.portal import Portal
from tcmu_core.iscsi.settings import Access, ChapUser, Limits, PortalSettings
from tcmu_core.log import Level, Log
from tcmu_core.loop import Loop
from tcmu_core.runner.channel import Channel, Message, send
from tcmu_core.runner.worker import errno_of
from tcmu_core.scsi.target import Target
from tcmu_core.scsi.unit import LogicalUnit
from tcmu_core.state import aptpl_file, default_directory

log = logging.getLogger("tcmu.runner")

LOGOUT_SECONDS = 1.0  # for initiators to log out when we stop
DRAIN_SECONDS = 5.0  # for commands in flight
POLL = 0.02


def job(config: Config, log_settings: Message) -> Message:
    """Return the job that serves what the configuration asks for."""
    settings = config.portal
    return {
        "kind": "portal",
        "log": log_settings,
        "addresses": list(settings.addresses),
        "access": _pack(settings.access),
        "targets_access": {name: _pack(access) for name, access in settings.targets.items()},
        "aliases": dict(settings.aliases),
        "header_digests": list(settings.header_digests),
        "data_digests": list(settings.data_digests),
        "portal_group": settings.portal_group,
        "limits": dataclasses.asdict(settings.limits),
        "insecure": settings.insecure,
        "targets": [
            {"name": target.name, "luns": [_lun(config, lun) for lun in target.luns]} for target in config.targets
        ],
    }


def _pack(access: Access) -> Message:
    return {
        "users": [[user.name, user.secret.decode("latin-1")] for user in access.users],
        "outgoing": [access.outgoing.name, access.outgoing.secret.decode("latin-1")] if access.outgoing else None,
        "initiators": list(access.initiators),
        "algorithms": [algorithm.value for algorithm in access.algorithms],
    }


def _unpack(told: Message) -> Access:
    users = [ChapUser(name, secret.encode("latin-1")) for name, secret in told["users"]]
    outgoing = told["outgoing"]
    return Access(
        users=tuple(users),
        outgoing=ChapUser(outgoing[0], outgoing[1].encode("latin-1")) if outgoing else None,
        initiators=tuple(told["initiators"]),
        algorithms=tuple(Algorithm(value) for value in told["algorithms"]),
    )


def _lun(config: Config, lun: LunConfig) -> Message:
    return {
        "lun": lun.lun,
        "handler": lun.handler,
        "cfgstring": lun.cfgstring,
        "name": lun.name,
        "size": lun.size,
        "block_size": lun.block_size,
        "read_only": lun.read_only,
        "options": dict(config.handlers.get(lun.handler, {})),
    }


class PortalWorker:
    """Runs one portal to its end."""

    def __init__(self, registry: Registry, told: Message, control: socket.socket) -> None:
        self.registry = registry
        self.job = told
        self.control = control
        self.units: list[LogicalUnit] = []
        self.loop: Loop
        self.log: Log
        self.portal: Portal
        self._stop_until = 0.0

    def run(self) -> int:
        """Serve until told to stop, or until the supervisor is gone; returns the exit status."""
        Path("/proc/self/comm").write_bytes(b"tcmu-portal")
        told = self.job["log"]
        self.log = Log(Level(told["level"]), directory=told["directory"], stderr=told["stderr"])
        self.loop = Loop()
        try:
            targets = {target["name"]: self._target(target) for target in self.job["targets"]}
            self._set_log(told)
            self.portal = Portal(self.loop, self._settings(), targets)
            addresses = self.portal.listen()
        except (TcmuError, OSError) as error:
            send(self.control, {"failed": errno_of(error), "reason": str(error)})
            self._close()
            return 0
        channel = Channel(self.loop, self.control, self._message, self._stop)
        channel.send({"opened": True, "addresses": addresses, "units": len(self.units)})
        self.loop.run()
        self._close()
        return 0

    def _close(self) -> None:
        for unit in self.units:
            unit.close()

    def _target(self, target: Message) -> Target:
        """Open a target's devices; one that can't be opened is missing, and the log says why."""
        units: dict[int, LogicalUnit] = {}
        for lun in target["luns"]:
            name = f"{lun['handler']}/{lun['name'] or lun['lun']}"
            try:
                units[lun["lun"]] = self._unit(target["name"], lun)
            except Exception as error:
                unexpected = not isinstance(error, TcmuError | OSError)
                log.error("%s LUN %d can't be opened: %s", target["name"], lun["lun"], error, exc_info=unexpected,
                          extra={"device": name})  # fmt: skip
        self.units += units.values()
        return Target(target["name"], units)

    def _unit(self, target: str, lun: Message) -> LogicalUnit:
        handler = self.registry.get(lun["handler"])
        _, cfgstring = split_runner_options(lun["cfgstring"])
        name = lun["name"] or f"{target}-{lun['lun']}"
        identity = (os.uname().nodename, lun["handler"], cfgstring, target)
        device = Device(
            name=name,
            handler=lun["handler"],
            cfgstring=cfgstring,
            size=lun["size"],
            block_size=lun["block_size"],
            read_only=lun["read_only"],
            options=lun["options"],
            serial=hashlib.sha256("\0".join(identity).encode()).hexdigest()[:32],
        )
        store = aptpl_file(default_directory(), name, lun["handler"], cfgstring, target)
        return LogicalUnit(handler.open(device), post=self.loop.post, aptpl=store)

    def _settings(self) -> PortalSettings:
        told = self.job
        return PortalSettings(
            addresses=tuple(told["addresses"]),
            access=_unpack(told["access"]),
            targets={name: _unpack(access) for name, access in told["targets_access"].items()},
            aliases=told["aliases"],
            header_digests=tuple(told["header_digests"]),
            data_digests=tuple(told["data_digests"]),
            portal_group=told["portal_group"],
            limits=Limits(**told["limits"]),
            insecure=told["insecure"],
        )

    # -- what the supervisor says -----------------------------------------------------------------------------------

    def _message(self, message: Message, _fds: list[int]) -> None:
        match message["op"]:
            case "log":
                self._set_log(message)
            case "drain":
                self._stop()

    def _set_log(self, told: Message) -> None:
        self.log.set_directory(told["directory"])
        self.log.set_syslog(told["syslog"])
        self.log.set_level(Level(told["level"]), {name: Level(level) for name, level in told["devices"].items()})
        self.log.reopen()
        for unit in self.units:
            title = f"{unit.device.handler}/{unit.device.name}"
            unit.trace = self.log.level_of(title) is Level.DEBUG_SCSI_CMD

    def _stop(self) -> None:
        if not self._stop_until:
            self._stop_until = time.monotonic() + LOGOUT_SECONDS + DRAIN_SECONDS
            self.portal.shutdown(LOGOUT_SECONDS, self._drained)

    def _drained(self) -> None:
        if all(unit.idle for unit in self.units) or time.monotonic() > self._stop_until:
            self.loop.stop()
        else:
            self.loop.call_later(POLL, self._drained)
