"""Reservations: persistent ones with all types and APTPL (SPC-4 5.12), and RESERVE(6) (SPC-2), as state.

A change is made on a draft. It takes effect as a whole, by `Reservations.commit`, after it was stored: what can't be
stored does not take effect.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from enum import IntEnum

from tcmu_core.disk.device import StateStore, Version
from tcmu_core.errors import CommandError, InvalidFieldInParameterList, ReservationConflict
from tcmu_core.scsi.attention import REGISTRATIONS_PREEMPTED, RESERVATIONS_PREEMPTED, RESERVATIONS_RELEASED
from tcmu_core.scsi.command import Nexus
from tcmu_core.scsi.opcodes import Access, Opcode

MAX_REGISTRATIONS = 256
_ISCSI = 0x05  # PROTOCOL IDENTIFIER (SPC-4 7.6.1)
_LEAST_NAME = 20  # bytes: ADDITIONAL LENGTH of an iSCSI TransportID at least


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


def same_transport_id(data: bytes) -> bytes:
    """Return a TransportID as every other spelling of it: an iSCSI name has no case, and any padding (SPC-4 7.6.4.6).

    Raises:
        ValueError: the name is no UTF-8.
    """
    if data[0] & 0x0F != _ISCSI:
        return data
    name = data[4:].partition(b"\0")[0].decode().lower().encode() + b"\0"
    name = name.ljust(_LEAST_NAME, b"\0")
    name += bytes(-len(name) % 4)
    return data[:2] + len(name).to_bytes(2, "big") + name


@dataclass(frozen=True, slots=True)
class Registrant:
    """The I_T nexus that a registration belongs to: the initiator port's TransportID and the target port."""

    transport_id: bytes
    port: int

    @classmethod
    def of(cls, nexus: Nexus) -> Registrant:
        """Return the registrant that a nexus acts as."""
        return cls(nexus.initiator.transport_id, nexus.initiator.port)


@dataclass(slots=True)
class Registrations:
    """Who is registered with which key, and the reservation.

    A draft of a change is one too; `told` is what it has for whom: unit attentions by registrant. `aborted` has the
    generation in which a registrant's commands were aborted last, for gateways that are to do the same.
    """

    keys: dict[Registrant, int] = field(default_factory=dict)
    holder: Registrant | None = None  # of a type that is not all registrants
    type: PrType | None = None
    generation: int = 0
    aptpl: bool = False
    aborted: dict[Registrant, int] = field(default_factory=dict)
    told: dict[Registrant, list[tuple[int, int]]] = field(default_factory=dict)
    stored: tuple[Version, Version, bytes] | None = None  # of a draft: what it replaced, as what it is there, itself

    def draft(self) -> Registrations:
        """Return a copy to change."""
        return replace(self, keys=dict(self.keys), aborted=dict(self.aborted), told={}, stored=None)

    def holds(self, who: Registrant) -> bool:
        """Return whether `who` holds the persistent reservation; every registrant does in the all registrants types."""
        if self.type is None:
            return False
        return who in self.keys if self.type in ALL_REGISTRANTS else who == self.holder

    # -- one for each service action ----------------------------------------------------------------------------------

    def register(self, who: Registrant, key: int, new: int, *, ignore: bool, others: Iterable[Registrant] = ()) -> None:
        """REGISTER and REGISTER AND IGNORE EXISTING KEY (SPC-4 5.12.7); `others`: those of SPEC_I_PT, all or none."""
        known = self.keys.get(who)
        if known is None:
            if key and not ignore:
                raise ReservationConflict
        elif key != known and not ignore:
            raise ReservationConflict
        if not new:
            if known is not None:
                self.unregister(who)
            return
        for one in (who, *others):
            if one != who and one in self.keys:  # its own key was not given (SPC-4 5.12.7.3)
                raise ReservationConflict
            self._set(one, new)

    def register_at(self, who: Registrant, ports: Iterable[int], old: int | None, new: int) -> None:
        """Do what REGISTER has done for `who` at its initiator port's other target ports: ALL_TG_PT (SPC-4 6.16.3).

        A registration there that has another key than the `old` one stays as it is.
        """
        for port in ports:
            other = Registrant(who.transport_id, port)
            if other == who or self.keys.get(other, old) != old:
                continue
            if new:
                self._set(other, new)
            elif other in self.keys:
                self.unregister(other)

    def _set(self, who: Registrant, key: int) -> None:
        if who not in self.keys and len(self.keys) >= MAX_REGISTRATIONS:
            raise InsufficientRegistrationResources
        self.keys[who] = key

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
            self._tell(self.keys, RESERVATIONS_RELEASED, but=who)

    def reserve(self, who: Registrant, key: int, kind: PrType) -> None:
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
            self._tell(self.keys, RESERVATIONS_RELEASED, but=who)

    def clear(self, who: Registrant, key: int) -> None:
        """CLEAR (SPC-4 5.12.11.2.6)."""
        self._must_be(who, key)
        self._tell(self.keys, RESERVATIONS_PREEMPTED, but=who)
        self._drop()
        self.keys.clear()

    def preempt(self, who: Registrant, key: int, victim: int, kind: PrType) -> set[Registrant]:
        """PREEMPT (SPC-4 5.12.11.2.4): take registrations, and perhaps the reservation, away.

        Returns whose were taken from others: who preempts itself does not end its own commands, in whatever session.
        """
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
        self._tell(removed, REGISTRATIONS_PREEMPTED, but=who)
        if takes and old is not None and kind != old and (old in REGISTRANTS_ONLY or everyone):
            self._tell(self.keys, RESERVATIONS_RELEASED, but=who)
        return removed

    def move(self, who: Registrant, key: int, to: Registrant, new: int, unregister: bool) -> None:
        """REGISTER AND MOVE (SPC-4 5.12.8)."""
        self._must_be(who, key)
        if not self.holds(who) or self.type in ALL_REGISTRANTS:
            raise ReservationConflict
        if not new:
            raise InvalidFieldInParameterList("SERVICE ACTION RESERVATION KEY is zero", field=(8, 7), in_cdb=False)
        if to == who:
            raise InvalidFieldInParameterList("the TransportID is the sender's own", field=(24, 7), in_cdb=False)
        if unregister:
            del self.keys[who]
        self._set(to, new)
        self.holder = to

    def abort(self, whose: Iterable[Registrant]) -> None:
        """Note in this generation whose commands are aborted, everywhere."""
        for who in whose:
            self.aborted.pop(who, None)
            self.aborted[who] = self.generation
        while len(self.aborted) > MAX_REGISTRATIONS:
            del self.aborted[next(iter(self.aborted))]

    def aborted_since(self, before: Registrations) -> set[Registrant]:
        """Return whose commands were aborted after `before`."""
        return {who for who, generation in self.aborted.items() if before.aborted.get(who) != generation}

    def _must_be(self, who: Registrant, key: int) -> None:
        if self.keys.get(who) != key or who not in self.keys:
            raise ReservationConflict

    def _drop(self) -> None:
        self.type = self.holder = None

    def _tell(self, whom: Iterable[Registrant], attention: tuple[int, int], *, but: Registrant) -> None:
        """Note a unit attention for some registrants, not for the one that acts."""
        for other in whom:
            if other != but:
                self.told.setdefault(other, []).append(attention)

    # -- APTPL --------------------------------------------------------------------------------------------------------

    def dump(self, *, shared: bool = False) -> bytes:
        """Return what outlives a loss of power: nothing, unless the last registration asked for it.

        `shared`: return all that other gateways have to know.
        """
        if not shared and not (self.aptpl and self.keys):
            return b""
        state: dict[str, object] = {
            "keys": [_written(who, key) for who, key in self.keys.items()],
            "type": self.type,
            "holder": None if self.holder is None else _written(self.holder),
        }
        if shared:
            aborted = [_written(who, generation) for who, generation in self.aborted.items()]
            state |= {"generation": self.generation, "aptpl": self.aptpl, "aborted": aborted}
        return json.dumps(state).encode()

    @classmethod
    def parse(cls, data: bytes) -> Registrations:
        """Return what `dump` has kept; raises `ValueError` for anything else."""
        try:
            state = json.loads(data)
            keys = _numbers(state["keys"])
            kind = None if state["type"] is None else PrType(state["type"])
            holder = state["holder"]
            who = None if holder is None else Registrant(bytes.fromhex(holder[0]), int(holder[1]))
            aptpl, generation = bool(state.get("aptpl", keys)), int(state.get("generation", 0))
            aborted = _numbers(state.get("aborted", ()))
        except (KeyError, TypeError, IndexError, RecursionError) as error:
            raise ValueError(f"no saved reservations: {error!r}") from None
        if not all(0 < key < 1 << 64 and 0 <= one.port < 1 << 16 for one, key in keys.items()):
            raise ValueError("no saved reservations: a key or a port is none")
        if (kind is None or kind in ALL_REGISTRANTS) != (who is None) or (who is not None and who not in keys):
            raise ValueError("no saved reservations: the holder is not registered")
        return cls(keys, who, kind, generation, aptpl, aborted)


def _written(who: Registrant, *number: int) -> list[str | int]:
    return [who.transport_id.hex(), who.port, *number]


def _numbers(rows: Iterable[tuple[str, int, int]]) -> dict[Registrant, int]:
    return {Registrant(bytes.fromhex(name), int(port)): int(number) for name, port, number in rows}


class Reservations:
    """All reservations of one unit: the persistent ones in force in `now`, and who holds RESERVE(6)."""

    def __init__(self, store: StateStore | None, log: logging.LoggerAdapter[logging.Logger]) -> None:
        self.store = store
        self.now = Registrations()
        self.legacy: Nexus | None = None  # the holder of RESERVE(6)
        self._log = log
        self._saved = b""
        self._version: Version = ""
        self._due: set[Registrant] = set()  # whose commands somebody else wants to be aborted
        if store is not None:
            self.now = self._load(store) or Registrations()

    def _load(self, store: StateStore) -> Registrations | None:
        """Return what is stored; None where nobody understands it."""
        self._saved, self._version = store.load()
        try:
            return Registrations.parse(self._saved) if self._saved else Registrations()
        except ValueError as error:
            self._log.error("the saved persistent reservations can't be read: %s", error)
            return None

    @property
    def active(self) -> bool:
        """Whether any command has to be checked."""
        return self.now.type is not None or self.legacy is not None

    @property
    def can_persist(self) -> bool:
        """Whether there is a place to keep registrations through a loss of power."""
        return self.store is not None

    def check(self, nexus: Nexus, row: Opcode, cdb: bytes) -> None:
        """Raise ReservationConflict when a reservation of another nexus forbids the command (SPC-4 table 66)."""
        if self.legacy is not None and self.legacy is not nexus and not row.spared_6(cdb):
            raise ReservationConflict
        now, access = self.now, row.access
        if now.type is None or access in (Access.ALWAYS, Access.RESERVE):
            return
        if access is Access.READ and now.type not in EXCLUSIVE:
            return
        who = Registrant.of(nexus)
        single = now.type in (PrType.WRITE_EXCLUSIVE, PrType.EXCLUSIVE_ACCESS)
        allowed = who == now.holder if single else who in now.keys
        if not allowed and not row.spared(cdb):
            raise ReservationConflict

    def save(self, draft: Registrations) -> Future[None] | None:
        """Store what of a draft outlives a loss of power, if that changes; it is when the Future ends.

        Raises:
            StaleVersion: somebody else has changed them: `reload`, and draft anew. The Future may have this, too.
            OSError: they can't be stored.
        """
        if self.store is None:
            return None
        data, base = draft.dump(shared=self.store.shared), self._version
        if data == self._saved:
            return None
        answer = self.store.replace(data, base)
        if not isinstance(answer, Future):
            self._version, self._saved = answer, data
            return None
        stored: Future[None] = Future()

        def take(done: Future[Version]) -> None:
            error = done.exception()
            if error is not None:
                stored.set_exception(error)
                return
            draft.stored = base, done.result(), data
            stored.set_result(None)

        answer.add_done_callback(take)
        return stored

    def reload(self) -> Mapping[Registrant, list[tuple[int, int]]]:
        """Take what somebody else has put into the store; returns the unit attentions that it has for registrants.

        What of ours was in no store is gone, if the store holds something else. But one that is damaged says nothing
        of anybody's registrations: they stay in force.
        """
        if self.store is None:
            return {}
        version, before = self._version, self.now
        after = self._load(self.store)
        if self._version == version or after is None:
            return {}
        if not self.store.shared:
            after.generation = (before.generation + 1) & 0xFFFFFFFF
        self._due |= after.aborted_since(before)
        self.now = after
        return _told(before, after)

    def take_due(self) -> set[Registrant]:
        """Return whose commands somebody else's PREEMPT AND ABORT wants to be aborted here, once."""
        due, self._due = self._due, set()
        return due

    def commit(self, draft: Registrations) -> Mapping[Registrant, list[tuple[int, int]]]:
        """Let a draft take effect; returns the unit attentions that it has for registrants."""
        told, draft.told = draft.told, {}
        if draft.stored is not None:
            base, version, data = draft.stored
            if base != self._version:  # what was loaded meanwhile is the draft itself, or was made upon it
                return told
            self._version, self._saved = version, data
        self.now = draft
        return told

    def announce(self) -> Future[None] | None:
        """Have others take what was stored; they have when the Future ends."""
        return None if self.store is None else self.store.announce()

    def nexus_lost(self, nexus: Nexus) -> None:
        """Release RESERVE(6); persistent reservations stay."""
        if self.legacy is nexus:
            self.legacy = None


def _told(before: Registrations, after: Registrations) -> dict[Registrant, list[tuple[int, int]]]:
    """Return the unit attentions of a change that somebody else has made (SPC-4 5.12.11)."""
    gone = REGISTRATIONS_PREEMPTED if after.keys else RESERVATIONS_PREEMPTED
    told = {who: [gone] for who in before.keys if who not in after.keys}
    shared = before.type in REGISTRANTS_ONLY or before.type in ALL_REGISTRANTS
    if shared and after.type != before.type:
        told.update({who: [RESERVATIONS_RELEASED] for who in before.keys if who in after.keys})
    return told
