"""Logical block provisioning and WRITE SAME (SBC-4 4.7): UNMAP, WRITE SAME, GET LBA STATUS."""

from __future__ import annotations

import struct
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future
from typing import Any

from tcmu_core.disk.device import Extent
from tcmu_core.errors import (
    HandlerError,
    InvalidFieldInCdb,
    InvalidFieldInParameterList,
    LbaOutOfRange,
    ParameterListLengthError,
)
from tcmu_core.scsi.command import Command
from tcmu_core.scsi.commands.block import on_medium
from tcmu_core.scsi.commands.data import fill, flushed, parameter_list
from tcmu_core.scsi.limits import MAX_UNMAP_DESCRIPTORS
from tcmu_core.scsi.opcodes import Op
from tcmu_core.scsi.steps import PAUSE, Ask, Steps
from tcmu_core.scsi.unit import Unit

_UNMAP_DESCRIPTOR = struct.Struct(">QI4x")  # SBC-4 5.34.2
_LBA_STATUS = struct.Struct(">QIB3x")  # SBC-4 5.6.2.2
_MAPPED, _DEALLOCATED = 0x0, 0x1  # PROVISIONING STATUS (SBC-4 table 58)
_MOST_BLOCKS = 0xFFFFFFFF  # of one LBA status descriptor
_MOST_TOLD = 4096  # LBA status descriptors: who wants to know of more asks again
_EXTENTS, _DISCARDS = 128, 8  # after so many others have their turn


def unmap(unit: Unit, command: Command) -> Steps:
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
    most = unit.max_unmap_blocks
    total = 0
    for lba, count in descriptors:
        if lba > unit.blocks or lba + count > unit.blocks:
            raise LbaOutOfRange
        total += count
    if total > most:
        raise InvalidFieldInParameterList("more blocks than MAXIMUM UNMAP LBA COUNT")
    discard = unit.operations.discard
    assert discard is not None
    for number, (lba, count) in enumerate(descriptors):
        if number % _DISCARDS == _DISCARDS - 1:
            yield PAUSE
        if count:
            yield discard(lba * unit.block_size, count * unit.block_size)
    if total and not unit.write_cache:
        yield flushed(unit)


def write_same(unit: Unit, command: Command) -> Steps:
    """WRITE SAME (10), (16): SBC-4 5.49, 5.50, with UNMAP and NDOB; ANCHOR is refused: nothing here is anchored."""
    cdb = command.cdb
    lba, count, size = command.lba, command.count, unit.block_size
    wide = cdb[0] == Op.WRITE_SAME_16
    freeing, no_data = bool(cdb[1] & 0x08), wide and bool(cdb[1] & 0x01)
    on_medium(unit, command)
    if not count:
        raise InvalidFieldInCdb("WSNZ is set: NUMBER OF LOGICAL BLOCKS must not be zero", field=(10 if wide else 7, 7))
    if count > unit.max_write_same_blocks:
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


def extents_of(unit: Unit, lba: int, count: int) -> Generator[Any, Any, Iterable[Extent]]:
    """Return (as the value of the steps) what the handler says is allocated; without a hook, or a word, all is.

    Iterating raises `HandlerError` where the handler's extents are not in order.
    """
    everything = [Extent(lba * unit.block_size, count * unit.block_size, True)]
    found: Any = None
    if unit.operations.extents is not None:
        found = unit.operations.extents(lba * unit.block_size, count * unit.block_size)
        if isinstance(found, Future):
            found = yield Ask(found)
    return everything if found is None else _in_order(found, (lba + count) * unit.block_size)


def _in_order(found: Iterable[Extent], end: int) -> Iterator[Extent]:
    """Yield extents up to the byte `end`; raises where one overlaps the one before, or is empty: it might never end."""
    at = 0
    for extent in found:
        if not (extent.offset >= at and extent.length > 0):
            raise HandlerError(f"extents: {extent.length} bytes at {extent.offset} come after those up to {at}: "
                               "they must be in order, and none empty")  # fmt: skip
        at = extent.offset + extent.length
        yield extent
        if at >= end:
            return


def get_lba_status(unit: Unit, command: Command) -> Steps:
    """GET LBA STATUS: SBC-4 5.6. A block is mapped when a part of it is, or when the handler says nothing of it."""
    cdb = command.cdb
    lba = int.from_bytes(cdb[2:10], "big")
    room = int.from_bytes(cdb[10:14], "big")
    if lba >= unit.blocks:
        raise LbaOutOfRange
    size, end = unit.block_size, unit.blocks
    enough = min(max(1, (room - 8) // _LBA_STATUS.size), _MOST_TOLD)
    told: list[bytes] = []  # descriptors, each of a run that adjoins the one before
    first = at = lba  # the run that is not told yet: from `first` up to `at`
    kind = _MAPPED

    def tell() -> None:
        nonlocal first
        while first < at:  # a run of more blocks than a descriptor can tell is several, so that they adjoin
            count = min(at - first, _MOST_BLOCKS)
            told.append(_LBA_STATUS.pack(first, count, kind))
            first += count

    def add(stop: int, status: int) -> None:
        nonlocal at, kind
        if stop > at:
            if status != kind:
                tell()
                kind = status
            at = stop

    found = yield from extents_of(unit, lba, end - lba)
    for number, extent in enumerate(found):
        if number % _EXTENTS == _EXTENTS - 1:
            yield PAUSE
        # Mapped runs grow to whole blocks, unmapped ones shrink to them: what is left over is mapped.
        if not extent.mapped:
            add(min(-(-extent.offset // size), end), _MAPPED)
            add(min((extent.offset + extent.length) // size, end), _DEALLOCATED)
        else:
            add(min(-(-(extent.offset + extent.length) // size), end), _MAPPED)
        if len(told) >= enough:
            break
    else:
        add(end, _MAPPED)
        tell()
    body = b"".join(told[:enough])
    command.put(((len(body) + 4).to_bytes(4, "big") + bytes(4) + body)[:room])
