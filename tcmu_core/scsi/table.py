"""The opcode table: dispatch, the log's names and REPORT SUPPORTED OPERATION CODES all read it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from tcmu_core.scsi import background, copy, identity, medium, mode, provisioning, report, reservations
from tcmu_core.scsi.opcodes import Access, Op, Opcode
from tcmu_core.scsi.reservations import OutAction

if TYPE_CHECKING:
    from tcmu_core.scsi.unit import LogicalUnit

ANY: tuple[int, ...] = ()  # every peripheral device type
Table = dict[tuple[int, int | None], Opcode]


_SANITIZE = (
    (background.OVERWRITE, "OVERWRITE", "write"),
    (background.BLOCK_ERASE, "BLOCK ERASE", "discard"),
    (background.EXIT_FAILURE_MODE, "EXIT FAILURE MODE", "write"),
)


def _mask(text: str) -> bytes:
    """Read CDB usage data; the first byte, the operation code, counts as used."""
    return bytes.fromhex("ff" + text)


def _rows() -> list[Opcode]:
    write, always, reserve = Access.WRITE, Access.ALWAYS, Access.RESERVE
    # fmt: off
    rows = [
        Opcode(Op.TEST_UNIT_READY, "TEST UNIT READY", _mask("00 00 00 00 00"), report.test_unit_ready,
               access=always, types=ANY),
        Opcode(Op.REQUEST_SENSE, "REQUEST SENSE", _mask("01 00 00 ff 00"), report.request_sense,
               access=always, ready=False, attention=False, types=ANY),
        Opcode(Op.FORMAT_UNIT, "FORMAT UNIT", _mask("ff 00 00 00 00"), background.format_unit,
               access=write, needs="write", protected=True, timeout=86400),
        Opcode(Op.READ_6, "READ(6)", _mask("1f ff ff ff 00"), medium.read),
        Opcode(Op.WRITE_6, "WRITE(6)", _mask("1f ff ff ff 00"), medium.write,
               access=write, needs="write", protected=True),
        Opcode(Op.INQUIRY, "INQUIRY", _mask("01 ff ff ff 00"), identity.inquiry,
               access=always, ready=False, attention=False, types=ANY),
        Opcode(Op.MODE_SELECT_6, "MODE SELECT(6)", _mask("11 00 00 ff 00"), mode.mode_select,
               access=write, ready=False, types=ANY),
        Opcode(Op.RESERVE_6, "RESERVE(6)", _mask("00 00 00 00 00"), reservations.reserve_6,
               access=reserve, ready=False, types=ANY),
        Opcode(Op.RELEASE_6, "RELEASE(6)", _mask("00 00 00 00 00"), reservations.release_6,
               access=reserve, ready=False, types=ANY),
        Opcode(Op.MODE_SENSE_6, "MODE SENSE(6)", _mask("08 ff ff ff 00"), mode.mode_sense, ready=False, types=ANY),
        Opcode(Op.START_STOP_UNIT, "START STOP UNIT", _mask("01 00 0f f7 00"), report.start_stop_unit,
               access=write, ready=False, types=ANY),
        Opcode(Op.RECEIVE_DIAGNOSTIC_RESULTS, "RECEIVE DIAGNOSTIC RESULTS", _mask("01 ff ff ff 00"),
               report.receive_diagnostic_results, ready=False),
        Opcode(Op.SEND_DIAGNOSTIC, "SEND DIAGNOSTIC", _mask("f7 00 ff ff 00"), report.send_diagnostic, access=write),
        Opcode(Op.PREVENT_ALLOW_MEDIUM_REMOVAL, "PREVENT ALLOW MEDIUM REMOVAL", _mask("00 00 00 03 00"),
               report.prevent_allow, access=write, ready=False, types=ANY),
        Opcode(Op.READ_CAPACITY_10, "READ CAPACITY(10)", _mask("00 ff ff ff ff 00 00 00 00"),
               medium.read_capacity_10, access=always),
        Opcode(Op.READ_10, "READ(10)", _mask("18 ff ff ff ff 1f ff ff 00"), medium.read),
        Opcode(Op.WRITE_10, "WRITE(10)", _mask("18 ff ff ff ff 1f ff ff 00"), medium.write,
               access=write, needs="write", protected=True),
        Opcode(Op.WRITE_AND_VERIFY_10, "WRITE AND VERIFY(10)", _mask("16 ff ff ff ff 1f ff ff 00"),
               medium.write_and_verify, access=write, needs="write", protected=True),
        Opcode(Op.VERIFY_10, "VERIFY(10)", _mask("16 ff ff ff ff 1f ff ff 00"), medium.verify),
        Opcode(Op.PRE_FETCH_10, "PRE-FETCH(10)", _mask("02 ff ff ff ff 1f ff ff 00"), medium.pre_fetch),
        Opcode(Op.SYNCHRONIZE_CACHE_10, "SYNCHRONIZE CACHE(10)", _mask("06 ff ff ff ff 1f ff ff 00"),
               medium.synchronize_cache, access=write),
        Opcode(Op.READ_DEFECT_DATA_10, "READ DEFECT DATA(10)", _mask("00 1f 00 00 00 00 ff ff 00"),
               report.read_defect_data),
        Opcode(Op.WRITE_SAME_10, "WRITE SAME(10)", _mask("08 ff ff ff ff 1f ff ff 00"), provisioning.write_same,
               access=write, needs="write", protected=True),
        Opcode(Op.UNMAP, "UNMAP", _mask("00 00 00 00 00 1f ff ff 00"), provisioning.unmap,
               access=write, needs="discard", protected=True),
        Opcode(Op.LOG_SENSE, "LOG SENSE", _mask("01 ff ff 00 ff ff ff ff 00"), report.log_sense,
               access=always, ready=False),
        Opcode(Op.MODE_SELECT_10, "MODE SELECT(10)", _mask("11 00 00 00 00 00 ff ff 00"), mode.mode_select,
               access=write, ready=False, types=ANY),
        Opcode(Op.MODE_SENSE_10, "MODE SENSE(10)", _mask("18 ff ff 00 00 00 ff ff 00"), mode.mode_sense,
               ready=False, types=ANY),
        Opcode(Op.READ_16, "READ(16)", _mask("18 ff ff ff ff ff ff ff ff ff ff ff ff 1f 00"), medium.read),
        Opcode(Op.COMPARE_AND_WRITE, "COMPARE AND WRITE", _mask("18 ff ff ff ff ff ff ff ff 00 00 00 ff 1f 00"),
               medium.compare_and_write, access=write, needs="write", protected=True),
        Opcode(Op.WRITE_16, "WRITE(16)", _mask("18 ff ff ff ff ff ff ff ff ff ff ff ff 1f 00"), medium.write,
               access=write, needs="write", protected=True),
        Opcode(Op.ORWRITE_16, "ORWRITE(16)", _mask("18 ff ff ff ff ff ff ff ff ff ff ff ff 1f 00"), medium.orwrite,
               access=write, needs="write", protected=True),
        Opcode(Op.WRITE_AND_VERIFY_16, "WRITE AND VERIFY(16)",
               _mask("16 ff ff ff ff ff ff ff ff ff ff ff ff 1f 00"), medium.write_and_verify,
               access=write, needs="write", protected=True),
        Opcode(Op.VERIFY_16, "VERIFY(16)", _mask("16 ff ff ff ff ff ff ff ff ff ff ff ff 1f 00"), medium.verify),
        Opcode(Op.PRE_FETCH_16, "PRE-FETCH(16)", _mask("02 ff ff ff ff ff ff ff ff ff ff ff ff 1f 00"),
               medium.pre_fetch),
        Opcode(Op.SYNCHRONIZE_CACHE_16, "SYNCHRONIZE CACHE(16)",
               _mask("06 ff ff ff ff ff ff ff ff ff ff ff ff 1f 00"), medium.synchronize_cache, access=write),
        Opcode(Op.WRITE_SAME_16, "WRITE SAME(16)", _mask("09 ff ff ff ff ff ff ff ff ff ff ff ff 1f 00"),
               provisioning.write_same, access=write, needs="write", protected=True),
        Opcode(Op.WRITE_ATOMIC_16, "WRITE ATOMIC(16)", _mask("18 ff ff ff ff ff ff ff ff ff ff ff ff 1f 00"),
               medium.write_atomic, access=write, needs="write", protected=True),
        Opcode(Op.SERVICE_ACTION_IN_16, "READ CAPACITY(16)", _mask("1f ff ff ff ff ff ff ff ff ff ff ff ff 00 00"),
               medium.read_capacity_16, 0x10, access=always),
        Opcode(Op.SERVICE_ACTION_IN_16, "GET LBA STATUS", _mask("1f ff ff ff ff ff ff ff ff ff ff ff ff 00 00"),
               provisioning.get_lba_status, 0x12, needs="discard"),
        Opcode(Op.REPORT_LUNS, "REPORT LUNS", _mask("00 ff 00 00 00 ff ff ff ff 00 00"), report.report_luns,
               access=always, ready=False, attention=False, types=ANY),
        Opcode(Op.MAINTENANCE_IN, "REPORT SUPPORTED OPERATION CODES", _mask("1f 87 ff ff ff ff ff ff ff 00 00"),
               report.report_supported_opcodes, 0x0C, ready=False, types=ANY),
        Opcode(Op.MAINTENANCE_IN, "REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS",
               _mask("1f 80 00 00 00 ff ff ff ff 00 00"), report.report_task_management, 0x0D,
               ready=False, types=ANY),
        Opcode(Op.READ_12, "READ(12)", _mask("18 ff ff ff ff ff ff ff ff 1f 00"), medium.read),
        Opcode(Op.WRITE_12, "WRITE(12)", _mask("18 ff ff ff ff ff ff ff ff 1f 00"), medium.write,
               access=write, needs="write", protected=True),
        Opcode(Op.WRITE_AND_VERIFY_12, "WRITE AND VERIFY(12)", _mask("16 ff ff ff ff ff ff ff ff 1f 00"),
               medium.write_and_verify, access=write, needs="write", protected=True),
        Opcode(Op.VERIFY_12, "VERIFY(12)", _mask("16 ff ff ff ff ff ff ff ff 1f 00"), medium.verify),
        Opcode(Op.READ_DEFECT_DATA_12, "READ DEFECT DATA(12)", _mask("1f 00 00 00 00 ff ff ff ff 00 00"),
               report.read_defect_data),
        Opcode(Op.EXTENDED_COPY, "EXTENDED COPY(LID1)", _mask("1f 00 00 00 00 00 00 00 00 ff ff ff ff 00 00"),
               copy.extended_copy, 0x00, access=write, needs="write", timeout=300),
        Opcode(Op.RECEIVE_COPY_RESULTS, "RECEIVE COPY STATUS(LID1)",
               _mask("1f ff 00 00 00 00 00 00 00 ff ff ff ff 00 00"), copy.receive_copy_status, copy.COPY_STATUS,
               needs="write"),
        Opcode(Op.RECEIVE_COPY_RESULTS, "RECEIVE COPY OPERATING PARAMETERS",
               _mask("1f 00 00 00 00 00 00 00 00 ff ff ff ff 00 00"), copy.operating_parameters,
               copy.OPERATING_PARAMETERS, needs="write"),
    ]
    # fmt: on
    for action, name, needs in _SANITIZE:
        usage = _mask("bf 00 00 00 00 00 ff ff 00")
        row = Opcode(Op.SANITIZE, f"SANITIZE {name}", usage, background.sanitize, action, access=write, needs=needs)
        rows.append(replace(row, ready=False, protected=True, timeout=86400))
    for action, name in enumerate(("READ KEYS", "READ RESERVATION", "REPORT CAPABILITIES", "READ FULL STATUS")):
        usage, run = _mask("1f 00 00 00 00 00 ff ff 00"), reservations.persistent_reserve_in
        row = Opcode(Op.PERSISTENT_RESERVE_IN, f"PERSISTENT RESERVE IN {name}", usage, run, action, access=reserve)
        rows.append(replace(row, ready=False, types=ANY))
    for out in OutAction:
        name = f"PERSISTENT RESERVE OUT {out.name.replace('_', ' ')}"
        usage, run_out = _mask("1f ff 00 00 ff ff ff ff 00"), reservations.persistent_reserve_out
        row = Opcode(Op.PERSISTENT_RESERVE_OUT, name, usage, run_out, out, access=reserve)
        rows.append(replace(row, ready=False, types=ANY))
    return rows


ROWS = tuple(_rows())


def table_for(unit: LogicalUnit) -> Table:
    """Return the commands that a unit has: those of its device type whose capability its backend has, and its own."""
    kind = unit.device.device_type
    table = {
        row.key: row
        for row in ROWS
        if (not row.types or kind in row.types) and (not row.needs or getattr(unit.operations, row.needs) is not None)
    }
    table.update((row.key, row) for row in unit.device.opcodes)
    return table
