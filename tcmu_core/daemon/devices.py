"""The kernel's TCM-user devices as a source of processes: its netlink requests are heard, carried out and answered.

Nothing here waits for a handler, and nothing touches a device's directory in configfs: the kernel may hold that locked
while it waits for our answer.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future
from typing import Protocol

import tcmu_core
from tcmu_core.config.configuration import Config, ForeignDevices
from tcmu_core.daemon.managed import ManagedProcess
from tcmu_core.daemon.managed import Parent as ManagedParent
from tcmu_core.disk.device import Change
from tcmu_core.disk.spec import DiskSpec
from tcmu_core.errors import TcmuError
from tcmu_core.handlers.registry import Handler
from tcmu_core.host.messages import DiskStatus, Job, LogSettings
from tcmu_core.kernel import uio
from tcmu_core.kernel.abi import Netlink
from tcmu_core.kernel.configfs import ConfigfsError, set_parameter
from tcmu_core.kernel.netlink import NetlinkError, NetlinkSocket, Request
from tcmu_core.kernel.transport import KernelDevice, Record
from tcmu_core.kernel.uio import UioName
from tcmu_core.loop import READ

log = logging.getLogger("tcmu.runner")

STOP_SECONDS = 10.0  # for hosts to end, before they are killed


class Bus(Protocol):
    """What must be known of D-Bus."""

    @property
    def external(self) -> Collection[str]:
        """Return the subtypes that other programs serve."""


class Parent(ManagedParent, Protocol):
    """What the devices need of the supervisor."""

    config: Config
    handlers: Mapping[str, Handler]
    bus: Bus | None


class Device:
    """A device and its process. `answer` is the kernel's open question, to be called with 0 or a negative errno."""

    def __init__(self, owner: Devices, minor: int, name: UioName, answer: Callable[[int], object] | None) -> None:
        self.minor = minor
        self.name = name
        self.process = ManagedProcess(
            owner.parent, owner, f"uio{minor}", name.config, self.title, tenacious=answer is None
        )
        self._answer = answer

    @property
    def title(self) -> str:
        """Return `subtype/name`, as log lines have it."""
        return f"{self.name.subtype}/{self.name.device}"

    @property
    def disk(self) -> DiskStatus | None:
        """Return what its process said last of the disk."""
        status = self.process.status
        return status.disks[0] if status is not None and status.disks else None

    def answer(self, status: int) -> None:
        """Answer the kernel's open question, if there is one."""
        answer, self._answer = self._answer, None
        if answer is not None:
            answer(status)

    def is_so(self, change: Change) -> bool:
        """Return whether it is already as `change` asks: restoreconfig writes every value again.

        Of the write cache its process alone knows, while there is one: an initiator may have chosen another mode.
        """
        if change.cfgstring is not None:
            return change.cfgstring == self.name.config
        disk = self.disk
        if disk is None:
            return False
        if change.size is not None:
            return change.size == disk.size
        return change.write_cache == disk.write_cache and not self.process.serving


class Devices:
    """All kernel devices of this machine."""

    def __init__(self, parent: Parent) -> None:
        self.parent = parent
        self.by_minor: dict[int, Device] = {}
        self._netlink: NetlinkSocket | None = None

    @property
    def processes(self) -> Mapping[str, ManagedProcess]:
        """The processes by key."""
        return {device.process.key: device.process for device in self.by_minor.values()}

    @property
    def disks(self) -> int:
        """How many disks are served."""
        return sum(device.process.serving for device in self.by_minor.values())

    # -- start and stop -----------------------------------------------------------------------------------------------

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
            self.parent.loop.register(self._netlink.fileno(), READ, self._requests)
            for minor, name in uio.devices():
                self._adopt(minor, name)
        finally:
            set_parameter("block_netlink", 0)

    def stop(self, then: Callable[[], object]) -> None:
        """Have every device let go, in bounded time; it stays blocked, so that initiators wait for the next start."""
        if self._netlink is not None:
            # From now on nobody answers: the kernel must not wait.
            try:
                self._netlink.set_features(False)
            except TcmuError as error:
                log.error("%s", error)
        left = len(self.by_minor) + 1

        def one_less() -> None:
            nonlocal left
            left -= 1
            if not left:
                self.parent.loop.post(ended)  # who else waits for the last of them is answered first

        def ended() -> None:
            self._close()
            then()

        for device in list(self.by_minor.values()):
            device.process.drain(STOP_SECONDS, one_less)
        one_less()

    def _close(self) -> None:
        if self._netlink is not None:
            self.parent.loop.unregister(self._netlink.fileno())
            self._netlink.close()
            self._netlink = None

    def _adopt(self, minor: int, name: UioName) -> None:
        if name.subtype not in self.parent.handlers:
            log.warning("uio%d (%s) is not ours: no handler %r is installed", minor, name.device, name.subtype)
            return
        device = Device(self, minor, name, None)
        self.by_minor[minor] = device
        log.info("uio%d is there: taking it over", minor, extra={"device": device.title})
        device.process.start(adopt=True)

    # -- the kernel's requests ----------------------------------------------------------------------------------------

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
        for minor, device in list(self.by_minor.items()):
            if minor not in present:
                device.process.close(_nothing)
        for minor, name in present.items():
            if minor not in self.by_minor:
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
        handler = self.parent.handlers.get(name.subtype)
        if handler is None or handler.error:
            self._foreign(request, handler)
            return
        stale = self.by_minor.pop(request.minor, None)
        if stale is not None:
            stale.process.close(_nothing)
        device = Device(self, request.minor, name, lambda status: self._reply(request, status))
        self.by_minor[request.minor] = device
        device.process.start()

    def _foreign(self, request: Request, handler: Handler | None) -> None:
        subtype = request.name.subtype
        where = {"device": f"{subtype}/{request.name.device}"}
        bus = self.parent.bus
        if bus is not None and subtype in bus.external:
            log.debug("uio%d is for the program that registered %r", request.minor, subtype, extra=where)
            return
        if handler is None and self.parent.config.foreign_devices is ForeignDevices.IGNORE:
            log.info("uio%d is left to another daemon: no handler %r here", request.minor, subtype, extra=where)
            return
        if handler is not None:
            log.error("handler %r is broken: %s", subtype, handler.error, extra=where)
        else:
            known = ", ".join(sorted(self.parent.handlers)) or "none"
            log.error("no handler %r is installed (there are: %s)", subtype, known, extra=where)
        self._reply(request, -errno.ENOENT)

    def _is_ours(self, request: Request) -> bool:
        reject = self.parent.config.foreign_devices is ForeignDevices.REJECT
        return reject or request.name.subtype in self.parent.handlers

    def _removed(self, request: Request) -> None:
        device = self.by_minor.get(request.minor)
        if device is None:
            if self._is_ours(request):
                self._reply(request, 0)
            return
        log.info("uio%d is removed", request.minor, extra={"device": device.title})
        device.process.close(lambda: self._reply(request, 0))

    def _reconfigured(self, request: Request) -> None:
        device = self.by_minor.get(request.minor)
        change = request.change
        if device is None or change is None:
            if self._is_ours(request):
                self._reply(request, -errno.ENODEV)
            return
        if change.cfgstring is not None and change.cfgstring.partition("/")[0] != device.name.subtype:
            log.error("a device keeps its handler: %s", change.cfgstring, extra={"device": device.title})
            self._reply(request, -errno.EINVAL)
            return
        self._change(device, change).add_done_callback(lambda done: self._reply(request, -done.result()[0]))

    def _change(self, device: Device, change: Change) -> Future[tuple[int, str]]:
        """Have the handler take a change, of which a cfgstring begins with the handler's name, as the kernel has it."""
        if device.is_so(change):
            so: Future[tuple[int, str]] = Future()
            so.set_result((0, ""))
            return so
        config = change.cfgstring
        if config is None:
            return device.process.change(change)
        answer: Future[tuple[int, str]] = Future()

        def changed(done: Future[tuple[int, str]]) -> None:
            if not done.result()[0]:
                device.name = UioName(device.name.hba, device.name.device, config)
            answer.set_result(done.result())

        device.process.change(Change(cfgstring=config.partition("/")[2])).add_done_callback(changed)
        return answer

    def change_medium(self, subtype: str, name: str, size: int, cfgstring: str) -> Future[tuple[int, str]]:
        """Give the device a new cfgstring; the answer is 0 or a negative errno, and what to tell the person."""
        del size  # a medium has the size that it has
        answer: Future[tuple[int, str]] = Future()
        found = [one for one in self.by_minor.values() if (one.name.subtype, one.name.device) == (subtype, name)]
        if not found:
            answer.set_result((-errno.ENODEV, f"there is no device {subtype}/{name}"))
            return answer
        device = found[0]

        def changed(done: Future[tuple[int, str]]) -> None:
            code, reason = done.result()
            if not code:
                device.process.send(Record())
            answer.set_result((-code, reason))

        self._change(device, Change(cfgstring=f"{subtype}/{cfgstring}")).add_done_callback(changed)
        return answer

    def hold_to_limits(self, config: Config) -> None:
        """Replace hosts that took more memory than their handlers' limits allow."""
        for device in list(self.by_minor.values()):
            limit = config.memory_limits.get(device.name.subtype)
            if limit is not None:
                device.process.hold_to(limit)

    def configure(self, config: Config) -> None:
        """Do nothing: what tcmu.conf says of a handler counts when a device is opened."""

    # -- what managed processes ask and tell --------------------------------------------------------------------------

    def _device(self, process: ManagedProcess) -> Device | None:
        return next((device for device in self.by_minor.values() if device.process is process), None)

    def job(self, process: ManagedProcess) -> Job:
        """Return the job of a device's process."""
        return self._job(process, park=False)

    def parked(self, process: ManagedProcess) -> Job | None:
        """Return the job of a process that leaves the device blocked: initiators hear BUSY and try again."""
        return self._job(process, park=True) if self._device(process) is not None else None

    def _job(self, process: ManagedProcess, *, park: bool) -> Job:
        device = self._device(process)
        assert device is not None
        name = device.name
        spec = DiskSpec(
            name.subtype,
            cfgstring=name.cfgstring,
            name=name.device,
            place=("kernel", str(name.hba), name.device),
            options=self.parent.config.handlers.get(name.subtype, {}),
        )
        return Job(
            key=process.key,
            title=f"tcmu:{name.device}",
            way=KernelDevice(device.minor, name.hba, name.device, park),
            disks={} if park else {0: spec},
            log=LogSettings(),
            version=tcmu_core.__version__,
            takes_over=park,
        )

    def opened(self, process: ManagedProcess, *, adopted: bool) -> None:
        """Answer the kernel; have configfs show what the handler made of a device that was there."""
        device = self._device(process)
        if device is None:
            return
        device.answer(0)
        if process.exists and not adopted:
            process.send(Record())

    def failed(self, process: ManagedProcess, code: int, reason: str) -> None:
        """Answer the kernel."""
        device = self._device(process)
        if device is not None:
            device.answer(-code)

    def gone(self, process: ManagedProcess) -> None:
        """Strike the device off the list."""
        for minor, device in list(self.by_minor.items()):
            if device.process is process:
                del self.by_minor[minor]


def _nothing() -> None:
    pass
