"""What changes a unit from outside: its size, its write cache, its target port groups, what another process stores."""

from __future__ import annotations

import errno
from abc import abstractmethod
from collections.abc import Callable
from concurrent.futures import Future

from tcmu_core.disk.device import Change
from tcmu_core.disk.disk import Disk
from tcmu_core.errors import text_of
from tcmu_core.scsi.alua import Arrangement
from tcmu_core.scsi.attention import (
    ACCESS_STATE_CHANGED,
    CAPACITY_CHANGED,
    INQUIRY_CHANGED,
    MEDIUM_CHANGED,
    MODE_PARAMETERS_CHANGED,
)
from tcmu_core.scsi.command import Command, Initiator, Nexus
from tcmu_core.scsi.commands.data import flushed
from tcmu_core.scsi.opcodes import Op, Opcode
from tcmu_core.scsi.reservations import Registrant
from tcmu_core.scsi.stepping import Stepper
from tcmu_core.scsi.steps import Shielded, Steps
from tcmu_core.scsi.taskset import MEDIUM
from tcmu_core.scsi.transition import Transition

_MODE_SELECT = bytes([Op.MODE_SELECT_6, 0x10, 0, 0, 0, 0])  # what stands for a change that a person makes
_NOBODY = Initiator("", b"")


class Changes(Stepper):
    """The side of an engine that persons, handlers and other processes reach."""

    disk: Disk

    @abstractmethod
    def _decode(self, command: Command) -> Opcode | None:
        """Note which row of the table the CDB is, and the blocks that it names."""

    def _notified(self, asc: int, ascq: int, but: Nexus | None) -> None:
        self.post(self._tell, asc, ascq, but)

    def _tell(self, asc: int, ascq: int, but: Nexus | None) -> None:
        if (asc, ascq) in (CAPACITY_CHANGED, MEDIUM_CHANGED):  # the storage has another size, or may have
            self.refresh()
        self.unit.attention(asc, ascq, but=but)

    def arrange(
        self, arrangement: Arrangement, moving: Callable[[Transition], object] = lambda transition: None
    ) -> None:
        """Take other target port groups; `moving(transition)` is called where they have a long way to other states.

        While groups are on their way already, that comes first.
        """
        unit, access = self.unit, self.unit.access
        if access.transition is not None:
            access.transition.add_done_callback(lambda _: self.post(self.arrange, arrangement, moving))
            return
        before = access.arrangement
        if arrangement == before:
            return
        states = access.take(arrangement)
        access.look(unit.nexuses)
        if arrangement.tpgs != before.tpgs:
            unit.version += 1
            unit.attention(*INQUIRY_CHANGED)
        if arrangement.groups != before.groups and not states:
            unit.attention(*ACCESS_STATE_CHANGED)
        transition = Transition(unit, states, settled=self.gate)
        self.gate()
        if not transition.ended.done():
            moving(transition)

    def _stored_elsewhere(self) -> Future[None]:
        """Another process has put other reservations into the store; may be called on any thread."""
        taken: Future[None] = Future()
        self.post(self._restored, taken)
        return taken

    def _restored(self, taken: Future[None]) -> None:
        """Take them, and abort whose commands they want to be; `taken` ends when those have."""
        reservations = self.unit.reservations
        try:
            self.unit.tell(reservations.reload())
        except OSError as error:
            self.device.log.error("reservations that another process has changed can't be read: %s", text_of(error))
            taken.set_exception(error)
            return
        self.gate()
        due = reservations.take_due()
        for nexus in self.unit.nexuses:
            if nexus.on_clear is not None and Registrant.of(nexus) in due:
                nexus.on_clear()
        victims = [command for command in self.unit.tasks.active if Registrant.of(command.nexus) in due]
        self._abort_all(victims, lambda: taken.set_result(None), by=Nexus(_NOBODY))

    def change(self, change: Change) -> Future[None] | None:
        """Have the disk take a change (bytes), and the unit and its nexuses learn of it; raises as `Disk.change`.

        Returns None when it is done. One of the write cache takes its turn, as MODE SELECT does, and what is volatile
        has to become stable first: a Future of that, which fails with what the disk or its flush raise.
        """
        if change.write_cache is None:
            self._take(change)
            return None
        changed: Future[None] = Future()
        command = Command(_MODE_SELECT, [], 0, Nexus(_NOBODY))
        self._decode(command)
        turn = self.unit.tasks.admit(command, (MEDIUM,), alone=True)
        if self._step(command, self._switching(change, turn, changed), None):
            self._end(command)
        if not changed.done():
            return changed
        changed.result()
        return None

    def _switching(self, change: Change, turn: Future[None] | None, changed: Future[None]) -> Steps:
        """Switch the write cache while nothing else is in flight: a write knows at its end whether there is one."""
        try:
            if turn is not None:
                yield turn
            if not change.write_cache and not self.unit.read_only:
                yield Shielded(flushed(self.unit))  # what is volatile; where that fails the write cache stays
            self._take(change)
        except GeneratorExit:
            changed.set_exception(InterruptedError(errno.EINTR, "a reset of an initiator came first: set it again"))
            raise
        except BaseException as error:
            changed.set_exception(error)
        else:
            changed.set_result(None)

    def _take(self, change: Change) -> None:
        device, unit = self.device, self.unit
        size, cached = device.size, unit.modes.write_cache
        self.disk.change(change)
        if change.write_cache is not None:
            unit.modes.write_cache = device.write_cache
            if cached != device.write_cache:
                unit.attention(*MODE_PARAMETERS_CHANGED)
        if device.size != size and not device.removable:  # of another medium its handler has told already
            unit.resized()
        self.refresh()

    def resize(self, size: int) -> None:
        """Take a new size in bytes that the handler has told of; every nexus hears of it."""
        if size != self.device.size or self.unit.blocks != self.device.blocks:
            self.device.size = size
            self.unit.resized()
            self.gate()
