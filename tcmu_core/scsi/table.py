"""The opcode table: dispatch, the log's names, transports and REPORT SUPPORTED OPERATION CODES all read it."""

from __future__ import annotations

import functools
from dataclasses import replace

from tcmu_core.scsi.commands import background, block, copy, inquiry, mode, ports, provisioning, report, reservation
from tcmu_core.scsi.opcodes import (
    Access,
    Direction,
    Op,
    Opcode,
    Reach,
    Table,
    Touches,
    Tpgs,
    always,
    blocks_6,
    blocks_10,
    blocks_12,
    blocks_16,
    blocks_atomic,
    blocks_compare,
    checked_bytes,
    fixed,
    one_block,
    told_at,
    twice,
    whole,
)
from tcmu_core.scsi.reservations import OutAction
from tcmu_core.scsi.unit import Unit

ANY: tuple[int, ...] = ()  # every peripheral device type


_SANITIZE = (
    (background.OVERWRITE, "OVERWRITE", "write"),
    (background.BLOCK_ERASE, "BLOCK ERASE", "discard"),
    (background.EXIT_FAILURE_MODE, "EXIT FAILURE MODE", "write"),
)


def _allows_removal(cdb: bytes) -> bool:
    """PREVENT ALLOW MEDIUM REMOVAL that allows (SPC-4 table 66, SPC-2 table 10)."""
    return not cdb[4] & 0x01


def _starts(cdb: bytes) -> bool:
    """START STOP UNIT that starts, without a power condition (SPC-4 table 66)."""
    return bool(cdb[4] & 0x01) and not cdb[4] & 0xF0


def _mask(text: str) -> bytes:
    """Read CDB usage data; the first byte, the operation code, counts as used."""
    return bytes.fromhex("ff" + text)


def _rows() -> list[Opcode]:
    write, allowed, reserve = Access.WRITE, Access.ALWAYS, Access.RESERVE
    standby, unavailable, transitioning = Reach.STANDBY, Reach.UNAVAILABLE, Reach.TRANSITIONING
    # fmt: off
    rows = [
        Opcode(Op.TEST_UNIT_READY, "TEST UNIT READY", _mask("00 00 00 00 00"), report.test_unit_ready, access=allowed,
               types=ANY, direction=Direction.NONE),
        Opcode(Op.REQUEST_SENSE, "REQUEST SENSE", _mask("01 00 00 ff 00"), report.request_sense, access=allowed,
               ready=False, attention=False, types=ANY, direction=Direction.IN, amount=told_at(4, 5), spared_6=always,
               reach=transitioning),
        Opcode(Op.FORMAT_UNIT, "FORMAT UNIT", _mask("ff 00 00 00 00"), background.format_unit, access=write,
               needs="write", ready=False, protected=True, timeout=86400, direction=Direction.OUT, amount=fixed(8),
               touches=Touches.MEDIUM, alone=True),
        Opcode(Op.READ_6, "READ(6)", _mask("1f ff ff ff 00"), block.read, direction=Direction.IN, amount=whole,
               blocks=blocks_6, touches=Touches.BLOCKS),
        Opcode(Op.WRITE_6, "WRITE(6)", _mask("1f ff ff ff 00"), block.write, access=write, needs="write",
               protected=True, direction=Direction.OUT, amount=whole, blocks=blocks_6, touches=Touches.BLOCKS),
        Opcode(Op.INQUIRY, "INQUIRY", _mask("01 ff ff ff 00"), inquiry.inquiry, access=allowed, ready=False,
               attention=False, types=ANY, direction=Direction.IN, amount=told_at(3, 5), spared_6=always,
               reach=transitioning),
        Opcode(Op.MODE_SELECT_6, "MODE SELECT(6)", _mask("11 00 00 ff 00"), mode.mode_select, access=write,
               ready=False, types=ANY, direction=Direction.OUT, amount=told_at(4, 5), reach=standby,
               touches=Touches.MEDIUM, alone=True),  # a write knows whether there is a write cache when it ends
        Opcode(Op.RESERVE_6, "RESERVE(6)", _mask("00 00 00 00 00"), reservation.reserve_6, access=reserve,
               ready=False, types=ANY, direction=Direction.NONE, touches=Touches.REGISTRATIONS, alone=True),
        Opcode(Op.RELEASE_6, "RELEASE(6)", _mask("00 00 00 00 00"), reservation.release_6, access=reserve,
               ready=False, types=ANY, direction=Direction.NONE, spared_6=always, touches=Touches.REGISTRATIONS,
               alone=True),
        Opcode(Op.MODE_SENSE_6, "MODE SENSE(6)", _mask("08 ff ff ff 00"), mode.mode_sense, ready=False, types=ANY,
               direction=Direction.IN, amount=told_at(4, 5), reach=standby),
        Opcode(Op.START_STOP_UNIT, "START STOP UNIT", _mask("01 00 0f f7 00"), report.start_stop_unit, access=write,
               ready=False, types=ANY, direction=Direction.NONE, spared=_starts, touches=Touches.MEDIUM, alone=True),
        Opcode(Op.RECEIVE_DIAGNOSTIC_RESULTS, "RECEIVE DIAGNOSTIC RESULTS", _mask("01 ff ff ff 00"),
               report.receive_diagnostic_results, ready=False, direction=Direction.IN, amount=told_at(3, 5),
               reach=standby),
        Opcode(Op.SEND_DIAGNOSTIC, "SEND DIAGNOSTIC", _mask("f7 00 ff ff 00"), report.send_diagnostic, access=write,
               direction=Direction.OUT, amount=told_at(3, 5), reach=standby),
        Opcode(Op.PREVENT_ALLOW_MEDIUM_REMOVAL, "PREVENT ALLOW MEDIUM REMOVAL", _mask("00 00 00 03 00"),
               report.prevent_allow, access=write, ready=False, types=ANY, direction=Direction.NONE,
               spared=_allows_removal, spared_6=_allows_removal),
        Opcode(Op.READ_CAPACITY_10, "READ CAPACITY(10)", _mask("00 ff ff ff ff 00 00 00 00"),
               block.read_capacity_10, access=allowed, direction=Direction.IN, amount=fixed(8), reach=standby),
        Opcode(Op.READ_10, "READ(10)", _mask("18 ff ff ff ff 1f ff ff 00"), block.read, direction=Direction.IN,
               amount=whole, blocks=blocks_10, touches=Touches.BLOCKS),
        Opcode(Op.WRITE_10, "WRITE(10)", _mask("18 ff ff ff ff 1f ff ff 00"), block.write, access=write,
               needs="write", protected=True, direction=Direction.OUT, amount=whole, blocks=blocks_10,
               touches=Touches.BLOCKS),
        Opcode(Op.WRITE_AND_VERIFY_10, "WRITE AND VERIFY(10)", _mask("16 ff ff ff ff 1f ff ff 00"),
               block.write_and_verify, access=write, needs="write", protected=True, direction=Direction.OUT,
               amount=whole, blocks=blocks_10, touches=Touches.BLOCKS),
        Opcode(Op.VERIFY_10, "VERIFY(10)", _mask("16 ff ff ff ff 1f ff ff 00"), block.verify,
               direction=Direction.OUT, amount=checked_bytes, blocks=blocks_10, touches=Touches.BLOCKS),
        Opcode(Op.PRE_FETCH_10, "PRE-FETCH(10)", _mask("02 ff ff ff ff 1f ff ff 00"), block.pre_fetch,
               direction=Direction.NONE, blocks=blocks_10, touches=Touches.BLOCKS),
        Opcode(Op.SYNCHRONIZE_CACHE_10, "SYNCHRONIZE CACHE(10)", _mask("06 ff ff ff ff 1f ff ff 00"),
               block.synchronize_cache, access=write, direction=Direction.NONE, blocks=blocks_10,
               touches=Touches.CACHE),
        Opcode(Op.READ_DEFECT_DATA_10, "READ DEFECT DATA(10)", _mask("00 1f 00 00 00 00 ff ff 00"),
               report.read_defect_data, direction=Direction.IN, amount=told_at(7, 9)),
        Opcode(Op.WRITE_SAME_10, "WRITE SAME(10)", _mask("08 ff ff ff ff 1f ff ff 00"), provisioning.write_same,
               access=write, needs="write", protected=True, direction=Direction.OUT, amount=one_block,
               blocks=blocks_10, touches=Touches.BLOCKS),
        Opcode(Op.UNMAP, "UNMAP", _mask("00 00 00 00 00 1f ff ff 00"), provisioning.unmap, access=write,
               needs="discard", protected=True, direction=Direction.OUT, amount=told_at(7, 9), touches=Touches.MEDIUM),
        Opcode(Op.LOG_SENSE, "LOG SENSE", _mask("01 ff ff 00 ff ff ff ff 00"), report.log_sense, access=allowed,
               ready=False, direction=Direction.IN, amount=told_at(7, 9), reach=standby),
        Opcode(Op.MODE_SELECT_10, "MODE SELECT(10)", _mask("11 00 00 00 00 00 ff ff 00"), mode.mode_select,
               access=write, ready=False, types=ANY, direction=Direction.OUT, amount=told_at(7, 9), reach=standby,
               touches=Touches.MEDIUM, alone=True),
        Opcode(Op.MODE_SENSE_10, "MODE SENSE(10)", _mask("18 ff ff 00 00 00 ff ff 00"), mode.mode_sense, ready=False,
               types=ANY, direction=Direction.IN, amount=told_at(7, 9), reach=standby),
        Opcode(Op.READ_16, "READ(16)", _mask("18 ff ff ff ff ff ff ff ff ff ff ff ff 1f 00"), block.read,
               direction=Direction.IN, amount=whole, blocks=blocks_16, touches=Touches.BLOCKS),
        Opcode(Op.COMPARE_AND_WRITE, "COMPARE AND WRITE", _mask("18 ff ff ff ff ff ff ff ff 00 00 00 ff 1f 00"),
               block.compare_and_write, access=write, needs="write", protected=True, direction=Direction.OUT,
               amount=twice, blocks=blocks_compare, touches=Touches.BLOCKS, alone=True),
        Opcode(Op.WRITE_16, "WRITE(16)", _mask("18 ff ff ff ff ff ff ff ff ff ff ff ff 1f 00"), block.write,
               access=write, needs="write", protected=True, direction=Direction.OUT, amount=whole, blocks=blocks_16,
               touches=Touches.BLOCKS),
        Opcode(Op.ORWRITE_16, "ORWRITE(16)", _mask("18 ff ff ff ff ff ff ff ff ff ff ff ff 1f 00"), block.orwrite,
               access=write, needs="write", protected=True, direction=Direction.OUT, amount=whole, blocks=blocks_16,
               touches=Touches.BLOCKS, alone=True),
        Opcode(Op.WRITE_AND_VERIFY_16, "WRITE AND VERIFY(16)", _mask("16 ff ff ff ff ff ff ff ff ff ff ff ff 1f 00"),
               block.write_and_verify, access=write, needs="write", protected=True, direction=Direction.OUT,
               amount=whole, blocks=blocks_16, touches=Touches.BLOCKS),
        Opcode(Op.VERIFY_16, "VERIFY(16)", _mask("16 ff ff ff ff ff ff ff ff ff ff ff ff 1f 00"), block.verify,
               direction=Direction.OUT, amount=checked_bytes, blocks=blocks_16, touches=Touches.BLOCKS),
        Opcode(Op.PRE_FETCH_16, "PRE-FETCH(16)", _mask("02 ff ff ff ff ff ff ff ff ff ff ff ff 1f 00"),
               block.pre_fetch, direction=Direction.NONE, blocks=blocks_16, touches=Touches.BLOCKS),
        Opcode(Op.SYNCHRONIZE_CACHE_16, "SYNCHRONIZE CACHE(16)",
               _mask("06 ff ff ff ff ff ff ff ff ff ff ff ff 1f 00"), block.synchronize_cache, access=write,
               direction=Direction.NONE, blocks=blocks_16, touches=Touches.CACHE),
        Opcode(Op.WRITE_SAME_16, "WRITE SAME(16)", _mask("09 ff ff ff ff ff ff ff ff ff ff ff ff 1f 00"),
               provisioning.write_same, access=write, needs="write", protected=True, direction=Direction.OUT,
               amount=one_block, blocks=blocks_16, touches=Touches.BLOCKS),
        Opcode(Op.WRITE_ATOMIC_16, "WRITE ATOMIC(16)", _mask("18 ff ff ff ff ff ff ff ff ff ff ff ff 1f 00"),
               block.write_atomic, access=write, needs="write", protected=True, direction=Direction.OUT,
               amount=whole, blocks=blocks_atomic, touches=Touches.BLOCKS, alone=True),
        Opcode(Op.SERVICE_ACTION_IN_16, "READ CAPACITY(16)", _mask("1f ff ff ff ff ff ff ff ff ff ff ff ff 00 00"),
               block.read_capacity_16, 0x10, access=allowed, direction=Direction.IN, amount=told_at(10, 14),
               reach=standby),
        Opcode(Op.SERVICE_ACTION_IN_16, "GET LBA STATUS", _mask("1f ff ff ff ff ff ff ff ff ff ff ff ff 00 00"),
               provisioning.get_lba_status, 0x12, needs="discard", direction=Direction.IN, amount=told_at(10, 14)),
        Opcode(Op.REPORT_LUNS, "REPORT LUNS", _mask("00 ff 00 00 00 ff ff ff ff 00 00"), report.report_luns,
               access=allowed, ready=False, attention=False, types=ANY, direction=Direction.IN, amount=told_at(6, 10),
               spared_6=always, reach=transitioning),
        Opcode(Op.MAINTENANCE_IN, "REPORT SUPPORTED OPERATION CODES", _mask("1f 87 ff ff ff ff ff ff ff 00 00"),
               report.report_supported_opcodes, report.SUPPORTED_OPCODES, ready=False, types=ANY,
               direction=Direction.IN, amount=told_at(6, 10), reach=standby),
        Opcode(Op.MAINTENANCE_IN, "REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS",
               _mask("1f 80 00 00 00 ff ff ff ff 00 00"), report.report_task_management, 0x0D, ready=False,
               types=ANY, direction=Direction.IN, amount=told_at(6, 10), reach=standby),
        Opcode(Op.MAINTENANCE_IN, "REPORT TARGET PORT GROUPS", _mask("ff 00 00 00 00 ff ff ff ff 00 00"),
               ports.report_target_port_groups, ports.REPORT_GROUPS, access=allowed, ready=False, types=ANY,
               direction=Direction.IN, amount=told_at(6, 10), spared_6=always, tpgs=Tpgs.BOTH, reach=transitioning),
        Opcode(Op.MAINTENANCE_OUT, "SET TARGET PORT GROUPS", _mask("1f 00 00 00 00 ff ff ff ff 00 00"),
               ports.set_target_port_groups, ports.SET_GROUPS, access=write, ready=False, types=ANY,
               direction=Direction.OUT, amount=told_at(6, 10), tpgs=Tpgs.EXPLICIT, reach=unavailable),
        Opcode(Op.READ_12, "READ(12)", _mask("18 ff ff ff ff ff ff ff ff 1f 00"), block.read,
               direction=Direction.IN, amount=whole, blocks=blocks_12, touches=Touches.BLOCKS),
        Opcode(Op.WRITE_12, "WRITE(12)", _mask("18 ff ff ff ff ff ff ff ff 1f 00"), block.write, access=write,
               needs="write", protected=True, direction=Direction.OUT, amount=whole, blocks=blocks_12,
               touches=Touches.BLOCKS),
        Opcode(Op.WRITE_AND_VERIFY_12, "WRITE AND VERIFY(12)", _mask("16 ff ff ff ff ff ff ff ff 1f 00"),
               block.write_and_verify, access=write, needs="write", protected=True, direction=Direction.OUT,
               amount=whole, blocks=blocks_12, touches=Touches.BLOCKS),
        Opcode(Op.VERIFY_12, "VERIFY(12)", _mask("16 ff ff ff ff ff ff ff ff 1f 00"), block.verify,
               direction=Direction.OUT, amount=checked_bytes, blocks=blocks_12, touches=Touches.BLOCKS),
        Opcode(Op.READ_DEFECT_DATA_12, "READ DEFECT DATA(12)", _mask("1f 00 00 00 00 ff ff ff ff 00 00"),
               report.read_defect_data, direction=Direction.IN, amount=told_at(6, 10)),
        Opcode(Op.EXTENDED_COPY, "EXTENDED COPY(LID1)", _mask("1f 00 00 00 00 00 00 00 00 ff ff ff ff 00 00"),
               copy.extended_copy, 0x00, access=write, needs="write", timeout=300, direction=Direction.OUT,
               amount=told_at(10, 14), touches=Touches.OWN_WAY),
        Opcode(Op.RECEIVE_COPY_RESULTS, "RECEIVE COPY STATUS(LID1)",
               _mask("1f ff 00 00 00 00 00 00 00 ff ff ff ff 00 00"), copy.receive_copy_status, copy.COPY_STATUS,
               needs="write", direction=Direction.IN, amount=told_at(10, 14)),
        Opcode(Op.RECEIVE_COPY_RESULTS, "RECEIVE COPY OPERATING PARAMETERS",
               _mask("1f 00 00 00 00 00 00 00 00 ff ff ff ff 00 00"), copy.operating_parameters,
               copy.OPERATING_PARAMETERS, needs="write", direction=Direction.IN, amount=told_at(10, 14)),
    ]
    # fmt: on
    for action, name, needs in _SANITIZE:
        usage = _mask("bf 00 00 00 00 00 ff ff 00")
        row = Opcode(Op.SANITIZE, f"SANITIZE {name}", usage, background.sanitize, action, access=write, needs=needs)
        row = replace(row, direction=Direction.OUT, amount=told_at(7, 9), touches=Touches.MEDIUM, alone=True)
        rows.append(replace(row, ready=False, protected=True, timeout=86400))
    for action, name in enumerate(("READ KEYS", "READ RESERVATION", "REPORT CAPABILITIES", "READ FULL STATUS")):
        usage, run = _mask("1f 00 00 00 00 00 ff ff 00"), reservation.persistent_reserve_in
        row = Opcode(Op.PERSISTENT_RESERVE_IN, f"PERSISTENT RESERVE IN {name}", usage, run, action, access=reserve)
        row = replace(row, ready=False, types=ANY, direction=Direction.IN, amount=told_at(7, 9))
        rows.append(replace(row, reach=standby))
    for out in OutAction:
        name = f"PERSISTENT RESERVE OUT {out.name.replace('_', ' ')}"
        usage, run_out = _mask("1f ff 00 00 ff ff ff ff 00"), reservation.persistent_reserve_out
        row = Opcode(Op.PERSISTENT_RESERVE_OUT, name, usage, run_out, out, access=reserve)
        row = replace(row, direction=Direction.OUT, amount=told_at(5, 9), touches=Touches.REGISTRATIONS, alone=True)
        rows.append(replace(row, ready=False, types=ANY, reach=standby))
    return rows


ROWS = tuple(_rows())


@functools.cache
def _of_type(kind: int) -> Table:
    """Return the commands of a device type."""
    return {row.key: row for row in ROWS if not row.types or kind in row.types}


def every_row(unit: Unit) -> Table:
    """Return the commands of a unit's device type, and its own, those that its disk has no operation for included."""
    return _of_type(unit.device.device_type) | {row.key: row for row in unit.device.opcodes}


def table_for(unit: Unit) -> Table:
    """Return the commands that a unit has: its own, and those of its device type that its disk and groups allow for."""
    own = {row.key for row in unit.device.opcodes}
    return {key: row for key, row in every_row(unit).items() if key in own or _has(unit, row)}


def _has(unit: Unit, row: Opcode) -> bool:
    """Return whether a unit has what a command needs."""
    if row.tpgs and not row.tpgs & unit.access.arrangement.tpgs:
        return False
    return not row.needs or getattr(unit.operations, row.needs) is not None
