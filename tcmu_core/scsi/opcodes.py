"""The shape of one row of the opcode table, and the operation codes that have a name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import Any


class Op(IntEnum):
    """Operation codes (SPC-4 annex E.2, SBC-4 5.1)."""

    TEST_UNIT_READY = 0x00
    REQUEST_SENSE = 0x03
    FORMAT_UNIT = 0x04
    READ_6 = 0x08
    WRITE_6 = 0x0A
    INQUIRY = 0x12
    MODE_SELECT_6 = 0x15
    RESERVE_6 = 0x16
    RELEASE_6 = 0x17
    MODE_SENSE_6 = 0x1A
    START_STOP_UNIT = 0x1B
    RECEIVE_DIAGNOSTIC_RESULTS = 0x1C
    SEND_DIAGNOSTIC = 0x1D
    PREVENT_ALLOW_MEDIUM_REMOVAL = 0x1E
    READ_CAPACITY_10 = 0x25
    READ_10 = 0x28
    WRITE_10 = 0x2A
    WRITE_AND_VERIFY_10 = 0x2E
    VERIFY_10 = 0x2F
    PRE_FETCH_10 = 0x34
    SYNCHRONIZE_CACHE_10 = 0x35
    READ_DEFECT_DATA_10 = 0x37
    WRITE_SAME_10 = 0x41
    UNMAP = 0x42
    SANITIZE = 0x48
    LOG_SENSE = 0x4D
    MODE_SELECT_10 = 0x55
    MODE_SENSE_10 = 0x5A
    PERSISTENT_RESERVE_IN = 0x5E
    PERSISTENT_RESERVE_OUT = 0x5F
    EXTENDED_COPY = 0x83
    RECEIVE_COPY_RESULTS = 0x84
    ATA_PASS_THROUGH_16 = 0x85
    READ_16 = 0x88
    COMPARE_AND_WRITE = 0x89
    WRITE_16 = 0x8A
    ORWRITE_16 = 0x8B
    WRITE_AND_VERIFY_16 = 0x8E
    VERIFY_16 = 0x8F
    PRE_FETCH_16 = 0x90
    SYNCHRONIZE_CACHE_16 = 0x91
    WRITE_SAME_16 = 0x93
    WRITE_ATOMIC_16 = 0x9C
    SERVICE_ACTION_IN_16 = 0x9E
    REPORT_LUNS = 0xA0
    ATA_PASS_THROUGH_12 = 0xA1
    MAINTENANCE_IN = 0xA3
    MAINTENANCE_OUT = 0xA4
    READ_12 = 0xA8
    WRITE_12 = 0xAA
    WRITE_AND_VERIFY_12 = 0xAE
    VERIFY_12 = 0xAF
    READ_DEFECT_DATA_12 = 0xB7


class Access(Enum):
    """What a command does, as reservations (SPC-4 5.12, table 66) and write protection see it."""

    ALWAYS = "allowed whatever the reservation"
    READ = "reads the medium"
    WRITE = "changes the medium or the device's state"
    RESERVE = "a reservation command that checks for itself"


@dataclass(frozen=True, slots=True)
class Opcode:
    """One command: its code, CDB usage data, and what serves it.

    `usage` is the CDB usage data of SPC-4 6.35.3, one mask byte for each CDB byte, so its length is the CDB's; a bit
    that is not in the mask is reserved and must be zero. `run(unit, command)` returns None when the command has
    ended well, a Future, or a generator that yields what the hooks return; None as `run` leaves the command to the
    handler's `handle_cmd`. `needs` names a capability of the backend without which the command does not exist.
    `ready` says that the command needs a unit that is started; `protected` that it writes to the medium.
    """

    code: int
    name: str
    usage: bytes
    run: Callable[[Any, Any], Any] | None = None
    service_action: int | None = None
    access: Access = Access.READ
    needs: str = ""
    ready: bool = True
    protected: bool = False
    attention: bool = True  # a pending unit attention is reported instead of running the command (SAM-5 5.14)
    timeout: int = 30  # recommended command timeout in seconds (SPC-4 6.35.4)
    types: tuple[int, ...] = (0x00,)  # peripheral device types that have the command; empty: all

    @property
    def key(self) -> tuple[int, int | None]:
        """Return what the table is keyed by: the operation code and the service action, if there is one."""
        return self.code, self.service_action


def cdb_length(code: int) -> int | None:
    """Return the length of a CDB in bytes by its group code (SPC-4 4.3.1); None for 7Eh, 7Fh and vendor groups."""
    if code in (0x7E, 0x7F):
        return None
    return {0: 6, 1: 10, 2: 10, 4: 16, 5: 12}.get(code >> 5)
