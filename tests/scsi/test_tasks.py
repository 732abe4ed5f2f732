"""Commands that take their time: Futures, order, atomicity, aborts, resets."""

from __future__ import annotations

import pytest

from tcmu_core.scsi.command import Command, Status
from tests.scsi.harness import BLOCK, Rig, cdb10, make_rig

A, B = b"a" * BLOCK, b"b" * BLOCK
ORDERED = 2


@pytest.fixture
def slow(rig: Rig) -> Rig:
    """A disk whose hooks return Futures until they are released."""
    rig.nexus("a")
    rig.nexus("b")
    rig.memory.hold = True
    return rig


def caw(lba: int) -> bytes:
    return bytes([0x89, 0]) + lba.to_bytes(8, "big") + bytes([0, 0, 0, 1, 0, 0])


def release(rig: Rig, *, last: bool = False) -> None:
    rig.memory.release(last=last)
    rig.turn()


def test_a_command_ends_when_its_future_does(slow: Rig) -> None:
    command, ended = slow.start(cdb10(0x2A, 0, 1), A)
    assert not ended
    assert not slow.engine.idle
    release(slow)
    assert ended == [command]
    assert (command.status, slow.engine.idle) == (0, True)
    assert slow.memory.data[:BLOCK] == A


def test_commands_end_in_the_order_of_their_futures(slow: Rig) -> None:
    first, ended_first = slow.start(cdb10(0x28, 0, 1), room=BLOCK)
    second, ended_second = slow.start(cdb10(0x28, 1, 1), room=BLOCK)
    release(slow, last=True)
    assert (ended_first, ended_second) == ([], [second])
    release(slow)
    assert ended_first == [first]


def test_a_future_that_fails_fails_the_command(slow: Rig) -> None:
    command, ended = slow.start(cdb10(0x28, 0, 1), room=BLOCK)
    future, _ = slow.memory.held.popleft()
    future.set_exception(OSError(28, "no space"))
    slow.turn()
    assert ended == [command]
    assert (command.sense[2] & 15, command.sense[12], command.sense[13]) == (7, 0x27, 7)


def test_a_compare_and_write_keeps_others_off_its_blocks_and_only_its_blocks(slow: Rig) -> None:
    _, caw_ended = slow.start(caw(5), bytes(BLOCK) + A)
    _, same_ended = slow.start(cdb10(0x2A, 5, 1), B, who="b")
    _, other_ended = slow.start(cdb10(0x2A, 6, 1), B, who="b")
    assert len(slow.memory.held) == 2  # the compare's read, and the write beside it
    release(slow, last=True)
    assert other_ended
    release(slow)  # the compare
    release(slow)  # the write
    assert caw_ended
    assert not same_ended
    release(slow)
    assert same_ended
    assert slow.memory.data[5 * BLOCK : 6 * BLOCK] == B


def test_a_compare_and_write_waits_for_what_is_in_flight_on_its_blocks(slow: Rig) -> None:
    slow.start(cdb10(0x2A, 5, 1), A, who="b")
    _, ended = slow.start(caw(5), A + B)
    assert len(slow.memory.held) == 1
    for _ in range(3):
        release(slow)
    assert ended
    assert slow.memory.data[5 * BLOCK : 6 * BLOCK] == B


def test_two_compare_and_writes_of_one_block_have_one_winner(slow: Rig) -> None:
    _, first = slow.start(caw(0), bytes(BLOCK) + A)
    _, second = slow.start(caw(0), bytes(BLOCK) + B, who="b")
    while slow.memory.held:
        release(slow)
    assert (first[0].status, second[0].status) == (Status.GOOD, Status.CHECK_CONDITION)
    assert slow.memory.data[:BLOCK] == A


def test_an_ordered_command_waits_for_the_earlier_and_holds_the_later(slow: Rig) -> None:
    _, before = slow.start(cdb10(0x2A, 0, 1), A)
    _, ordered = slow.start(cdb10(0x2A, 9, 1), A, attribute=ORDERED)
    _, after = slow.start(cdb10(0x2A, 20, 1), A)
    assert len(slow.memory.held) == 1
    release(slow)
    assert (bool(before), bool(ordered), bool(after)) == (True, False, False)
    assert len(slow.memory.held) == 1
    release(slow)
    assert (bool(ordered), bool(after)) == (True, False)
    release(slow)
    assert after


@pytest.mark.parametrize("attribute", [4, 5, 7], ids=["ACA", "reserved", "reserved too"])
@pytest.mark.parametrize("cdb", [cdb10(0x2A, 0, 1), "12 0 0 0 24 0", "0 0 0 0 0 0"])
def test_a_task_attribute_that_there_is_not_is_refused(rig: Rig, cdb: str | bytes, attribute: int) -> None:
    assert rig.send(cdb, A, attribute=attribute).error == (5, 0x49, 0)
    assert not any(rig.memory.data)


def test_a_status_other_than_good_comes_back_after_a_wait_too(slow: Rig) -> None:
    slow.start(cdb10(0x2A, 0, 1), A)
    fetch, ended = slow.start(cdb10(0x34, 0, 1), attribute=ORDERED)
    assert not ended
    release(slow)
    assert ended == [fetch]
    assert fetch.status == Status.CONDITION_MET


def test_the_unit_is_fast_again_after_contention(slow: Rig) -> None:
    slow.start(caw(0), bytes(BLOCK) + A)
    while slow.memory.held:
        release(slow)
    assert slow.engine.fast is slow.engine._all_fast


# -- task management ---------------------------------------------------------------------------------------------------


def test_an_aborted_command_ends_after_its_hook_and_the_abort_after_that(slow: Rig) -> None:
    command, ended = slow.start(cdb10(0x28, 0, 1), room=BLOCK)
    told: list[str] = []
    slow.engine.abort(command, lambda: told.append("aborted"))
    slow.turn()
    assert (ended, told) == ([], [])  # the handler still owns the buffers
    release(slow)
    assert (ended, command.aborted, told) == ([command], True, ["aborted"])


def test_an_aborted_command_that_waits_for_its_turn_ends_at_once(slow: Rig) -> None:
    slow.start(caw(0), bytes(BLOCK) + A)
    waiting, ended = slow.start(cdb10(0x2A, 0, 1), B)
    slow.engine.abort(waiting, lambda: None)
    slow.turn()
    assert ended == [waiting]
    while slow.memory.held:
        release(slow)
    assert slow.memory.data[:BLOCK] == A


def test_an_aborted_command_of_several_steps_stops_between_them(slow: Rig) -> None:
    command, ended = slow.start(caw(0), bytes(BLOCK) + A)
    slow.engine.abort(command, lambda: None)
    release(slow)  # the compare; the write never starts
    assert ended == [command]
    assert not slow.memory.held
    assert not any(slow.memory.data)


def test_abort_task_set_is_the_nexus_own(slow: Rig) -> None:
    mine, _ = slow.start(cdb10(0x28, 0, 1), room=BLOCK)
    other, _ = slow.start(cdb10(0x28, 1, 1), room=BLOCK, who="b")
    slow.engine.abort_task_set(slow.nexus("a").luns[0][1], lambda: None)
    assert (mine.aborted, other.aborted) == (True, False)
    release(slow)
    release(slow)


def test_clear_task_set_aborts_all_and_the_others_hear_of_it(slow: Rig) -> None:
    slow.start(cdb10(0x28, 0, 1), room=BLOCK)
    other, _ = slow.start(cdb10(0x28, 1, 1), room=BLOCK, who="b")
    told: list[int] = []
    slow.engine.clear_task_set(slow.nexus("a").luns[0][1], lambda: told.append(1))
    assert other.aborted
    release(slow)
    assert not told
    release(slow)
    assert told == [1]
    slow.memory.hold = False
    assert slow.send("0 0 0 0 0 0", who="b").error == (6, 0x2F, 0)
    slow.good("0 0 0 0 0 0")


def test_logical_unit_reset_aborts_all_and_every_nexus_hears_of_it(slow: Rig) -> None:
    command, _ = slow.start(cdb10(0x28, 0, 1), room=BLOCK)
    told: list[int] = []
    slow.engine.reset(slow.nexus("a").luns[0][1], lambda: told.append(1))
    release(slow)
    assert (command.aborted, told) == (True, [1])
    slow.memory.hold = False
    for who in "ab":
        assert slow.send("0 0 0 0 0 0", who=who).error == (6, 0x29, 3)
        slow.good("0 0 0 0 0 0", who=who)


def test_a_lost_nexus_takes_its_commands_with_it(slow: Rig) -> None:
    command, _ = slow.start(cdb10(0x28, 0, 1), room=BLOCK)
    slow.target.disconnect(slow.nexuses.pop("a"))
    assert command.aborted
    release(slow)
    assert slow.engine.idle


def test_target_reset_resets_every_unit() -> None:
    rig = make_rig(*[type(make_rig().memory)() for _ in range(2)])
    rig.nexus()
    told: list[int] = []
    rig.target.reset(rig.nexus(), lambda: told.append(1))
    assert told == [1]
    assert [rig.send("0 0 0 0 0 0", lun=lun).error for lun in (0, 1)] == [(6, 0x29, 3)] * 2


def test_threads_move_the_hooks_to_a_pool() -> None:
    rig = make_rig(threads=2)
    command: Command
    command, ended = rig.start(cdb10(0x2A, 0, 1), A)
    rig.unit.device.shutdown()
    rig.turn()
    assert (ended, command.status) == ([command], 0)
    assert rig.memory.data[:BLOCK] == A
