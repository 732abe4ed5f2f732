"""Commands that read, write and compare blocks (SBC-4 clause 5): the general path behind `hot`, and all beside it.

One that needs several steps is a generator that yields what the disk's operations return; the engine resumes it. What
must be alone on its blocks (the row says so, and `partial`) is when its first line runs.
"""

from __future__ import annotations

from tcmu_core.errors import InvalidFieldInCdb, LbaOutOfRange, Miscompare
from tcmu_core.scsi.command import Command, Status, slice_buffers
from tcmu_core.scsi.commands.data import flushed, put_blocks
from tcmu_core.scsi.limits import CHUNK, MAX_ATOMIC
from tcmu_core.scsi.steps import PAUSE, Steps
from tcmu_core.scsi.unit import Unit

_FUA = 0x08  # byte 1 of READ and WRITE (SBC-4 5.11)
_COUNT_AT = {0: 4, 1: 7, 2: 7, 4: 10, 5: 6}  # byte of TRANSFER LENGTH by group code (SBC-4 table 3)


def bounded(unit: Unit, command: Command, *, count_at: int | None = None) -> None:
    """Raise unless the command's range lies on the medium and within MAXIMUM TRANSFER LENGTH."""
    on_medium(unit, command)
    if command.lba == unit.blocks and not command.count:
        raise LbaOutOfRange
    if command.count > unit.max_blocks:
        field = (_COUNT_AT[command.cdb[0] >> 5] if count_at is None else count_at, 7)
        raise InvalidFieldInCdb("more blocks than MAXIMUM TRANSFER LENGTH", field=field)


def on_medium(unit: Unit, command: Command) -> None:
    """Raise unless the command's range lies on the medium; it may be empty, and begin at its end."""
    if command.lba > unit.blocks or command.lba + command.count > unit.blocks:
        raise LbaOutOfRange


def partial(command: Command, block_size: int) -> bool:
    """Return whether the data ends inside a block: the rest of that block has to be kept while it is written."""
    return command.length % block_size != 0 and command.length < command.count * block_size


def fua(command: Command) -> bool:
    """Return whether FUA is set; 6-byte commands have none."""
    return command.cdb[0] >> 5 != 0 and bool(command.cdb[1] & _FUA)


def read(unit: Unit, command: Command) -> Steps:
    """READ (6), (10), (12), (16): SBC-4 5.9 to 5.13."""
    bounded(unit, command)
    size = unit.block_size
    lba, count = command.lba, command.count
    wanted = count * size
    if fua(command) and not unit.read_only:
        yield flushed(unit)
    blocks = min(count, command.length // size)
    if blocks:
        yield unit.operations.read(lba * size, command.window(blocks * size))
    moved = blocks * size
    rest = command.length - moved
    if blocks < count and rest:  # the initiator has room for a part of the next block: give it that part
        block = memoryview(bytearray(size))
        yield unit.operations.read((lba + blocks) * size, [block])
        command.put_at(moved, block[:rest])
        moved += rest
    command.transferred, command.wanted = moved, wanted


def write(unit: Unit, command: Command) -> Steps:
    """WRITE (6), (10), (12), (16): SBC-4 5.40 to 5.45. FUA, and a write cache that is off, flush before GOOD."""
    bounded(unit, command)
    yield from _write(unit, command)
    if fua(command) or not unit.write_cache:
        yield flushed(unit)


def _write(unit: Unit, command: Command) -> Steps:
    """Write what the initiator sent: all blocks of it that are whole, and of one that is not, the bytes that there are.

    The residual count tells how much of the command was not sent; the medium has what was.
    """
    size = unit.block_size
    wanted = command.count * size
    blocks = min(command.count, command.length // size)
    if blocks:
        # The list is the hook's to use up, while the data is looked at again by who verifies it.
        yield put_blocks(unit, command.lba, list(command.window(blocks * size)))
    moved = blocks * size
    if partial(command, size):
        rest = command.length - moved
        block = memoryview(bytearray(size))
        yield unit.operations.read((command.lba + blocks) * size, [block])
        block[:rest] = command.bytes_from(moved)
        yield put_blocks(unit, command.lba + blocks, [block])
        moved += rest
    command.transferred, command.wanted = moved, wanted


def write_and_verify(unit: Unit, command: Command) -> Steps:
    """WRITE AND VERIFY (10), (12), (16): SBC-4 5.46. The comparison is with what reached stable storage."""
    bounded(unit, command)
    check = command.cdb[1] >> 1 & 3
    if check not in (0, 1):
        raise InvalidFieldInCdb("BYTCHK 1xb is reserved", field=(1, 2))
    yield from _write(unit, command)
    moved, wanted = command.transferred, command.wanted
    yield flushed(unit)
    if moved:
        yield from _compare_medium(unit, command, -(-moved // unit.block_size), moved if check else 0)
    command.transferred, command.wanted = moved, wanted


def verify(unit: Unit, command: Command) -> Steps:
    """VERIFY (10), (12), (16): SBC-4 5.36. BYTCHK 00b reads, 01b compares, 11b compares one block with each."""
    bounded(unit, command)
    check, size = command.cdb[1] >> 1 & 3, unit.block_size
    if check == 2:
        raise InvalidFieldInCdb("BYTCHK 10b is reserved", field=(1, 2))
    if not command.count:
        return
    if not check:
        yield from _compare_medium(unit, command, command.count, 0)
        return
    wanted = size if check == 3 else command.count * size
    sent = min(command.length, wanted)
    if check == 1:
        yield from _compare_medium(unit, command, -(-sent // size), sent)
    elif sent == size:
        yield from _compare_each(unit, command.lba, memoryview(command.bytes_from(0, size)), command.count)
    else:
        raise InvalidFieldInCdb("BYTCHK 11b: the data must be one logical block", field=(1, 2))
    command.transferred, command.wanted = sent, wanted


def _compare_medium(unit: Unit, command: Command, count: int, sent: int) -> Steps:
    """Read `count` blocks, and compare them with the first `sent` bytes that came along.

    Both go in chunks: a copy of all the data at once would keep the loop from everybody else for too long.
    """
    size, lba = unit.block_size, command.lba
    step = max(1, CHUNK // size)
    for first in range(0, count, step):
        if first:
            yield PAUSE
        part = yield from unit.workspace.take(min(step, count - first) * size)
        try:
            yield unit.operations.read((lba + first) * size, [part])
            if first * size < sent:
                length = min(len(part), sent - first * size)
                compare(part[:length], memoryview(command.bytes_from(first * size, length)), first * size)
        finally:
            unit.workspace.give(part)
            del part  # while others run it is not kept


def _compare_each(unit: Unit, lba: int, expected: memoryview, count: int) -> Steps:
    """Compare one block with each of `count` blocks."""
    size = unit.block_size
    step = max(1, CHUNK // size)
    for first in range(0, count, step):
        if first:
            yield PAUSE
        part = yield from unit.workspace.take(min(step, count - first) * size)
        try:
            yield unit.operations.read((lba + first) * size, [part])
            compare(part, memoryview(bytes(expected) * (len(part) // size)), first * size)
        finally:
            unit.workspace.give(part)
            del part  # while others run it is not kept


def compare(found: memoryview, expected: memoryview, base: int) -> None:
    """Raise Miscompare with the offset of the first byte that differs (SBC-4 5.2: INFORMATION) unless all agree."""
    if found == expected:
        return
    same, length = 0, len(found)  # so many bytes agree; the first that does not is among the next `length`
    while length > 1:
        half = length // 2
        if found[same : same + half] == expected[same : same + half]:
            same += half
            length -= half
        else:
            length = half
    raise Miscompare(information=base + same)


def compare_and_write(unit: Unit, command: Command) -> Steps:
    """COMPARE AND WRITE: SBC-4 5.3. The first half of the data is compared, the second half written."""
    bounded(unit, command, count_at=13)
    size, count = unit.block_size, command.count
    if count > unit.max_compare_blocks:
        raise InvalidFieldInCdb("more blocks than MAXIMUM COMPARE AND WRITE LENGTH", field=(13, 7))
    if command.length != 2 * count * size:
        raise InvalidFieldInCdb("the data must be two times NUMBER OF LOGICAL BLOCKS", field=(13, 7))
    if not count:
        return
    half = count * size
    found = yield from unit.workspace.take(half)
    try:
        yield unit.operations.read(command.lba * size, [found])
        compare(found, memoryview(command.bytes_from(0, half)), 0)
    finally:
        unit.workspace.give(found)
        del found  # while others run it is not kept
    yield put_blocks(unit, command.lba, slice_buffers(command.buffers, half, half))
    command.transferred = command.wanted = 2 * half
    if fua(command) or not unit.write_cache:
        yield flushed(unit)


def orwrite(unit: Unit, command: Command) -> Steps:
    """ORWRITE (16): SBC-4 5.8. What is on the medium is or'ed with the data; bytes that were not sent stay."""
    bounded(unit, command)
    size = unit.block_size
    wanted = command.count * size
    moved = min(command.length, wanted)
    step = max(1, CHUNK // 4 // size) * size  # it makes five copies of each
    for at in range(0, moved, step):
        if at:
            yield PAUSE
        count = min(step, moved - at)
        found = yield from unit.workspace.take(-(-count // size) * size)
        try:
            yield unit.operations.read(command.lba * size + at, [found])
            # Integers are Python's fastest way to OR two buffers of any length.
            merged = int.from_bytes(found, "little") | int.from_bytes(command.bytes_from(at, count), "little")
            found[:] = merged.to_bytes(len(found), "little")
            del merged
            yield put_blocks(unit, command.lba + at // size, [found])
        finally:
            unit.workspace.give(found)
            del found  # while others run it is not kept
    command.transferred, command.wanted = moved, wanted
    if fua(command) or not unit.write_cache:
        yield flushed(unit)


def write_atomic(unit: Unit, command: Command) -> Steps:
    """WRITE ATOMIC (16): SBC-4 5.47. No other command sees a part of it: it has its blocks to itself."""
    bounded(unit, command, count_at=12)
    size, count = unit.block_size, command.count
    if int.from_bytes(command.cdb[10:12], "big"):
        raise InvalidFieldInCdb("ATOMIC BOUNDARY: there are no atomic boundaries here", field=(10, 7))
    if count * size > MAX_ATOMIC:
        raise InvalidFieldInCdb("more blocks than MAXIMUM ATOMIC TRANSFER LENGTH", field=(12, 7))
    if command.length < count * size:
        raise InvalidFieldInCdb("less data than TRANSFER LENGTH: half an atomic write is none", field=(12, 7))
    command.transferred = command.wanted = count * size
    if not count:
        return
    yield put_blocks(unit, command.lba, command.window(count * size))
    if fua(command) or not unit.write_cache:
        yield flushed(unit)


def synchronize_cache(unit: Unit, command: Command) -> Steps:
    """SYNCHRONIZE CACHE (10), (16): SBC-4 5.33. The whole device is flushed; IMMED is answered when that is done."""
    on_medium(unit, command)
    if not unit.read_only:
        yield flushed(unit)


def pre_fetch(unit: Unit, command: Command) -> Status:
    """PRE-FETCH (10), (16): SBC-4 5.10. CONDITION MET is for a cache that holds all of it; GOOD promises nothing."""
    on_medium(unit, command)
    return Status.CONDITION_MET if command.count else Status.GOOD


def read_capacity_10(unit: Unit, command: Command) -> None:
    """READ CAPACITY (10): SBC-4 5.15."""
    if int.from_bytes(command.cdb[2:6], "big"):
        raise InvalidFieldInCdb("LOGICAL BLOCK ADDRESS is obsolete and must be zero", field=(2, 7))
    last = min(unit.blocks - 1, 0xFFFFFFFF)
    command.put(last.to_bytes(4, "big") + unit.block_size.to_bytes(4, "big"))


def read_capacity_16(unit: Unit, command: Command) -> None:
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
