"""Target: logical units by LUN, and the I_T nexuses that reach them (SAM-5 4.6 to 4.8)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial

from tcmu_core.errors import Busy, CommandError, InvalidFieldInCdb, LogicalUnitNotSupported
from tcmu_core.scsi import sense
from tcmu_core.scsi.alua import ONE_GROUP, Arrangement
from tcmu_core.scsi.attention import LUNS_CHANGED
from tcmu_core.scsi.command import Command, Initiator, Nexus
from tcmu_core.scsi.engine import Engine
from tcmu_core.scsi.lun import report_luns_data
from tcmu_core.scsi.opcodes import Op
from tcmu_core.scsi.taskset import countdown
from tcmu_core.scsi.transition import Transition
from tcmu_core.scsi.unit import Surroundings

_NOT_CAPABLE = 0x7F  # peripheral qualifier 011b, device type 1Fh (SPC-4 6.6.2)


class ITNexus:
    """One initiator's connection to a target: for each LUN the engine's `execute` and the I_T_L nexus."""

    def __init__(self, target: Target, initiator: Initiator) -> None:
        self.initiator = initiator
        self._target = target
        self.luns: dict[int, tuple[Callable[[Command], bool], Nexus]] = {
            lun: (engine.execute, engine.attach(initiator)) for lun, engine in target.luns.items()
        }
        self.nowhere = Nexus(initiator)  # stands in where there is no unit

    def execute(self, lun: int | None, command: Command) -> bool:
        """Run a command on a LUN, one that there is or not; as `Engine.execute`."""
        found = self.luns.get(lun) if lun is not None else None
        if found is not None:
            command.nexus = found[1]
            return found[0](command)
        command.nexus = self.nowhere
        try:
            self._target.answer_nowhere(command, lun)
        except CommandError as error:
            command.status = error.status
            command.sense = sense.encode(error)
        return True


class Target:
    """A SCSI target device: the logical units of one iSCSI target name.

    `arrangements` are the target port groups by LUN; one that has none there has one port, in one group.
    """

    def __init__(
        self, name: str, luns: Mapping[int, Engine], arrangements: Mapping[int, Arrangement] | None = None
    ) -> None:
        self.name = name
        self._arrangements = dict(arrangements or {})
        self.luns: dict[int, Engine] = {}
        self._away: dict[int, str] = {}  # those that come back, with the serial number that they had
        self._nexuses: dict[ITNexus, None] = {}
        self._around = Surroundings(target=name)
        for lun, engine in luns.items():
            self.add(lun, engine)

    def add(self, lun: int, engine: Engine) -> None:
        """Take one more logical unit; initiators that are here hear of it (REPORTED LUNS DATA HAS CHANGED).

        Of the same one that comes back they need not hear: its own nexuses are new, and told of a power on.
        """
        if self._away.pop(lun, None) != engine.device.serial:
            self._tell_luns_changed()
        engine.unit.around, engine.unit.lun = self._around, lun
        engine.arrange(self._arrangements.get(lun, ONE_GROUP))
        self.luns[lun] = engine
        self._around.units = {**self._around.units, lun: engine.unit}
        for it in self._nexuses:
            it.luns[lun] = (engine.execute, engine.attach(it.initiator))

    def remove(self, lun: int, then: Callable[[], object], *, comes_back: bool = False) -> Engine:
        """Take a logical unit away; `then()` is called when none of its commands is in flight any more.

        Those end as they would have: an initiator that got no answer would wait for one until it gives up. What comes
        from now on finds no such unit; one that comes back is BUSY until it is there, or is given up.
        """
        engine = self.luns.pop(lun)
        self._around.units = {other: one.unit for other, one in self.luns.items()}
        leaving = [it.luns.pop(lun)[1] for it in self._nexuses]
        if comes_back:
            self._away[lun] = engine.device.serial
        else:
            self._tell_luns_changed()
        for nexus in leaving:
            if nexus.on_clear is not None:
                nexus.on_clear()
        engine.drain(partial(_left, engine, leaving, then))
        return engine

    def give_up(self, lun: int) -> None:
        """A logical unit that was to come back does not: from now on there is none."""
        if self._away.pop(lun, None) is not None:
            self._tell_luns_changed()

    def arrange(
        self,
        arrangements: Mapping[int, Arrangement],
        moving: Callable[[int, Transition], object] = lambda lun, transition: None,
    ) -> None:
        """Take other target port groups, by LUN; `moving(lun, transition)` as `Engine.arrange` has it."""
        self._arrangements = dict(arrangements)
        for lun, engine in self.luns.items():
            engine.arrange(arrangements.get(lun, ONE_GROUP), partial(moving, lun))

    def _tell_luns_changed(self) -> None:
        for engine in self.luns.values():
            engine.unit.attention(*LUNS_CHANGED)

    def connect(self, initiator: Initiator) -> ITNexus:
        """Make the I_T nexus of an initiator port."""
        it = ITNexus(self, initiator)
        self._nexuses[it] = None
        return it

    def disconnect(self, it: ITNexus, then: Callable[[], object] | None = None) -> None:
        """End an I_T nexus on every unit, at once; `then()` when all its commands have ended."""
        self._nexuses.pop(it, None)
        one_ended = countdown(len(it.luns), then or _nothing)
        for lun, (_, nexus) in it.luns.items():
            self.luns[lun].detach(nexus, one_ended)

    def reset(self, it: ITNexus | None, then: Callable[[], object]) -> None:
        """TARGET RESET: reset every unit; `then()` when all has ended."""
        one_ended = countdown(len(self.luns), then)
        for lun, engine in self.luns.items():
            engine.reset(it.luns[lun][1] if it is not None else None, one_ended)

    def answer_nowhere(self, command: Command, lun: int | None = None) -> None:
        """Answer a command to a LUN that does not exist (SAM-5 4.8.3, SPC-4 6.6.1), or is away for a moment."""
        cdb = command.cdb
        if lun in self._away and cdb[0] != Op.REPORT_LUNS:
            raise Busy
        if cdb[0] == Op.INQUIRY:
            if cdb[1] & 0x01 or cdb[2]:
                raise InvalidFieldInCdb
            data = bytearray(36)
            data[0], data[2], data[3], data[4] = _NOT_CAPABLE, 0x06, 0x02, 31
            command.put(data[: int.from_bytes(cdb[3:5], "big")])
        elif cdb[0] == Op.REPORT_LUNS:
            command.put(report_luns_data(cdb, sorted({*self.luns, *self._away})))
            self._around.listed_to(command.nexus)
        elif cdb[0] == Op.REQUEST_SENSE:
            command.put(sense.encode(LogicalUnitNotSupported(), descriptor=bool(cdb[1] & 1))[: cdb[4]])
        else:
            raise LogicalUnitNotSupported


def _left(engine: Engine, nexuses: Iterable[Nexus], then: Callable[[], object]) -> None:
    for nexus in nexuses:
        engine.detach(nexus)
    then()


def _nothing() -> None:
    pass
