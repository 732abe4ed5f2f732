"""The shape of one row of the opcode table, and the operation codes that have a name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, IntEnum, IntFlag
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


class Reach(IntEnum):
    """How far from active the access state of a port may be for a command to run there (SPC-4 5.15.2)."""

    ACTIVE = 0
    STANDBY = 1
    UNAVAILABLE = 2
    TRANSITIONING = 3


class Tpgs(IntFlag):
    """Who moves target port groups: the target by itself, an initiator by command, or both (SPC-4 table 184)."""

    NONE = 0
    IMPLICIT = 1
    EXPLICIT = 2
    BOTH = 3


class Direction(IntEnum):
    """Which way a command's data goes; ANY where only the handler knows."""

    ANY = 0
    IN = 1
    OUT = 2
    NONE = 3


class Touches(Enum):
    """What a command must not share with one that needs it for itself."""

    NOTHING = "neither blocks nor state that others wait for"
    BLOCKS = "the blocks that its CDB names"
    MEDIUM = "any block"
    REGISTRATIONS = "the persistent reservations"
    CACHE = "what was written and is not on stable storage yet"
    OWN_WAY = "blocks of several units, which the command itself asks for"


MAX_SERVICE_ACTION = 0x1F  # five bits of byte 1 (SPC-4 4.2.5.2)

Blocks = Callable[[bytes], tuple[int, int]]  # LBA and number of blocks that a CDB names
Amount = Callable[
    [bytes, int, int], int
]  # (CDB, its number of blocks, bytes of a block) -> bytes that it moves at most
Spared = Callable[[bytes], bool]  # whether a reservation of somebody else lets this CDB pass


def never(_cdb: bytes) -> bool:
    """Return False: what `Opcode.spared` says of most commands."""
    return False


def always(_cdb: bytes) -> bool:
    """Return True."""
    return True


def _blocks(lba: tuple[int, int], count: tuple[int, int]) -> Blocks:
    """Return how to read an LBA and a number of blocks, each (first byte, end), from a CDB."""
    (lba_at, lba_end), (count_at, count_end) = lba, count

    def read(cdb: bytes) -> tuple[int, int]:
        return int.from_bytes(cdb[lba_at:lba_end], "big"), int.from_bytes(cdb[count_at:count_end], "big")

    return read


def blocks_6(cdb: bytes) -> tuple[int, int]:
    """Read a 6-byte CDB: 21 bits of LBA, and 0 blocks mean 256 (SBC-4 5.9)."""
    return int.from_bytes(cdb[1:4], "big") & 0x1FFFFF, cdb[4] or 256


blocks_10 = _blocks((2, 6), (7, 9))  # SBC-4 5.11
blocks_12 = _blocks((2, 6), (6, 10))  # SBC-4 5.12
blocks_16 = _blocks((2, 10), (10, 14))  # SBC-4 5.13
blocks_compare = _blocks((2, 10), (13, 14))  # SBC-4 5.3
blocks_atomic = _blocks((2, 10), (12, 14))  # SBC-4 5.47


def told_at(at: int, end: int) -> Amount:
    """Return the amount of a CDB that tells it in bytes: an allocation length, or a parameter list length."""
    return lambda cdb, _count, _size: int.from_bytes(cdb[at:end], "big")


def fixed(amount: int) -> Amount:
    """Return the amount of a command that always moves so many bytes."""
    return lambda _cdb, _count, _size: amount


def whole(_cdb: bytes, count: int, size: int) -> int:
    """Return the bytes of all blocks that the CDB names."""
    return count * size


def twice(_cdb: bytes, count: int, size: int) -> int:
    """Return the bytes of COMPARE AND WRITE: what to compare, and what to write (SBC-4 5.3)."""
    return 2 * count * size


def one_block(_cdb: bytes, _count: int, size: int) -> int:
    """Return the bytes of WRITE SAME: one block (SBC-4 5.49)."""
    return size


def checked_bytes(cdb: bytes, count: int, size: int) -> int:
    """Return the bytes of VERIFY by BYTCHK: none, all blocks, or one (SBC-4 5.36)."""
    return {0: 0, 1: count * size}.get(cdb[1] >> 1 & 3, size)


@dataclass(frozen=True, slots=True)
class Opcode:
    """One command: its code, CDB usage data, what it does to whom, and what serves it.

    `usage` is the CDB usage data of SPC-4 6.35.3, one mask byte for each CDB byte, so its length is the CDB's; a bit
    that is not in the mask is reserved and must be zero. `run(unit, command)` returns None or a status when the command
    has ended, or a generator that yields what the hooks return; None as `run` leaves the command to the handler's
    `handle_cmd`. `needs` names an operation of the disk without which the command does not exist.

    `direction` and `amount` say how the data goes and how much of it there can be. `blocks` reads the LBA and the
    number of blocks, `touches` says what it shares with others, and `alone` that it must not share that.
    `ready` says that the command needs a unit that is started; `protected` that it writes to the medium.
    `reach` is the access state in which the command runs, with all that are nearer to active; `tpgs`: it exists where a
    unit's groups are moved like this.
    `spared` and `spared_6` say which CDBs pass a persistent reservation, or RESERVE(6), of somebody else.
    """

    code: int
    name: str
    usage: bytes
    run: Callable[[Any, Any], Any] | None = None
    service_action: int | None = None
    access: Access = Access.READ
    direction: Direction = Direction.ANY
    amount: Amount | None = None
    blocks: Blocks | None = None
    touches: Touches = Touches.NOTHING
    alone: bool = False
    needs: str = ""
    ready: bool = True
    protected: bool = False
    reach: Reach = Reach.ACTIVE
    tpgs: Tpgs = Tpgs.NONE
    spared: Spared = never
    spared_6: Spared = never
    attention: bool = True  # a pending unit attention is reported instead of running the command (SAM-5 5.14)
    timeout: int = 30  # recommended command timeout in seconds (SPC-4 6.35.4)
    types: tuple[int, ...] = (0x00,)  # peripheral device types that have the command; empty: all

    @property
    def key(self) -> tuple[int, int | None]:
        """Return what the table is keyed by: the operation code and the service action, if there is one."""
        return self.code, self.service_action

    @property
    def problem(self) -> str:
        """What would break those who read the row, a transport or the log; empty where nothing does."""
        row: Any = self  # its types are a handler's word
        action = row.service_action
        checks = (
            (isinstance(row.code, int) and 0 <= row.code <= 0xFF, "code must be a number of one byte"),
            (
                action is None or (isinstance(action, int) and 0 <= action <= MAX_SERVICE_ACTION),
                "service_action must be a number of five bits, or None",
            ),
            (isinstance(row.name, str), "name must be a str"),
            (isinstance(row.usage, bytes) and row.usage, "usage must be bytes, one for each byte of the CDB"),
            (isinstance(row.direction, Direction), "direction must be a Direction"),
        )
        return next((problem for right, problem in checks if not right), "")

    def named(self, cdb: bytes) -> tuple[int, int] | None:
        """Return the LBA and number of blocks of a CDB; None where it names none, or a handler's `blocks` breaks."""
        if self.blocks is None:
            return None
        try:
            lba, count = self.blocks(cdb)
        except Exception:
            return None
        return lba, count

    def most(self, cdb: bytes, size: int) -> int | None:
        """Return how many bytes a CDB can move on blocks of `size` bytes; None where nobody knows."""
        if self.amount is None:
            return None
        try:
            amount: Any = self.amount(cdb, self.blocks(cdb)[1] if self.blocks is not None else 0, size)
        except Exception:  # a handler's own row: the command itself will fail for it
            return None
        return amount if isinstance(amount, int) and amount >= 0 else None


Table = dict[tuple[int, int | None], Opcode]


def find(table: Table, cdb: bytes) -> Opcode | None:
    """Return the table's row for a CDB, None where there is none."""
    return table.get((cdb[0], None)) or table.get((cdb[0], cdb[1] & 0x1F))


def describe(cdb: bytes, table: Table) -> str:
    """Return the CDB as the log prints it: its bytes in hexadecimal, its name, and the blocks that it names."""
    length = cdb_length(cdb[0]) or len(cdb)
    row = find(table, cdb)
    text = " ".join(f"{byte:x}" for byte in cdb[:length]) + " " + (row.name if row is not None else name_of(cdb[0]))
    named = row.named(cdb) if row is not None else None
    return text if named is None else f"{text} lba {named[0]} blocks {named[1]}"


def name_of(code: int) -> str:
    """Return what an operation code is called that is in no table."""
    try:
        return Op(code).name.replace("_", " ")
    except ValueError:
        return f"opcode {code:02X}h"


def cdb_length(code: int) -> int | None:
    """Return the length of a CDB in bytes by its group code (SPC-4 4.3.1); None for 7Eh, 7Fh and vendor groups."""
    if code in (0x7E, 0x7F):
        return None
    return {0: 6, 1: 10, 2: 10, 4: 16, 5: 12}.get(code >> 5)
