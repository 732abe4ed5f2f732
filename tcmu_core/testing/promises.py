"""What every handler promises of its data: one function each, taking a callable that opens a device.

Each returns why there was nothing to check, None where it was checked, and raises `PromiseBroken` where it is not kept.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

from tcmu_core.disk.device import Extent
from tcmu_core.testing.harness import OpenDevice, PromiseBroken, split

Maker = Callable[[], AbstractContextManager[OpenDevice]]
Promise = Callable[[Maker], "str | None"]

WINDOW = 4 << 20  # bytes of a large device that the promises look at, at its beginning
BLOCKS = 64  # that a device must have, at least
MANY = 1100  # buffers; more than IOV_MAX
NO_WRITE = "it can't be written to"
SCRIBBLE = b"\xee"  # what buffers are filled with that are not the handler's any more


def check_geometry(make: Maker) -> str | None:
    """The size is whole blocks, and limits are whole blocks too."""
    with make() as disk:
        device = disk.device
        block = device.block_size
        require(disk.size >= BLOCKS * block, disk, f"the checks need a device of at least {BLOCKS} blocks")
        require(disk.size % block == 0, disk, f"size {disk.size} is not whole blocks of {block}")
        for name in (
            "max_transfer_length",
            "optimal_transfer_length",
            "max_discard_length",
            "discard_granularity",
            "discard_alignment",
        ):
            value = getattr(device, name)
            require(value % block == 0, disk, f"{name} {value} is not whole blocks of {block}")
    return None


def check_reading(make: Maker) -> str | None:
    """What is read is the same each time, however it is cut into buffers, and every byte of a buffer is filled."""
    with make() as disk:
        block = disk.device.block_size
        length = max(4 * block, -(-MANY // block) * block)
        for start in (0, block, disk.size - length):
            first = disk.read(start, length)
            for fill in (b"\x00", b"\xff"):
                room = bytearray(fill * length)
                disk.finish(disk.start("read", start, [memoryview(room)]))
                same(bytes(room), first, start, disk, "read again")
            for parts in ([1] * MANY, [block - 1, 2, block - 1], [7, 4096, 1]):
                same(disk.read(start, length, parts), first, start, disk, "cut into other buffers")
    return None


def check_ends(make: Maker) -> str | None:
    """The first and the last block can be read and written, and don't touch their neighbours."""
    with make() as disk:
        if not writable(disk):
            return NO_WRITE
        block = disk.device.block_size
        for offset, neighbour in ((0, block), (disk.size - block, disk.size - 2 * block)):
            before = disk.read(neighbour, block)
            for fill in (b"\x5a", b"\xc3"):
                write(disk, offset, fill * block)
                same(disk.read(offset, block), fill * block, offset, disk, "the block that was written")
            same(disk.read(neighbour, block), before, neighbour, disk, "its neighbour")
    return None


def check_buffers(make: Maker) -> str | None:
    """Data is in order however it is cut into buffers, even bytes, even more buffers than one system call takes."""
    with make() as disk:
        if not writable(disk):
            return NO_WRITE
        block = disk.device.block_size
        length = max(4 * block, -(-MANY // block) * block)
        data = random.Random(1).randbytes(length)
        for parts in ([1] * MANY, [block] * 3, [block - 1, 2, block - 1], [7, 4096, 1], []):
            write(disk, block, bytes(length))
            write(disk, block, data, parts)
            same(disk.read(block, length), data, block, disk, f"written from buffers of {parts[:4]}…")
            same(disk.read(block, length, parts), data, block, disk, f"read into buffers of {parts[:4]}…")
            buffers = split(bytearray(length), parts)
            given = list(buffers)
            disk.finish(disk.start("read", block, buffers))
            kept = len(buffers) == len(given) and all(a is b for a, b in zip(buffers, given, strict=True))
            require(kept, disk, "the list of buffers was changed: it is the engine's")
    return None


def check_giving_back(make: Maker) -> str | None:
    """Buffers are the handler's until the hook, or its Future, has ended, and not a moment longer."""
    with make() as disk:
        block = disk.device.block_size
        count = 16
        rooms = []
        for number in range(count):
            room = bytearray(block)
            disk.finish(disk.start("read", number * block, [memoryview(room)]))
            room[:] = SCRIBBLE * block
            rooms.append(room)
        if writable(disk):
            texts = [bytes([number + 1]) * block for number in range(count)]
            for number, text in enumerate(texts):
                write(disk, number * block, text)  # which overwrites its buffers when that has ended
            if disk.operations.flush is not None:
                disk.flush()
            for number, text in enumerate(texts):
                found = disk.read(number * block, block)
                if found == SCRIBBLE * block:
                    raise PromiseBroken("it was written from buffers that were not the handler's any more", disk.doing)
                same(found, text, number * block, disk, "written before")
        for number, room in enumerate(rooms):
            require(
                room == SCRIBBLE * block, disk, f"the buffers of read({number * block}, …) were written to afterwards"
            )
    return None


def check_flush(make: Maker) -> str | None:
    """Flush works on a fresh device, after a write, and twice."""
    with make() as disk:
        if disk.operations.flush is None:
            return "it has no flush"
        disk.flush()
        if not writable(disk):
            return None
        write(disk, 0, b"f" * disk.device.block_size)
        disk.flush()
        disk.flush()
        same(disk.read(0, disk.device.block_size), b"f" * disk.device.block_size, 0, disk, "after flush")
    return None


def check_zeros(make: Maker) -> str | None:
    """What was discarded or zeroed reads as zeros, to the byte, and its neighbours are as they were."""
    found = []
    for name in ("discard", "write_zeroes"):
        with make() as disk:
            if getattr(disk.operations, name) is None or not writable(disk):
                continue
            found.append(name)
            block = disk.device.block_size
            length = window(disk)
            data = random.Random(2).randbytes(length)
            for start, count in ((block, block), (3 * block, 17 * block), (0, length), (length - block, block)):
                write(disk, 0, data)
                getattr(disk, name)(start, count)
                expected = data[:start] + bytes(count) + data[start + count :]
                same(disk.read(0, length), expected, 0, disk, f"after {name}({start}, {count})")
    return None if found else "it has neither discard nor write_zeroes"


def check_extents(make: Maker) -> str | None:
    """Extents cover the range that was asked for, in order; what is unmapped is zeros, and written data is mapped."""
    with make() as disk:
        if disk.operations.extents is None:
            return "it has no extents"
        block = disk.device.block_size
        length = window(disk)
        if writable(disk):
            write(disk, block, b"x" * block)
            if disk.operations.discard is not None:
                disk.discard(length // 2, length // 4)
        half = length // 2
        for start, count in ((0, length), (block, block), (half - block, 3 * block), (disk.size - block, block)):
            extents = disk.extents(start, count)
            _check_cover(disk, extents, start, count)
            for extent in extents:
                if not extent.mapped:
                    found = disk.read(extent.offset, extent.length)
                    same(found, bytes(extent.length), extent.offset, disk, "unmapped extent")
        if writable(disk):
            mapped = all(extent.mapped for extent in disk.extents(block, block))
            require(mapped, disk, "a written block is called unmapped")
    return None


def require(condition: object, disk: OpenDevice, message: str) -> None:
    """Raise `PromiseBroken` unless the condition holds."""
    if not condition:
        raise PromiseBroken(message, disk.doing)


def writable(disk: OpenDevice) -> bool:
    """Whether the device takes writes."""
    return not disk.disk.read_only


def window(disk: OpenDevice) -> int:
    """Return how many bytes at the beginning are looked at where all is."""
    return min(disk.size, WINDOW) // disk.device.block_size * disk.device.block_size


def write(disk: OpenDevice, offset: int, data: bytes, parts: Sequence[int] = ()) -> None:
    """Write; the data must be as it was when that has ended, and is overwritten then."""
    kept = bytearray(data)
    disk.finish(disk.start("write", offset, split(kept, parts)))
    require(kept == data, disk, "the buffers were changed: a write's are the initiator's data")
    kept[:] = SCRIBBLE * len(kept)


def same(found: bytes, expected: bytes, offset: int, disk: OpenDevice, label: str) -> None:
    """Raise `PromiseBroken` with the first byte that differs; `offset` is that of the first byte of both."""
    if found == expected:
        return
    at = next(index for index, pair in enumerate(zip(found, expected, strict=True)) if pair[0] != pair[1])
    raise PromiseBroken(
        f"{label}: byte {offset + at} is {found[at]:#04x}, it should be {expected[at]:#04x} "
        f"(read: {found[at : at + 8].hex(' ')}…, expected: {expected[at : at + 8].hex(' ')}…)",
        disk.doing,
    )


def _check_cover(disk: OpenDevice, found: Sequence[Extent], start: int, length: int) -> None:
    at = start
    for extent in found:
        require(extent.offset == at, disk, f"there is a gap or an overlap: {extent} should begin at {at}")
        require(extent.length > 0, disk, f"{extent} is empty")
        at += extent.length
    require(at == start + length, disk, f"the extents of {start}+{length} end at {at}")
