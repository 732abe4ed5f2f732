"""PERSISTENT RESERVE IN and OUT (SPC-4 6.15, 6.16), RESERVE(6) and RELEASE(6) (SPC-2)."""

from __future__ import annotations

from tcmu_core.errors import (
    Busy,
    InvalidFieldInCdb,
    InvalidFieldInParameterList,
    ParameterListLengthError,
    ReservationConflict,
    StaleVersion,
)
from tcmu_core.scsi.command import Command
from tcmu_core.scsi.commands.data import parameter_list
from tcmu_core.scsi.reservations import (
    MAX_REGISTRATIONS,
    InsufficientRegistrationResources,
    OutAction,
    PrType,
    Registrant,
    Registrations,
    same_transport_id,
)
from tcmu_core.scsi.steps import Abort, Shielded, Steps
from tcmu_core.scsi.unit import Unit

READ_KEYS, READ_RESERVATION, REPORT_CAPABILITIES, READ_FULL_STATUS = range(4)  # SPC-4 table 206
_TYPE_MASK = 0xEA01  # all six types (SPC-4 table 212)
_SPEC_I_PT, _ALL_TG_PT, _APTPL = 0x08, 0x04, 0x01  # byte 20 of the parameter list
_ATTEMPTS = 16  # to change what other processes change as well
_UNREG = 0x02  # byte 17 of that of REGISTER AND MOVE, which has APTPL there too (SPC-4 6.16.4)


def persistent_reserve_in(unit: Unit, command: Command) -> None:
    """PERSISTENT RESERVE IN: SPC-4 6.15."""
    cdb, state = command.cdb, unit.reservations.now
    if unit.reservations.legacy is not None:  # a conflict for its holder too (SPC-2 5.5.1)
        raise ReservationConflict
    action, room = cdb[1] & 0x1F, int.from_bytes(cdb[7:9], "big")
    if action == REPORT_CAPABILITIES:
        flags = 0x08 | 0x04 | (0x01 if unit.reservations.can_persist else 0)  # SIP_C, ATP_C, PTPL_C
        data = bytes([0, 8, flags, 0x80 | (1 if state.aptpl else 0)]) + _TYPE_MASK.to_bytes(2, "big") + bytes(2)
        command.put(data[:room])
        return
    if action == READ_KEYS:
        body = b"".join(key.to_bytes(8, "big") for key in state.keys.values())
    elif action == READ_RESERVATION:
        body = b""
        if state.type is not None:
            key = 0 if state.holder is None else state.keys.get(state.holder, 0)
            body = key.to_bytes(8, "big") + bytes([0, 0, 0, 0, 0, state.type, 0, 0])
    else:
        body = b"".join(_full_status(state, who, key) for who, key in state.keys.items())
    command.put((state.generation.to_bytes(4, "big") + len(body).to_bytes(4, "big") + body)[:room])


def _full_status(state: Registrations, who: Registrant, key: int) -> bytes:
    holds = state.holds(who)
    kind = state.type if holds and state.type is not None else 0
    return (
        key.to_bytes(8, "big")
        + bytes(4)
        + bytes([0x01 if holds else 0, kind, 0, 0, 0, 0])
        + who.port.to_bytes(2, "big")
        + len(who.transport_id).to_bytes(4, "big")
        + who.transport_id
    )


def persistent_reserve_out(unit: Unit, command: Command) -> Steps:
    """PERSISTENT RESERVE OUT: SPC-4 6.16. What can't be stored does not take effect."""
    cdb, state, who = command.cdb, unit.reservations, Registrant.of(command.nexus)
    action, scope = OutAction(cdb[1] & 0x1F), cdb[2] >> 4
    length = int.from_bytes(cdb[5:9], "big")
    if length < 24:
        raise ParameterListLengthError
    if state.legacy is not None:
        raise ReservationConflict
    data = parameter_list(command, length)
    moving = action is OutAction.REGISTER_AND_MOVE
    if not moving:
        _check_flags(data, action, length)
    elif data[17] & ~(_UNREG | _APTPL):
        raise InvalidFieldInParameterList("a reserved bit is set", field=(17, 7), in_cdb=False)
    kind = _type_of(cdb, action, scope)
    keep = bool(data[17 if moving else 20] & _APTPL)
    registering = action in (OutAction.REGISTER, OutAction.REGISTER_AND_IGNORE, OutAction.REGISTER_AND_MOVE)
    if keep and registering and not state.can_persist:
        field = (17 if moving else 20, 0)
        raise InvalidFieldInParameterList("APTPL: there is nowhere to keep it", field=field, in_cdb=False)
    for _ in range(_ATTEMPTS):
        draft = state.now.draft()
        aborted = _change(draft, action, who, data, kind, unit.access.ports or (who.port,))
        if registering:
            draft.aptpl = keep
        if action not in (OutAction.RESERVE, OutAction.RELEASE):
            draft.generation = (draft.generation + 1) & 0xFFFFFFFF  # SPC-4 6.15.2: PRGENERATION
        if action is OutAction.PREEMPT_AND_ABORT:
            draft.abort(aborted)
        try:
            yield Shielded(state.save(draft))
            break
        except StaleVersion:  # another process was faster: the change is made upon what it has made
            unit.tell(state.reload())
    else:
        raise Busy
    unit.tell(state.commit(draft))
    announced = state.announce()
    if action is OutAction.PREEMPT_AND_ABORT:
        yield from _abort(unit, command, aborted)
    elif announced is not None:
        unit.tasks.step_back(command)
    yield announced  # when it is answered, other gateways hold initiators to it too


def _check_flags(data: bytes, action: OutAction, length: int) -> None:
    if data[20] & ~(_SPEC_I_PT | _ALL_TG_PT | _APTPL):
        raise InvalidFieldInParameterList("a reserved bit is set", field=(20, 7), in_cdb=False)
    if data[20] & _SPEC_I_PT and action is not OutAction.REGISTER:
        raise InvalidFieldInParameterList("SPEC_I_PT is for REGISTER", field=(20, 3), in_cdb=False)
    if length != 24 and not data[20] & _SPEC_I_PT:
        raise ParameterListLengthError


def _change(
    draft: Registrations, action: OutAction, who: Registrant, data: bytes, kind: int, ports: tuple[int, ...]
) -> set[Registrant]:
    """Make the change on the draft; return whose commands PREEMPT AND ABORT is to abort."""
    key, new = int.from_bytes(data[0:8], "big"), int.from_bytes(data[8:16], "big")
    match action:
        case OutAction.REGISTER | OutAction.REGISTER_AND_IGNORE:
            others: list[Registrant] = []
            if data[20] & _SPEC_I_PT:
                others = [Registrant(one, who.port) for one in _transport_ids(data)]
                if who in draft.keys:
                    raise InvalidFieldInParameterList(
                        "SPEC_I_PT of a nexus that is registered", field=(20, 3), in_cdb=False
                    )
                if not new:
                    raise InvalidFieldInParameterList(
                        "SPEC_I_PT with a key of zero registers nobody", field=(8, 7), in_cdb=False
                    )
            old = draft.keys.get(who)
            draft.register(who, key, new, ignore=action is OutAction.REGISTER_AND_IGNORE, others=dict.fromkeys(others))
            if data[20] & _ALL_TG_PT:
                for one in (who, *others):
                    draft.register_at(one, ports, old, new)
        case OutAction.RESERVE:
            draft.reserve(who, key, PrType(kind))
        case OutAction.RELEASE:
            draft.release(who, key, kind)
        case OutAction.CLEAR:
            draft.clear(who, key)
        case OutAction.REGISTER_AND_MOVE:
            draft.move(who, key, _destination(data, who.port, ports), new, bool(data[17] & _UNREG))
        case _:
            return draft.preempt(who, key, new, PrType(kind))
    return set()


def _abort(unit: Unit, command: Command, whose: set[Registrant]) -> Steps:
    """Abort the commands of these registrants, those of nexuses that are lost among them, and wait for their end."""
    for nexus in unit.nexuses:
        if nexus is not command.nexus and nexus.on_clear is not None and Registrant.of(nexus) in whose:
            nexus.on_clear()
    victims = [other for other in unit.tasks.active if other.nexus is not command.nexus]
    unit.tasks.step_back(command)
    yield Abort([other for other in victims if Registrant.of(other.nexus) in whose])


def _type_of(cdb: bytes, action: OutAction, scope: int) -> int:
    """Return the TYPE field, checked where the service action uses it."""
    kind = cdb[2] & 0x0F
    if action in (OutAction.RESERVE, OutAction.RELEASE, OutAction.PREEMPT, OutAction.PREEMPT_AND_ABORT):
        if scope:
            raise InvalidFieldInCdb("SCOPE: the logical unit only", field=(2, 7))
        if kind not in set(PrType):
            raise InvalidFieldInCdb("TYPE", field=(2, 3))
    return kind


def _transport_ids(data: bytes) -> list[bytes]:
    """Return the TransportIDs after the fixed part of a REGISTER with SPEC_I_PT (SPC-4 6.16.3)."""
    length = int.from_bytes(data[24:28], "big") if len(data) >= 28 else -1
    if length != len(data) - 28:
        raise InvalidFieldInParameterList("TRANSPORTID PARAMETER DATA LENGTH", field=(24, 7), in_cdb=False)
    found: list[bytes] = []
    at = 28
    while at < len(data):
        if len(found) == MAX_REGISTRATIONS:
            raise InsufficientRegistrationResources
        one, at = _transport_id(data, at)
        found.append(one)
    return found


def _transport_id(data: bytes, at: int) -> tuple[bytes, int]:
    """Return the TransportID at `at` in a parameter list, and where it ends.

    It has 24 bytes, or as many as an iSCSI one says (SPC-4 7.6.4).
    """
    if at + 4 > len(data):
        raise InvalidFieldInParameterList("TransportID is cut short", field=(at, 7), in_cdb=False)
    length = 4 + int.from_bytes(data[at + 2 : at + 4], "big") if data[at] & 0x0F == 0x05 else 24
    if at + length > len(data) or length < 24:
        raise InvalidFieldInParameterList("TransportID is cut short", field=(at, 7), in_cdb=False)
    try:
        return same_transport_id(data[at : at + length]), at + length
    except ValueError:
        raise InvalidFieldInParameterList("TransportID is no UTF-8", field=(at + 4, 7), in_cdb=False) from None


def _destination(data: bytes, port: int, ports: tuple[int, ...]) -> Registrant:
    """Return whom REGISTER AND MOVE names (SPC-4 6.16.4)."""
    length = int.from_bytes(data[20:24], "big")
    if length != len(data) - 24 or length < 24:
        raise InvalidFieldInParameterList("TRANSPORTID PARAMETER DATA LENGTH", field=(20, 7), in_cdb=False)
    told = int.from_bytes(data[18:20], "big")
    if told and told not in ports:
        raise InvalidFieldInParameterList("RELATIVE TARGET PORT IDENTIFIER: no such port", field=(18, 7), in_cdb=False)
    one, _end = _transport_id(data, 24)
    return Registrant(one, told or port)


def reserve_6(unit: Unit, command: Command) -> None:
    """RESERVE (6): SPC-2 7.21; a conflict while anyone is registered for persistent reservations (SPC-4 5.12.3)."""
    state = unit.reservations
    if state.now.keys or (state.legacy is not None and state.legacy is not command.nexus):
        raise ReservationConflict
    state.legacy = command.nexus


def release_6(unit: Unit, command: Command) -> None:
    """RELEASE (6): SPC-2 7.18; of a reservation that is another's, GOOD and nothing happens."""
    state = unit.reservations
    if state.now.keys:
        raise ReservationConflict
    if state.legacy is command.nexus:
        state.legacy = None
