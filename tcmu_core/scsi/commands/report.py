"""What the unit tells of itself: LUNs, supported commands and task management, sense, logs, diagnostics."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from tcmu_core.errors import (
    InvalidFieldInCdb,
    InvalidFieldInParameterList,
    MediumNotPresent,
    MediumRemovalPrevented,
    UnitAttention,
)
from tcmu_core.scsi import sense
from tcmu_core.scsi.attention import MEDIUM_CHANGED
from tcmu_core.scsi.command import Command
from tcmu_core.scsi.commands.data import flushed, parameter_list
from tcmu_core.scsi.commands.provisioning import extents_of
from tcmu_core.scsi.lun import report_luns_data
from tcmu_core.scsi.opcodes import Op, Opcode
from tcmu_core.scsi.steps import PAUSE, Steps
from tcmu_core.scsi.unit import Unit

_TIMEOUTS = 0x0A  # DESCRIPTOR LENGTH of a command timeouts descriptor (SPC-4 6.35.4)
SUPPORTED_OPCODES = 0x0C  # service action of MAINTENANCE IN (SPC-4 table 48)
_SUPPORTED = 0x03  # SUPPORT: in conformance with the standard (SPC-4 6.35.3)


def test_unit_ready(unit: Unit, command: Command) -> None:
    """TEST UNIT READY: SPC-4 6.47. That the unit is ready has been checked on the way here."""


def request_sense(unit: Unit, command: Command) -> None:
    """REQUEST SENSE: SPC-4 6.39. A pending unit attention, why the unit is not ready, or NO SENSE."""
    descriptor = bool(command.cdb[1] & 0x01)
    attentions = command.nexus.attentions
    if attentions:
        data = sense.encode(UnitAttention.of(*attentions.popleft()), descriptor=descriptor)
    elif unit.background is not None:
        data = sense.encode(unit.background.not_ready(), descriptor=descriptor)
    elif not unit.has_medium:
        data = sense.encode(MediumNotPresent(), descriptor=descriptor)
    elif not unit.started:
        # LOW POWER CONDITION ON is for power conditions; a stopped unit says why it is not ready (SBC-4 4.20)
        data = bytes([0x72, 0x02, 0x04, 0x02, 0, 0, 0, 0]) if descriptor else _stopped_fixed()
    else:
        data = sense.NO_SENSE_DESCRIPTOR if descriptor else sense.NO_SENSE_FIXED
    command.put(data[: command.cdb[4]])


def _stopped_fixed() -> bytes:
    return bytes([0x70, 0, 0x02, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x04, 0x02, 0, 0, 0, 0])


def report_luns(unit: Unit, command: Command) -> None:
    """REPORT LUNS: SPC-4 6.33."""
    command.put(report_luns_data(command.cdb, sorted(unit.around.units)))
    unit.around.listed_to(command.nexus)


# -- REPORT SUPPORTED OPERATION CODES (SPC-4 6.35) --------------------------------------------------------------------


def _timeouts(row: Opcode) -> bytes:
    return _TIMEOUTS.to_bytes(2, "big") + bytes(2) + bytes(4) + row.timeout.to_bytes(4, "big")


def report_supported_opcodes(unit: Unit, command: Command) -> None:
    """REPORT SUPPORTED OPERATION CODES: all commands, or one by code, by service action, or by either (options 0-3)."""
    cdb, table = command.cdb, unit.table
    with_timeouts, option = bool(cdb[2] & 0x80), cdb[2] & 0x07
    code, action, room = cdb[3], int.from_bytes(cdb[4:6], "big"), int.from_bytes(cdb[6:10], "big")
    if option == 0:
        data = b"".join(_all_commands(row, with_timeouts) for _, row in sorted(table.items(), key=_by_code))
        command.put((len(data).to_bytes(4, "big") + data)[:room])
        return
    if option > 3:
        raise InvalidFieldInCdb("REPORTING OPTIONS", field=(2, 2))
    plain = table.get((code, None))
    with_action = any(known == code and of is not None for known, of in table)
    if option == 1 and with_action:
        raise InvalidFieldInCdb("this operation code has service actions", field=(2, 2))
    if option == 2 and plain is not None:
        raise InvalidFieldInCdb("this operation code has no service actions", field=(2, 2))
    by_code = option == 1 or (option == 3 and action == 0 and plain is not None)
    row = plain if by_code else table.get((code, action))
    if row is None:
        command.put(bytes([0, 0x01, 0, 0])[:room])
        return
    data = bytes([0, _SUPPORTED | (0x80 if with_timeouts else 0)]) + len(row.usage).to_bytes(2, "big") + usage_data(row)
    command.put((data + (_timeouts(row) if with_timeouts else b""))[:room])


def usage_data(row: Opcode) -> bytes:
    """Return CDB USAGE DATA: the operation code (and service action) themselves, then the mask of each other byte."""
    usage = bytearray(row.usage)
    usage[0] = row.code
    if row.service_action is not None:
        usage[1] = (usage[1] & 0xE0) | row.service_action
    return bytes(usage)


def _by_code(item: tuple[tuple[int, int | None], Opcode]) -> tuple[int, int]:
    (code, action), _ = item
    return code, -1 if action is None else action


def _all_commands(row: Opcode, with_timeouts: bool) -> bytes:
    flags = (0x02 if with_timeouts else 0) | (0x01 if row.service_action is not None else 0)
    data = bytes([row.code, 0]) + (row.service_action or 0).to_bytes(2, "big") + bytes([0, flags])
    return data + len(row.usage).to_bytes(2, "big") + (_timeouts(row) if with_timeouts else b"")


def report_task_management(unit: Unit, command: Command) -> None:
    """REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS (SPC-4 6.36): all but ACA, QUERY TASK and I_T NEXUS RESET."""
    extended = bool(command.cdb[2] & 0x80)
    functions = bytes([0x80 | 0x40 | 0x10 | 0x08 | 0x02, 0, 0])  # ATS ATSS CTSS LURS TRS
    data = functions + (bytes([12]) + bytes(12) if extended else b"\0")
    command.put(data[: int.from_bytes(command.cdb[6:10], "big")])


# -- state ------------------------------------------------------------------------------------------------------------


def start_stop_unit(unit: Unit, command: Command) -> Steps:
    """START STOP UNIT: SBC-4 5.31. Power conditions other than START_VALID are refused: there are none."""
    cdb = command.cdb
    if unit.background is not None:
        raise unit.background.not_ready()
    if cdb[4] & 0xF0:
        raise InvalidFieldInCdb("POWER CONDITION", field=(4, 7))
    start, load = bool(cdb[4] & 0x01), bool(cdb[4] & 0x02)
    if load and not unit.device.removable:
        raise InvalidFieldInCdb("LOEJ: the medium is not removable", field=(4, 1))
    if not start and not cdb[4] & 0x04 and not unit.read_only:  # NO_FLUSH
        yield flushed(unit)
    if load and start != unit.loaded and unit.prevented:  # now: somebody may have asked for it during the flush
        raise MediumRemovalPrevented
    if load:
        if start and not unit.loaded:
            unit.attention(*MEDIUM_CHANGED, but=command.nexus)
        unit.loaded = start
    unit.started = start or load


def prevent_allow(unit: Unit, command: Command) -> None:
    """PREVENT ALLOW MEDIUM REMOVAL: SPC-4 6.16; kept per nexus, and without effect on a fixed disk."""
    if command.cdb[4] & 0x01:
        unit.prevented.add(command.nexus)
    else:
        unit.prevented.discard(command.nexus)


def read_defect_data(unit: Unit, command: Command) -> None:
    """READ DEFECT DATA (10), (12): SBC-4 5.17, 5.18. There are no defects to list, in any format."""
    cdb = command.cdb
    if cdb[0] == Op.READ_DEFECT_DATA_10:
        data = bytes([0, cdb[2] & 0x1F, 0, 0])
        command.put(data[: int.from_bytes(cdb[7:9], "big")])
        return
    data = bytes([0, cdb[1] & 0x1F, 0, 0, 0, 0, 0, 0])
    command.put(data[: int.from_bytes(cdb[6:10], "big")])


# -- diagnostics (SPC-4 6.31, 6.42) -----------------------------------------------------------------------------------


def receive_diagnostic_results(unit: Unit, command: Command) -> None:
    """RECEIVE DIAGNOSTIC RESULTS: page 00h, the list of pages, is the only one."""
    cdb = command.cdb
    if cdb[1] & 0x01 and cdb[2] != 0x00:
        raise InvalidFieldInCdb("there is no such diagnostic page", field=(2, 7))
    command.put(bytes([0, 0, 0, 1, 0])[: int.from_bytes(cdb[3:5], "big")])


def send_diagnostic(unit: Unit, command: Command) -> Steps:
    """SEND DIAGNOSTIC: the self-tests read the first and the last block and flush, in the foreground."""
    cdb = command.cdb
    length = int.from_bytes(cdb[3:5], "big")
    kind = cdb[1] >> 5  # SELF-TEST CODE (SPC-4 table 209)
    if kind in (3, 7):
        raise InvalidFieldInCdb("SELF-TEST CODE is reserved", field=(1, 7))
    if (kind or cdb[1] & 0x04) and length:
        raise InvalidFieldInCdb("PARAMETER LIST LENGTH must be zero for a self-test", field=(3, 7))
    if kind and cdb[1] & 0x04:
        raise InvalidFieldInCdb("SELF-TEST CODE and SELFTEST together", field=(1, 7))
    if length:
        data = parameter_list(command, length)
        if data[0] != 0x00:
            raise InvalidFieldInParameterList("there is no such diagnostic page", field=(0, 7), in_cdb=False)
        return
    if kind == 4 or not unit.blocks:  # abort background self-test: none is running
        return
    block = memoryview(bytearray(unit.block_size))
    yield unit.operations.read(0, [block])
    yield unit.operations.read((unit.blocks - 1) * unit.block_size, [block])
    if not unit.read_only:
        yield flushed(unit)


# -- LOG SENSE (SPC-4 6.8) --------------------------------------------------------------------------------------------

_PAGES, _PROVISIONING, _START_STOP = 0x00, 0x0C, 0x0E
_BREATH = 128  # extents after which others have their turn


def log_sense(unit: Unit, command: Command) -> Steps:
    """LOG SENSE: the supported pages, logical block provisioning (SBC-4 6.4.5) and the start-stop cycle counter."""
    cdb = command.cdb
    code, subpage, pointer = cdb[2] & 0x3F, cdb[3], int.from_bytes(cdb[5:7], "big")
    if cdb[1] & 0x01:
        raise InvalidFieldInCdb("SP: parameters can't be saved", field=(1, 0))
    pages = [_PAGES, _START_STOP]
    if unit.operations.discard is not None and unit.device.device_type == 0x00:
        pages.insert(1, _PROVISIONING)
    if code not in pages or subpage not in (0x00, 0xFF) or (subpage and code != _PAGES):
        raise InvalidFieldInCdb("there is no such log page", field=(2, 5) if code not in pages else (3, 7))
    if code == _PAGES:
        body = bytes(pages) if not subpage else b"".join(bytes([page, 0]) for page in pages) + bytes([0x00, 0xFF])
    else:
        parameters = (yield from _resource_counts(unit)) if code == _PROVISIONING else _cycle_counts()
        if pointer > parameters[-1][0]:
            raise InvalidFieldInCdb("PARAMETER POINTER is past the last parameter", field=(5, 7))
        body = b"".join(
            number.to_bytes(2, "big") + bytes([0x03, len(value)]) + value
            for number, value in parameters
            if number >= pointer
        )
    head = bytes([code | (0x40 if subpage else 0), subpage]) + len(body).to_bytes(2, "big")
    command.put((head + body)[: int.from_bytes(cdb[7:9], "big")])


def _resource_counts(unit: Unit) -> Generator[Any, Any, list[tuple[int, bytes]]]:
    """Return the available and used LBA mapping resource counts in threshold sets of one block (SBC-4 6.4.5)."""
    used = 0
    found = yield from extents_of(unit, 0, unit.blocks)
    for number, extent in enumerate(found):
        if number % _BREATH == _BREATH - 1:
            yield PAUSE
        used += extent.length if extent.mapped else 0
    used = min(-(-used // unit.block_size), unit.blocks)
    return [
        (number, min(count, 0xFFFFFFFF).to_bytes(4, "big") + bytes([0x01, 0, 0, 0]))  # SCOPE: this unit alone
        for number, count in ((0x0001, unit.blocks - used), (0x0002, used))
    ]


def _cycle_counts() -> list[tuple[int, bytes]]:
    """Return the accumulated start-stop and load-unload cycles (SPC-4 7.3.20): nothing spins here."""
    return [(0x0004, bytes(4)), (0x0006, bytes(4))]
