"""MODE SENSE and MODE SELECT (SPC-4 6.11 to 6.14)."""

from __future__ import annotations

from tcmu_core.errors import InvalidFieldInCdb, InvalidFieldInParameterList, ParameterListLengthError
from tcmu_core.scsi.attention import MODE_PARAMETERS_CHANGED
from tcmu_core.scsi.command import Command
from tcmu_core.scsi.commands.data import flushed, parameter_list
from tcmu_core.scsi.limits import MAX_SETTINGS
from tcmu_core.scsi.opcodes import Op
from tcmu_core.scsi.steps import Steps
from tcmu_core.scsi.unit import Unit

_WP, _DPOFUA = 0x80, 0x10  # device-specific parameter (SBC-4 6.5.2)


def mode_sense(unit: Unit, command: Command) -> None:
    """MODE SENSE (6), (10): SPC-4 6.13, 6.14."""
    cdb = command.cdb
    short = cdb[0] == Op.MODE_SENSE_6
    pages = b"".join(unit.modes.select(cdb[2] & 0x3F, cdb[3], cdb[2] >> 6))
    no_descriptor = bool(cdb[1] & 0x08) or unit.device.device_type != 0x00
    long_lba = not short and bool(cdb[1] & 0x10)
    descriptor = b"" if no_descriptor else _block_descriptor(unit, long_lba)
    medium = 0x00
    specific = (_WP if unit.write_protected else 0) | (_DPOFUA if unit.device.device_type == 0x00 else 0)
    if short:
        head = bytes([3 + len(descriptor) + len(pages), medium, specific, len(descriptor)])
        room = cdb[4]
    else:
        total = 6 + len(descriptor) + len(pages)
        flags = bytes([medium, specific, int(long_lba), 0])
        head = total.to_bytes(2, "big") + flags + len(descriptor).to_bytes(2, "big")
        room = int.from_bytes(cdb[7:9], "big")
    command.put((head + descriptor + pages)[:room])


def _block_descriptor(unit: Unit, long_lba: bool) -> bytes:
    """Return the mode parameter block descriptor (SBC-4 6.5.2)."""
    if long_lba:
        return unit.blocks.to_bytes(8, "big") + bytes(4) + unit.block_size.to_bytes(4, "big")
    return min(unit.blocks, 0xFFFFFFFF).to_bytes(4, "big") + b"\0" + unit.block_size.to_bytes(3, "big")


def mode_select(unit: Unit, command: Command) -> Steps:
    """MODE SELECT (6), (10): SPC-4 6.11, 6.12. The other nexuses hear of a change."""
    cdb = command.cdb
    short = cdb[0] == Op.MODE_SELECT_6
    length = cdb[4] if short else int.from_bytes(cdb[7:9], "big")
    if unit.background is not None:
        raise unit.background.not_ready()
    if cdb[1] & 0x01:
        raise InvalidFieldInCdb("SP: pages can't be saved", field=(1, 0))
    if not length:
        return
    if not cdb[1] & 0x10:
        raise InvalidFieldInCdb("PF must be one", field=(1, 4))
    head = 4 if short else 8
    data = parameter_list(command, length, MAX_SETTINGS)
    if length < head:
        raise ParameterListLengthError
    described = data[3] if short else int.from_bytes(data[6:8], "big")
    if length < head + described:
        raise ParameterListLengthError
    if described:
        _check_descriptor(unit, data[head : head + described], bool(not short and data[4] & 1), head)
    wanted = unit.modes.wanted(data, head + described)
    if (not unit.modes.keeps_write_cache(wanted) or unit.modes.protects(wanted)) and not unit.read_only:
        # What is volatile, a process before may have left it; where that fails nothing changes. SWP inhibits writing
        # after all that is cached was written (SPC-4 7.5.8).
        yield flushed(unit)
    if unit.modes.take(wanted):
        unit.attention(*MODE_PARAMETERS_CHANGED, but=command.nexus)
        unit.refresh()


def _check_descriptor(unit: Unit, descriptor: bytes, long_lba: bool, at: int) -> None:
    """Accept a block descriptor that leaves the capacity and the block length as they are (SBC-4 6.5.2)."""
    if long_lba:
        blocks, size = int.from_bytes(descriptor[0:8], "big"), int.from_bytes(descriptor[12:16], "big")
    else:
        blocks, size = int.from_bytes(descriptor[0:4], "big"), int.from_bytes(descriptor[5:8], "big")
    if len(descriptor) != (16 if long_lba else 8):
        raise InvalidFieldInParameterList("BLOCK DESCRIPTOR LENGTH is wrong", field=(at - 1, None), in_cdb=False)
    if blocks not in (0, unit.blocks, (1 << (64 if long_lba else 32)) - 1) or size not in (0, unit.block_size):
        raise InvalidFieldInParameterList("the capacity can't be changed", field=(at, None), in_cdb=False)
