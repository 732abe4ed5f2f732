"""One device behind the portal, and the command of `--run`: from start to a clean stop."""

from __future__ import annotations

import argparse
import errno
import functools
import ipaddress
import os
import signal
from typing import Any

from tcmu_core.cli.child import Child
from tcmu_core.cli.clients import Reach
from tcmu_core.cli.drive import DriveControl
from tcmu_core.cli.output import Exit, Output, human
from tcmu_core.disk.disk import Disk
from tcmu_core.errors import ConfigError
from tcmu_core.handlers import Handler
from tcmu_core.iscsi.portal import Portal
from tcmu_core.iscsi.settings import PORT, Access, ChapUser, PortalSettings, format_address, parse_address
from tcmu_core.loop import Loop
from tcmu_core.scsi.engine import Engine
from tcmu_core.scsi.target import Target
from tcmu_core.state import aptpl_file, default_directory

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# Seconds. Together with the time for a last flush, a stop takes no longer than one, whatever clients do.
LOGOUT_PATIENCE = 0.3  # for clients to log out
ABORT_PATIENCE = 0.3  # for commands in flight to end once their connections are closed
LOOK_AGAIN = 0.01


class Server:
    """The device, the portal in front of it, and the command of `--run`, from start to a clean stop."""

    def __init__(self, args: argparse.Namespace, loop: Loop, disk: Disk, target: str, users: dict[str, str]) -> None:
        self.args = args
        self.loop = loop
        self.target = target
        self.users = users
        self.status: int = Exit.OK
        self.child: Child | None = None
        self.portal: Portal | None = None
        self.addresses: list[str] = []
        self._stopping = False
        device = disk.device
        directory = args.state_dir or default_directory()
        store = aptpl_file(directory, device.name, device.handler, device.serial, target)
        self.engine = Engine(disk, post=loop.post, store=store)
        self.engine.trace = args.debug
        self.control = DriveControl(loop, directory, self.engine)

    def start(self, handler: Handler) -> None:
        """Listen, say what is served, and start the command."""
        for number in STOP_SIGNALS:
            if number == signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN:
                continue  # nohup(1): it is to outlive the terminal
            self.loop.on_signal(number, functools.partial(self.stop, number))
        reach = self._listen(self.args.portal or [("127.0.0.1", 0 if self.args.shell_command else PORT)])
        if self.args.json:
            Output().json(self._as_json(reach), indent=None)
        elif not self.args.shell_command:
            self._announce(reach, handler)
        if self.args.shell_command:
            self.child = Child(self.args.shell_command, reach.environment(), self.loop, self._child_ended)

    def _listen(self, addresses: list[tuple[str, int]]) -> Reach:
        """Open the portal; returns how a client on this host reaches the disk."""
        access = Access(
            users=tuple(ChapUser(name, password.encode()) for name, password in self.users.items()),
            initiators=tuple(self.args.acl),
        )
        settings = PortalSettings(tuple(format_address(*one) for one in addresses), access, insecure=self.args.insecure)
        self.portal = Portal(self.loop, settings, {self.target: Target(self.target, {0: self.engine})})
        try:
            self.addresses = self.portal.listen()
        except OSError as error:
            hint = "; --portal 127.0.0.1:0 takes a free port" if error.errno == errno.EADDRINUSE else ""
            raise ConfigError(f"{error.strerror}{hint}") from error
        host, port = parse_address(self.addresses[0])
        if ipaddress.ip_address(host).is_unspecified:
            host = "::1" if ":" in host else "127.0.0.1"
        user, password = next(iter(self.users.items()), ("", ""))
        return Reach(host, port, self.target, user=user, password=password, secret_file=self.args.chap_file)

    def stop(self, number: int) -> None:
        """Stop because of a signal: first the command, which may need the disk to end well, then the portal."""
        if self._stopping:
            return
        self._stopping = True
        if self.child is None:
            self._close_portal()
            return
        self.status = Exit.SIGNAL + number
        self.child.stop()

    def _child_ended(self, status: int) -> None:
        if not self._stopping:
            self.status = status
        self._stopping = True
        self._close_portal()

    def _close_portal(self) -> None:
        assert self.portal is not None
        self.portal.shutdown(LOGOUT_PATIENCE, functools.partial(self._wait_idle, ABORT_PATIENCE))

    def _wait_idle(self, patience: float) -> None:
        """Stop the loop when no command is in flight any more, or after `patience` seconds."""
        if self.engine.idle or patience <= 0:
            self.loop.stop()
        else:
            self.loop.call_later(LOOK_AGAIN, self._wait_idle, patience - LOOK_AGAIN)

    def close(self) -> None:
        """Leave nothing behind: end the command, close the portal, flush and close the device."""
        if self.child is not None:
            self.child.close()
        if self.portal is not None:
            self.portal.close()
        self.control.close()
        self.engine.close()
        # The process ends now, with the status it has: another signal (timeout(1) sends two) changes nothing.
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)

    # -- what is printed --------------------------------------------------------------------------------------------

    def _announce(self, reach: Reach, handler: Handler) -> None:
        out = Output()
        device = self.engine.device
        writable = ", read-only" if self.engine.disk.read_only else ""
        shape = f"{human(device.size or 0)}, blocks of {device.block_size} bytes{writable}"
        out.line(f"{out.style(device.name, 'bold')}: {shape}, by handler {handler.name} of {handler.source}")
        out.line(f"  {out.style(reach.uri, 'cyan')}")
        for address in self.addresses[1:]:
            out.line(f"  at {address} too")
        out.line()
        out.line("In a second terminal:")
        for line in reach.commands():
            out.line(f"  {line}")
        out.line()
        out.line("As root, to have it as /dev/sdX, and to let it go again:")
        for line in reach.root_commands():
            out.line(f"  {line}")
        out.line()
        out.line("Ctrl-C stops it.")

    def _as_json(self, reach: Reach) -> dict[str, Any]:
        device = self.engine.device
        return {
            "uri": reach.uri,
            "portal": reach.portal,
            "portals": self.addresses,
            "target": reach.target,
            "lun": reach.lun,
            "device": device.name,
            "handler": device.handler,
            "cfgstring": device.cfgstring,
            "size": device.size,
            "block_size": device.block_size,
            "read_only": self.engine.disk.read_only,
            "pid": os.getpid(),
            "commands": reach.commands(),
            "root_commands": reach.root_commands(),
        }
