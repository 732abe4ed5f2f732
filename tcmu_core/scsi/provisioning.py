"""Logical block provisioning and WRITE SAME (SBC-4 4.7): UNMAP, WRITE SAME, GET LBA STATUS."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from tcmu_core.errors import InvalidFieldInCdb, InvalidFieldInParameterList, LbaOutOfRange, ParameterListLengthError
from tcmu_core.scsi.command import Command
from tcmu_core.scsi.decode import lba_and_count
from tcmu_core.scsi.medium import CHUNK, flushed, parameter_list, put_blocks
from tcmu_core.scsi.opcodes import Op
from tcmu_core.scsi.steps import Steps

if TYPE_CHECKING:
    from tcmu_core.scsi.unit import LogicalUnit

MAX_UNMAP_DESCRIPTORS = 256
MAX_UNMAP_BLOCKS = 1 << 20  # of one command: it must end before an initiator gives up on it
MAX_WRITE_SAME_BYTES = 16 << 20  # bytes of one WRITE SAME: it must end before an initiator gives up on it
_UNMAP_DESCRIPTOR = struct.Struct(">QI4x")  # SBC-4 5.34.2
_LBA_STATUS = struct.Struct(">QIB3x")  # SBC-4 5.6.2.2


def max_unmap_blocks(unit: LogicalUnit) -> int:
    """Return MAXIMUM UNMAP LBA COUNT (VPD page B0) in blocks."""
    limit = unit.device.max_discard_length
    return min(max(limit // unit.block_size, 1), MAX_UNMAP_BLOCKS) if limit else MAX_UNMAP_BLOCKS


def max_write_same_blocks(unit: LogicalUnit) -> int:
    """Return MAXIMUM WRITE SAME LENGTH (VPD page B0) in blocks."""
    return MAX_WRITE_SAME_BYTES // unit.block_size


def unmap(unit: LogicalUnit, command: Command) -> Steps:
    """UNMAP: SBC-4 5.34. Every descriptor is checked before the first block is freed."""
    length = int.from_bytes(command.cdb[7:9], "big")
    if not length:
        return
    if length < 8:
        raise ParameterListLengthError
    data = parameter_list(command, length)
    told = int.from_bytes(data[2:4], "big")
    if told > length - 8:
        raise ParameterListLengthError
    told -= told % _UNMAP_DESCRIPTOR.size
    descriptors = list(_UNMAP_DESCRIPTOR.iter_unpack(data[8 : 8 + told]))
    if len(descriptors) > MAX_UNMAP_DESCRIPTORS:
        raise InvalidFieldInParameterList("more descriptors than MAXIMUM UNMAP BLOCK DESCRIPTOR COUNT")
    most = max_unmap_blocks(unit)
    total = 0
    for lba, count in descriptors:
        if lba > unit.blocks or lba + count > unit.blocks:
            raise LbaOutOfRange
        total += count
    if total > most:
        raise InvalidFieldInParameterList("more blocks than MAXIMUM UNMAP LBA COUNT")
    discard = unit.operations.discard
    assert discard is not None
    for lba, count in descriptors:
        if count:
            yield discard(lba * unit.block_size, count * unit.block_size)


def write_same(unit: LogicalUnit, command: Command) -> Steps:
    """WRITE SAME (10), (16): SBC-4 5.49, 5.50, with UNMAP and NDOB; ANCHOR is refused: nothing here is anchored."""
    cdb = command.cdb
    lba, count = lba_and_count(cdb)
    size = unit.block_size
    wide = cdb[0] == Op.WRITE_SAME_16
    freeing, no_data = bool(cdb[1] & 0x08), wide and bool(cdb[1] & 0x01)
    if lba > unit.blocks or lba + count > unit.blocks:
        raise LbaOutOfRange
    if not count:
        raise InvalidFieldInCdb("WSNZ is set: NUMBER OF LOGICAL BLOCKS must not be zero", field=(10 if wide else 7, 7))
    if count > max_write_same_blocks(unit):
        raise InvalidFieldInCdb("more blocks than MAXIMUM WRITE SAME LENGTH", field=(10 if wide else 7, 7))
    if freeing and unit.operations.discard is None:
        raise InvalidFieldInCdb("UNMAP: this device can't free blocks", field=(1, 3))
    if no_data:
        pattern = bytes(size)
        command.wanted = 0
    else:
        if command.length != size:
            raise InvalidFieldInCdb("the data must be one logical block", field=(1, None))
        pattern = command.take(size)
    zeros = not any(pattern)
    if freeing and zeros:
        assert unit.operations.discard is not None
        yield unit.operations.discard(lba * size, count * size)
    elif zeros and unit.operations.write_zeroes is not None:
        yield unit.operations.write_zeroes(lba * size, count * size)
    else:
        yield from fill(unit, lba, count, pattern)
    if not unit.write_cache:
        yield flushed(unit)


def fill(unit: LogicalUnit, lba: int, count: int, pattern: bytes) -> Steps:
    """Write one block's `pattern` to `count` blocks, a chunk at a time."""
    size = len(pattern)
    step = max(1, min(count, CHUNK // size))
    chunk = memoryview(bytearray(pattern * step))
    for first in range(0, count, step):
        blocks = min(step, count - first)
        yield put_blocks(unit, lba + first, [chunk[: blocks * size]])


def get_lba_status(unit: LogicalUnit, command: Command) -> None:
    """GET LBA STATUS: SBC-4 5.6. A block is mapped when a part of it is; without `extents` all blocks are."""
    cdb = command.cdb
    lba = int.from_bytes(cdb[2:10], "big")
    room = int.from_bytes(cdb[10:14], "big")
    if lba >= unit.blocks:
        raise LbaOutOfRange
    size = unit.block_size
    runs: list[list[int]] = []  # [first LBA, blocks, provisioning status]
    extents = unit.operations.extents
    if extents is None:
        runs.append([lba, unit.blocks - lba, 0])
    else:
        enough = max(1, (room - 8) // _LBA_STATUS.size)
        at = lba
        for extent in extents(lba * size, (unit.blocks - lba) * size):
            end = extent.offset + extent.length
            # Mapped runs grow to whole blocks, unmapped ones shrink to them.
            stop = -(-end // size) if extent.mapped else end // size
            stop = min(stop, unit.blocks)
            if stop <= at:
                continue
            status = 0 if extent.mapped else 1
            if runs and runs[-1][2] == status:
                runs[-1][1] += stop - at
            elif len(runs) == enough:
                break
            else:
                runs.append([at, stop - at, status])
            at = stop
        if not runs:
            runs.append([lba, unit.blocks - lba, 0])
    body = b"".join(_LBA_STATUS.pack(first, min(blocks, 0xFFFFFFFF), status) for first, blocks, status in runs)
    command.put(((len(body) + 4).to_bytes(4, "big") + bytes(4) + body)[:room])
