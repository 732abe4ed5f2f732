"""EXTENDED COPY between the units of a target, and what is told of it."""

from __future__ import annotations

import pytest

from tests.scsi.harness import BLOCK, Memory, Rig, cdb10, make_rig

A = b"a" * BLOCK


@pytest.fixture
def pair() -> Rig:
    """Two disks of one target; the first holds a pattern."""
    rig = make_rig(Memory(), Memory())
    rig.handlers[0].data[:] = bytes(range(256)) * (len(rig.handlers[0].data) // 256)
    return rig


def descriptor(rig: Rig, lun: int, **changes: int) -> bytes:
    one = bytearray(32)
    one[0], one[4], one[5], one[7] = 0xE4, 1, 3, 16
    one[8:24] = rig.engines[lun].unit.identity.naa
    one[29:32] = (512).to_bytes(3, "big")
    for name, value in changes.items():
        one[int(name[1:])] = value
    return bytes(one)


def segment(source: int, destination: int, lba: int, to: int, count: int, code: int = 2, flags: int = 0) -> bytes:
    head = bytes([code, flags]) + (24).to_bytes(2, "big") + source.to_bytes(2, "big") + destination.to_bytes(2, "big")
    return head + bytes(2) + count.to_bytes(2, "big") + lba.to_bytes(8, "big") + to.to_bytes(8, "big")


def copy(targets: bytes, segments: bytes, *, usage: int = 0, identifier: int = 7) -> tuple[bytes, bytes]:
    data = bytes([identifier, usage << 3]) + len(targets).to_bytes(2, "big") + bytes(4)
    data += len(segments).to_bytes(4, "big") + bytes(4) + targets + segments
    return bytes([0x83]) + bytes(9) + len(data).to_bytes(4, "big") + bytes(2), data


def status(rig: Rig, identifier: int = 7) -> bytes:
    return rig.good(bytes([0x84, 0, identifier]) + bytes(7) + (64).to_bytes(4, "big") + bytes(2), room=64)


def test_copy_to_another_unit(pair: Rig) -> None:
    pair.good(*copy(descriptor(pair, 0) + descriptor(pair, 1), segment(0, 1, 1, 100, 9)))
    assert pair.handlers[1].data[100 * BLOCK : 109 * BLOCK] == pair.handlers[0].data[BLOCK : 10 * BLOCK]
    assert not any(pair.handlers[1].data[109 * BLOCK :])


def test_copy_is_reported_once(pair: Rig) -> None:
    pair.good(*copy(descriptor(pair, 0) + descriptor(pair, 1), segment(0, 1, 0, 0, 2) + segment(0, 1, 8, 8, 1)))
    told = status(pair)
    assert told == (8).to_bytes(4, "big") + bytes([1, 0, 2, 0]) + (3 * BLOCK).to_bytes(4, "big")
    assert pair.send(bytes([0x84, 0, 7]) + bytes(7) + (64).to_bytes(4, "big") + bytes(2), room=64).error == (5, 0x24, 0)


def test_a_copy_under_way_is_reported_as_often_as_one_asks(pair: Rig) -> None:
    pair.handlers[1].hold = True
    segments = segment(0, 1, 0, 0, 2) + segment(0, 1, 8, 8, 1)
    _, ended = pair.start(*copy(descriptor(pair, 0) + descriptor(pair, 1), segments))
    for count, moved in ((0, 0), (1, 2 * BLOCK)):
        for _ in range(2):
            assert status(pair) == (8).to_bytes(4, "big") + bytes([0, 0, count, 0]) + moved.to_bytes(4, "big")
        assert not ended
        pair.handlers[1].release()
        pair.turn()
    assert ended
    assert status(pair)[4:8] == bytes([1, 0, 2, 0])


@pytest.mark.parametrize("to", [1, 500, 3000])
def test_overlapping_copy_within_one_unit_moves_the_old_data(to: int) -> None:
    rig = make_rig(size=4 << 20)
    rig.memory.data[:] = b"".join(number.to_bytes(4, "big") for number in range(1 << 20))
    before = bytes(rig.memory.data)
    rig.good(*copy(descriptor(rig, 0), segment(0, 0, 0, to, 4500)))
    assert rig.memory.data[to * BLOCK : (to + 4500) * BLOCK] == before[: 4500 * BLOCK]


@pytest.mark.parametrize(
    ("targets", "segments", "error"),
    [
        ([(0, {"b0": 0xE0})], [segment(0, 0, 0, 0, 1)], (5, 0x26, 7)),
        ([(0, {"b8": 0x99})], [segment(0, 0, 0, 0, 1)], (0xA, 0x0D, 2)),
        ([(0, {"b1": 0x05})], [segment(0, 0, 0, 0, 1)], (0xA, 0x0D, 3)),
        ([(0, {})], [segment(0, 0, 0, 0, 1, code=0)], (5, 0x26, 9)),
        ([(0, {})], [segment(0, 1, 0, 0, 1)], (0xA, 0x08, 4)),
        ([(0, {})] * 17, [segment(0, 0, 0, 0, 1)], (5, 0x26, 6)),
        ([(0, {})], [segment(0, 0, 0, 0, 1)] * 17, (5, 0x26, 8)),
        ([(0, {})], [segment(0, 0, 2047, 0, 2)], (0xA, 0, 0)),
        ([(0, {})], [segment(0, 0, 0, 1 << 60, 1)], (0xA, 0, 0)),
        ([(0, {})], [segment(0, 0, 0, 5, 1)[:20]], (5, 0x26, 0)),
    ],
)
def test_a_wrong_copy_moves_nothing(
    pair: Rig, targets: list[tuple[int, dict[str, int]]], segments: list[bytes], error: tuple[int, int, int]
) -> None:
    before = bytes(pair.handlers[0].data)
    made = b"".join(descriptor(pair, lun, **changes) for lun, changes in targets)
    assert pair.send(*copy(made, segment(0, 0, 0, 9, 1)[:0] + b"".join(segments))).error == error
    assert pair.handlers[0].data == before


def test_a_reservation_on_the_destination_is_respected(pair: Rig) -> None:
    pair.nexus("b")
    register = bytes(8) + (5).to_bytes(8, "big") + bytes(8)
    pair.good("5f 0 0 0 0 0 0 0 18 0", register, who="b", lun=1)
    pair.good("5f 1 1 0 0 0 0 0 18 0", (5).to_bytes(8, "big") + bytes(16), who="b", lun=1)
    got = pair.send(*copy(descriptor(pair, 0) + descriptor(pair, 1), segment(0, 1, 0, 0, 1)))
    assert got.status == 0x18
    assert not any(pair.handlers[1].data)


@pytest.mark.parametrize(
    ("usage", "identifier", "ok"), [(0, 7, True), (1, 7, False), (2, 7, True), (3, 7, False), (3, 0, True)]
)
def test_list_id_usage(pair: Rig, usage: int, identifier: int, ok: bool) -> None:
    sent = copy(descriptor(pair, 0), segment(0, 0, 0, 9, 1), usage=usage, identifier=identifier)
    assert (pair.send(*sent).status == 0) == ok


def test_operating_parameters_are_the_limits_kept(pair: Rig) -> None:
    data = pair.good("84 3 0 0 0 0 0 0 0 0 0 0 2 0 0 0", room=512)
    assert int.from_bytes(data[:4], "big") == len(data) - 4
    assert (int.from_bytes(data[8:10], "big"), int.from_bytes(data[10:12], "big")) == (16, 16)
    assert data[44:] == bytes([0x02, 0xE4])


def test_a_failing_destination_is_reported_in_the_copy_status(pair: Rig) -> None:
    pair.handlers[1].error = OSError(28, "full")
    sent = copy(descriptor(pair, 0) + descriptor(pair, 1), segment(0, 1, 0, 0, 1))
    assert pair.send(*sent).error == (7, 0x27, 7)
    assert status(pair)[4] == 2
    assert pair.good(cdb10(0x28, 0, 1), room=BLOCK) == bytes(range(256)) * 2


@pytest.mark.parametrize("leaving", [0, 1])
def test_a_unit_that_leaves_during_a_copy_is_told_when_the_copy_has_let_go(pair: Rig, leaving: int) -> None:
    pair.handlers[1].hold = True
    _, ended = pair.start(*copy(descriptor(pair, 0) + descriptor(pair, 1), segment(0, 1, 0, 0, 8)))
    pair.turn()
    assert pair.handlers[1].held
    gone: list[str] = []
    pair.target.remove(leaving, lambda: gone.append("gone"))
    pair.turn()
    assert not gone
    pair.handlers[1].hold = False
    pair.handlers[1].release()
    pair.turn()
    assert gone == ["gone"]
    assert pair.engines[leaving].idle
    assert len(ended) == 1
