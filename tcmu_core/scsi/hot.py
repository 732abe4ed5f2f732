"""The hot path: READ and WRITE of 10 and 16 bytes as closures with everything that they need in locals.

Whatever is out of the ordinary (a reserved bit, FUA, a range past the end, a buffer of another length) is left to the
general path, which tells the initiator what is wrong. `unit.refresh()` makes the closures anew when the device
changes, and `unit.gate()` takes them out of the way while a reservation, a lock or a handler wants to see each command.

They take no Command but its parts, so that a transport that has an answer at once need not make one. The closures of 10
and of 16 bytes are twins on purpose: one that both share would have to look the layout up, for each command.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

from tcmu_core.scsi.opcodes import Op
from tcmu_core.scsi.unit import Unit

# fast(memory, at, length, buffers): the CDB is in `memory` from `at` on, `buffers` hold `length` bytes. Returns what
# the hook does (None: all of it is done), or PASS for a command that is not for the hot path.
Fast = Callable[[Any, int, int, list[memoryview]], Any]
Over = Callable[[dict[int, Fast]], dict[int, Fast]]  # makes what stands in for paths
PASS = object()  # nothing that a handler could return

_CDB_10 = struct.Struct(">xBIBHB")  # flags, LBA, group number, transfer length, control (SBC-4 5.11)
_CDB_16 = struct.Struct(">xBQIBB")  # flags, LBA, transfer length, group number, control (SBC-4 5.13)


def fast_paths(unit: Unit) -> dict[int, Fast]:
    """Return the closures by operation code; none for a device type that is no disk."""
    if unit.device.device_type != 0:
        return {}
    paths: dict[int, Fast] = {}
    paths[Op.READ_10] = _transfer_10(unit, unit.operations.read)
    paths[Op.READ_16] = _transfer_16(unit, unit.operations.read)
    write = unit.operations.write
    # Without a write cache each write is followed by a flush, which is more than one step.
    if write is not None and not unit.write_protected and (unit.write_cache or unit.operations.flush is None):
        paths[Op.WRITE_10] = _transfer_10(unit, write)
        paths[Op.WRITE_16] = _transfer_16(unit, write)
    return paths


def _transfer_10(unit: Unit, hook: Callable[[int, list[memoryview]], Any]) -> Fast:
    unpack = _CDB_10.unpack_from
    shift = unit.block_size.bit_length() - 1
    blocks = unit.blocks
    most = unit.max_blocks

    def transfer(memory: Any, at: int, length: int, buffers: list[memoryview]) -> Any:
        flags, lba, group, count, control = unpack(memory, at)
        if flags or group or control or lba + count > blocks or count << shift != length or not 0 < count <= most:
            return PASS
        return hook(lba << shift, buffers)

    return transfer


def _transfer_16(unit: Unit, hook: Callable[[int, list[memoryview]], Any]) -> Fast:
    unpack = _CDB_16.unpack_from
    shift = unit.block_size.bit_length() - 1
    blocks = unit.blocks
    most = unit.max_blocks

    def transfer(memory: Any, at: int, length: int, buffers: list[memoryview]) -> Any:
        flags, lba, count, group, control = unpack(memory, at)
        if flags or group or control or lba + count > blocks or count << shift != length or not 0 < count <= most:
            return PASS
        return hook(lba << shift, buffers)

    return transfer
