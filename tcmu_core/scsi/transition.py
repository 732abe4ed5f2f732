"""The way of target port groups from one access state to another (SPC-4 5.15.2.1).

A group that stops being active lets what came through it end first: when it shows its new state, no command of an
initiator there writes any more. Until then all groups that move are in the transitioning state.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future

from tcmu_core.scsi.alua import ACTIVE, AccessState, Cause
from tcmu_core.scsi.attention import ACCESS_STATE_CHANGED, TRANSITION_FAILED
from tcmu_core.scsi.command import Command
from tcmu_core.scsi.opcodes import Touches
from tcmu_core.scsi.taskset import countdown
from tcmu_core.scsi.unit import Unit


def _may_wait_for_it(unit: Unit, command: Command) -> bool:
    """Return whether a command has its turn to come, maybe behind the one that moves groups: it is looked at then.

    A copy counts by what it has asked for on each unit: that was not decoded from a CDB, and has no row.
    """
    row = getattr(command, "row", None)
    return (row is not None and row.touches is Touches.OWN_WAY) or unit.tasks.is_waiting(command)


class Transition:
    """Groups of a unit on their way to new states, on behalf of the command `by` or of ourselves.

    `settled()` is called when they have arrived, or have come back.
    """

    def __init__(
        self,
        unit: Unit,
        states: Mapping[int, AccessState],
        *,
        by: Command | None = None,
        settled: Callable[[], object] = lambda: None,
    ) -> None:
        self.ended: Future[None] = Future()
        self._unit = unit
        self._by = by
        self._settled = settled
        access = unit.access
        self._to = {group: state for group, state in states.items() if access.states.get(group, state) is not state}
        self._from = {group: access.states[group] for group in self._to}
        if not self._to:
            self.ended.set_result(None)
            return
        leaving = {group for group, state in self._to.items() if self._from[group] in ACTIVE and state not in ACTIVE}
        in_flight = [
            command
            for command in unit.tasks.active
            if command is not by
            and not _may_wait_for_it(unit, command)
            and access.group(command.nexus.initiator.port) in leaving
        ]
        access.states.update(dict.fromkeys(self._to, AccessState.TRANSITIONING))
        access.transition = self.ended
        access.look(unit.nexuses)
        one_ended = countdown(len(in_flight), self._arrive)
        for command in in_flight:
            unit.tasks.watch(command, one_ended)

    def _arrive(self) -> None:
        if self.ended.done():  # it was given up
            return
        unit = self._unit
        unit.access.causes.update(dict.fromkeys(self._to, Cause.IMPLICIT if self._by is None else Cause.EXPLICIT))
        self._stay_at(self._to)
        unit.attention(*ACCESS_STATE_CHANGED, but=None if self._by is None else self._by.nexus)
        self._end()

    def give_up(self) -> bool:
        """Go back, since it takes too long: every nexus hears that it has failed. False: it had ended already."""
        if self.ended.done():
            return False
        self._stay_at(self._from)
        self._unit.attention(*TRANSITION_FAILED)
        self._end()
        return True

    def _stay_at(self, states: Mapping[int, AccessState]) -> None:
        access = self._unit.access
        access.states.update(states)
        access.transition = None
        access.look(self._unit.nexuses)

    def _end(self) -> None:
        self._settled()
        self.ended.set_result(None)
