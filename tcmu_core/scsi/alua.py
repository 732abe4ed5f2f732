"""ALUA as state: target port groups, and how a unit can be reached through each of them (SPC-4 5.15).

The order in which a state lets commands through is that of `opcodes.Reach`: what runs while a group is unavailable runs
in standby too. Only the two active states let everything through, and so only they leave the fast path open.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from enum import IntEnum

from tcmu_core.errors import CommandError, NotReady
from tcmu_core.scsi.command import Nexus
from tcmu_core.scsi.opcodes import Opcode, Reach, Tpgs

MAX_GROUP = 0xFFFF


class AccessState(IntEnum):
    """ASYMMETRIC ACCESS STATE (SPC-4 6.37, table 310)."""

    OPTIMIZED = 0x0
    NON_OPTIMIZED = 0x1
    STANDBY = 0x2
    UNAVAILABLE = 0x3
    OFFLINE = 0xE
    TRANSITIONING = 0xF


class Cause(IntEnum):
    """STATUS CODE: what has brought a group to its state (SPC-4 6.37, table 311)."""

    UNKNOWN = 0x00
    EXPLICIT = 0x01
    IMPLICIT = 0x02


ACTIVE = (AccessState.OPTIMIZED, AccessState.NON_OPTIMIZED)
SUPPORTED = 0xCF  # T_SUP O_SUP U_SUP S_SUP AN_SUP AO_SUP
SETTABLE = (AccessState.OPTIMIZED, AccessState.NON_OPTIMIZED, AccessState.STANDBY, AccessState.UNAVAILABLE)


class AccessStateTransition(NotReady):
    """The groups are on their way from one state to another."""

    of_storage = False
    ascq = 0x0A


class TargetPortInStandby(NotReady):
    """The command does not run through a port in standby."""

    of_storage = False
    ascq = 0x0B


class TargetPortUnavailable(NotReady):
    """The command does not run through an unavailable port."""

    of_storage = False
    ascq = 0x0C


class Offline(NotReady):
    """The port is offline."""

    of_storage = False
    ascq = 0x12


_LAWS: Mapping[AccessState, tuple[Reach, type[CommandError]]] = {
    AccessState.STANDBY: (Reach.STANDBY, TargetPortInStandby),
    AccessState.UNAVAILABLE: (Reach.UNAVAILABLE, TargetPortUnavailable),
    AccessState.OFFLINE: (Reach.UNAVAILABLE, Offline),
    AccessState.TRANSITIONING: (Reach.TRANSITIONING, AccessStateTransition),
}


@dataclass(frozen=True, slots=True)
class PortGroup:
    """A target port group as somebody has set it up; `ports` are relative target port identifiers."""

    id: int
    ports: tuple[int, ...] = ()
    state: AccessState = AccessState.OPTIMIZED
    preferred: bool = False


@dataclass(frozen=True, slots=True)
class Arrangement:
    """The groups of one unit, who may move them, and how many seconds an implicit transition takes at most (0: any)."""

    groups: tuple[PortGroup, ...] = ()
    tpgs: Tpgs = Tpgs.NONE
    transition_time: int = 0


# A target whose administrator has set no groups up has one that never moves, as LIO has it. Linux, ESXi and Windows
# look at TPGS once, when they find the disk: it is there from the start, so that groups of later are seen.
ONE_GROUP = Arrangement((PortGroup(1, (1,)),), Tpgs.IMPLICIT)


class Access:
    """The groups of one unit as they are now.

    `closed`: some nexus is at a port that is not active, so each command has to be looked at. `transition` ends when
    the groups that are on their way have arrived.
    """

    def __init__(self) -> None:
        self.arrangement = Arrangement()
        self.states: dict[int, AccessState] = {}
        self.causes: dict[int, Cause] = {}
        self.closed = False
        self.transition: Future[None] | None = None
        self._groups: dict[int, int] = {}  # by relative target port identifier

    @property
    def ports(self) -> tuple[int, ...]:
        """Return the relative target port identifiers of all groups."""
        return tuple(sorted(self._groups))

    def group(self, port: int) -> int | None:
        """Return the group of a port."""
        return self._groups.get(port)

    def state(self, port: int) -> AccessState:
        """Return the state of a port; one that is in no group is active."""
        group = self._groups.get(port)
        return AccessState.OPTIMIZED if group is None else self.states[group]

    def check(self, nexus: Nexus, row: Opcode) -> None:
        """Raise what a command gets that does not run in the state of the nexus's port."""
        law = _LAWS.get(self.state(nexus.initiator.port))
        if law is not None and row.reach < law[0]:
            raise law[1]

    def look(self, nexuses: Iterable[Nexus]) -> None:
        """Find out whether any of all nexuses has a port that is not active."""
        away = {group for group, state in self.states.items() if state not in ACTIVE}
        self.closed = bool(away) and any(self._groups.get(nexus.initiator.port) in away for nexus in nexuses)

    def take(self, arrangement: Arrangement) -> dict[int, AccessState]:
        """Take new groups; return those that are to move, and where to.

        A group moves whose state was set up otherwise than before: where an initiator has moved one, it stays.
        """
        before = {group.id: group.state for group in self.arrangement.groups}
        self.arrangement = arrangement
        self._groups = {port: group.id for group in arrangement.groups for port in group.ports}
        self.states = {group.id: self.states.get(group.id, group.state) for group in arrangement.groups}
        self.causes = {group: self.causes.get(group, Cause.UNKNOWN) for group in self.states}
        return {
            group.id: group.state
            for group in arrangement.groups
            if before.get(group.id, group.state) is not group.state and self.states[group.id] is not group.state
        }
