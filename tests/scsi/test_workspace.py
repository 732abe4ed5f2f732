"""What commands of several steps keep beside their own data: little, however many of them there are."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable

import pytest

from tcmu_core.scsi.limits import CHUNK
from tcmu_core.scsi.workspace import PIECES
from tests.scsi.harness import BLOCK, Memory, Rig, cdb10, cdb16, make_rig
from tests.scsi.test_copy import copy, descriptor, segment

MANY = 100
COUNT = 2 * CHUNK // BLOCK
A = b"a" * BLOCK
Sent = Callable[[Rig, int], tuple[bytes, bytes]]

LONG: dict[str, Sent] = {
    "verify": lambda rig, n: (cdb10(0x2F, 0, COUNT), b""),
    "verify with each": lambda rig, n: (cdb10(0x2F, 0, COUNT, 6), bytes(BLOCK)),
    "write same": lambda rig, n: (cdb16(0x93, 0, COUNT), A),
    "extended copy": lambda rig, n: copy(descriptor(rig, 0), segment(0, 0, 0, COUNT, COUNT), identifier=n),
}


@pytest.mark.parametrize("kind", LONG)
def test_many_long_commands_work_with_few_pieces_and_all_end(kind: str) -> None:
    rig = make_rig(Memory(), size=4 * CHUNK)
    rig.nexus("a")
    rig.memory.hold = True
    tracemalloc.start()
    try:
        ended = [rig.start(*LONG[kind](rig, n))[1] for n in range(MANY)]
        rig.turn()
        assert len(rig.memory.held) == PIECES
        while rig.memory.held:
            assert len(rig.memory.held) <= PIECES
            for _ in range(len(rig.memory.held)):  # at once, as on threads
                rig.memory.release()
            rig.turn()
        _now, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert all(ended)
    assert {one.status for (one,) in ended} == {0}
    assert most < 3 * PIECES * CHUNK
    assert rig.engine.idle


def test_who_works_with_little_does_not_wait_for_those_that_work_with_much() -> None:
    rig = make_rig(Memory(), size=4 * CHUNK)
    rig.nexus("b")
    rig.memory.hold = True
    for n in range(PIECES + 1):
        rig.start(*LONG["verify"](rig, n))
    rig.turn()
    _, ended = rig.start(cdb10(0x2F, 0, 8), who="b")
    rig.memory.release(last=True)
    rig.turn()
    assert [one.status for one in ended] == [0]


def test_copies_which_may_wait_for_another_disk_keep_no_other_command_waiting() -> None:
    rig = make_rig(Memory(), size=4 * CHUNK)
    rig.memory.hold = True
    for n in range(PIECES + 1):
        rig.start(*LONG["extended copy"](rig, n))
    rig.turn()
    assert len(rig.memory.held) == PIECES
    rig.start(*LONG["verify"](rig, 0))
    rig.turn()
    assert len(rig.memory.held) == PIECES + 1
    while rig.memory.held:
        rig.memory.release()
        rig.turn()


@pytest.mark.parametrize("granted", [False, True], ids=["while it waits", "as its turn comes"])
def test_who_is_aborted_takes_no_piece_with_it(granted: bool) -> None:
    rig = make_rig(Memory(), size=4 * CHUNK)
    rig.nexus("b")
    rig.memory.hold = True
    first = [rig.start(*LONG["verify"](rig, n))[1] for n in range(PIECES)]
    rig.turn()
    waiting = [rig.start(*LONG["verify"](rig, n), who="b") for n in range(3)]
    if granted:
        rig.memory.release()
    told: list[str] = []
    rig.engine.abort_task_set(rig.nexus("b").luns[0][1], lambda: told.append("aborted"))
    while rig.memory.held:
        rig.turn()
        if rig.memory.held:
            rig.memory.release()
        rig.turn()
    assert told == ["aborted"]
    assert all(first)
    assert all(command.silent for command, _ in waiting)
    rig.memory.hold = False
    for n in range(2 * PIECES):
        rig.good(*LONG["verify"](rig, n))
    rig.memory.hold = True
    for n in range(2 * PIECES):
        rig.start(*LONG["verify"](rig, n))
    rig.turn()
    assert len(rig.memory.held) == PIECES
    while rig.memory.held:
        rig.memory.release()
        rig.turn()
    assert rig.engine.idle
