"""Reading CDBs: the LBA and length that they name, and how the log prints them."""

from __future__ import annotations

from collections.abc import Mapping

from tcmu_core.scsi.opcodes import Op, Opcode, cdb_length
from tcmu_core.scsi.taskset import EVERYTHING, NOTHING, Span

# Commands whose LBA and TRANSFER LENGTH (or NUMBER OF BLOCKS) stand where their group has them (SBC-4 table 3).
_BLOCK_COMMANDS = frozenset({
    Op.READ_6, Op.WRITE_6,
    Op.READ_10, Op.WRITE_10, Op.WRITE_AND_VERIFY_10, Op.VERIFY_10, Op.PRE_FETCH_10, Op.WRITE_SAME_10,
    Op.READ_12, Op.WRITE_12, Op.WRITE_AND_VERIFY_12, Op.VERIFY_12,
    Op.READ_16, Op.WRITE_16, Op.ORWRITE_16, Op.WRITE_AND_VERIFY_16, Op.VERIFY_16, Op.PRE_FETCH_16, Op.WRITE_SAME_16,
})  # fmt: skip
_ALL_BLOCKS = frozenset({Op.UNMAP, Op.SANITIZE, Op.FORMAT_UNIT, Op.EXTENDED_COPY})


def lba_and_count(cdb: bytes) -> tuple[int, int]:
    """Return the LBA and the number of blocks of a 6, 10, 12 or 16-byte block command.

    A READ(6) or WRITE(6) of 0 blocks means 256 (SBC-4 5.9).
    """
    group = cdb[0] >> 5
    if group == 0:
        return int.from_bytes(cdb[1:4], "big") & 0x1FFFFF, cdb[4] or 256
    if group in (1, 2):
        return int.from_bytes(cdb[2:6], "big"), int.from_bytes(cdb[7:9], "big")
    if group == 5:
        return int.from_bytes(cdb[2:6], "big"), int.from_bytes(cdb[6:10], "big")
    return int.from_bytes(cdb[2:10], "big"), int.from_bytes(cdb[10:14], "big")


def span_of(cdb: bytes) -> Span:
    """Return the blocks that a command touches, for ordering; of commands off the medium, none."""
    code = cdb[0]
    if code in _BLOCK_COMMANDS:
        lba, count = lba_and_count(cdb)
        return lba, lba + count
    if code == Op.COMPARE_AND_WRITE:
        lba = int.from_bytes(cdb[2:10], "big")
        return lba, lba + cdb[13]
    if code == Op.WRITE_ATOMIC_16:
        lba = int.from_bytes(cdb[2:10], "big")
        return lba, lba + int.from_bytes(cdb[12:14], "big")
    return EVERYTHING if code in _ALL_BLOCKS else NOTHING


def name_of(cdb: bytes, table: Mapping[tuple[int, int | None], Opcode]) -> str:
    """Return a command's name, also for one that is not in the table."""
    row = table.get((cdb[0], None)) or table.get((cdb[0], cdb[1] & 0x1F))
    if row is not None:
        return row.name
    try:
        return Op(cdb[0]).name.replace("_", " ")
    except ValueError:
        return f"opcode {cdb[0]:02X}h"


def describe(cdb: bytes, table: Mapping[tuple[int, int | None], Opcode]) -> str:
    """Return the CDB as the log prints it: its bytes in hexadecimal, its name, and the blocks that it names."""
    length = cdb_length(cdb[0]) or len(cdb)
    text = " ".join(f"{byte:x}" for byte in cdb[:length]) + " " + name_of(cdb, table)
    if cdb[0] in _BLOCK_COMMANDS:
        lba, count = lba_and_count(cdb)
        text += f" lba {lba} blocks {count}"
    return text
