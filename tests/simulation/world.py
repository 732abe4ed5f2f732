"""The product as the simulation uses it: everything that it touches of `tcmu_core` is in this module."""

from __future__ import annotations

import logging
import sys
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import tcmu_core
from tcmu_core import Extent, hookimpl
from tcmu_core.disk.device import Device
from tcmu_core.disk.disk import Disk
from tcmu_core.disk.spec import DiskSpec
from tcmu_core.filters.delay import Delay
from tcmu_core.filters.latency import latency
from tcmu_core.iscsi import budget
from tcmu_core.iscsi.portal import Portal, transport_id
from tcmu_core.iscsi.settings import Limits, PortalSettings
from tcmu_core.kernel.ring import Ring
from tcmu_core.scsi.alua import AccessState, Arrangement, PortGroup
from tcmu_core.scsi.command import Command, Initiator
from tcmu_core.scsi.engine import Engine
from tcmu_core.scsi.opcodes import Tpgs
from tcmu_core.scsi.target import ITNexus, Target
from tcmu_core.scsi.transition import Transition
from tcmu_core.testing.fake_kernel import FakeKernel
from tests.simulation import net, storage

Then = Callable[[], object]
PRODUCT = str(Path(tcmu_core.__file__).parent)
TARGET = "iqn.2026-01.test:target"
NAA_SIZE = 16
POOLED = 1  # variants: the disks have threads, which take hooks when the schedule lets them
FILTERED = 8  # a filter stands upon the disks, and ends what they do later
THROUGH = 16  # their write cache is off
REMOVABLE = 32  # their medium can be ejected
GROUPS = (1, 2)  # target port groups, each of the port of its number; all initiators but the second come by the first


class Handler:
    """The hooks; `storage` is put in its place for each run, as opening a disk costs more than a short run does."""

    def __init__(self) -> None:
        self.storage: Any = None

    @hookimpl
    def open(self, device: Any) -> None:
        """Open the disk."""

    @hookimpl
    def close(self, device: Any) -> None:
        """Close it."""

    @hookimpl
    def read(self, offset: int, buffers: list[memoryview]) -> Future[None] | None:
        """Fill the buffers."""
        return self.storage.hook("read", offset, sum(map(len, buffers)), buffers)

    @hookimpl
    def write(self, offset: int, buffers: list[memoryview]) -> Future[None] | None:
        """Store the buffers."""
        return self.storage.hook("write", offset, sum(map(len, buffers)), buffers)

    @hookimpl
    def flush(self) -> Future[None] | None:
        """Make what was written before stable."""
        return self.storage.hook("flush", 0, 0, [])

    @hookimpl
    def discard(self, offset: int, length: int) -> Future[None] | None:
        """Let a range read as zeros."""
        return self.storage.hook("zero", offset, length, [])

    @hookimpl
    def write_zeroes(self, offset: int, length: int) -> Future[None] | None:
        """Write zeros."""
        return self.storage.hook("zero", offset, length, [])

    @hookimpl
    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        """Tell what is mapped."""
        return (Extent(*one) for one in self.storage.extents(offset, length))


class Pooled(Handler):
    """The same with threads: what is handed to the pool waits until the schedule lets a thread take it."""

    @hookimpl
    def open(self, device: Device) -> None:
        """Ask for threads."""
        device.threads = 2


_opened: dict[tuple[int, int, int], tuple[Handler, Disk, net.Clock]] = {}


def _disk(number: int, size: int, variant: int) -> tuple[Handler, Disk, net.Clock]:
    """Return an open disk: opening costs more than a run does, so the disks of one run serve the next."""
    key = (variant, number, size)
    if key not in _opened:
        handler = Pooled() if variant & POOLED else Handler()
        spec = DiskSpec("simulated", name=f"disk{number}", size=size * storage.BLOCK, serial=f"simulated{number}")
        clock = net.Clock()
        delay = Delay(clock)
        delay.given = {"all": latency("1s")}
        disk = Disk(spec, handler, [delay] if variant & FILTERED else [])
        disk.open()
        disk.device.log.logger.disabled = True
        _opened[key] = handler, disk, clock
    handler, disk, clock = _opened[key]
    disk.device.size = size * storage.BLOCK
    disk.device.write_cache = not variant & THROUGH
    disk.device.removable = bool(variant & REMOVABLE)
    return handler, disk, clock


def forget() -> None:
    """Open the disks anew in the next run."""
    _opened.clear()


def initiator(who: int) -> Initiator:
    """Return an initiator port."""
    name = f"iqn.2026-01.test:{'abcdefgh'[who]},i,0x000000000001\0".encode()
    name += bytes(-len(name) % 4)
    tid = bytes([0x45, 0]) + len(name).to_bytes(2, "big") + name
    return Initiator(f"iqn.2026-01.test:{'abcdefgh'[who]}", tid, port_of(who))


def port_of(who: int) -> int:
    """Return the target port that an initiator comes by, where there are two: its group has the same number."""
    return GROUPS[who == 1]


def arrangement(states: dict[int, int]) -> Arrangement:
    """Return target port groups, in the states that somebody sets up."""
    groups = tuple(PortGroup(one, (one,), AccessState(states[one])) for one in GROUPS)
    return Arrangement(groups, Tpgs.BOTH)


def current_command() -> Any:
    """Return the command that the engine is at work for, the nearest one on the stack; of the ring, its number."""
    frame = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if code is Ring.process.__code__:  # no Command was made, and `command` is an earlier one's
            return frame.f_locals["cmd_id"]
        if "command" in code.co_varnames:
            found = frame.f_locals.get("command")
            if isinstance(found, Command):
                return found
        frame = frame.f_back
    return None


def _offload(offloaded: Any, number: int, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
    """Hand `fn` to the pool."""
    future: Future[Any] = offloaded(number, lambda: fn(*args, **kwargs))
    return future


def _later(offloaded: Any, number: int, delay: float, fn: Then) -> None:
    """Have a call wait until the schedule takes it, as one for the pool."""
    offloaded(number, fn)


class World:
    """One process: units on the disks, and a target with them. `posted` is its loop's queue."""

    def __init__(
        self,
        storages: list[storage.Storage],
        stores: list[Any],
        variant: int,
        offloaded: Callable[[int, Callable[[], Any]], Future[Any]],
        post: Callable[..., None] | None = None,
        *,
        grouped: bool = False,
    ) -> None:
        self.posted: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        self._post = post
        self.origins: dict[Any, int] = {}  # what goes on on its own: by its command, the tag of the one that began it
        self.engines: list[Engine] = []
        for one, store in zip(storages, stores, strict=True):
            handler, disk, clock = _disk(one.number, len(one.blocks), variant)
            handler.storage = one
            clock.later = partial(_later, offloaded, one.number)
            object.__setattr__(disk.device, "offload", partial(_offload, offloaded, one.number))
            self.engines.append(Engine(disk, post=self.post, store=store))
        groups = dict.fromkeys(range(len(self.engines)), arrangement(dict.fromkeys(GROUPS, 0))) if grouped else {}
        self.target = Target(TARGET, dict(enumerate(self.engines)), groups)
        self.names = [engine.unit.identity.naa for engine in self.engines]

    def post(self, fn: Callable[..., object], *args: Any) -> None:
        """Call soon."""
        for arg in args:
            if isinstance(arg, Command) and not arg.tag and arg not in self.origins:
                begun_by = current_command()
                self.origins[arg] = begun_by.tag if isinstance(begun_by, Command) else 0
        if self._post is not None:
            self._post(fn, *args)
            return
        self.posted.append((fn, args))

    def turn(self) -> None:
        """Make the call that is due."""
        fn, args = self.posted.popleft()
        fn(*args)

    def resize(self, lun: int, blocks: int) -> None:
        """The handler of a unit tells of another size."""
        self.engines[lun].resize(blocks * storage.BLOCK)

    def arrange(self, states: dict[int, int], arrived: Callable[[int], object]) -> set[int]:
        """Somebody sets the target port groups up otherwise; returns the units of which `arrived(lun)` will tell."""
        late: set[int] = set()

        def moving(lun: int, transition: Transition) -> None:
            late.add(lun)
            transition.ended.add_done_callback(lambda _: arrived(lun))

        self.target.arrange(dict.fromkeys(self.target.luns, arrangement(states)), moving)
        return late

    def connect(self, who: int, quiet: bool) -> ITNexus:
        """Make the nexus of an initiator; `quiet` without the unit attentions that it begins with."""
        it = self.target.connect(initiator(who))
        if quiet:
            for _, nexus in it.luns.values():
                nexus.attentions.clear()
        return it

    def disconnect(self, it: ITNexus, then: Then) -> bool:
        """End a nexus; True if `then` will be called when all of it has ended."""
        self.target.disconnect(it, then)
        return True

    def start(
        self,
        it: ITNexus,
        lun: int,
        cdb: bytes,
        buffer: bytearray,
        attribute: int,
        tag: int,
        done: Callable[[Any], None],
    ) -> tuple[Any, bool]:
        """Send a command; True if it has ended already, else `done(command)` will be called."""
        views = [memoryview(buffer)] if buffer else []
        command = Command(cdb, views, len(buffer), it.nowhere, done, tag, attribute)
        return command, it.execute(lun, command)

    def abort(self, lun: int, command: Any, then: Then) -> None:
        """ABORT TASK."""
        self.engines[lun].abort(command, then)

    def abort_set(self, it: ITNexus, lun: int, then: Then) -> None:
        """ABORT TASK SET."""
        self.engines[lun].abort_task_set(it.luns[lun][1], then)

    def clear_set(self, it: ITNexus, lun: int, then: Then) -> None:
        """CLEAR TASK SET."""
        self.engines[lun].clear_task_set(it.luns[lun][1], then)

    def reset_unit(self, it: ITNexus, lun: int, then: Then) -> None:
        """LOGICAL UNIT RESET."""
        self.engines[lun].reset(it.luns[lun][1], then)

    def reset_target(self, it: ITNexus, then: Then) -> None:
        """TARGET RESET."""
        self.target.reset(it, then)


class _Errors(logging.Handler):
    """Keeps the exceptions that the portal logs: they cost a peer its connection, and are faults all the same."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the first."""
        if record.exc_info is not None and not self.found:
            self.found.append(f"{record.getMessage()}: {record.exc_info[1]!r}")


_errors = _Errors()
logging.getLogger("tcmu.iscsi").addHandler(_errors)


class PortalWorld(World):
    """One process that serves its target by iSCSI, over sockets and a loop that are ours."""

    def __init__(self, loop: net.Loop, limits: Limits, *args: Any) -> None:
        super().__init__(*args, loop.post)
        _errors.found.clear()
        settings = PortalSettings(limits=limits)
        self.portal = Portal(loop, settings, {TARGET: self.target})  # type: ignore[arg-type]

    @property
    def error(self) -> str | None:
        """The first exception that the portal has caught."""
        return _errors.found[0] if _errors.found else None

    def accept(self, sock: net.Socket) -> None:
        """Serve a connection."""
        self.portal._admit(sock, sock.getpeername())  # type: ignore[arg-type]

    def hush(self, name: str, isid: bytes) -> None:
        """Take away the unit attentions that the nexuses of an initiator begin with."""
        port = transport_id(name, isid)
        for engine in self.engines:
            for nexus in engine.unit.nexuses:
                if nexus.initiator.transport_id == port:
                    nexus.attentions.clear()


def limits(**changes: int) -> Limits:
    """Return limits that are small enough to be met within a few steps."""
    small = {
        "connections": 8, "queue_depth": 8, "segment": 1024, "burst": 2048, "first_burst": 1024, "outstanding_r2t": 2,
        "transfer": 4096, "memory": 1 << 20, "send_queue": 4096,
    }  # fmt: skip
    return Limits(**(small | changes))  # type: ignore[arg-type]


class RingWorld(World):
    """One process that serves one unit by the kernel's ring."""

    def __init__(self, kernel: FakeKernel, *args: Any) -> None:
        super().__init__(*args)
        self.engine = self.engines[0]
        nexus = self.engine.attach(initiator(0))
        nexus.attentions.clear()
        self.ring = Ring(kernel.memory, self.engine, nexus, post=self.post, doorbell=kernel.bell)


class Counted(bytearray):
    """A bytearray that counts: `alive` are the bytes of all that there are."""

    alive = 0

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._size = len(self)
        Counted.alive += self._size

    def __del__(self) -> None:
        Counted.alive -= self._size


class CountedBlock(budget._Block):
    """A block of a connection's account, counted by us too."""

    __slots__ = ()

    def __init__(self, account: budget.Account, size: int) -> None:
        super().__init__(account, size)
        Counted.alive += size

    def __del__(self) -> None:
        Counted.alive -= len(self)
        super().__del__()


@contextmanager
def counted() -> Iterator[None]:
    """Count what sessions and the engine keep in memory, all of which are bytearrays."""
    modules = [module for name, module in sys.modules.items() if name.startswith(("tcmu_core.iscsi", "tcmu_core.scsi"))]
    for module in modules:
        module.bytearray = Counted  # type: ignore[attr-defined]
    block, budget._Block = budget._Block, CountedBlock  # type: ignore[misc]
    try:
        yield
    finally:
        budget._Block = block  # type: ignore[misc]
        for module in modules:
            del module.bytearray


def sense_of(sense: bytes) -> tuple[int, int, int]:
    """Return sense key, ASC and ASCQ."""
    if not sense:
        return 0, 0, 0
    if sense[0] & 0x7F == 0x72:
        return sense[1] & 0x0F, sense[2], sense[3]
    return sense[2] & 0x0F, sense[12], sense[13]
