"""REPORT TARGET PORT GROUPS and SET TARGET PORT GROUPS (SPC-4 6.37, 6.46)."""

from __future__ import annotations

from tcmu_core.errors import InvalidFieldInCdb, InvalidFieldInParameterList, ParameterListLengthError
from tcmu_core.scsi.alua import SETTABLE, SUPPORTED, AccessState, AccessStateTransition
from tcmu_core.scsi.command import Command
from tcmu_core.scsi.commands.data import parameter_list
from tcmu_core.scsi.limits import MAX_SETTINGS
from tcmu_core.scsi.steps import Steps
from tcmu_core.scsi.transition import Transition
from tcmu_core.scsi.unit import Unit

REPORT_GROUPS, SET_GROUPS = 0x0A, 0x0A  # service actions of MAINTENANCE IN and OUT (SPC-4 tables 48, 49)
_LENGTH_ONLY, _EXTENDED = 0, 1  # PARAMETER DATA FORMAT (SPC-4 table 306)
_DESCRIPTOR = 4  # bytes of a set target port group descriptor, and of what stands before the first


def report_target_port_groups(unit: Unit, command: Command) -> None:
    """REPORT TARGET PORT GROUPS: SPC-4 6.37."""
    cdb, access = command.cdb, unit.access
    layout, room = cdb[1] >> 5, int.from_bytes(cdb[6:10], "big")
    if layout not in (_LENGTH_ONLY, _EXTENDED):
        raise InvalidFieldInCdb("PARAMETER DATA FORMAT", field=(1, 7))
    body = b""
    if layout == _EXTENDED:
        body = bytes([layout << 4, access.arrangement.transition_time, 0, 0])
    for group in access.arrangement.groups:
        first = (0x80 if group.preferred else 0x00) | access.states[group.id]
        body += bytes([first, SUPPORTED]) + group.id.to_bytes(2, "big")
        body += bytes([0, access.causes[group.id], 0, len(group.ports)])
        body += b"".join(port.to_bytes(4, "big") for port in group.ports)
    command.put((len(body).to_bytes(4, "big") + body)[:room])


def set_target_port_groups(unit: Unit, command: Command) -> Steps:
    """SET TARGET PORT GROUPS: SPC-4 6.46. All of the list is done, or nothing."""
    length = int.from_bytes(command.cdb[6:10], "big")
    if not length:
        return
    if length < _DESCRIPTOR or length % _DESCRIPTOR:
        raise ParameterListLengthError
    data = parameter_list(command, length, MAX_SETTINGS)
    wanted: dict[int, AccessState] = {}
    for at in range(_DESCRIPTOR, length, _DESCRIPTOR):
        group, state = int.from_bytes(data[at + 2 : at + 4], "big"), data[at] & 0x0F
        if data[at] & 0xF0 or state not in SETTABLE:
            raise InvalidFieldInParameterList("ASYMMETRIC ACCESS STATE", field=(at, 3), in_cdb=False)
        if group not in unit.access.states or wanted.get(group, state) != state:
            raise InvalidFieldInParameterList("there is no such group, or twice", field=(at + 2, 7), in_cdb=False)
        wanted[group] = AccessState(state)
    if unit.access.transition is not None:
        raise AccessStateTransition
    yield Transition(unit, wanted, by=command).ended
