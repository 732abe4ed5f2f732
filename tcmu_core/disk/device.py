"""Device: what a handler sees of the disk that it stands behind."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple, ParamSpec, Protocol, TypeVar

from tcmu_core.disk.threads import Threads
from tcmu_core.posix.engines import Reactor
from tcmu_core.progress import Lines, Progress, Report, progress
from tcmu_core.scsi.command import Nexus
from tcmu_core.scsi.opcodes import Opcode

P = ParamSpec("P")
R = TypeVar("R")


class Extent(NamedTuple):
    """A run of bytes and whether storage is allocated for it; an unmapped extent reads as zeros."""

    offset: int
    length: int
    mapped: bool


@dataclass(frozen=True, slots=True)
class Change:
    """What `reconfigure` is asked for: exactly one field is set (sizes in bytes)."""

    size: int | None = None
    cfgstring: str | None = None
    write_cache: bool | None = None


Version = str  # of what a store holds; equal ones mean equal states, and nothing else is known of them


class StateStore(Protocol):
    """Where reservations outlive a loss of power. Several processes may have the same one.

    All of it is called on the loop's thread, and must not wait for a network: what may take long is a Future.
    """

    # Whether what is stored is the state of all gateways, not only what outlives a loss of power: then registrations
    # without APTPL are in it too, and last as long as the storage does.
    shared: bool

    def load(self) -> tuple[bytes, Version]:
        """Return what it holds, nothing at first, and the version of that; raises `OSError`."""

    def replace(self, state: bytes, version: Version) -> Version | Future[Version]:
        """Hold `state` in place of this version, as one step; return its own version, then or later.

        Then it is on stable storage.

        Raises:
            StaleVersion: another version is there, which `load` returns, and stays. The Future may have this, too.
            OSError: nothing was replaced.
        """

    def announce(self) -> Future[None] | None:
        """Have the others that watch take what was replaced; the Future ends when they have, or can do no harm."""

    def watch(self, callback: Callable[[], Future[None]]) -> Callable[[], object]:
        """Call `callback()`, on any thread, when somebody else has replaced the state; return what ends that.

        What `callback` returns ends when the new state is in force, and what it had to abort has ended.
        """


class DeviceLog(logging.LoggerAdapter[logging.Logger]):
    """A logger whose lines begin with `subtype/name:`."""

    def process(self, msg: Any, kwargs: Any) -> tuple[Any, Any]:
        """Hand the device's name to the formatter."""
        kwargs["extra"] = {"device": (self.extra or {})["device"]}
        return msg, kwargs


@dataclass(eq=False)
class Device:
    """What a handler sees of its disk. Made by the runner, filled in by the handler's `open`.

    Sizes and lengths are bytes; a limit of 0 means that the handler sets none. `state` is a module handler's to use.
    An attribute that there is not can't be set, so that one that is misspelt is noticed.
    """

    name: str
    handler: str
    cfgstring: str = ""
    size: int | None = None
    block_size: int = 512
    physical_block_size: int = 0  # 0: the same as block_size
    read_only: bool = False  # what a person made read-only stays so, whatever is set here
    write_cache: bool = True  # whether a write may be volatile until flush; ignored without a flush hook
    threads: int = 0  # 0: data hooks are called on the loop's thread and must not block; N: on N threads of a pool

    max_transfer_length: int = 0
    optimal_transfer_length: int = 0
    max_discard_length: int = 0
    discard_granularity: int = 0
    discard_alignment: int = 0
    solid_state: bool = True
    thin: bool = False  # whether space is allocated as it is written (provisioning type 2 in VPD page B2)

    buffer_alignment: int = 1  # where it likes the buffers of reads to begin: a power of two

    device_type: int = 0x00  # SPC-4 6.4.2: 00h direct access block device, 05h CD/DVD
    removable: bool = False
    vendor: str = "LIO-ORG"
    product: str = "TCMU device"
    revision: str = "0002"
    serial: str = ""  # unit serial number; the handler's own one goes before what the runner gave
    ephemeral: bool = False  # the storage ends with this process: another disk of the same cfgstring is another one
    opcodes: tuple[Opcode, ...] = ()  # commands that handle_cmd serves beyond the engine's

    reactor: Reactor | None = None  # the loop that data hooks are called on, for `posix.engine`, if there is one
    reservations: StateStore | None = None  # where those of the portal lie, if not in a file of this host
    options: Mapping[str, str] = field(default_factory=dict)  # the handler's section of tcmu.conf
    state: Any = None

    def __post_init__(self) -> None:
        self.log = DeviceLog(
            logging.getLogger(f"tcmu.handler.{self.handler}"), {"device": f"{self.handler}/{self.name}"}
        )
        self._threads = Threads(self.name)
        self._protected = self.read_only
        # Set by the logical unit: see `notify`, and whether an initiator prevents the removal of the medium.
        self.changed: Callable[[int, int, Nexus | None], None] = lambda asc, ascq, but: None
        self.prevented: Callable[[], bool] = lambda: False
        # Set by who has the transports: see `drop_link`.
        self.dropped: Callable[[str], None] = lambda initiator: None
        # Set by who has a terminal: see `progress`.
        self.reported: Report = Lines(self.log)
        self.doing: Progress | None = None

    @property
    def blocks(self) -> int:
        """Return how many logical blocks the device has."""
        return (self.size or 0) // self.block_size

    def offload(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        """Run `fn(*args)` on the device's thread pool and return its future."""
        return self._threads.submit(self.threads, fn, args, kwargs)

    def in_flight(self) -> int:
        """Return how many calls that were offloaded have not ended."""
        return self._threads.busy

    def notify(self, asc: int, ascq: int, *, but: Nexus | None = None) -> None:
        """Establish a unit attention for every nexus but one (SPC-4 annex F codes); safe to call from any thread.

        A handler whose storage has got another size sets `size`, then notifies of 2Ah/09h, CAPACITY DATA HAS CHANGED.

        Raises:
            ValueError: a code that does not fit into a byte.
        """
        for code in (asc, ascq):
            if not isinstance(code, int) or not 0 <= code <= 0xFF:
                raise ValueError(f"{code!r} is no additional sense code or qualifier: it must be a number of one byte")
        self.changed(asc, ascq, but)

    def drop_link(self, initiator: str = "") -> None:
        """Break the connections of an initiator (its name), or of all, soon; what they have in flight is aborted.

        The kernel's transports can't be told: their initiators see the command fail in its time instead.
        """
        self.dropped(initiator)

    def progress(self, done: int, total: int, what: str = "") -> None:
        """Tell a person who waits how far it is: `done` of `total` bytes of `what`, such as "loading the image".

        Cheap, and from any thread; for what may take seconds, and not for a command. It is over when all is done, and
        when `open`, `close` or `reconfigure` has ended.
        """
        self.doing = progress(done, total, what)
        self.reported(self.doing)

    def shutdown(self, *, wait: bool = True) -> None:
        """Wait for what `offload` started and end the threads; without `wait` they end when they are done."""
        self._threads.shutdown(wait=wait)

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in _SETTABLE:
            close = difflib.get_close_matches(name, _SETTABLE, 1)
            hint = f"did you mean {close[0]!r}? " if close and not close[0].startswith("_") else ""
            raise AttributeError(
                f"a device has no {name!r}: {hint}what is the handler's own goes into device.state, or on self"
            )
        if name in _FIXED and name in self.__dict__:
            raise AttributeError(f"a device's {name!r} can't be replaced")
        if name == "read_only" and self.__dict__.get("_protected"):
            value = True
        object.__setattr__(self, name, value)


_FIXED = frozenset({"log", "_threads", "_protected"})
_SETTABLE = frozenset(
    {field.name for field in fields(Device)}
    | {"log", "_protected", "_threads", "changed", "prevented", "dropped", "reported", "doing"}
)
