"""Admission: what a command touches, whose turn it waits for, and what stands against it before it is run."""

from __future__ import annotations

from concurrent.futures import Future

from tcmu_core.errors import IllegalRequest, InvalidFieldInCdb, WriteProtected
from tcmu_core.scsi.command import Command, TaskAttribute
from tcmu_core.scsi.commands.block import partial
from tcmu_core.scsi.opcodes import Access, Op, Opcode, Table, Touches, find
from tcmu_core.scsi.taskset import CACHE, EVERYTHING, MEDIUM, REGISTRATIONS, Span
from tcmu_core.scsi.unit import Unit

_UNKNOWN = Opcode(0x00, "a command that no standard tells of", b"", access=Access.WRITE)
_SCSI_2_LUN = 0xE0 << 32  # bits 7 to 5 of byte 1 of a 6-byte CDB


class InvalidMessage(IllegalRequest):
    """A task attribute that there is not: NormACA is zero, so there never is an auto contingent allegiance (SAM-5)."""

    asc = 0x49


def decode(table: Table, command: Command) -> Opcode | None:
    """Note which row of the table the CDB is, and the blocks that it names."""
    row = command.row = find(table, command.cdb)
    command.lba, command.count = row.blocks(command.cdb) if row is not None and row.blocks is not None else (0, 0)
    return row


def spans_of(command: Command) -> tuple[Span, ...]:
    """Return what a command that is decoded touches."""
    row = command.row
    if row is None or (row.run is None and row.touches is Touches.NOTHING):
        return (MEDIUM,)  # the handler alone knows
    match row.touches:
        case Touches.BLOCKS:
            return ((command.lba, command.lba + command.count),)
        case Touches.MEDIUM:
            return (MEDIUM,)
        case Touches.REGISTRATIONS:
            return (REGISTRATIONS,)
        case Touches.CACHE:
            return (CACHE,)
    return ()


def may_still_write(unit: Unit, command: Command) -> tuple[Span, ...] | None:
    """Return the spans that a command which was aborted may write yet; None: it keeps its own way."""
    row = find(unit.table, command.cdb)
    if row is not None and row.touches is Touches.OWN_WAY:
        return None
    if row is not None and row.access is Access.READ:
        return ()
    decode(unit.table, command)
    return spans_of(command)


def turn_of(unit: Unit, command: Command, row: Opcode | None) -> Future[None] | None:
    """Take a command into the task set where that has to be; None: it may run now (see taskset.py)."""
    tasks = unit.tasks
    if command.attribute > TaskAttribute.HEAD_OF_QUEUE:
        raise InvalidMessage
    if row is not None and row.touches is Touches.OWN_WAY:
        return None
    spans, alone = spans_of(command), row is not None and row.alone
    if command.attribute == TaskAttribute.ORDERED:
        spans, alone = (EVERYTHING,), True
    elif row is not None and row.protected and row.touches is Touches.BLOCKS:
        alone = alone or partial(command, unit.block_size)
    if not alone and not tasks.contended:
        return None
    return tasks.admit(command, spans, alone=alone, ahead=command.attribute == TaskAttribute.HEAD_OF_QUEUE)


def admit(unit: Unit, row: Opcode, command: Command) -> None:
    """Raise what its port's state, the CDB's reserved bits, a reservation, or the unit say against a command."""
    cdb = command.cdb
    if unit.access.closed:
        unit.access.check(command.nexus, row)
    excess = int.from_bytes(cdb[: len(row.usage)], "big") & ~int.from_bytes(row.usage, "big")
    if excess and row.code == Op.INQUIRY:
        # Linux finds a unit's standard by an INQUIRY of SCSI-2, which has the LUN in byte 1 (SCSI-2 7.2.2).
        excess &= ~_SCSI_2_LUN
    if excess:
        bit = excess.bit_length() - 1  # the highest reserved bit that is set, counted from the CDB's end
        raise InvalidFieldInCdb("a reserved bit is set", field=(len(row.usage) - 1 - bit // 8, bit % 8))
    unit.reservations.check(command.nexus, row, cdb)
    if row.ready:
        unit.must_be_ready()
    if row.protected and unit.write_protected:
        raise WriteProtected


def permit(unit: Unit, laws: Table, command: Command) -> None:
    """Raise what a port's state, a reservation, or a person who said read-only says against a command.

    That is before a handler sees it.

    A command that is no line of the table, since the disk lacks an operation, is judged by its line all the same;
    one that nobody knows may change anything.
    """
    row = command.row or find(laws, command.cdb) or _UNKNOWN
    if unit.access.closed:
        unit.access.check(command.nexus, row)
    if unit.reservations.active:
        unit.reservations.check(command.nexus, row, command.cdb)
    if row.protected and (unit.disk.spec.read_only or unit.modes.software_write_protect):
        raise WriteProtected
