"""Reading, writing and verifying blocks."""

from __future__ import annotations

from typing import Any

import pytest

from tcmu_core import hookimpl
from tcmu_core.scsi.command import Status
from tests.scsi.harness import BLOCK, Memory, Plain, Rig, cdb10, cdb12, cdb16, make_rig

LAST = 2047
A, B = b"a" * BLOCK, b"b" * BLOCK

READS = [("08 00 00 03 01 00", 6), (cdb10(0x28, 3, 1), 10), (cdb12(0xA8, 3, 1), 12), (cdb16(0x88, 3, 1), 16)]
WRITES = [("0a 00 00 03 01 00", 6), (cdb10(0x2A, 3, 1), 10), (cdb12(0xAA, 3, 1), 12), (cdb16(0x8A, 3, 1), 16)]


@pytest.mark.parametrize("cdb", [cdb for cdb, _ in READS])
def test_each_read_reads(rig: Rig, cdb: Any) -> None:
    rig.memory.data[3 * BLOCK : 4 * BLOCK] = A
    assert rig.good(cdb, room=BLOCK) == A


@pytest.mark.parametrize("cdb", [cdb for cdb, _ in WRITES])
def test_each_write_writes(rig: Rig, cdb: Any) -> None:
    rig.good(cdb, A)
    assert rig.memory.data[3 * BLOCK : 4 * BLOCK] == A
    assert rig.memory.data[4 * BLOCK : 5 * BLOCK] == bytes(BLOCK)


def test_read_6_of_zero_blocks_is_256(rig: Rig) -> None:
    assert len(rig.good("08 00 00 00 00 00", room=256 * BLOCK)) == 256 * BLOCK


def test_zero_blocks_is_no_error(rig: Rig) -> None:
    assert rig.good(cdb10(0x28, 5, 0)) == b""
    rig.good(cdb16(0x8A, 5, 0))


@pytest.mark.parametrize("code", [0x28, 0x2A, 0x2E, 0x2F, 0x35, 0x34, 0x41])
@pytest.mark.parametrize(("lba", "count"), [(LAST, 2), (LAST + 1, 1), (0xFFFFFFFF, 1), (LAST + 2, 0)])
def test_10_byte_range_past_the_end_is_refused(rig: Rig, code: int, lba: int, count: int) -> None:
    got = rig.send(cdb10(code, lba, count), bytes(BLOCK * max(count, 1)))
    assert got.error == (5, 0x21, 0)


@pytest.mark.parametrize("code", [0x88, 0x8A, 0x8E, 0x8F, 0x8B, 0x91, 0x90, 0x93])
@pytest.mark.parametrize(("lba", "count"), [(LAST, 2), (1 << 63, 1), ((1 << 64) - 1, 1)])
def test_16_byte_range_past_the_end_is_refused(rig: Rig, code: int, lba: int, count: int) -> None:
    assert rig.send(cdb16(code, lba, count), bytes(BLOCK * count)).error == (5, 0x21, 0)


def test_more_than_the_maximum_transfer_length_is_refused() -> None:
    rig = make_rig(max_transfer_length=8 * BLOCK)
    assert len(rig.good(cdb10(0x28, 0, 8), room=8 * BLOCK)) == 8 * BLOCK
    got = rig.send(cdb10(0x28, 0, 9), room=9 * BLOCK)
    assert (got.error, got.field) == ((5, 0x24, 0), (7, 7))


# -- residuals ---------------------------------------------------------------------------------------------------------


def test_read_into_too_little_room_fills_it_and_says_what_was_wanted(rig: Rig) -> None:
    rig.memory.data[: 2 * BLOCK] = A + B
    got = rig.send(cdb10(0x28, 0, 2), room=BLOCK + 100)
    assert (got.status, got.data, got.wanted) == (0, A + B[:100], 2 * BLOCK)


def test_read_into_too_much_room_leaves_the_rest(rig: Rig) -> None:
    got = rig.send(cdb10(0x28, 0, 1), room=3 * BLOCK)
    assert (got.status, got.transferred, got.wanted) == (0, BLOCK, BLOCK)


@pytest.mark.parametrize("sent", [1, 200, BLOCK, BLOCK + 1, 2 * BLOCK - 1])
@pytest.mark.parametrize("cdb", [cdb10(0x2A, 0, 2), cdb12(0xAA, 0, 2), cdb16(0x8A, 0, 2), cdb10(0x2E, 0, 2, 2)])
def test_a_write_of_too_little_data_writes_what_was_sent_and_keeps_the_rest(rig: Rig, cdb: bytes, sent: int) -> None:
    rig.good(cdb10(0x2A, 0, 2), B + B)
    got = rig.send(cdb, (A + A)[:sent])
    assert (got.status, got.transferred, got.wanted) == (0, sent, 2 * BLOCK)
    assert rig.memory.data[: 2 * BLOCK] == (A + A)[:sent] + (B + B)[sent:]


def test_a_write_of_a_part_of_a_block_has_that_block_to_itself(rig: Rig) -> None:
    rig.nexus("b")
    rig.nexus("a")
    rig.memory.hold = True
    _, partly = rig.start(cdb10(0x2A, 0, 1), b"x")
    _, wholly = rig.start(cdb10(0x2A, 0, 1), A, who="b")
    assert len(rig.memory.held) == 1  # the read of the block; the other write waits
    while rig.memory.held:
        rig.memory.release()
        rig.turn()
    assert partly
    assert wholly
    assert rig.memory.data[:BLOCK] == A


def test_orwrite_of_too_little_data_keeps_the_rest(rig: Rig) -> None:
    rig.good(cdb10(0x2A, 0, 1), b"\x10" * BLOCK)
    got = rig.send(cdb16(0x8B, 0, 1), b"\x01" * 200)
    assert (got.status, got.transferred, got.wanted) == (0, 200, BLOCK)
    assert rig.memory.data[:BLOCK] == b"\x11" * 200 + b"\x10" * (BLOCK - 200)


def test_write_of_too_much_data_takes_what_the_cdb_asks(rig: Rig) -> None:
    got = rig.send(cdb10(0x2A, 0, 1), A + B)
    assert (got.status, got.transferred, got.wanted) == (0, BLOCK, BLOCK)
    assert rig.memory.data[: 2 * BLOCK] == A + bytes(BLOCK)


# -- stable storage ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cdb", [cdb10(0x2A, 0, 1, 8), cdb12(0xAA, 0, 1, 8), cdb16(0x8A, 0, 1, 8)])
def test_fua_write_is_flushed_before_good(rig: Rig, cdb: bytes) -> None:
    rig.good(cdb, A)
    assert rig.memory.flushed == 1


def several_steps(flags: int) -> list[tuple[bytes, bytes]]:
    """Return the writes of several steps, with these flags in byte 1, and the data for a medium of zeros."""
    sent = [(caw(0, 1), bytes(BLOCK) + A), (cdb16(0x8B, 8, 1), A), (atomic(16, 1), A)]
    return [(cdb[:1] + bytes([flags]) + cdb[2:], data) for cdb, data in sent]


def test_fua_holds_for_the_commands_of_several_steps(rig: Rig) -> None:
    for flags, flushes in ((0, 0), (8, 1)):
        for cdb, data in several_steps(flags):
            before = rig.memory.flushed
            rig.memory.data[:] = bytes(len(rig.memory.data))
            rig.good(cdb, data)
            assert rig.memory.flushed - before == flushes


def test_without_a_write_cache_the_commands_of_several_steps_flush() -> None:
    rig = make_rig(write_cache=False)
    for number, (cdb, data) in enumerate(several_steps(0), 1):
        rig.good(cdb, data)
        assert rig.memory.flushed == number


@pytest.mark.parametrize("cdb", [cdb10(0x28, 0, 1, 8), cdb12(0xA8, 0, 1, 8), cdb16(0x88, 0, 1, 8)])
def test_fua_read_brings_the_cache_to_the_medium_first(rig: Rig, cdb: bytes) -> None:
    rig.good(cdb, room=BLOCK)
    assert rig.memory.flushed == 1


def test_read_6_has_no_fua_the_same_bit_is_a_part_of_its_lba() -> None:
    rig = make_rig(size=1 << 29)
    rig.good("08 08 00 03 01 00", room=BLOCK)
    assert rig.memory.flushed == 0


def test_plain_write_is_not_flushed(rig: Rig) -> None:
    rig.good(cdb10(0x2A, 0, 1), A)
    assert rig.memory.flushed == 0


@pytest.mark.parametrize("cdb", [cdb10(0x35, 0, 0), cdb16(0x91, 0, 0), cdb10(0x35, 0, 1, 2)])
def test_synchronize_cache_flushes(rig: Rig, cdb: bytes) -> None:
    rig.good(cdb)
    assert rig.memory.flushed == 1


def test_a_device_without_a_write_cache_flushes_every_write() -> None:
    rig = make_rig(write_cache=False)
    rig.good(cdb10(0x2A, 0, 1), A)
    rig.good(cdb16(0x8A, 1, 1), A)
    assert rig.memory.flushed == 2


# -- verify ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [(0x2F, cdb10), (0xAF, cdb12), (0x8F, cdb16)])
@pytest.mark.parametrize(
    ("bytchk", "data", "error"),
    [
        (0, b"", (0, 0, 0)),
        (1, A + B, (0, 0, 0)),
        (1, A + A, (0xE, 0x1D, 0)),
        (2, A, (5, 0x24, 0)),
        (3, A, (0xE, 0x1D, 0)),
        (3, A[:100], (5, 0x24, 0)),
        (3, b"", (5, 0x24, 0)),
    ],
)
def test_verify(rig: Rig, make: Any, bytchk: int, data: bytes, error: tuple[int, int, int]) -> None:
    rig.memory.data[: 2 * BLOCK] = A + B
    code, build = make
    assert rig.send(build(code, 0, 2, bytchk << 1), data).error == error


def test_verify_of_one_block_with_each_succeeds_when_all_are_alike(rig: Rig) -> None:
    rig.memory.data[: 4 * BLOCK] = A * 4
    assert rig.send(cdb10(0x2F, 0, 4, 6), A).status == Status.GOOD


def test_miscompare_tells_the_offset_of_the_first_byte_that_differs(rig: Rig) -> None:
    rig.memory.data[: 2 * BLOCK] = A + B
    wrong = bytearray(A + B)
    wrong[700] ^= 1
    got = rig.send(cdb10(0x2F, 0, 2, 2), bytes(wrong))
    assert got.sense[0] & 0x80
    assert int.from_bytes(got.sense[3:7], "big") == 700


@pytest.mark.parametrize("cdb", [cdb10(0x2E, 1, 1, 2), cdb12(0xAE, 1, 1, 2), cdb16(0x8E, 1, 1), cdb16(0x8E, 1, 1, 2)])
def test_write_and_verify_writes_flushes_and_compares(rig: Rig, cdb: bytes) -> None:
    rig.good(cdb, A)
    assert rig.memory.data[BLOCK : 2 * BLOCK] == A
    assert rig.memory.flushed == 1


# -- compare and write, orwrite, atomic --------------------------------------------------------------------------------


def caw(lba: int, count: int) -> bytes:
    return bytes([0x89, 0]) + lba.to_bytes(8, "big") + bytes(3) + bytes([count, 0, 0])


def test_compare_and_write_writes_when_equal(rig: Rig) -> None:
    rig.good(caw(2, 1), bytes(BLOCK) + A)
    assert rig.memory.data[2 * BLOCK : 3 * BLOCK] == A


def test_compare_and_write_leaves_the_medium_when_different(rig: Rig) -> None:
    rig.memory.data[2 * BLOCK : 3 * BLOCK] = A
    got = rig.send(caw(2, 1), A[:-1] + b"x" + B)
    assert got.error == (0xE, 0x1D, 0)
    assert int.from_bytes(got.sense[3:7], "big") == BLOCK - 1
    assert rig.memory.data[2 * BLOCK : 3 * BLOCK] == A


def test_compare_and_write_of_255_blocks(rig: Rig) -> None:
    rig.good(caw(0, 255), bytes(255 * BLOCK) + A * 255)
    assert rig.memory.data[: 256 * BLOCK] == A * 255 + bytes(BLOCK)


@pytest.mark.parametrize(("count", "data"), [(0, bytes(256 * 2 * BLOCK)), (2, bytes(2 * BLOCK))])
def test_compare_and_write_whose_count_and_data_disagree_is_refused(rig: Rig, count: int, data: bytes) -> None:
    got = rig.send(caw(0, count), data)
    assert (got.error, got.field) == ((5, 0x24, 0), (13, 7))


def test_orwrite_ors(rig: Rig) -> None:
    rig.memory.data[:BLOCK] = b"\x0f" * BLOCK
    rig.good(cdb16(0x8B, 0, 1), b"\xf1" * BLOCK)
    assert rig.memory.data[: 2 * BLOCK] == b"\xff" * BLOCK + bytes(BLOCK)


def atomic(lba: int, count: int, boundary: int = 0) -> bytes:
    return bytes([0x9C, 0]) + lba.to_bytes(8, "big") + boundary.to_bytes(2, "big") + count.to_bytes(2, "big") + bytes(2)


def test_write_atomic_writes(rig: Rig) -> None:
    rig.good(atomic(1, 2), A + B)
    assert rig.memory.data[BLOCK : 3 * BLOCK] == A + B


@pytest.mark.parametrize(
    ("cdb", "data", "field"),
    [(atomic(0, 2, 1), A + B, (10, 7)), (atomic(0, 2049 - 2), A, (12, 7)), (atomic(0, 2), A, (12, 7))],
)
def test_write_atomic_that_would_not_be_atomic_is_refused(rig: Rig, cdb: bytes, data: bytes, field: Any) -> None:
    got = rig.send(cdb, data)
    assert (got.error, got.field) == ((5, 0x24, 0), field)
    assert not any(rig.memory.data)


# -- capacity, sizes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("block", "physical", "exponent"), [(512, 0, 0), (512, 4096, 3), (4096, 4096, 0)])
def test_read_capacity_tells_block_sizes(block: int, physical: int, exponent: int) -> None:
    rig = make_rig(block_size=block, physical_block_size=physical)
    short = rig.good("25 0 0 0 0 0 0 0 0 0", room=8)
    assert short == ((1 << 20) // block - 1).to_bytes(4, "big") + block.to_bytes(4, "big")
    long = rig.good("9e 10 0 0 0 0 0 0 0 0 0 0 0 20 0 0", room=32)
    assert int.from_bytes(long[:8], "big") == (1 << 20) // block - 1
    assert long[13] == exponent


def test_4096_byte_blocks_are_read_and_written() -> None:
    rig = make_rig(block_size=4096)
    rig.good(cdb10(0x2A, 7, 2), b"q" * 8192)
    assert rig.good(cdb16(0x88, 8, 1), room=4096) == b"q" * 4096
    assert rig.memory.data[7 * 4096 : 9 * 4096] == b"q" * 8192


def test_a_handler_without_write_is_a_read_only_disk() -> None:
    rig = make_rig(Plain())
    assert rig.good(cdb10(0x28, 0, 1), room=BLOCK) == b"r" * BLOCK
    assert rig.send(cdb10(0x2A, 0, 1), A).error == (5, 0x20, 0)
    assert rig.good("1a 0 8 0 ff 0", room=255)[2] & 0x80


def test_a_read_only_device_refuses_writes() -> None:
    rig = make_rig(read_only=True)
    for cdb in (cdb10(0x2A, 0, 1), cdb16(0x8A, 0, 1), caw(0, 1), cdb10(0x41, 0, 1), cdb16(0x8B, 0, 1)):
        assert rig.send(cdb, A + A).error == (7, 0x27, 0)
    assert not any(rig.memory.data)


def test_the_fast_path_answers_as_the_general_one_does(rig: Rig) -> None:
    fast = [rig.send(cdb10(0x28, 3, 2), room=2 * BLOCK), rig.send(cdb16(0x8A, 3, 1), A)]
    rig.engine.trace = True
    slow = [rig.send(cdb10(0x28, 3, 2), room=2 * BLOCK), rig.send(cdb16(0x8A, 3, 1), A)]
    assert [(got.status, got.wanted, got.transferred) for got in fast] == [
        (got.status, got.wanted, got.transferred) for got in slow
    ]


def test_what_a_hook_does_with_its_list_of_buffers_is_its_own_matter() -> None:
    class Eats(Memory):
        @hookimpl
        def write(self, offset: int, buffers: list[memoryview]) -> None:
            while buffers:
                buffers.pop()

    for code in (0x2E, 0x8E):  # nothing is written, and the comparison must tell
        make = cdb10 if code == 0x2E else cdb16
        assert make_rig(Eats()).send(make(code, 3, 1, 0x02), A).error == (0x0E, 0x1D, 0)


@pytest.mark.parametrize(
    ("block", "transfer", "most"), [(512, 0, 255), (4096, 1 << 20, 128), (65536, 0, 128), (4096, 4096, 0)]
)
def test_no_more_is_compared_and_written_than_a_transfer_can_hold(block: int, transfer: int, most: int) -> None:
    rig = make_rig(size=64 << 20, block_size=block, max_transfer_length=transfer)
    assert rig.good("12 1 b0 0 40 0", room=64)[5] == most
    if most:
        rig.good(b"\x89" + bytes(12) + bytes([most, 0, 0]), bytes(2 * most * block))
    if most < 255:
        got = rig.send(b"\x89" + bytes(12) + bytes([most + 1, 0, 0]), bytes(2 * (most + 1) * block))
        assert (got.error, got.field) == ((5, 0x24, 0), (13, 7))
