"""A unit that is taken away, for good or for a moment: nobody waits for an answer that does not come."""

from __future__ import annotations

import pytest

from tests.scsi.harness import BLOCK, Memory, Rig, cdb10, make_rig

NOWHERE, LUNS_CHANGED, POWER_ON = (5, 0x25, 0), (6, 0x3F, 0x0E), (6, 0x29, 0)
BUSY = 0x08
TEST_UNIT_READY = bytes(6)
A = b"a" * BLOCK


@pytest.fixture
def pair() -> Rig:
    rig = make_rig(Memory(), Memory())
    rig.nexus()
    return rig


@pytest.mark.parametrize("comes_back", [False, True])
def test_what_is_in_flight_ends_and_is_answered(pair: Rig, comes_back: bool) -> None:
    pair.handlers[1].hold = True
    command, ended = pair.start(cdb10(0x2A, 3, 1), A, lun=1)
    gone: list[str] = []
    pair.target.remove(1, lambda: gone.append("gone"), comes_back=comes_back)
    pair.turn()
    assert not gone
    assert not ended
    pair.handlers[1].release()
    pair.turn()
    assert gone == ["gone"]
    assert len(ended) == 1
    assert not command.silent
    assert not command.status
    assert pair.handlers[1].data[3 * BLOCK : 4 * BLOCK] == A


def test_of_one_that_goes_its_initiators_hear_and_it_is_not_there(pair: Rig) -> None:
    pair.target.remove(1, lambda: None)
    assert pair.send(TEST_UNIT_READY, lun=1).error == NOWHERE
    assert pair.send(TEST_UNIT_READY).error == LUNS_CHANGED
    assert pair.send(TEST_UNIT_READY).status == 0


def test_one_that_comes_back_is_busy_meanwhile_and_others_hear_nothing(pair: Rig) -> None:
    engine = pair.target.remove(1, lambda: None, comes_back=True)
    assert pair.send(TEST_UNIT_READY, lun=1).status == BUSY
    assert pair.send(cdb10(0x2A, 3, 1), A, lun=1).status == BUSY
    assert pair.send("12 0 0 0 24 0", room=36, lun=1).status == BUSY
    assert pair.send("a0 0 0 0 0 0 0 0 0 20 0 0", room=32, lun=1).data[:4] == (16).to_bytes(4, "big")
    pair.target.add(1, engine)
    assert pair.send(TEST_UNIT_READY, lun=1).error == POWER_ON
    assert pair.send(TEST_UNIT_READY, lun=1).status == 0
    assert pair.send(TEST_UNIT_READY).status == 0


def test_another_disk_in_its_place_is_told(pair: Rig) -> None:
    engine = pair.target.remove(1, lambda: None, comes_back=True)
    engine.device.serial = "another"
    pair.target.add(1, engine)
    assert pair.send(TEST_UNIT_READY).error == LUNS_CHANGED


def test_one_that_does_not_come_back_after_all_is_told(pair: Rig) -> None:
    pair.target.remove(1, lambda: None, comes_back=True)
    assert pair.send(TEST_UNIT_READY).status == 0
    pair.target.give_up(1)
    assert pair.send(TEST_UNIT_READY, lun=1).error == NOWHERE
    assert pair.send(TEST_UNIT_READY).error == LUNS_CHANGED
    pair.target.give_up(1)
    assert pair.send(TEST_UNIT_READY).status == 0
