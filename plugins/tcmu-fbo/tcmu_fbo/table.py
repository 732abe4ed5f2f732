"""The command table (MMC-6 clause 6): each command's name, CDB usage, and what serves it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tcmu_core import Access, Command, Direction, Opcode, Status
from tcmu_fbo import control, data, info, structures

if TYPE_CHECKING:
    from tcmu_fbo.drive import Drive

Answer = bytes | Status | Future[Status] | None
CD_DVD = (0x05,)  # peripheral device type


@dataclass(frozen=True, slots=True)
class MmcCommand:
    """One command: its row in the engine's table, the function, and where its allocation length stands (byte, bytes).

    The function returns data, of which the initiator gets what it has room for, a status or a Future of one; or None,
    which leaves the command to the engine. A row without `announced` is the engine's own command, seen here first.
    """

    row: Opcode
    serve: Callable[[Drive, Command], Answer]
    allocation: tuple[int, int] | None = None
    announced: bool = True

    def run(self, drive: Drive, command: Command) -> Status | Future[Status] | None:
        """Serve the command."""
        answer = self.serve(drive, command)
        if isinstance(answer, bytes):
            if self.allocation is not None:
                at, count = self.allocation
                answer = answer[: int.from_bytes(command.cdb[at : at + count], "big")]
            command.put(answer)
            return Status.GOOD
        return answer


def _command(
    code: int,
    name: str,
    usage: str,
    serve: Callable[[Drive, Command], Answer],
    allocation: tuple[int, int] | None = None,
    *,
    action: int | None = None,
    access: Access = Access.READ,
    way: Direction = Direction.IN,
    attention: bool = True,
    timeout: int = 30,
    announced: bool = True,
) -> MmcCommand:
    row = Opcode(
        code,
        name,
        bytes.fromhex("ff" + usage),
        service_action=action,
        access=access,
        direction=way,
        ready=False,
        attention=attention,
        timeout=timeout,
        types=CD_DVD,
    )
    return MmcCommand(row, serve, allocation, announced)


ALWAYS, WRITE = Access.ALWAYS, Access.WRITE
OUT, NONE = Direction.OUT, Direction.NONE

# fmt: off
COMMANDS = (
    _command(0x00, "TEST UNIT READY", "00 00 00 00 00", control.test_unit_ready, access=ALWAYS,
             announced=False, way=NONE),
    _command(0x03, "REQUEST SENSE", "01 00 00 ff 00", control.request_sense, (4, 1), access=ALWAYS, announced=False),
    _command(0x04, "FORMAT UNIT", "1f 00 00 00 00", control.format_unit, access=WRITE, timeout=3600, way=OUT),
    _command(0x08, "READ(6)", "1f ff ff ff 00", data.read),
    _command(0x0A, "WRITE(6)", "1f ff ff ff 00", data.write, access=WRITE, way=OUT),
    _command(0x15, "MODE SELECT(6)", "11 00 00 ff 00", control.mode_select, access=WRITE, way=OUT),
    _command(0x1A, "MODE SENSE(6)", "08 ff ff ff 00", info.mode_sense_6, (4, 1)),
    _command(0x1B, "START STOP UNIT", "01 00 00 f3 00", control.start_stop_unit, access=WRITE, way=NONE),
    _command(0x1E, "PREVENT ALLOW MEDIUM REMOVAL", "00 00 00 03 00", control.prevent_allow,
             access=WRITE, announced=False, way=NONE),
    _command(0x23, "READ FORMAT CAPACITIES", "00 00 00 00 00 00 ff ff 00", info.read_format_capacities, (7, 2)),
    _command(0x25, "READ CAPACITY", "00 ff ff ff ff 00 00 01 00", info.read_capacity_10, access=ALWAYS),
    _command(0x28, "READ(10)", "18 ff ff ff ff 1f ff ff 00", data.read),
    _command(0x2A, "WRITE(10)", "18 ff ff ff ff 1f ff ff 00", data.write, access=WRITE, way=OUT),
    _command(0x2B, "SEEK(10)", "00 ff ff ff ff 00 00 00 00", data.seek, way=NONE),
    _command(0x2E, "WRITE AND VERIFY(10)", "12 ff ff ff ff 1f ff ff 00", data.write_and_verify, access=WRITE, way=OUT),
    _command(0x2F, "VERIFY(10)", "12 ff ff ff ff 1f ff ff 00", data.verify, way=OUT),
    _command(0x35, "SYNCHRONIZE CACHE(10)", "02 ff ff ff ff 1f ff ff 00", data.synchronize_cache,
             access=WRITE, way=NONE),
    _command(0x42, "READ SUB-CHANNEL", "02 40 ff 00 00 ff ff ff 00", info.read_sub_channel, (7, 2)),
    _command(0x43, "READ TOC/PMA/ATIP", "02 0f 00 00 00 ff ff ff c0", info.read_toc, (7, 2)),
    _command(0x46, "GET CONFIGURATION", "03 ff ff 00 00 00 ff ff 00", info.get_configuration, (7, 2),
             access=ALWAYS, attention=False),
    _command(0x4A, "GET EVENT STATUS NOTIFICATION", "01 00 00 ff 00 00 ff ff 00", info.get_event_status, (7, 2),
             access=ALWAYS, attention=False),
    _command(0x51, "READ DISC INFORMATION", "07 00 00 00 00 00 ff ff 00", info.read_disc_information, (7, 2)),
    _command(0x52, "READ TRACK INFORMATION", "07 ff ff ff ff 00 ff ff 00", info.read_track_information, (7, 2)),
    _command(0x55, "MODE SELECT(10)", "11 00 00 00 00 00 ff ff 00", control.mode_select, access=WRITE, way=OUT),
    _command(0x5A, "MODE SENSE(10)", "18 ff ff 00 00 00 ff ff 00", info.mode_sense_10, (7, 2)),
    _command(0x5C, "READ BUFFER CAPACITY", "01 00 00 00 00 00 ff ff 00", info.read_buffer_capacity, (7, 2)),
    _command(0x88, "READ(16)", "18 ff ff ff ff ff ff ff ff ff ff ff ff 1f 00", data.read),
    _command(0x8A, "WRITE(16)", "18 ff ff ff ff ff ff ff ff ff ff ff ff 1f 00", data.write, access=WRITE, way=OUT),
    _command(0x8F, "VERIFY(16)", "12 ff ff ff ff ff ff ff ff ff ff ff ff 1f 00", data.verify, way=OUT),
    _command(0x9E, "READ CAPACITY(16)", "1f ff ff ff ff ff ff ff ff ff ff ff ff 01 00", info.read_capacity_16, (10, 4),
             action=0x10, access=ALWAYS),
    _command(0xA8, "READ(12)", "18 ff ff ff ff ff ff ff ff 9f 00", data.read),
    _command(0xAA, "WRITE(12)", "18 ff ff ff ff ff ff ff ff 9f 00", data.write, access=WRITE, way=OUT),
    _command(0xAC, "GET PERFORMANCE", "1f ff ff ff ff 00 00 ff ff ff 00", info.get_performance),
    _command(0xAD, "READ DISC STRUCTURE", "0f ff ff ff ff ff ff ff ff c0 00", structures.read_disc_structure, (8, 2)),
    _command(0xAF, "VERIFY(12)", "12 ff ff ff ff ff ff ff ff 1f 00", data.verify, way=OUT),
    _command(0xB6, "SET STREAMING", "00 00 00 00 00 00 00 ff ff ff 00", control.set_streaming, access=WRITE, way=OUT),
    _command(0xB9, "READ CD MSF", "1c 00 ff ff ff ff ff ff fe 07 00", data.read_cd_msf),
    _command(0xBB, "SET CD SPEED", "03 ff ff ff ff 00 00 00 00 00 00", control.set_cd_speed, access=WRITE, way=NONE),
    _command(0xBD, "MECHANISM STATUS", "00 00 00 00 00 00 00 ff ff 00 00", info.mechanism_status, (8, 2)),
    _command(0xBE, "READ CD", "1e ff ff ff ff ff ff ff fe 07 00", data.read_cd),
)
# fmt: on

BY_KEY = {command.row.key: command for command in COMMANDS}
WITH_ACTION = frozenset(code for code, action in BY_KEY if action is not None)
OPCODES = tuple(command.row for command in COMMANDS if command.announced)


def find(cdb: bytes) -> MmcCommand | None:
    """Return the command that a CDB is for; None for one that is the engine's."""
    code = cdb[0]
    return BY_KEY.get((code, cdb[1] & 0x1F if code in WITH_ACTION else None))
