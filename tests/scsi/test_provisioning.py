"""UNMAP, WRITE SAME and GET LBA STATUS."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from tcmu_core import Extent, hookimpl
from tests.scsi.harness import BLOCK, Memory, Plain, Rig, cdb10, cdb16, make_rig

A = b"a" * BLOCK


def unmap(*ranges: tuple[int, int], told: int | None = None) -> tuple[bytes, bytes]:
    body = b"".join(lba.to_bytes(8, "big") + count.to_bytes(4, "big") + bytes(4) for lba, count in ranges)
    told = len(body) if told is None else told
    data = (told + 6).to_bytes(2, "big") + told.to_bytes(2, "big") + bytes(4) + body
    return bytes([0x42, 0, 0, 0, 0, 0, 0]) + len(data).to_bytes(2, "big") + b"\0", data


@pytest.fixture
def full(rig: Rig) -> Rig:
    rig.memory.data[:] = b"x" * len(rig.memory.data)
    rig.memory.mapped.update(range(2048))
    return rig


def test_unmap_frees_and_the_blocks_read_as_zeros(full: Rig) -> None:
    full.good(*unmap((10, 2), (20, 1)))
    assert full.memory.mapped == set(range(2048)) - {10, 11, 20}
    assert full.good(cdb10(0x28, 9, 4), room=4 * BLOCK) == b"x" * BLOCK + bytes(2 * BLOCK) + b"x" * BLOCK


@pytest.mark.parametrize(
    ("cdb", "data", "error"),
    [
        ("42 0 0 0 0 0 0 0 0 0", b"", (0, 0, 0)),
        ("42 0 0 0 0 0 0 0 7 0", bytes(7), (5, 0x1A, 0)),
        ("42 1 0 0 0 0 0 0 8 0", bytes(8), (5, 0x24, 0)),  # ANCHOR
        (*unmap((0, 1), told=32), (5, 0x1A, 0)),  # more descriptors announced than sent
        (*unmap((0, 0)), (0, 0, 0)),
        (*unmap((2047, 2)), (5, 0x21, 0)),
        (*unmap((0, 1), ((1 << 64) - 1, 1)), (5, 0x21, 0)),
        (*unmap(*[(0, 1)] * 257), (5, 0x26, 0)),
    ],
)
def test_a_wrong_unmap_frees_nothing(full: Rig, cdb: bytes, data: bytes, error: tuple[int, int, int]) -> None:
    assert full.send(cdb, data).error == error
    assert len(full.memory.mapped) == 2048


def test_unmap_beyond_the_limit_is_refused() -> None:
    rig = make_rig(max_discard_length=4 * BLOCK)
    rig.good(*unmap((0, 4)))
    assert rig.send(*unmap((0, 2), (8, 3))).error == (5, 0x26, 0)


def test_without_discard_there_is_no_unmap_and_nothing_says_so() -> None:
    rig = make_rig(Plain())
    assert rig.send(*unmap((0, 1))).error == (5, 0x20, 0)
    assert rig.good("12 1 b2 0 ff 0", room=255)[5] == 0
    assert rig.good("9e 10 0 0 0 0 0 0 0 0 0 0 0 20 0 0", room=32)[14] == 0
    assert rig.good("a3 c 1 42 0 0 0 0 2 0 0 0", room=64) == bytes([0, 1, 0, 0])


@pytest.mark.parametrize("build", [(0x41, cdb10), (0x93, cdb16)])
def test_write_same_repeats_one_block(rig: Rig, build: tuple[int, object]) -> None:
    code, make = build
    rig.good(make(code, 3, 5), A)  # type: ignore[operator]
    assert rig.memory.data[2 * BLOCK : 9 * BLOCK] == bytes(BLOCK) + A * 5 + bytes(BLOCK)


def test_write_same_with_unmap_of_zeros_frees(full: Rig) -> None:
    full.good(cdb16(0x93, 5, 3, 8), bytes(BLOCK))
    assert full.memory.mapped == set(range(2048)) - {5, 6, 7}


def test_write_same_with_unmap_of_data_writes_it(full: Rig) -> None:
    full.good(cdb10(0x41, 5, 3, 8), A)
    assert full.memory.data[5 * BLOCK : 8 * BLOCK] == A * 3
    assert len(full.memory.mapped) == 2048


def test_write_same_without_data_writes_zeros(full: Rig) -> None:
    full.good(cdb16(0x93, 5, 3, 1))
    assert full.memory.data[4 * BLOCK : 9 * BLOCK] == b"x" * BLOCK + bytes(3 * BLOCK) + b"x" * BLOCK


@pytest.mark.parametrize(
    ("cdb", "data", "field"),
    [
        (cdb16(0x93, 0, 0), A, (10, 7)),  # WSNZ
        (cdb10(0x41, 0, 0), A, (7, 7)),
        (cdb16(0x93, 0, 1, 0x10), A, (1, 4)),  # ANCHOR
        (cdb16(0x93, 0, 1, 0x20), A, (1, 5)),  # WRPROTECT
        (cdb16(0x93, 0, 1), A + A, (1, None)),
        (cdb10(0x41, 0, 1), A[:100], (1, None)),
    ],
)
def test_a_wrong_write_same_is_refused(rig: Rig, cdb: bytes, data: bytes, field: tuple[int, int]) -> None:
    got = rig.send(cdb, data)
    assert (got.error, got.field) == ((5, 0x24, 0), field)


def status(rig: Rig, lba: int, room: int = 512) -> list[tuple[int, int, int]]:
    data = rig.good(b"\x9e\x12" + lba.to_bytes(8, "big") + room.to_bytes(4, "big") + bytes(2), room=room)
    return [
        (int.from_bytes(data[at : at + 8], "big"), int.from_bytes(data[at + 8 : at + 12], "big"), data[at + 12])
        for at in range(8, len(data), 16)
    ]


def test_get_lba_status_tells_runs_from_the_start_asked_for(rig: Rig) -> None:
    rig.memory.mapped.update((0, 1, 7))
    assert status(rig, 0) == [(0, 2, 0), (2, 5, 1), (7, 1, 0), (8, 2040, 1)]
    assert status(rig, 1) == [(1, 1, 0), (2, 5, 1), (7, 1, 0), (8, 2040, 1)]
    assert status(rig, 0, 24) == [(0, 2, 0)]
    assert status(rig, 2047) == [(2047, 1, 1)]


@pytest.mark.parametrize("lba", [2048, 1 << 63, (1 << 64) - 1])
def test_get_lba_status_past_the_end_is_refused(rig: Rig, lba: int) -> None:
    assert rig.send(b"\x9e\x12" + lba.to_bytes(8, "big") + bytes([0, 0, 0, 64, 0, 0]), room=64).error == (5, 0x21, 0)


class Telling(Memory):
    """Memory whose extents are told by a test."""

    def __init__(self, tell: Callable[[], Iterable[Extent]]) -> None:
        super().__init__()
        self.tell = tell

    @hookimpl
    def extents(self, offset: int, length: int) -> Any:
        return self.tell()


DISORDER: dict[str, Callable[[], Iterable[Extent]]] = {
    "overlapping": lambda: [Extent(0, 4 * BLOCK, mapped=False), Extent(2 * BLOCK, BLOCK, mapped=True)],
    "backwards": lambda: [Extent(4 * BLOCK, BLOCK, mapped=False), Extent(0, BLOCK, mapped=False)],
    "negative": lambda: [Extent(0, -BLOCK, mapped=False)],
    "empty, without an end": lambda: itertools.repeat(Extent(0, 0, mapped=False)),
    "the same, without an end": lambda: itertools.repeat(Extent(0, BLOCK, mapped=False)),
}


@pytest.mark.parametrize("extents", DISORDER.values(), ids=DISORDER)
@pytest.mark.parametrize("cdb", ["9e 12 0 0 0 0 0 0 0 0 0 0 1 0 0 0", "4d 0 4c 0 0 0 0 1 0 0"])
def test_extents_that_are_not_in_order_are_an_error(cdb: str, extents: Callable[[], Iterable[Extent]]) -> None:
    assert make_rig(Telling(extents)).send(cdb, room=256).error == (4, 0x44, 0)


def test_extents_without_an_end_are_looked_at_as_far_as_the_disk_goes() -> None:
    endless = (Extent(number * BLOCK, BLOCK, mapped=False) for number in itertools.count())
    assert status(make_rig(Telling(lambda: endless)), 0) == [(0, 2048, 1)]


def test_of_very_many_runs_as_many_are_told_as_cost_little_and_one_asks_again_for_the_rest() -> None:
    looked: list[Extent] = []

    def tell() -> Iterable[Extent]:
        for number in range(10000):
            looked.append(Extent(number * BLOCK, BLOCK, mapped=bool(number % 2)))
            yield looked[-1]

    rig = make_rig(Telling(tell), size=10000 * BLOCK)
    told = status(rig, 0, 1 << 20)
    assert told == [(number, 1, 1 - number % 2) for number in range(4096)]
    assert len(looked) < 5000
    assert status(rig, 4096, 24)[0][0] == 4096
