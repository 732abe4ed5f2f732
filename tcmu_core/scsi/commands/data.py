"""Steps that commands share: what the initiator sent, and the disk's operations as steps."""

from __future__ import annotations

from typing import Any

from tcmu_core.errors import ParameterListLengthError
from tcmu_core.scsi.command import Command
from tcmu_core.scsi.limits import CHUNK, MAX_PARAMETERS
from tcmu_core.scsi.steps import PAUSE, Steps
from tcmu_core.scsi.unit import Unit


def flushed(unit: Unit) -> Any:
    """Return what the flush hook returns, or None without one."""
    return unit.operations.flush() if unit.operations.flush is not None else None


def put_blocks(unit: Unit, lba: int, buffers: list[memoryview]) -> Any:
    """Call the write hook; the opcode table has made sure that there is one."""
    assert unit.operations.write is not None
    return unit.operations.write(lba * unit.block_size, buffers)


def fill(unit: Unit, lba: int, count: int, pattern: bytes) -> Steps:
    """Write one block's `pattern` to `count` blocks, a chunk at a time."""
    size = len(pattern)
    step = max(1, CHUNK // size)
    for first in range(0, count, step):
        if first:
            yield PAUSE
        blocks = min(step, count - first)
        chunk = yield from unit.workspace.take(blocks * size)
        try:
            chunk[:] = pattern * blocks
            yield put_blocks(unit, lba + first, [chunk])
        finally:
            unit.workspace.give(chunk)
            del chunk  # while others run it is not kept


def parameter_list(command: Command, length: int, most: int = MAX_PARAMETERS) -> bytes:
    """Return the `length` bytes of parameter list that the CDB announces.

    Raises:
        ParameterListLengthError: the initiator sent fewer, or it is longer than any list that makes sense.
    """
    if length > most:
        raise ParameterListLengthError
    data = command.take(length)
    if len(data) < length:
        raise ParameterListLengthError
    return data
