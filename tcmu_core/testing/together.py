"""What a handler promises of commands in flight together, and of any sequence of them."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

from tcmu_core.testing.harness import OpenDevice
from tcmu_core.testing.promises import NO_WRITE, Maker, same, window, writable, write

Step = tuple[str, int, int, int]  # what, first block, blocks, a seed for data and buffers

MAX_BLOCKS = 64  # blocks in one step
STEPS = 12
EXAMPLES = 30
ROUNDS = 20
NEIGHBOURS = 64  # blocks that are written and read at a time
SWITCH = 1e-6  # seconds; how often threads take turns meanwhile, so that what can go wrong does
CHANGES = ("write", "discard", "write_zeroes")


def check_together(make: Maker, *, rounds: int = ROUNDS) -> str | None:
    """Commands that are in flight together don't mix their data up, as many as the handler's threads allow.

    Neighbouring blocks are written at the same time, and read while others are written.
    """
    with make() as disk, _restless():
        block = disk.device.block_size
        count = min(NEIGHBOURS, disk.size // block)
        expected = [disk.read(number * block, block) for number in range(count)]
        for number_of_round in range(rounds):
            changed = [number for number in range(count) if number % 2 != number_of_round % 2 or not number_of_round]
            if writable(disk):
                new = {number: bytes([number_of_round * 7 + number & 0xFF]) * block for number in changed}
                _do(disk, "write", {number: bytearray(data) for number, data in new.items()}, expected)
                for number, data in new.items():
                    expected[number] = data
            rooms = {number: bytearray(block) for number in range(count)}
            _do(disk, "read", rooms, ())
            for number, room in rooms.items():
                same(bytes(room), expected[number], number * block, disk, f"{count} commands in flight")
            if not writable(disk):
                break
    return None


def _do(disk: OpenDevice, what: str, buffers: dict[int, bytearray], beside: Sequence[bytes]) -> None:
    """Start a command for each of the buffers, by number of its block, beside reads of others, and wait for all."""
    block = disk.device.block_size
    pending: list[tuple[str, Future[Any] | None]] = []
    rooms: dict[int, bytearray] = {}
    for number, buffer in buffers.items():
        pending.append((what, disk.start(what, number * block, [memoryview(buffer)])))
        other = number + 1
        if other < len(beside) and other not in buffers:
            rooms[other] = bytearray(block)
            pending.append(("read", disk.start("read", other * block, [memoryview(rooms[other])])))
    for name, future in pending:
        disk.doing = f"{name}, {len(pending)} commands in flight"
        disk.finish(future)
    for number, room in rooms.items():
        same(bytes(room), beside[number], number * block, disk, "read while its neighbours were written")


@contextmanager
def _restless() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def check_model(make: Maker, *, examples: int = EXAMPLES) -> str | None:
    """Any sequence of operations leaves what a bytearray would hold.

    Hypothesis looks for the shortest one that doesn't, where it is installed; a seeded random choice otherwise.
    """
    with make() as disk:
        if not writable(disk):
            return NO_WRITE
    try:
        from hypothesis import HealthCheck, given, settings
        from hypothesis import strategies as st
    except ImportError:
        for seed in range(examples):
            chance = random.Random(seed)
            _follow(make, [_random_step(chance) for _ in range(STEPS)])
        return None
    step = st.tuples(
        st.sampled_from(("write", "read", "flush", *CHANGES)),
        st.one_of(st.integers(0, MAX_BLOCKS), st.integers(0, 2**16)),  # near each other as often as not: they meet
        st.integers(1, MAX_BLOCKS),
        st.integers(0, 2**16),
    )
    quiet = settings(
        max_examples=examples, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
    )
    run: Callable[[], None] = quiet(
        given(st.lists(step, min_size=1, max_size=STEPS))(lambda steps: _follow(make, steps))
    )
    run()
    return None


def _random_step(chance: random.Random) -> Step:
    what = chance.choice(("write", "read", "flush", *CHANGES))
    return what, chance.randrange(2**16), chance.randint(1, MAX_BLOCKS), chance.randrange(2**16)


def _follow(make: Maker, steps: Sequence[Step]) -> None:
    """Do the steps on a fresh device and on a bytearray, and compare after each."""
    with make() as disk:
        block = disk.device.block_size
        room = window(disk)
        model = bytearray(disk.read(0, room))
        for what, at, count, seed in steps:
            start = at % (room // block) * block
            length = min(count * block, room - start)
            chance = random.Random(seed)
            parts = [chance.randint(1, 2 * block) for _ in range(seed % 4)]
            if what == "write":
                data = chance.randbytes(length)
                write(disk, start, data, parts)
                model[start : start + length] = data
            elif what in CHANGES and getattr(disk.operations, what) is not None:
                getattr(disk, what)(start, length)
                model[start : start + length] = bytes(length)
            elif what == "flush" and disk.operations.flush is not None:
                disk.flush()
            label = f"after {what}({start}, {length})"
            same(disk.read(start, length, parts), bytes(model[start : start + length]), start, disk, label)
        same(disk.read(0, room), bytes(model), 0, disk, "at the end")
