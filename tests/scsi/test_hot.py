"""The hot path as a transport takes it that makes no Command: what it ends, what it leaves, what is proceeded with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tcmu_core.scsi.command import Command, Status
from tcmu_core.scsi.hot import PASS
from tests.scsi.harness import BLOCK, Answer, Rig, answer, cdb10

BLOCKS = (1 << 20) // BLOCK


def cdb16(code: int, lba: int, count: int, flags: int = 0) -> bytes:
    return bytes([code, flags]) + lba.to_bytes(8, "big") + count.to_bytes(4, "big") + bytes(2)


def take(rig: Rig, cdb: bytes, buffer: bytearray, at: int = 0) -> Any:
    """Hand a CDB to its fast path, out of memory that has something else before and after it."""
    memory = b"\xff" * at + cdb + b"\xff" * 16
    return rig.engine.fast[cdb[0]](memory, at, len(buffer), [memoryview(buffer)])


def proceed(rig: Rig, cdb: bytes, buffer: bytearray, result: Any) -> Answer:
    """Have the unit go on with a command, and run the loop until that has ended."""
    ended: list[Command] = []
    nexus = rig.nexus().luns[0][1]
    command = Command(cdb, [memoryview(buffer)], len(buffer), nexus, ended.append)
    if rig.engine.proceed(command, result):
        ended.append(command)
    while rig.memory.held:
        rig.memory.release()
    rig.turn()
    assert ended == [command]
    return answer(command)


@pytest.mark.parametrize(("read", "write", "cdb"), [(0x28, 0x2A, cdb10), (0x88, 0x8A, cdb16)])
def test_reads_and_writes_of_10_and_16_bytes(
    rig: Rig, read: int, write: int, cdb: Callable[[int, int, int], bytes]
) -> None:
    data = bytearray(b"ab" * BLOCK)
    assert take(rig, cdb(write, 3, 2), data, at=7) is None
    assert rig.memory.data[3 * BLOCK : 5 * BLOCK] == data
    back = bytearray(BLOCK)
    assert take(rig, cdb(read, 4, 1), back, at=1) is None
    assert back == data[BLOCK:]


@pytest.mark.parametrize(
    "cdb",
    [
        cdb10(0x2A, 0, 1, flags=0x08),  # FUA
        cdb10(0x2A, 0, 2),  # more than there is in the buffers
        cdb10(0x2A, 0, 0),
        cdb10(0x2A, BLOCKS, 1),
        cdb10(0x2A, 0, 1)[:6] + b"\x01\0\x01\0",  # a group number
        cdb10(0x2A, 0, 1)[:9] + b"\x04",  # NACA
        cdb16(0x8A, 1 << 63, 1),
    ],
)
def test_what_is_out_of_the_ordinary_is_left(rig: Rig, cdb: bytes) -> None:
    assert take(rig, cdb, bytearray(b"x" * BLOCK)) is PASS
    assert not any(rig.memory.data)


def test_a_closed_gate_leaves_no_fast_path(rig: Rig) -> None:
    rig.engine.trace = True
    assert not rig.engine.fast
    rig.engine.trace = False
    assert set(rig.engine.fast) == {0x28, 0x2A, 0x88, 0x8A}


def test_a_write_protected_unit_has_no_fast_write(rig: Rig) -> None:
    rig.unit.device.read_only = True
    rig.engine.refresh()
    assert set(rig.engine.fast) == {0x28, 0x88}


def test_what_was_left_is_executed(rig: Rig) -> None:
    cdb = cdb10(0x2A, 0, 1, flags=0x08)
    assert proceed(rig, cdb, bytearray(b"x" * BLOCK), PASS).status == Status.GOOD
    assert (bytes(rig.memory.data[:2]), rig.memory.flushed) == (b"xx", 1)


def test_a_future_is_followed(rig: Rig) -> None:
    rig.nexus()
    rig.memory.hold = True
    cdb, buffer = cdb10(0x2A, 5, 1), bytearray(b"f" * BLOCK)
    got = proceed(rig, cdb, buffer, take(rig, cdb, buffer))
    assert (got.status, got.transferred, got.wanted) == (Status.GOOD, BLOCK, BLOCK)
    assert rig.memory.data[5 * BLOCK : 6 * BLOCK] == buffer
    assert rig.engine.idle


@pytest.mark.parametrize(
    ("result", "error"),
    [
        (OSError(28, "no space"), (7, 0x27, 0x07)),
        (RuntimeError("nobody expects this"), (4, 0x44, 0x00)),
        ("no future", (4, 0x44, 0x00)),
    ],
)
def test_errors_and_nonsense_become_sense(rig: Rig, result: Any, error: tuple[int, int, int]) -> None:
    got = proceed(rig, cdb10(0x2A, 0, 1), bytearray(BLOCK), result)
    assert (got.status, got.error, got.transferred) == (Status.CHECK_CONDITION, error, 0)
