"""Device: what a handler sees of the disk that it stands behind."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple, ParamSpec, TypeVar

from tcmu_core.posix.engines import Reactor
from tcmu_core.scsi.command import Nexus
from tcmu_core.scsi.opcodes import Opcode

P = ParamSpec("P")
R = TypeVar("R")

OFFLOAD_THREADS = 8


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


class DeviceLog(logging.LoggerAdapter[logging.Logger]):
    """A logger whose lines begin with `subtype/name:`."""

    def process(self, msg: Any, kwargs: Any) -> tuple[Any, Any]:
        """Hand the device's name to the formatter."""
        kwargs["extra"] = {"device": (self.extra or {})["device"]}
        return msg, kwargs


@dataclass(eq=False)
class Device:
    """One disk. Made by the runner, filled in by the handler's `open`.

    Sizes and lengths are bytes; a limit of 0 means that the handler sets none. `state` is a module handler's to use.
    """

    name: str
    handler: str
    cfgstring: str = ""
    size: int | None = None
    block_size: int = 512
    physical_block_size: int = 0  # 0: the same as block_size
    read_only: bool = False
    write_cache: bool = True  # whether a write may be volatile until flush; ignored without a flush hook
    threads: int = 0  # 0: data hooks are called on the loop's thread and must not block; N: on N threads of a pool

    max_transfer_length: int = 0
    optimal_transfer_length: int = 0
    max_discard_length: int = 0
    discard_granularity: int = 0
    discard_alignment: int = 0
    solid_state: bool = True
    thin: bool = False  # whether space is allocated as it is written (provisioning type 2 in VPD page B2)

    device_type: int = 0x00  # SPC-4 6.4.2: 00h direct access block device, 05h CD/DVD
    removable: bool = False
    vendor: str = "LIO-ORG"
    product: str = "TCMU device"
    revision: str = "0002"
    serial: str = ""  # unit serial number; derived from the name when empty
    opcodes: tuple[Opcode, ...] = ()  # commands that handle_cmd serves beyond the engine's

    reactor: Reactor | None = (
        None  # the loop that the data hooks are called on, for `posix.engine`; None: there is none
    )
    options: Mapping[str, str] = field(default_factory=dict)  # the handler's section of tcmu.conf
    state: Any = None

    def __post_init__(self) -> None:
        self.log = DeviceLog(
            logging.getLogger(f"tcmu.handler.{self.handler}"), {"device": f"{self.handler}/{self.name}"}
        )
        self._pool: ThreadPoolExecutor | None = None
        # Set by the logical unit: see `notify`, and whether an initiator prevents the removal of the medium.
        self.changed: Callable[[int, int, Nexus | None], None] = lambda asc, ascq, but: None
        self.prevented: Callable[[], bool] = lambda: False

    @property
    def blocks(self) -> int:
        """Return how many logical blocks the device has."""
        return (self.size or 0) // self.block_size

    def offload(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        """Run `fn(*args)` on the device's thread pool and return its future."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self.threads or OFFLOAD_THREADS, f"tcmu-{self.name}")
        return self._pool.submit(fn, *args, **kwargs)

    def notify(self, asc: int, ascq: int, *, but: Nexus | None = None) -> None:
        """Establish a unit attention for every nexus but one (SPC-4 annex F codes); safe to call from any thread."""
        self.changed(asc, ascq, but)

    def shutdown(self) -> None:
        """Wait for what `offload` started and end the pool."""
        if self._pool is not None:
            self._pool.shutdown(wait=True)
            self._pool = None
