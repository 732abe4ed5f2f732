"""Transport: a way in to disks. Implementations stand in folders of their own and in the table of `transports`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Protocol

from tcmu_core.codec import Message
from tcmu_core.disk.device import StateStore
from tcmu_core.disk.spec import DiskSpec
from tcmu_core.host.messages import Logout, SessionStatus, WayIn
from tcmu_core.loop import Loop
from tcmu_core.scsi.engine import Engine

if TYPE_CHECKING:
    from tcmu_core.disk.disk import Disk


class Served(Protocol):
    """What a transport may ask of the host that it belongs to."""

    loop: Loop
    engines: dict[int, Engine]  # by LUN
    specs: dict[int, DiskSpec]  # as they were asked for, by LUN; a cfgstring is whole

    def stop(self) -> None:
        """End: there is nothing to serve any more."""


class Transport(Protocol):
    """A way in, from `prepare` to `close`. All is called on the loop's thread."""

    needs_all: bool  # whether it is of no use with a disk missing
    title: str  # what people call it
    passes_on: tuple[str, ...]  # targets that other processes serve, to which it passes logins on

    def prepare(self, disks: Mapping[int, DiskSpec], *, takes_over: bool) -> Mapping[int, DiskSpec]:
        """Take hold of the way in; return the specs completed with what it knows of them.

        Raises:
            TcmuError, OSError: it can't be had.
        """

    def store(self, lun: int, disk: Disk) -> StateStore | None:
        """Return where the persistent reservations of a disk outlive the process; None where they are not ours."""

    def start(self) -> None:
        """Serve the host's units; raises `OSError` or `TcmuError` when that can't be."""

    def add(self, lun: int, engine: Engine) -> None:
        """Serve one more unit."""

    def remove(self, lun: int, then: Callable[[], object], *, comes_back: bool) -> None:
        """Serve a unit no more; `then()` when none of its commands is in flight.

        If it `comes_back`, initiators wait for it until `add`, or until `give_up`.
        """

    def give_up(self, lun: int) -> None:
        """A unit that was to come back does not; nothing for one that was not."""

    def reassign(self, way: WayIn) -> None:
        """Take new settings; who is here already goes on. Raises `OSError` when they can't be had."""

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where initiators find it, for people."""

    @property
    def counters(self) -> tuple[int, int]:
        """Return the commands taken since the start, and those in flight now."""

    def message(self, message: Message, fds: list[int]) -> bool:
        """Take a message that is the transport's own; False for any other."""

    def sessions(self) -> tuple[SessionStatus, ...]:
        """Return who is here, as far as it is known."""

    def log_out(self, wanted: Logout) -> int:
        """Send initiators away; returns how many sessions that ends."""

    def watched(self, lun: int) -> None:
        """Somebody looks at the counters of a LUN: count for a while, where that is not done always."""

    def ping(self) -> None:
        """Look after what nobody else does, every few seconds."""

    def changed(self, lun: int) -> None:
        """The disk of a LUN has taken a change."""

    def drain(self, seconds: float, then: Callable[[], object]) -> None:
        """Take nothing new, have initiators leave within `seconds`, then call `then()`; commands may be in flight."""

    def close(self) -> None:
        """Let go of the way in."""
