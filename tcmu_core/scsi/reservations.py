"""Reservations: persistent ones with all types and APTPL (SPC-4 5.12, 6.15, 6.16), and RESERVE/RELEASE (6) (SPC-2)."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Protocol

from tcmu_core.errors import (
    CommandError,
    InvalidFieldInCdb,
    InvalidFieldInParameterList,
    ParameterListLengthError,
    ReservationConflict,
)
from tcmu_core.scsi.attention import (
    REGISTRATIONS_PREEMPTED,
    RESERVATIONS_PREEMPTED,
    RESERVATIONS_RELEASED,
    establish,
)
from tcmu_core.scsi.command import Command, Nexus
from tcmu_core.scsi.medium import parameter_list
from tcmu_core.scsi.opcodes import Access, Op
from tcmu_core.scsi.steps import Steps

if TYPE_CHECKING:
    from tcmu_core.scsi.unit import LogicalUnit

MAX_REGISTRATIONS = 256


class PrType(IntEnum):
    """Persistent reservation types (SPC-4 table 63)."""

    WRITE_EXCLUSIVE = 0x1
    EXCLUSIVE_ACCESS = 0x3
    WRITE_EXCLUSIVE_REGISTRANTS_ONLY = 0x5
    EXCLUSIVE_ACCESS_REGISTRANTS_ONLY = 0x6
    WRITE_EXCLUSIVE_ALL_REGISTRANTS = 0x7
    EXCLUSIVE_ACCESS_ALL_REGISTRANTS = 0x8


class OutAction(IntEnum):
    """Service actions of PERSISTENT RESERVE OUT (SPC-4 table 215)."""

    REGISTER = 0x00
    RESERVE = 0x01
    RELEASE = 0x02
    CLEAR = 0x03
    PREEMPT = 0x04
    PREEMPT_AND_ABORT = 0x05
    REGISTER_AND_IGNORE = 0x06
    REGISTER_AND_MOVE = 0x07


ALL_REGISTRANTS = (PrType.WRITE_EXCLUSIVE_ALL_REGISTRANTS, PrType.EXCLUSIVE_ACCESS_ALL_REGISTRANTS)
REGISTRANTS_ONLY = (PrType.WRITE_EXCLUSIVE_REGISTRANTS_ONLY, PrType.EXCLUSIVE_ACCESS_REGISTRANTS_ONLY)
EXCLUSIVE = (
    PrType.EXCLUSIVE_ACCESS,
    PrType.EXCLUSIVE_ACCESS_REGISTRANTS_ONLY,
    PrType.EXCLUSIVE_ACCESS_ALL_REGISTRANTS,
)


class InsufficientRegistrationResources(CommandError):
    """No room for one more registration."""

    sense_key, asc, ascq = 0x5, 0x55, 0x04


class InvalidRelease(CommandError):
    """The RELEASE does not agree with the reservation that there is."""

    sense_key, asc, ascq = 0x5, 0x26, 0x04


class AptplStore(Protocol):
    """Where reservations outlive a loss of power."""

    def load(self) -> bytes | None:
        """Return what was saved last; None when there is nothing."""

    def save(self, data: bytes) -> None:
        """Keep `data`; it is on stable storage when this returns."""


@dataclass(frozen=True, slots=True)
class Registrant:
    """The I_T nexus that a registration belongs to: the initiator port's TransportID and the target port."""

    transport_id: bytes
    port: int

    @classmethod
    def of(cls, nexus: Nexus) -> Registrant:
        """Return the registrant that a nexus acts as."""
        return cls(nexus.initiator.transport_id, nexus.initiator.port)


class Reservations:
    """All reservations of one logical unit."""

    def __init__(self, unit: LogicalUnit, store: AptplStore | None) -> None:
        self._unit = unit
        self._store = store
        self.keys: dict[Registrant, int] = {}
        self.holder: Registrant | None = None  # of a type that is not all registrants
        self.type: PrType | None = None
        self.generation = 0
        self.aptpl = False
        self.legacy: Nexus | None = None  # the holder of RESERVE(6)
        if store is not None:
            self._load(store)

    @property
    def active(self) -> bool:
        """Whether any command has to be checked."""
        return self.type is not None or self.legacy is not None

    @property
    def can_persist(self) -> bool:
        """Whether there is a place to keep registrations through a loss of power."""
        return self._store is not None

    def holds(self, who: Registrant) -> bool:
        """Return whether `who` holds the persistent reservation; every registrant does in the all registrants types."""
        if self.type is None:
            return False
        return who in self.keys if self.type in ALL_REGISTRANTS else who == self.holder

    # -- what others may do -------------------------------------------------------------------------------------------

    def check(self, nexus: Nexus, access: Access, cdb: bytes) -> None:
        """Raise ReservationConflict when a reservation of another nexus forbids the command (SPC-4 table 66)."""
        if self.legacy is not None and self.legacy is not nexus and not _allowed_by_legacy(access, cdb):
            raise ReservationConflict
        if self.type is None or access in (Access.ALWAYS, Access.RESERVE):
            return
        if access is Access.READ and self.type not in EXCLUSIVE:
            return
        who = Registrant.of(nexus)
        single = self.type in (PrType.WRITE_EXCLUSIVE, PrType.EXCLUSIVE_ACCESS)
        allowed = who == self.holder if single else who in self.keys
        if not allowed and not _harmless(cdb):
            raise ReservationConflict

    def nexus_lost(self, nexus: Nexus) -> None:
        """Release RESERVE(6); persistent reservations stay."""
        if self.legacy is nexus:
            self.legacy = None

    def release_legacy(self) -> None:
        """Release RESERVE(6), whoever holds it."""
        self.legacy = None

    # -- changes (one for each service action) ------------------------------------------------------------------------

    def register(self, who: Registrant, key: int, new: int, *, ignore: bool) -> None:
        """REGISTER and REGISTER AND IGNORE EXISTING KEY (SPC-4 5.12.7)."""
        known = self.keys.get(who)
        if known is None:
            if key and not ignore:
                raise ReservationConflict
        elif key != known and not ignore:
            raise ReservationConflict
        if new:
            if known is None and len(self.keys) >= MAX_REGISTRATIONS:
                raise InsufficientRegistrationResources
            self.keys[who] = new
        elif known is not None:
            self.unregister(who)

    def unregister(self, who: Registrant) -> None:
        """Remove a registration, and the reservation with it where it goes (SPC-4 5.12.11.2.3)."""
        was_holder, kind = self.holds(who), self.type
        del self.keys[who]
        if not was_holder or kind is None:
            return
        if kind in ALL_REGISTRANTS:
            if not self.keys:
                self._drop()
            return
        self._drop()
        if kind in REGISTRANTS_ONLY:
            self._tell(lambda other: other in self.keys, RESERVATIONS_RELEASED, but=who)

    def reserve(self, who: Registrant, key: int, scope: int, kind: PrType) -> None:
        """RESERVE (SPC-4 5.12.9)."""
        self._must_be(who, key)
        if self.type is not None:
            if not self.holds(who) or kind != self.type:
                raise ReservationConflict
            return
        self.type = kind
        self.holder = None if kind in ALL_REGISTRANTS else who

    def release(self, who: Registrant, key: int, kind: int) -> None:
        """RELEASE (SPC-4 5.12.11.2.2)."""
        self._must_be(who, key)
        if self.type is None or not self.holds(who):
            return
        if kind != self.type:
            raise InvalidRelease
        was = self.type
        self._drop()
        if was in REGISTRANTS_ONLY or was in ALL_REGISTRANTS:
            self._tell(lambda other: other in self.keys, RESERVATIONS_RELEASED, but=who)

    def clear(self, who: Registrant, key: int) -> None:
        """CLEAR (SPC-4 5.12.11.2.6)."""
        self._must_be(who, key)
        others = set(self.keys)
        self._drop()
        self.keys.clear()
        self._tell(lambda other: other in others, RESERVATIONS_PREEMPTED, but=who)

    def preempt(self, who: Registrant, key: int, victim: int, kind: PrType) -> set[Registrant]:
        """PREEMPT (SPC-4 5.12.11.2.4): take registrations, and perhaps the reservation, away; returns whose."""
        self._must_be(who, key)
        old = self.type
        everyone = old in ALL_REGISTRANTS
        if not victim and not everyone:
            raise InvalidFieldInParameterList("SERVICE ACTION RESERVATION KEY is zero", field=(8, 7), in_cdb=False)
        if not victim:
            gone = {other for other in self.keys if other != who}
        else:
            gone = {other for other, has in self.keys.items() if has == victim}
            if not gone:
                raise ReservationConflict
        takes = old is not None and (not victim if everyone else self.holder in gone)
        removed = gone - {who}
        for other in removed:
            del self.keys[other]
        if takes:
            self.type, self.holder = kind, None if kind in ALL_REGISTRANTS else who
        elif who in gone:  # it preempted its own registration, and no reservation with it
            del self.keys[who]
        if old is not None and everyone and not self.keys:
            self._drop()
        self._tell(lambda other: other in removed, REGISTRATIONS_PREEMPTED, but=who)
        if takes and old is not None and kind != old and (old in REGISTRANTS_ONLY or everyone):
            self._tell(lambda other: other in self.keys, RESERVATIONS_RELEASED, but=who)
        return gone

    def move(self, who: Registrant, key: int, to: Registrant, new: int, unregister: bool) -> None:
        """REGISTER AND MOVE (SPC-4 5.12.8)."""
        self._must_be(who, key)
        if not self.holds(who) or self.type in ALL_REGISTRANTS:
            raise ReservationConflict
        if not new:
            raise InvalidFieldInParameterList("SERVICE ACTION RESERVATION KEY is zero", field=(8, 7), in_cdb=False)
        if to == who:
            raise InvalidFieldInParameterList("the TransportID is the sender's own", field=(24, 7), in_cdb=False)
        self.keys[to] = new
        self.holder = to
        if unregister:
            del self.keys[who]

    def _must_be(self, who: Registrant, key: int) -> None:
        if self.keys.get(who) != key or who not in self.keys:
            raise ReservationConflict

    def _drop(self) -> None:
        self.type = self.holder = None

    def _tell(self, whom: Callable[[Registrant], bool], attention: tuple[int, int], *, but: Registrant) -> None:
        """Establish a unit attention for the nexuses of some registrants, not for the one that acts."""
        for nexus in self._unit.nexuses:
            other = Registrant.of(nexus)
            if other != but and whom(other):
                establish(nexus, attention)

    # -- APTPL --------------------------------------------------------------------------------------------------------

    def persist(self) -> None:
        """Save the registrations and the reservation, or that there are none to restore."""
        if self._store is None:
            return
        state: dict[str, object] = {"keys": [], "type": None, "holder": None}
        if self.aptpl:
            state = {
                "keys": [[who.transport_id.hex(), who.port, key] for who, key in self.keys.items()],
                "type": self.type,
                "holder": None if self.holder is None else [self.holder.transport_id.hex(), self.holder.port],
            }
        self._store.save(json.dumps(state).encode())

    def _load(self, store: AptplStore) -> None:
        data = store.load()
        if not data:
            return
        try:
            state = json.loads(data)
            keys = {Registrant(bytes.fromhex(name), int(port)): int(key) for name, port, key in state["keys"]}
            kind = None if state["type"] is None else PrType(state["type"])
            holder = state["holder"]
            self.holder = None if holder is None else Registrant(bytes.fromhex(holder[0]), int(holder[1]))
        except (ValueError, KeyError, TypeError, IndexError) as error:
            self._unit.device.log.error("the saved persistent reservations can't be read, none are restored: %s", error)
            return
        self.keys, self.type, self.aptpl = keys, kind, bool(keys)


def _allowed_by_legacy(access: Access, cdb: bytes) -> bool:
    """What others may do under RESERVE(6): SPC-2 table 10."""
    return cdb[0] in (Op.INQUIRY, Op.REPORT_LUNS, Op.REQUEST_SENSE, Op.RELEASE_6) or (
        cdb[0] == Op.PREVENT_ALLOW_MEDIUM_REMOVAL and not cdb[4] & 1
    )


def _harmless(cdb: bytes) -> bool:
    """Commands that a reservation allows with certain fields only: starting, and allowing removal (SPC-4 table 66)."""
    if cdb[0] == Op.START_STOP_UNIT:
        return bool(cdb[4] & 0x01) and not cdb[4] & 0xF0
    return cdb[0] == Op.PREVENT_ALLOW_MEDIUM_REMOVAL and not cdb[4] & 0x01


# -- the commands -----------------------------------------------------------------------------------------------------

READ_KEYS, READ_RESERVATION, REPORT_CAPABILITIES, READ_FULL_STATUS = range(4)  # SPC-4 table 206
_TYPE_MASK = 0xEA01  # all six types (SPC-4 table 212)
_SPEC_I_PT, _ALL_TG_PT, _APTPL = 0x08, 0x04, 0x01  # byte 20 of the parameter list


def persistent_reserve_in(unit: LogicalUnit, command: Command) -> None:
    """PERSISTENT RESERVE IN: SPC-4 6.15."""
    cdb, state = command.cdb, unit.reservations
    action, room = cdb[1] & 0x1F, int.from_bytes(cdb[7:9], "big")
    head = state.generation.to_bytes(4, "big")
    if action == READ_KEYS:
        body = b"".join(key.to_bytes(8, "big") for key in state.keys.values())
        data = head + len(body).to_bytes(4, "big") + body
    elif action == READ_RESERVATION:
        body = b""
        if state.type is not None:
            key = 0 if state.holder is None else state.keys.get(state.holder, 0)
            body = key.to_bytes(8, "big") + bytes([0, 0, 0, 0, 0, state.type, 0, 0])
        data = head + len(body).to_bytes(4, "big") + body
    elif action == REPORT_CAPABILITIES:
        flags = 0x08 | 0x04 | (0x01 if state.can_persist else 0)  # SIP_C, ATP_C, PTPL_C
        data = bytes([0, 8, flags, 0x80 | (1 if state.aptpl else 0)]) + _TYPE_MASK.to_bytes(2, "big") + bytes(2)
    else:
        body = b"".join(_full_status(state, who, key) for who, key in state.keys.items())
        data = head + len(body).to_bytes(4, "big") + body
    command.put(data[:room])


def _full_status(state: Reservations, who: Registrant, key: int) -> bytes:
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


def persistent_reserve_out(unit: LogicalUnit, command: Command) -> Steps:
    """PERSISTENT RESERVE OUT: SPC-4 6.16."""
    cdb, state, who = command.cdb, unit.reservations, Registrant.of(command.nexus)
    action, scope = OutAction(cdb[1] & 0x1F), cdb[2] >> 4
    length = int.from_bytes(cdb[5:9], "big")
    if length < 24:
        raise ParameterListLengthError
    if state.legacy is not None:
        raise ReservationConflict
    data = parameter_list(command, length)
    key, new = int.from_bytes(data[0:8], "big"), int.from_bytes(data[8:16], "big")
    moving = action is OutAction.REGISTER_AND_MOVE
    if not moving:
        if data[20] & ~(_SPEC_I_PT | _ALL_TG_PT | _APTPL):
            raise InvalidFieldInParameterList("a reserved bit is set", field=(20, 7), in_cdb=False)
        if data[20] & _SPEC_I_PT and action is not OutAction.REGISTER:
            raise InvalidFieldInParameterList("SPEC_I_PT is for REGISTER", field=(20, 3), in_cdb=False)
        if length != 24 and not data[20] & _SPEC_I_PT:
            raise ParameterListLengthError
    kind = _type_of(cdb, action, scope)
    registering = action in (OutAction.REGISTER, OutAction.REGISTER_AND_IGNORE)
    keep = bool(data[17 if moving else 20] & _APTPL)
    if registering and keep and not state.can_persist:
        raise InvalidFieldInParameterList("APTPL: there is nowhere to keep it", field=(20, 0), in_cdb=False)
    aborted: set[Registrant] = set()
    if registering:
        others = _transport_ids(data) if data[20] & _SPEC_I_PT else []
        if others and who in state.keys:
            raise InvalidFieldInParameterList("SPEC_I_PT of a nexus that is registered", field=(20, 3), in_cdb=False)
        state.register(who, key, new, ignore=action is OutAction.REGISTER_AND_IGNORE)
        for transport_id in others:
            state.keys[Registrant(transport_id, who.port)] = new
        state.aptpl = keep
    elif action is OutAction.RESERVE:
        state.reserve(who, key, scope, PrType(kind))
    elif action is OutAction.RELEASE:
        state.release(who, key, kind)
    elif action is OutAction.CLEAR:
        state.clear(who, key)
    elif moving:
        state.move(who, key, _destination(data), new, bool(data[17] & 0x02))
        state.aptpl = keep
    else:
        aborted = state.preempt(who, key, new, PrType(kind))
    if action not in (OutAction.RESERVE, OutAction.RELEASE):
        state.generation = (state.generation + 1) & 0xFFFFFFFF  # SPC-4 6.15.2: PRGENERATION
    state.persist()
    unit.gate()
    if action is OutAction.PREEMPT_AND_ABORT:
        for nexus in unit.nexuses:
            if nexus is not command.nexus and Registrant.of(nexus) in aborted:
                unit.abort_task_set(nexus, lambda: None)
    yield None


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
    found, at = [], 28
    while at < len(data):
        one = _transport_id(data, at)
        found.append(one)
        at += len(one)
    return found


def _transport_id(data: bytes, at: int) -> bytes:
    """Return the TransportID at `at` in a parameter list: 24 bytes, or as long as an iSCSI one says (SPC-4 7.6.4)."""
    if at + 4 > len(data):
        raise InvalidFieldInParameterList("TransportID is cut short", field=(at, 7), in_cdb=False)
    length = 4 + int.from_bytes(data[at + 2 : at + 4], "big") if data[at] & 0x0F == 0x05 else 24
    if at + length > len(data) or length < 24:
        raise InvalidFieldInParameterList("TransportID is cut short", field=(at, 7), in_cdb=False)
    return data[at : at + length]


def _destination(data: bytes) -> Registrant:
    """Return whom REGISTER AND MOVE names (SPC-4 6.16.4)."""
    length = int.from_bytes(data[20:24], "big")
    if length != len(data) - 24 or length < 24:
        raise InvalidFieldInParameterList("TRANSPORTID PARAMETER DATA LENGTH", field=(20, 7), in_cdb=False)
    return Registrant(_transport_id(data, 24), int.from_bytes(data[18:20], "big") or 1)


def reserve_6(unit: LogicalUnit, command: Command) -> None:
    """RESERVE (6): SPC-2 7.21; a conflict while anyone is registered for persistent reservations (SPC-4 5.12.3)."""
    state = unit.reservations
    if state.keys or (state.legacy is not None and state.legacy is not command.nexus):
        raise ReservationConflict
    state.legacy = command.nexus
    unit.gate()


def release_6(unit: LogicalUnit, command: Command) -> None:
    """RELEASE (6): SPC-2 7.18; of a reservation that is another's, GOOD and nothing happens."""
    state = unit.reservations
    if state.keys:
        raise ReservationConflict
    if state.legacy is command.nexus:
        state.legacy = None
        unit.gate()
