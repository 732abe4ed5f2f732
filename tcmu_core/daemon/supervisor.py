"""The supervisor: hears the kernel's requests, has workers carry them out, and answers. It does no I/O for a device.

Nothing here waits for a handler: every question to a worker has its timer, every answer comes back on the loop. It
touches no directory of a device in configfs either, since the kernel may hold it locked while it waits for our answer.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import Future
from typing import Protocol

from tcmu_core.channel import Message
from tcmu_core.config.configuration import Config, ForeignDevices
from tcmu_core.daemon.keeper import PortalKeeper
from tcmu_core.daemon.managed import ManagedDevice
from tcmu_core.daemon.spawner import Nursery, WorkerProcess
from tcmu_core.disk.device import Change
from tcmu_core.errors import TcmuError
from tcmu_core.handlers.registry import Handler
from tcmu_core.kernel import uio
from tcmu_core.kernel.abi import Netlink
from tcmu_core.kernel.configfs import ConfigfsError, set_parameter
from tcmu_core.kernel.netlink import NetlinkError, NetlinkSocket, Request
from tcmu_core.kernel.uio import UioName
from tcmu_core.log import Log
from tcmu_core.loop import READ, Loop

log = logging.getLogger("tcmu.runner")

MEMORY_SECONDS = 2.0  # between two looks at workers whose memory is limited
STOP_SECONDS = 10.0  # for workers to end, before they are killed


class Bus(Protocol):
    """What the supervisor needs to know of D-Bus."""

    @property
    def external(self) -> Collection[str]:
        """Return the subtypes that other programs serve."""


class Supervisor:
    """All kernel devices of this host."""

    def __init__(
        self, loop: Loop, handlers: Iterable[Handler], logs: Log, config: Config, *, handler_paths: Iterable[str] = ()
    ) -> None:
        self.loop = loop
        self.handlers: Mapping[str, Handler] = {handler.name: handler for handler in handlers}
        self.logs = logs
        self.log_directory: str | None = None
        self.log_stderr = True
        self.config = config
        self.devices: dict[int, ManagedDevice] = {}  # by minor number
        self.bus: Bus | None = None
        self._stopping = False
        self._nursery = Nursery(loop, list(handler_paths))
        self.portal = PortalKeeper(self)
        self._netlink: NetlinkSocket | None = None

    # -- start and stop ---------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Listen to the kernel and take over the devices that are there.

        Raises:
            NetlinkError, ConfigfsError: the kernel's side is missing or refuses us.
        """
        # Nothing is created or removed until we have looked at all that is there; what an earlier daemon left
        # unanswered ends with EINTR.
        set_parameter("block_netlink", 1)
        try:
            set_parameter("reset_netlink", 1)
            self._netlink = NetlinkSocket()
            if not self._netlink.set_features():
                log.warning("this kernel does not wait for answers: a device whose open fails is there all the same")
            self.loop.register(self._netlink.fileno(), READ, self._requests)
            for minor, name in uio.devices():
                self._adopt(minor, name)
        finally:
            set_parameter("block_netlink", 0)
        self._limit_memory()

    def serve_targets(self) -> None:
        """Serve the `[targets]` of the configuration by the portal."""
        self.portal.configure(self.config)

    def stop(self, then: Callable[[], object]) -> None:
        """Have every device let go, in bounded time; it stays blocked, so that initiators wait for the next start."""
        if self._stopping:
            return
        self._stopping = True
        if self._netlink is not None:
            # From now on nobody answers: the kernel must not wait.
            try:
                self._netlink.set_features(False)
            except TcmuError as error:
                log.error("%s", error)
        left = len(self.devices) + 1  # the portal

        def one_less() -> None:
            nonlocal left
            left -= 1
            if not left:
                self.loop.post(self._stopped, then)

        self.portal.stop(one_less)
        for device in list(self.devices.values()):
            device.drain(STOP_SECONDS, one_less)

    def _stopped(self, then: Callable[[], object]) -> None:
        if self._netlink is not None:
            self.loop.unregister(self._netlink.fileno())
            self._netlink.close()
            self._netlink = None
        self._nursery.close()
        then()

    def _adopt(self, minor: int, name: UioName) -> None:
        if name.subtype not in self.handlers:
            log.warning("uio%d (%s) is not ours: no handler %r is installed", minor, name.device, name.subtype)
            return
        device = ManagedDevice(self, minor, name, adopted=True)
        self.devices[minor] = device
        log.info("uio%d is there: taking it over", minor, extra={"device": device.title})
        device.start()

    # -- the kernel's requests --------------------------------------------------------------------------------------

    def _requests(self, _events: int) -> None:
        assert self._netlink is not None
        try:
            requests = self._netlink.receive()
        except NetlinkError as error:
            log.warning("%s", error)
            return
        except OSError as error:
            self._lost(error)
            return
        for request in requests:
            log.debug("the kernel says %s uio%d %s", request.kind.name, request.minor, request.name)
            match request.kind:
                case Netlink.ADDED_DEVICE:
                    self._added(request)
                case Netlink.REMOVED_DEVICE:
                    self._removed(request)
                case _:
                    self._reconfigured(request)

    def _lost(self, error: OSError) -> None:
        """Requests were lost: whoever waits for an answer gets EINTR, and the list of devices is read again."""
        if error.errno != errno.ENOBUFS:
            log.error("netlink: %s", error)
            return
        log.error("requests of the kernel were lost: those who wait for them get EINTR")
        try:
            set_parameter("block_netlink", 1)
            set_parameter("reset_netlink", 1)
            set_parameter("block_netlink", 0)
        except ConfigfsError as problem:
            log.error("%s", problem)
        present = dict(uio.devices())
        for minor, device in list(self.devices.items()):
            if minor not in present:
                device.close(_nothing)
        for minor, name in present.items():
            if minor not in self.devices:
                self._adopt(minor, name)

    def _reply(self, request: Request, status: int) -> None:
        if self._netlink is None:
            return
        try:
            self._netlink.reply(request, status)
        except OSError as error:
            log.error("answering the kernel about uio%d failed: %s", request.minor, error)

    def _added(self, request: Request) -> None:
        name = request.name
        handler = self.handlers.get(name.subtype)
        if handler is None or handler.error:
            self._foreign(request, handler)
            return
        stale = self.devices.pop(request.minor, None)
        if stale is not None:
            stale.close(_nothing)
        device = ManagedDevice(self, request.minor, name, answer=lambda status: self._reply(request, status))
        self.devices[request.minor] = device
        device.start()

    def _foreign(self, request: Request, handler: Handler | None) -> None:
        subtype = request.name.subtype
        where = {"device": f"{subtype}/{request.name.device}"}
        if self.bus is not None and subtype in self.bus.external:
            log.debug("uio%d is for the program that registered %r", request.minor, subtype, extra=where)
            return
        if handler is None and self.config.foreign_devices is ForeignDevices.IGNORE:
            log.info("uio%d is left to another daemon: no handler %r here", request.minor, subtype, extra=where)
            return
        if handler is not None:
            log.error("handler %r is broken: %s", subtype, handler.error, extra=where)
        else:
            known = ", ".join(sorted(self.handlers)) or "none"
            log.error("no handler %r is installed (there are: %s)", subtype, known, extra=where)
        self._reply(request, -errno.ENOENT)

    def _removed(self, request: Request) -> None:
        device = self.devices.get(request.minor)
        if device is None:
            if request.name.subtype in self.handlers or self.config.foreign_devices is ForeignDevices.REJECT:
                self._reply(request, 0)
            return
        log.info("uio%d is removed", request.minor, extra={"device": device.title})
        device.close(lambda: self._reply(request, 0))

    def _reconfigured(self, request: Request) -> None:
        device = self.devices.get(request.minor)
        change = request.change
        if device is None or change is None:
            if request.name.subtype in self.handlers or self.config.foreign_devices is ForeignDevices.REJECT:
                self._reply(request, -errno.ENODEV)
            return
        if change.cfgstring is not None and change.cfgstring.partition("/")[0] != device.name.subtype:
            log.error("a device keeps its handler: %s", change.cfgstring, extra={"device": device.title})
            self._reply(request, -errno.EINVAL)
            return
        device.change(change).add_done_callback(lambda done: self._reply(request, -done.result()[0]))

    def _limit_memory(self) -> None:
        """Hold workers to their handlers' limits, from outside: one that leaks may well hang, too."""
        for device in list(self.devices.values()):
            limit = self.config.memory_limits.get(device.name.subtype)
            if limit is not None:
                device.hold_to(limit)
        self.loop.call_later(MEMORY_SECONDS, self._limit_memory)

    # -- for D-Bus and the daemon -----------------------------------------------------------------------------------

    def change_medium(self, subtype: str, name: str, size: int, cfgstring: str) -> Future[tuple[int, str]]:
        """Give the device a new cfgstring; the answer is 0 or a negative errno, and what to tell the person."""
        answer: Future[tuple[int, str]] = Future()
        found = [one for one in self.devices.values() if (one.name.subtype, one.name.device) == (subtype, name)]
        if not found:
            answer.set_result((-errno.ENODEV, f"there is no device {subtype}/{name}"))
            return answer
        device = found[0]

        def changed(done: Future[tuple[int, str]]) -> None:
            code, reason = done.result()
            if not code and device.worker is not None:
                device.worker.send({"op": "record"})
            answer.set_result((-code, reason))

        device.change(Change(cfgstring=f"{subtype}/{cfgstring}")).add_done_callback(changed)
        return answer

    def configure(self, config: Config) -> None:
        """Take new settings."""
        self.config = config
        self.tell_log()
        self.portal.configure(config)

    def reopen_logs(self) -> None:
        """Open log files again, here and in every worker, and try again what was given up."""
        self.logs.reopen()
        self.tell_log()
        for device in list(self.devices.values()):
            device.retry()

    def tell_log(self) -> None:
        """Give every worker the settings of the log."""
        settings = {"op": "log", **self.log_settings()}
        self.portal.send(settings)
        for device in self.devices.values():
            if device.worker is not None:
                device.worker.send(settings)

    # -- for devices ------------------------------------------------------------------------------------------------

    def job(self, device: ManagedDevice, *, adopt: bool, delay: float, park: bool) -> Message:
        """Return the job of a worker for this device."""
        return {
            "minor": device.minor,
            "hba": device.name.hba,
            "name": device.name.device,
            "handler": device.name.subtype,
            "cfgstring": device.name.cfgstring,
            "adopt": adopt,
            "delay": delay,
            "park": park,
            "options": dict(self.config.handlers.get(device.name.subtype, {})),
            "log": self.log_settings(),
        }

    def spawn(
        self, job: Message, on_message: Callable[[Message], object], on_death: Callable[[str], object]
    ) -> WorkerProcess:
        """Start a worker."""
        return self._nursery.spawn(job, on_message, on_death)

    def forget(self, device: ManagedDevice) -> None:
        """Strike the device off the list."""
        if self.devices.get(device.minor) is device:
            del self.devices[device.minor]

    def log_settings(self) -> Message:
        """Return the settings of the log, as workers take them."""
        return {
            "level": int(self.logs.level),
            "devices": {name: int(level) for name, level in self.logs.devices.items()},
            "directory": self.log_directory,
            "syslog": self.config.syslog,
            "stderr": self.log_stderr,
        }


def _nothing() -> None:
    pass
