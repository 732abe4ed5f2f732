"""Disks behind the portal, and the command of `--run`: from start to a clean stop."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import errno
import ipaddress
import logging
import os
from collections.abc import Mapping
from typing import Any

from tcmu_core.cli import bar
from tcmu_core.cli.child import Child
from tcmu_core.cli.clients import Reach
from tcmu_core.cli.output import Exit, Output, human
from tcmu_core.cli.signals import StopSignals, interrupting, stop_signals
from tcmu_core.disk.disk import Disk
from tcmu_core.disk.spec import DiskSpec
from tcmu_core.errors import ConfigError
from tcmu_core.handlers import Handler
from tcmu_core.host.control import ControlSocket
from tcmu_core.host.host import Host
from tcmu_core.host.standin import StandIn
from tcmu_core.iscsi.messages import TargetWay
from tcmu_core.iscsi.settings import PORT, Access, ChapUser, PortalSettings, format_address, parse_address
from tcmu_core.loop import Loop
from tcmu_core.scsi.engine import Engine
from tcmu_core.state import default_directory

log = logging.getLogger("tcmu.serve")

# Seconds. Together with the time for a last flush, a stop takes no longer than one, whatever clients do.
LOGOUT_PATIENCE = 0.3  # for clients to log out
ABORT_PATIENCE = 0.3  # for commands in flight to end once their connections are closed
SIGNAL_SECONDS = 2.0  # between two looks whether a handler has had the signals that stop us ignored
SHOWN = 4  # of the commands that a stop waits for


class Server:
    """A host in the foreground, and the command of `--run`, from start to a clean stop."""

    def __init__(self, args: argparse.Namespace, loop: Loop, handlers: Mapping[str, Handler],
                 specs: Mapping[int, DiskSpec], target: str, users: dict[str, str]) -> None:  # fmt: skip
        self.args = args
        self.loop = loop
        self.target = target
        self.users = users
        self.status: int = Exit.OK
        self.child: Child | None = None
        self.control: ControlSocket | None = None
        self.signals: StopSignals | None = None
        self._handlers = handlers  # by name
        self._specs = specs  # by LUN
        self._stopping = False
        self._stage = ""  # what a stop waits for
        self._bar = bar.on_terminal(programs=args.json)
        directory = args.state_dir or default_directory()
        self.host = Host(loop, self._disk, TargetWay(target, self._settings(), directory))
        self.host.log_by(args.logs)
        self._directory = directory
        self._made = False  # whether the socket needed the directory to be made

    def _disk(self, spec: DiskSpec) -> Disk:
        disk = self._handlers[spec.handler].disk(spec, self.loop)
        if self._bar is not None:
            disk.device.reported = self._bar.of(disk.title)
        return disk

    def _settings(self) -> PortalSettings:
        access = Access(
            users=tuple(ChapUser(name, password.encode()) for name, password in self.users.items()),
            initiators=tuple(self.args.acl),
        )
        addresses = self.args.portal or [("127.0.0.1", 0 if self.args.shell_command else PORT)]
        return PortalSettings(
            tuple(format_address(*one) for one in addresses),
            access,
            insecure=self.args.insecure,
            advertise=tuple(format_address(*one) for one in self.args.advertise),
        )

    @property
    def addresses(self) -> list[str]:
        """Where the portal listens."""
        return list(self.host.transport.addresses)

    @property
    def engine(self) -> Engine:
        """The engine of LUN 0."""
        return self.host.engines[0]

    def start(self) -> None:
        """Open the disks, listen, say what is served, and start the command."""
        self._listen_to_commands()
        self._open()
        self.signals = StopSignals(stop_signals(), lambda number: self.loop.post(self.stop, number), self._waits_for)
        self._keep_signals(self.signals)
        reach = self._reach()
        if self.args.json:
            Output().json(self._as_json(reach), indent=None)
        elif not self.args.shell_command:
            self._announce(reach)
        if self.args.shell_command:
            if self._bar is not None:
                self._bar.paused = True  # the terminal is the command's
            self.child = Child(self.args.shell_command, self._environment(reach), self.loop, self._child_ended)

    def _open(self) -> None:
        self.host.transport.needs_all = True  # a person waits for it: what can't be opened is said, not tried again
        try:
            with interrupting():
                self.host.open(self._specs)
        except OSError as error:
            if error.errno not in (errno.EADDRINUSE, errno.EADDRNOTAVAIL, errno.EACCES) or "portal " not in str(error):
                raise
            hint = "; --portal 127.0.0.1:0 takes a free port" if error.errno == errno.EADDRINUSE else ""
            raise ConfigError(f"{error.strerror}{hint}") from error

    def _keep_signals(self, signals: StopSignals) -> None:
        signals.retake()
        self.loop.call_later(SIGNAL_SECONDS, self._keep_signals, signals)

    def _listen_to_commands(self) -> None:
        self._made = not self._directory.exists()
        try:
            control = ControlSocket(self.loop, self._directory / f"serve-{os.getpid()}.sock", self.host)
        except OSError as error:
            log.warning("other `tcmu` commands can't reach this process: %s", error)
            return
        self.control = control
        self.host.standing_in = lambda: StandIn(control.rendezvous, self.host.answer)

    def _reach(self) -> Reach:
        """Return how a client reaches the disk: one on this host, or where `--advertise` says."""
        if self.args.advertise and not self.args.shell_command:  # that command is here
            host, port = self.args.advertise[0]
        else:
            host, port = parse_address(self.addresses[0])
            if ipaddress.ip_address(host).is_unspecified:
                host = "::1" if ":" in host else "127.0.0.1"
        user, password = next(iter(self.users.items()), ("", ""))
        return Reach(host, port, self.target, user=user, password=password, secret_file=self.args.chap_file)

    def _environment(self, reach: Reach) -> dict[str, str]:
        """Return what the command finds in its environment: of LUN 0, and the URLs of the others."""
        more = {f"uri{lun}": dataclasses.replace(reach, lun=lun).uri for lun in self._specs if lun}
        return reach.environment() | more

    # -- its end ------------------------------------------------------------------------------------------------------

    def stop(self, number: int) -> None:
        """Stop because of a signal: first the command, which may need the disk to end well, then the portal."""
        if self._stopping:
            return
        self._stopping = True
        if self.child is None:
            self._drain()
            return
        self.status = Exit.SIGNAL + number
        self._stage = "the command to end"
        self.child.stop()

    def _child_ended(self, status: int) -> None:
        if not self._stopping:
            self.status = status
            if self.signals is not None:
                self.signals.begun()
        self._stopping = True
        self._drain()

    def _drain(self) -> None:
        self._stage = "clients to log out"
        self.host.drain(LOGOUT_PATIENCE, ABORT_PATIENCE, self._drained)

    def _drained(self, idle: bool) -> None:
        self._stage = "the handler to close the disk" if idle else self._in_flight()
        self.loop.stop()

    def _in_flight(self) -> str:
        commands = [
            command.cdb.hex(" ") for engine in self.host.engines.values() for command in engine.unit.tasks.active
        ]
        return f"the handler to end commands, {len(commands)} of them: {', '.join(commands[:SHOWN])}"

    def _waits_for(self) -> str:
        """Return what a stop waits for; called on another thread, for this one may hang."""
        if self._bar is not None:
            self._bar.hide()
        titles = ", ".join(spec.title for spec in self._specs.values())
        return f"{self._stage or 'the handler to return from a call'} ({titles})"

    def close(self) -> None:
        """Leave nothing behind: end the command, close the portal, flush and close the disk."""
        if self.child is not None:
            self.child.close()
        if self._bar is not None:
            self._bar.paused = False
        if self.control is not None:
            with contextlib.suppress(OSError):
                self.control.close()
                if self._made:
                    self._directory.rmdir()  # unless something is kept in it
        if not self.host.close() and self.status == Exit.OK:
            self.status = Exit.FAILED
        if self._bar is not None:
            self._bar.close()
        self._stage = "a thread of the handler to end"
        if self.signals is not None:
            self.signals.close()

    # -- what is printed --------------------------------------------------------------------------------------------

    def _announce(self, reach: Reach) -> None:
        out = Output()
        for lun, engine in self.host.engines.items():
            device, handler = engine.device, self._handlers[self._specs[lun].handler]
            writable = ", read-only" if engine.disk.read_only else ""
            shape = f"{human(device.size or 0)}, blocks of {device.block_size} bytes{writable}"
            out.line(f"{out.style(device.name, 'bold')}: {shape}, by handler {handler.name} of {handler.source}")
            out.line(f"  {out.style(dataclasses.replace(reach, lun=lun).uri, 'cyan')}")
        for address in self.addresses[1:]:
            out.line(f"  at {address} too")
        out.line()
        out.line("In a second terminal:")
        if self.args.acl:
            out.line(f"  (as an initiator that --acl lets in, {', '.join(self.args.acl)}: `-i NAME` of iscsi-ls and")
            out.line("  iscsi-inq, /etc/iscsi/initiatorname.iscsi of iscsiadm)")
        for line in reach.commands():
            out.line(f"  {line}")
        out.line()
        out.line("As root, to have it as /dev/sdX, and to let it go again:")
        for line in reach.root_commands():
            out.line(f"  {line}")
        out.line()
        out.line("Ctrl-C stops it.")

    def _as_json(self, reach: Reach) -> dict[str, Any]:
        return {
            **self._disk_as_json(reach),
            "portal": reach.portal,
            "portals": self.addresses,
            "target": reach.target,
            "luns": [self._disk_as_json(dataclasses.replace(reach, lun=lun)) for lun in self.host.engines],
            "pid": os.getpid(),
            "commands": reach.commands(),
            "root_commands": reach.root_commands(),
        }

    def _disk_as_json(self, reach: Reach) -> dict[str, Any]:
        engine = self.host.engines[reach.lun]
        device = engine.device
        return {
            "uri": reach.uri,
            "lun": reach.lun,
            "device": device.name,
            "handler": device.handler,
            "cfgstring": device.cfgstring,
            "size": device.size,
            "block_size": device.block_size,
            "read_only": engine.disk.read_only,
        }
