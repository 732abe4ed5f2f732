"""What may run beside what, when a command counts as ended, and that nobody waits for ever (scsi/taskset.py)."""

from __future__ import annotations

import errno
import itertools

import pytest

from tcmu_core.scsi.command import Status
from tests.scsi.harness import BLOCK, Memory, Rig, cdb10, cdb16, make_rig
from tests.scsi.test_copy import copy, descriptor, segment

A, B = b"a" * BLOCK, b"b" * BLOCK
SIMPLE, ORDERED, HEAD_OF_QUEUE = 1, 2, 3
COMPARE_AND_WRITE = bytes([0x89]) + bytes(12) + bytes([1, 0, 0])
WRITE_ATOMIC = bytes([0x9C]) + bytes(12) + bytes([1, 0, 0])
ERASE = "48 02 0 0 0 0 0 0 0 0"
FORMAT = "4 0 0 0 0 0"


@pytest.fixture
def slow(rig: Rig) -> Rig:
    """A disk whose hooks return Futures until they are released, and two initiators."""
    rig.nexus("a")
    rig.nexus("b")
    rig.memory.hold = True
    return rig


def finish(rig: Rig) -> None:
    """Let every hook end, and what follows from that."""
    rig.turn()
    while any(handler.held for handler in rig.handlers):
        for handler in rig.handlers:
            if handler.held:
                handler.release()
        rig.turn()


# -- nothing that was ended writes later -------------------------------------------------------------------------------

ENDS = {
    "nexus loss": lambda rig: rig.target.disconnect(rig.nexuses.pop("a")),
    "logical unit reset": lambda rig: rig.engine.reset(rig.nexus("b").luns[0][1], lambda: None),
    "clear task set": lambda rig: rig.engine.clear_task_set(rig.nexus("b").luns[0][1], lambda: None),
    "abort task set": lambda rig: rig.engine.abort_task_set(rig.nexus("a").luns[0][1], lambda: None),
}
LATE = {
    "write": (cdb10(0x2A, 0, 1), A),
    "write with FUA": (cdb10(0x2A, 0, 1, 8), A),
    "write same": (cdb16(0x93, 0, 1), A),
    "unmap": ("42 0 0 0 0 0 0 0 18 0", bytes([0, 22, 0, 16]) + bytes(4) + bytes(11) + b"\1" + bytes(4)),
    "compare and write": (COMPARE_AND_WRITE, bytes(BLOCK) + A),
}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("late", LATE)
def test_what_was_ended_never_lands_on_what_came_after(slow: Rig, end: str, late: str) -> None:
    slow.start(*LATE[late])
    held = len(slow.memory.held)
    ENDS[end](slow)
    slow.nexus("b").luns[0][1].attentions.clear()
    _, newer = slow.start(cdb10(0x2A, 0, 1), B, who="b")
    slow.turn()
    assert not newer
    assert len(slow.memory.held) == held  # the newer write waits, it is not even begun
    finish(slow)
    assert newer[0].status == Status.GOOD
    assert slow.memory.data[:BLOCK] == B


def test_a_command_that_overlaps_nothing_does_not_wait_for_what_was_ended(slow: Rig) -> None:
    slow.start(cdb10(0x2A, 0, 1), A)
    slow.target.disconnect(slow.nexuses.pop("a"))
    slow.memory.hold = False
    slow.good(cdb10(0x2A, 1, 1), B, who="b")


def test_a_read_that_was_ended_keeps_nobody_off(slow: Rig) -> None:
    slow.start(cdb10(0x28, 0, 1), room=BLOCK)
    slow.target.disconnect(slow.nexuses.pop("a"))
    slow.memory.hold = False
    slow.good(cdb10(0x2A, 0, 1), B, who="b")


def test_the_unit_is_fast_again_when_what_was_ended_has_ended(slow: Rig) -> None:
    slow.start(cdb10(0x2A, 0, 1), A)
    slow.target.disconnect(slow.nexuses.pop("a"))
    assert not slow.engine.fast
    finish(slow)
    assert slow.engine.fast
    assert slow.engine.idle


def test_a_lost_nexus_tells_when_its_last_command_has_ended(slow: Rig) -> None:
    told: list[str] = []
    slow.start(cdb10(0x2A, 0, 1), A)
    slow.target.disconnect(slow.nexuses.pop("a"), lambda: told.append("ended"))
    assert not told
    finish(slow)
    assert told == ["ended"]


# -- nobody waits for ever ---------------------------------------------------------------------------------------------

SHAPES = {
    "write": (cdb10(0x2A, 0, 1), A),
    "read": (cdb10(0x28, 0, 1), b""),
    "compare and write": (COMPARE_AND_WRITE, bytes(BLOCK) + A),
    "orwrite": (cdb16(0x8B, 0, 1), A),
    "write atomic": (WRITE_ATOMIC, A),
    "part of a block": (cdb10(0x2A, 0, 1), b"x"),
    "sanitize": (ERASE, b""),
    "format": (FORMAT, b""),
    "reserve out": ("5f 0 0 0 0 0 0 0 18 0", bytes(24)),
}
KINDS = [(shape, attribute) for shape in SHAPES for attribute in (SIMPLE, ORDERED, HEAD_OF_QUEUE)]


@pytest.mark.parametrize("middle", KINDS, ids=lambda kind: f"{kind[0]}-{kind[1]}")
def test_no_three_commands_deadlock(middle: tuple[str, int]) -> None:
    rig = make_rig(size=BLOCK)
    nexuses = [rig.nexus(who).luns[0][1] for who in "abc"]
    rig.memory.hold = True
    for first, last in itertools.product(KINDS, KINDS):
        for nexus in nexuses:
            nexus.attentions.clear()
        sent = [
            rig.start(*SHAPES[shape], room=BLOCK, who=who, attribute=attribute)[1]
            for who, (shape, attribute) in zip("abc", (first, middle, last), strict=True)
        ]
        finish(rig)
        assert all(sent), f"{first}, {middle}, {last}: not all of them have ended"
        assert rig.engine.idle
        assert rig.engine.fast


def test_ordered_copies_between_two_units_both_ways_end() -> None:
    rig = make_rig(Memory(), Memory())
    rig.nexus("a")
    rig.nexus("b")
    for handler in rig.handlers:
        handler.hold = True
    both = descriptor(rig, 0) + descriptor(rig, 1)
    there = rig.start(*copy(both, segment(0, 1, 0, 0, 4)), who="a", lun=0, attribute=ORDERED)[1]
    back = rig.start(*copy(both, segment(1, 0, 0, 0, 4)), who="b", lun=1, attribute=ORDERED)[1]
    for lun in (0, 1):
        rig.start(cdb10(0x2A, 0, 1), A, who="b", lun=lun, attribute=ORDERED)
    finish(rig)
    assert there
    assert back
    assert all(engine.idle for engine in rig.engines)


def test_an_ordered_command_is_not_overtaken_by_what_came_later(slow: Rig) -> None:
    _, ordered = slow.start(cdb10(0x2A, 0, 1), A, attribute=ORDERED)
    _, later = slow.start(cdb10(0x2A, 9, 1), B)
    assert len(slow.memory.held) == 1
    finish(slow)
    assert ordered
    assert later


@pytest.mark.parametrize(("first", "second"), [(SIMPLE, ORDERED), (ORDERED, SIMPLE)])
def test_a_flush_keeps_its_place_beside_an_ordered_command(slow: Rig, first: int, second: int) -> None:
    slow.start(cdb10(0x2A, 0, 1), A, attribute=first)
    _, flush = slow.start(cdb10(0x35, 0, 0), attribute=second)
    assert len(slow.memory.held) == 1
    assert not slow.memory.flushed
    finish(slow)
    assert flush
    assert slow.memory.flushed


def test_a_flush_does_not_wait_for_a_command_that_has_its_blocks_alone(slow: Rig) -> None:
    slow.start(COMPARE_AND_WRITE, bytes(BLOCK) + A)
    slow.start(cdb10(0x35, 0, 0))
    assert len(slow.memory.held) == 2


@pytest.mark.parametrize("cdb", ["1b 0 0 0 0 0", "1b 0 0 0 2 0"])
def test_the_medium_goes_when_what_came_before_has_ended_and_is_stable(cdb: str) -> None:
    rig = make_rig(removable=True)
    rig.nexus("b")
    rig.memory.hold = True
    _, written = rig.start(cdb10(0x2A, 0, 1), A)
    stop, stopped = rig.start(cdb, who="b")
    rig.turn()
    assert (len(rig.memory.held), stopped) == (1, [])
    rig.memory.release()
    rig.turn()
    assert (len(rig.memory.held), stopped) == (1, [])  # the flush
    finish(rig)
    assert (len(written), stop.status) == (1, Status.GOOD)


def test_no_write_is_good_without_a_flush_when_the_write_cache_was_switched_off(slow: Rig) -> None:
    _, written = slow.start(cdb10(0x2A, 0, 1), A)
    data = bytes(4) + bytes([0x08, 0x12, 0]) + bytes(17)
    select, selected = slow.start("15 10 0 0 18 0", data, who="b")
    slow.turn()
    assert selected == []
    slow.memory.release()
    slow.turn()
    assert (len(written), selected) == (1, [])
    finish(slow)
    assert select.status == Status.GOOD
    slow.memory.hold = False
    slow.nexus("a").luns[0][1].attentions.clear()
    before = slow.memory.flushed
    slow.good(cdb10(0x2A, 0, 1), A)
    slow.good(*LATE["unmap"])
    assert slow.memory.flushed == before + 2


def test_the_write_cache_stays_when_what_it_holds_can_not_be_flushed() -> None:
    rig = make_rig()
    rig.good(cdb10(0x2A, 0, 1), A)
    select = ("15 10 0 0 18 0", bytes(4) + bytes([0x08, 0x12, 0]) + bytes(17))
    rig.memory.error = OSError(errno.EIO, "the disk is ill")
    assert rig.send(*select).status == Status.CHECK_CONDITION
    rig.memory.error = None
    assert rig.send("1a 8 8 0 ff 0", room=255).data[6] & 0x04, "WCE"
    rig.good(*select)
    assert rig.memory.flushed == 1
    assert not rig.send("1a 8 8 0 ff 0", room=255).data[6] & 0x04
    rig.good(*select)  # a process before may have left something volatile
    assert rig.memory.flushed == 2


def test_who_asks_for_the_medium_to_stay_while_it_is_flushed_keeps_it() -> None:
    rig = make_rig(removable=True)
    rig.nexus("b")
    rig.memory.hold = True
    eject, ended = rig.start("1b 0 0 0 2 0")
    rig.turn()
    rig.good("1e 0 0 0 1 0", who="b")
    finish(rig)
    assert (len(ended), eject.status) == (1, Status.CHECK_CONDITION)
    rig.good("0 0 0 0 0 0", who="b")


def test_nothing_is_sanitized_without_a_medium() -> None:
    rig = make_rig(removable=True)
    rig.good("1b 0 0 0 2 0")
    assert rig.send(ERASE).error == (2, 0x3A, 0)
    rig.good("1b 0 0 0 3 0")
    rig.good("1b 0 0 0 0 0")
    assert rig.send(ERASE).error == (2, 4, 2)


def test_head_of_queue_does_not_wait_for_those_who_wait(slow: Rig) -> None:
    slow.start(cdb10(0x2A, 0, 1), A)
    slow.start(cdb10(0x2A, 9, 1), A, attribute=ORDERED)
    _, head = slow.start(cdb10(0x28, 30, 1), room=BLOCK, attribute=HEAD_OF_QUEUE)
    assert len(slow.memory.held) == 2
    slow.memory.release(last=True)
    slow.turn()
    assert head


# -- a copy is a command on each unit that it touches ------------------------------------------------------------------


@pytest.fixture
def pair() -> Rig:
    rig = make_rig(Memory(), Memory())
    rig.handlers[0].data[:] = b"s" * len(rig.handlers[0].data)
    rig.nexus("a")
    rig.nexus("b")
    return rig


def copying(rig: Rig) -> list[object]:
    """Start a copy of four blocks from LUN 0 to LUN 1 whose hooks wait."""
    for handler in rig.handlers:
        handler.hold = True
    return rig.start(*copy(descriptor(rig, 0) + descriptor(rig, 1), segment(0, 1, 0, 0, 4)))[1]


def test_sanitize_of_the_destination_waits_for_the_copy(pair: Rig) -> None:
    copied = copying(pair)
    _, erased = pair.start(ERASE, who="b", lun=1)
    finish(pair)
    assert copied
    assert erased
    assert not any(pair.handlers[1].data)


def test_compare_and_write_on_the_destination_is_atomic_beside_a_copy(pair: Rig) -> None:
    copied = copying(pair)
    _, compared = pair.start(COMPARE_AND_WRITE, bytes(BLOCK) + A, who="b", lun=1)
    finish(pair)
    assert copied
    assert compared[0].status == Status.CHECK_CONDITION  # it found what the copy had written
    assert pair.handlers[1].data[:BLOCK] == b"s" * BLOCK


def test_a_reset_of_the_destination_ends_the_copy_between_two_chunks(pair: Rig) -> None:
    copied = copying(pair)
    told: list[str] = []
    pair.engines[1].reset(pair.nexus("b").luns[1][1], lambda: told.append("reset"))
    finish(pair)
    assert copied[0].status == Status.CHECK_CONDITION  # type: ignore[attr-defined]
    assert told == ["reset"]
    assert not any(pair.handlers[1].data)


# -- TAS (SPC-4 7.5.8, SAM-5 5.7) --------------------------------------------------------------------------------------


@pytest.mark.parametrize("tas", [False, True])
@pytest.mark.parametrize("end", ["logical unit reset", "clear task set"])
def test_who_is_aborted_by_another_nexus_is_told_if_tas_is_set(slow: Rig, end: str, tas: bool) -> None:
    slow.memory.hold = False
    if tas:
        slow.good("15 10 0 0 10 0", bytes(4) + bytes.fromhex("0a 0a 02 10 00 40 00 00 ff ff 00 00"), who="b")
        slow.nexus("a").luns[0][1].attentions.clear()
    slow.memory.hold = True
    mine, ended = slow.start(cdb10(0x2A, 0, 1), A)
    ENDS[end](slow)
    finish(slow)
    assert ended == [mine]
    assert mine.silent is not tas
    assert mine.status == (Status.TASK_ABORTED if tas else Status.GOOD)


def test_who_aborts_its_own_gets_no_status_even_with_tas(slow: Rig) -> None:
    slow.memory.hold = False
    slow.good("15 10 0 0 10 0", bytes(4) + bytes.fromhex("0a 0a 02 10 00 40 00 00 ff ff 00 00"))
    slow.memory.hold = True
    mine, ended = slow.start(cdb10(0x2A, 0, 1), A)
    slow.engine.abort_task_set(slow.nexus("a").luns[0][1], lambda: None)
    finish(slow)
    assert ended == [mine]
    assert mine.silent


def test_an_ordered_command_that_was_aborted_keeps_others_off_its_own_blocks_alone(slow: Rig) -> None:
    ordered, _ = slow.start(cdb10(0x2A, 0, 1), A, attribute=ORDERED)
    _, elsewhere = slow.start(cdb10(0x2A, 9, 1), B, who="b")
    _, same = slow.start(cdb10(0x2A, 0, 1), B, who="b")
    slow.engine.abort(ordered, lambda: None)
    slow.turn()
    assert len(slow.memory.held) == 2  # the one that was aborted, and the one beside it
    slow.memory.release(last=True)
    slow.turn()
    assert elsewhere
    assert not same
    finish(slow)
    assert slow.memory.data[:BLOCK] == B
