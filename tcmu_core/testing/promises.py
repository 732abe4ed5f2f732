"""What every handler promises: one function each, taking a callable that opens a device."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

from tcmu_core.disk.device import Extent
from tcmu_core.testing.harness import OpenDevice, split

Maker = Callable[[], AbstractContextManager[OpenDevice]]
Step = tuple[str, int, int, int]  # what, first block, blocks, a seed for data and buffers

WINDOW = 4 << 20  # bytes of a large device that the promises look at, at its beginning
MAX_BLOCKS = 64  # blocks in one step
MANY = 1100  # buffers; more than IOV_MAX
STEPS = 12
EXAMPLES = 30
CHANGES = ("write", "discard", "write_zeroes")


def check_handler(make: Maker, *, persistent: bool = False, examples: int = EXAMPLES) -> None:
    """Check everything: `make` opens a device that may be written to, of at least 64 blocks.

    `persistent`: what was written is there again when the device is opened again. `examples` is how many random
    sequences of operations are tried; each opens the device once.
    """
    for promise in PROMISES:
        promise(make)
    check_model(make, examples=examples)
    if persistent:
        check_persistence(make)


def check_geometry(make: Maker) -> None:
    """The size is whole blocks, and limits are whole blocks too."""
    with make() as disk:
        device = disk.device
        assert disk.size >= 64 * device.block_size, "the checks need a device of at least 64 blocks"
        assert disk.size % device.block_size == 0, f"size {disk.size} is not whole blocks of {device.block_size}"
        for name in (
            "max_transfer_length",
            "optimal_transfer_length",
            "max_discard_length",
            "discard_granularity",
            "discard_alignment",
        ):
            value = getattr(device, name)
            assert value >= 0, f"{name} is negative"
            assert value % device.block_size == 0, f"{name} {value} is not whole blocks of {device.block_size}"


def check_ends(make: Maker) -> None:
    """The first and the last block can be read and written, and don't touch their neighbours."""
    with make() as disk:
        block = disk.device.block_size
        for offset, neighbour in ((0, block), (disk.size - block, disk.size - 2 * block)):
            before = disk.read(neighbour, block)
            for fill in (b"\x5a", b"\xc3"):
                _write(disk, offset, fill * block)
                assert disk.read(offset, block) == fill * block, f"the block at {offset} reads something else"
            assert disk.read(neighbour, block) == before, f"the block at {neighbour} was changed too"


def check_buffers(make: Maker) -> None:
    """Data is in order however it is cut into buffers, even bytes, even more buffers than one system call takes."""
    with make() as disk:
        block = disk.device.block_size
        length = max(4 * block, -(-MANY // block) * block)
        data = random.Random(1).randbytes(length)
        for parts in ([1] * MANY, [block] * 3, [block - 1, 2, block - 1], [7, 4096, 1], []):
            _write(disk, block, bytes(length))
            _write(disk, block, data, parts)
            assert disk.read(block, length) == data, f"written from buffers of {parts[:4]}… it reads something else"
            assert disk.read(block, length, parts) == data, f"read into buffers of {parts[:4]}… it is something else"
            buffers = split(bytearray(length), parts)
            given = list(buffers)
            disk.wait(disk.operations.read(block, buffers))
            assert len(buffers) == len(given), "the list of buffers is the engine's: it may not be changed"
            assert all(a is b for a, b in zip(buffers, given, strict=True)), "the list of buffers was changed"


def check_flush(make: Maker) -> None:
    """Flush works on a fresh device, after a write, and twice."""
    with make() as disk:
        if disk.operations.flush is None:
            return
        disk.flush()
        _write(disk, 0, b"f" * disk.device.block_size)
        disk.flush()
        disk.flush()
        assert disk.read(0, disk.device.block_size) == b"f" * disk.device.block_size, "flush changed data"


def check_zeros(make: Maker) -> None:
    """What was discarded or zeroed reads as zeros, to the byte, and its neighbours are as they were."""
    for name in ("discard", "write_zeroes"):
        with make() as disk:
            if getattr(disk.operations, name) is None:
                continue
            block = disk.device.block_size
            window = _window(disk)
            data = random.Random(2).randbytes(window)
            for start, length in ((block, block), (3 * block, 17 * block), (0, window), (window - block, block)):
                _write(disk, 0, data)
                getattr(disk, name)(start, length)
                expected = data[:start] + bytes(length) + data[start + length :]
                _same(disk.read(0, window), expected, 0, f"{name}({start}, {length})")


def check_extents(make: Maker) -> None:
    """Extents cover the range that was asked for, in order; what is unmapped is zeros, and written data is mapped."""
    with make() as disk:
        if disk.operations.extents is None:
            return
        block = disk.device.block_size
        window = _window(disk)
        _write(disk, block, b"x" * block)
        if disk.operations.discard is not None:
            disk.discard(window // 2, window // 4)
        for start, length in (
            (0, window),
            (block, block),
            (window // 2 - block, 3 * block),
            (disk.size - block, block),
        ):
            found = disk.extents(start, length)
            _check_cover(found, start, length)
            for extent in found:
                if not extent.mapped:
                    _same(
                        disk.read(extent.offset, extent.length), bytes(extent.length), extent.offset, "unmapped extent"
                    )
        assert all(extent.mapped for extent in disk.extents(block, block)), "a written block is called unmapped"


def check_together(make: Maker) -> None:
    """Commands that are in flight together don't mix their data up."""
    with make() as disk:
        block = disk.device.block_size
        count = min(32, disk.size // block)
        texts = [bytes([number + 1]) * block for number in range(count)]
        write = disk.operations.write
        assert write is not None, "the checks need a device that can be written to"
        for pending in [write(number * block, split(bytearray(text), ())) for number, text in enumerate(texts)]:
            disk.wait(pending)
        rooms = [bytearray(block) for _ in texts]
        for pending in [disk.operations.read(n * block, [memoryview(room)]) for n, room in enumerate(rooms)]:
            disk.wait(pending)
        for number, text in enumerate(texts):
            assert rooms[number] == text, f"block {number} was mixed up with another command's"


def check_sizes(make: Maker) -> None:
    """A reconfigure to what is there already succeeds: rtslib writes every attribute back when it restores."""
    with make() as disk:
        if not disk.has("reconfigure"):
            return
        size = disk.size
        disk.reconfigure(size=size)
        disk.reconfigure(cfgstring=disk.device.cfgstring)
        disk.reconfigure(write_cache=disk.device.write_cache)
        assert disk.size == size, "the size changed"


def check_reopening(make: Maker) -> None:
    """Close lets go of the storage: the device can be opened again, and again, with the same geometry."""
    seen = set()
    for _ in range(3):
        with make() as disk:
            seen.add((disk.size, disk.device.block_size))
            disk.read(0, disk.device.block_size)
    assert len(seen) == 1, f"each opening gives another geometry: {sorted(seen)}"


def check_persistence(make: Maker) -> None:
    """What was written, discarded and zeroed is as it was left after closing and opening."""
    with make() as disk:
        block = disk.device.block_size
        data = random.Random(3).randbytes(16 * block)
        _write(disk, 0, data)
        _write(disk, disk.size - block, data[:block])
        expected = bytearray(data)
        for at, name in ((2 * block, "discard"), (5 * block, "write_zeroes")):
            if getattr(disk.operations, name) is not None:
                getattr(disk, name)(at, 2 * block)
                expected[at : at + 2 * block] = bytes(2 * block)
    with make() as disk:
        _same(disk.read(0, len(data)), bytes(expected), 0, "closed and opened again")
        _same(disk.read(disk.size - block, block), data[:block], disk.size - block, "closed and opened again")


def check_model(make: Maker, *, examples: int = EXAMPLES) -> None:
    """Any sequence of operations leaves what a bytearray would hold.

    Hypothesis looks for the shortest one that doesn't, where it is installed; a seeded random choice otherwise.
    """
    try:
        from hypothesis import HealthCheck, given, settings
        from hypothesis import strategies as st
    except ImportError:
        for seed in range(examples):
            chance = random.Random(seed)
            _follow(make, [_random_step(chance) for _ in range(STEPS)])
        return
    step = st.tuples(
        st.sampled_from(("write", "read", "flush", *CHANGES)),
        st.integers(0, 2**16),
        st.integers(1, MAX_BLOCKS),
        st.integers(0, 2**16),
    )
    quiet = settings(
        max_examples=examples, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
    )
    quiet(given(st.lists(step, min_size=1, max_size=STEPS))(lambda steps: _follow(make, steps)))()


PROMISES: tuple[Callable[[Maker], None], ...] = (
    check_geometry,
    check_ends,
    check_buffers,
    check_flush,
    check_zeros,
    check_extents,
    check_together,
    check_sizes,
    check_reopening,
)


def _random_step(chance: random.Random) -> Step:
    what = chance.choice(("write", "read", "flush", *CHANGES))
    return what, chance.randrange(2**16), chance.randint(1, MAX_BLOCKS), chance.randrange(2**16)


def _follow(make: Maker, steps: Sequence[Step]) -> None:
    """Do the steps on a fresh device and on a bytearray, and compare after each."""
    with make() as disk:
        block = disk.device.block_size
        window = _window(disk)
        model = bytearray(disk.read(0, window))
        for what, at, count, seed in steps:
            start = at % (window // block) * block
            length = min(count * block, window - start)
            chance = random.Random(seed)
            parts = [chance.randint(1, 2 * block) for _ in range(seed % 4)]
            if what == "write":
                data = chance.randbytes(length)
                _write(disk, start, data, parts)
                model[start : start + length] = data
            elif what in CHANGES and getattr(disk.operations, what) is not None:
                getattr(disk, what)(start, length)
                model[start : start + length] = bytes(length)
            elif what == "flush" and disk.operations.flush is not None:
                disk.flush()
            label = f"after {what}({start}, {length})"
            _same(disk.read(start, length, parts), bytes(model[start : start + length]), start, label)
        _same(disk.read(0, window), bytes(model), 0, "at the end")


def _window(disk: OpenDevice) -> int:
    return min(disk.size, WINDOW) // disk.device.block_size * disk.device.block_size


def _write(disk: OpenDevice, offset: int, data: bytes, parts: Sequence[int] = ()) -> None:
    kept: Any = bytearray(data)
    disk.wait(disk.hook("write")(offset, split(kept, parts)))
    assert kept == data, "the buffers of a write are the initiator's data: they may not be changed"


def _same(found: bytes, expected: bytes, offset: int, label: str) -> None:
    if found == expected:
        return
    at = next(index for index, pair in enumerate(zip(found, expected, strict=True)) if pair[0] != pair[1])
    raise AssertionError(
        f"{label}: byte {offset + at} is {found[at]:#04x}, it should be {expected[at]:#04x} "
        f"(read: {found[at : at + 8].hex(' ')}…, expected: {expected[at : at + 8].hex(' ')}…)"
    )


def _check_cover(found: Sequence[Extent], start: int, length: int) -> None:
    at = start
    for extent in found:
        assert extent.offset == at, f"there is a gap or an overlap in the extents: {extent} should begin at {at}"
        assert extent.length > 0, f"{extent} is empty"
        at += extent.length
    assert at == start + length, f"the extents of {start}+{length} end at {at}"
