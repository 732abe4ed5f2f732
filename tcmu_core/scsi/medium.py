"""Commands that read and write blocks (SBC-4 clause 5): the general path behind `hot`, and everything beside it.

Each function takes the unit and the command. One that needs several steps is a generator that yields what the
backend's hooks return, None or a Future; the unit resumes it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tcmu_core.errors import InvalidFieldInCdb, LbaOutOfRange, Miscompare, ParameterListLengthError
from tcmu_core.scsi.command import Command, Status
from tcmu_core.scsi.decode import lba_and_count
from tcmu_core.scsi.opcodes import Op
from tcmu_core.scsi.steps import Steps

if TYPE_CHECKING:
    from tcmu_core.scsi.unit import LogicalUnit

CHUNK = 1 << 20  # bytes that a command of several steps holds in memory at once
MAX_COMPARE_AND_WRITE = 255  # blocks: VPD page B0, one byte
MAX_ATOMIC = 1 << 20  # bytes: an honest bound on what one locked write covers
_FUA = 0x08  # byte 1 of READ and WRITE (SBC-4 5.11)


def bounded(unit: LogicalUnit, lba: int, count: int, *, lba_at: int = 2, count_at: int | None = None) -> None:
    """Raise unless the range lies on the medium and within MAXIMUM TRANSFER LENGTH."""
    if lba > unit.blocks or lba + count > unit.blocks or (lba == unit.blocks and count == 0):
        raise LbaOutOfRange(field=None)
    if count > unit.max_blocks:
        raise InvalidFieldInCdb("more blocks than MAXIMUM TRANSFER LENGTH", field=(count_at or lba_at, 7))


def whole_blocks(unit: LogicalUnit, command: Command, count: int) -> int:
    """Return how many of `count` blocks the initiator's data covers whole, and note what was wanted."""
    command.wanted = count * unit.block_size
    return min(count, command.length // unit.block_size)


def flushed(unit: LogicalUnit) -> Any:
    """Return what the flush hook returns, or None without one."""
    return unit.operations.flush() if unit.operations.flush is not None else None


def read(unit: LogicalUnit, command: Command) -> Steps:
    """READ (6), (10), (12), (16): SBC-4 5.9 to 5.13."""
    cdb = command.cdb
    lba, count = lba_and_count(cdb)
    bounded(unit, lba, count, count_at=10 if cdb[0] == Op.READ_16 else 7)
    size = unit.block_size
    command.wanted = count * size
    if cdb[0] != Op.READ_6 and cdb[1] & _FUA and not unit.read_only:
        yield flushed(unit)
    whole = whole_blocks(unit, command, count)
    if whole:
        yield unit.operations.read(lba * size, command.window(whole * size))
    command.transferred = whole * size
    rest = command.length - whole * size
    if whole < count and rest:  # the initiator has room for a part of the next block: give it that part
        block = memoryview(bytearray(size))
        yield unit.operations.read((lba + whole) * size, [block])
        data = bytearray(b"".join(command.window(whole * size))) + block[:rest]
        command.put(data)
        command.wanted = count * size


def write(unit: LogicalUnit, command: Command) -> Steps:
    """WRITE (6), (10), (12), (16): SBC-4 5.40 to 5.45. FUA, and a write cache that is off, flush before GOOD."""
    cdb = command.cdb
    lba, count = lba_and_count(cdb)
    bounded(unit, lba, count, count_at=10 if cdb[0] == Op.WRITE_16 else 7)
    size = unit.block_size
    whole = whole_blocks(unit, command, count)
    if whole:
        yield put_blocks(unit, lba, command.window(whole * size))
    command.transferred = whole * size
    if (cdb[0] != Op.WRITE_6 and cdb[1] & _FUA) or not unit.write_cache:
        yield flushed(unit)


def put_blocks(unit: LogicalUnit, lba: int, buffers: list[memoryview]) -> Any:
    """Call the write hook; the opcode table has made sure that there is one."""
    assert unit.operations.write is not None
    return unit.operations.write(lba * unit.block_size, buffers)


def verify(unit: LogicalUnit, command: Command) -> Steps:
    """VERIFY (10), (12), (16): SBC-4 5.36. BYTCHK 00b reads, 01b compares, 11b compares one block with each."""
    lba, count = lba_and_count(command.cdb)
    check = command.cdb[1] >> 1 & 3
    _verification_range(unit, command, lba, count)
    if check == 2:
        raise InvalidFieldInCdb("BYTCHK 10b is reserved", field=(1, 2))
    if not count:
        return
    yield from _verify_medium(unit, command, lba, count, check)


def write_and_verify(unit: LogicalUnit, command: Command) -> Steps:
    """WRITE AND VERIFY (10), (12), (16): SBC-4 5.46. The comparison is with what reached stable storage."""
    lba, count = lba_and_count(command.cdb)
    check = command.cdb[1] >> 1 & 3
    _verification_range(unit, command, lba, count)
    if check not in (0, 1):
        raise InvalidFieldInCdb("BYTCHK 1xb is reserved", field=(1, 2))
    size = unit.block_size
    whole = whole_blocks(unit, command, count)
    if whole:
        yield put_blocks(unit, lba, command.window(whole * size))
    yield flushed(unit)
    if whole:
        yield from _verify_medium(unit, command, lba, whole, check)
    command.transferred = whole * size
    command.wanted = count * size


def _verification_range(unit: LogicalUnit, command: Command, lba: int, count: int) -> None:
    bounded(unit, lba, count, count_at={2: 10, 5: 6}.get(command.cdb[0] >> 5, 7))


def _verify_medium(unit: LogicalUnit, command: Command, lba: int, count: int, check: int) -> Steps:
    size = unit.block_size
    expected = command.take() if check else b""
    if check:
        command.wanted = size if check == 3 else count * size
        if len(expected) < command.wanted:
            count = min(count, len(expected) // size) if check == 1 else 0
        command.transferred = min(command.wanted, len(expected))
    step = max(1, CHUNK // size)
    buffer = memoryview(bytearray(min(step, count) * size))
    for first in range(0, count, step):
        blocks = min(step, count - first)
        part = buffer[: blocks * size]
        yield unit.operations.read((lba + first) * size, [part])
        if check == 1:
            compare(part, memoryview(expected)[first * size : (first + blocks) * size], first * size)
        elif check == 3:
            for number in range(blocks):
                one = part[number * size : (number + 1) * size]
                compare(one, memoryview(expected)[:size], (first + number) * size)


def compare(found: memoryview, expected: memoryview, base: int) -> None:
    """Raise Miscompare with the offset of the first byte that differs (SBC-4 5.2: INFORMATION) unless all agree."""
    if found == expected:
        return
    at = next(number for number, (one, other) in enumerate(zip(found, expected, strict=True)) if one != other)
    raise Miscompare(information=base + at)


def compare_and_write(unit: LogicalUnit, command: Command) -> Steps:
    """COMPARE AND WRITE: SBC-4 5.3. The first half of the data is compared, the second half written."""
    cdb = command.cdb
    lba, count = int.from_bytes(cdb[2:10], "big"), cdb[13]
    bounded(unit, lba, count, count_at=13)
    size = unit.block_size
    if command.length != 2 * count * size:
        raise InvalidFieldInCdb("the data must be two times NUMBER OF LOGICAL BLOCKS", field=(13, 7))
    if not count:
        return
    yield unit.tasks.lock(command, (lba, lba + count))
    data = memoryview(command.take(2 * count * size))
    found = memoryview(bytearray(count * size))
    yield unit.operations.read(lba * size, [found])
    compare(found, data[: count * size], 0)
    yield put_blocks(unit, lba, _writable(data[count * size :]))
    if cdb[1] & _FUA or not unit.write_cache:
        yield flushed(unit)


def orwrite(unit: LogicalUnit, command: Command) -> Steps:
    """ORWRITE (16): SBC-4 5.8. What is on the medium is or'ed with the data."""
    cdb = command.cdb
    lba, count = lba_and_count(cdb)
    bounded(unit, lba, count, count_at=10)
    size = unit.block_size
    count = whole_blocks(unit, command, count)
    wanted = command.wanted
    if not count:
        return
    yield unit.tasks.lock(command, (lba, lba + count))
    data = command.take(count * size)
    command.wanted = wanted
    found = memoryview(bytearray(count * size))
    yield unit.operations.read(lba * size, [found])
    # Integers are Python's fastest way to OR two buffers of any length.
    merged = int.from_bytes(found, "big") | int.from_bytes(data, "big")
    yield put_blocks(unit, lba, [memoryview(bytearray(merged.to_bytes(count * size, "big")))])
    if cdb[1] & _FUA or not unit.write_cache:
        yield flushed(unit)


def write_atomic(unit: LogicalUnit, command: Command) -> Steps:
    """WRITE ATOMIC (16): SBC-4 5.47. No other command sees a part of it: it has its blocks to itself."""
    cdb = command.cdb
    lba, count = int.from_bytes(cdb[2:10], "big"), int.from_bytes(cdb[12:14], "big")
    boundary = int.from_bytes(cdb[10:12], "big")
    bounded(unit, lba, count, count_at=12)
    if boundary:
        raise InvalidFieldInCdb("ATOMIC BOUNDARY: there are no atomic boundaries here", field=(10, 7))
    size = unit.block_size
    if count * size > MAX_ATOMIC:
        raise InvalidFieldInCdb("more blocks than MAXIMUM ATOMIC TRANSFER LENGTH", field=(12, 7))
    if command.length < count * size:
        raise InvalidFieldInCdb("less data than TRANSFER LENGTH: half an atomic write is none", field=(12, 7))
    command.transferred = command.wanted = count * size
    if not count:
        return
    yield unit.tasks.lock(command, (lba, lba + count))
    yield put_blocks(unit, lba, command.window(count * size))
    if cdb[1] & _FUA or not unit.write_cache:
        yield flushed(unit)


def synchronize_cache(unit: LogicalUnit, command: Command) -> Any:
    """SYNCHRONIZE CACHE (10), (16): SBC-4 5.33. The whole device is flushed; IMMED is answered when that is done."""
    lba, count = lba_and_count(command.cdb)
    if lba > unit.blocks or lba + count > unit.blocks:
        raise LbaOutOfRange
    return None if unit.read_only else flushed(unit)


def pre_fetch(unit: LogicalUnit, command: Command) -> Status:
    """PRE-FETCH (10), (16): SBC-4 5.10. CONDITION MET is for a cache that holds all of it; GOOD promises nothing."""
    lba, count = lba_and_count(command.cdb)
    if lba > unit.blocks or lba + count > unit.blocks:
        raise LbaOutOfRange
    return Status.CONDITION_MET if count else Status.GOOD


def read_capacity_10(unit: LogicalUnit, command: Command) -> None:
    """READ CAPACITY (10): SBC-4 5.15."""
    if int.from_bytes(command.cdb[2:6], "big"):
        raise InvalidFieldInCdb("LOGICAL BLOCK ADDRESS is obsolete and must be zero", field=(2, 7))
    last = min(unit.blocks - 1, 0xFFFFFFFF)
    command.put(last.to_bytes(4, "big") + unit.block_size.to_bytes(4, "big"))


def read_capacity_16(unit: LogicalUnit, command: Command) -> None:
    """READ CAPACITY (16): SBC-4 5.16. LBPME and LBPRZ are set where the handler can discard."""
    if int.from_bytes(command.cdb[2:10], "big"):
        raise InvalidFieldInCdb("LOGICAL BLOCK ADDRESS is obsolete and must be zero", field=(2, 7))
    data = bytearray(32)
    data[0:8] = (unit.blocks - 1).to_bytes(8, "big")
    data[8:12] = unit.block_size.to_bytes(4, "big")
    physical = unit.device.physical_block_size or unit.block_size
    data[13] = (physical // unit.block_size).bit_length() - 1
    if unit.operations.discard is not None:
        data[14] = 0xC0
    command.put(data[: int.from_bytes(command.cdb[10:14], "big")])


def _writable(data: memoryview) -> list[memoryview]:
    """Hooks are promised writable buffers; `take` gives bytes."""
    return [memoryview(bytearray(data))]


def parameter_list(command: Command, length: int) -> bytes:
    """Return the `length` bytes of parameter list that the CDB announces.

    Raises:
        ParameterListLengthError: the initiator sent fewer.
    """
    data = command.take(length)
    if len(data) < length:
        raise ParameterListLengthError
    return data
