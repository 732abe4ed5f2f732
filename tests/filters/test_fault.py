"""The fault disk does what its rules say, and the same each time."""

from __future__ import annotations

import contextlib
import os
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from tcmu_core.errors import Busy, CommandError, ConfigError, MediumNotPresent, ReadError, WriteError
from tcmu_core.filters.fault import Fault
from tcmu_core.filters.rules import Event, parse_rule
from tcmu_core.scsi.command import Status
from tests.filters.conftest import HandClock, given, rig_upon, upon
from tests.scsi.harness import Memory, Rig, cdb10

READ, WRITE, SYNC = 0x28, 0x2A, 0x35


def fault(*rules: str, clock: HandClock | None = None, **options: Any) -> Fault:
    made = Fault(clock or HandClock())
    given(made, rule="\n".join(rules), **options)
    return made


def outcomes(disk: Any, count: int = 60) -> list[bool]:
    """Read so many times; return which reads failed."""
    found = []
    for _ in range(count):
        try:
            disk.read(0, 512)
            found.append(False)
        except CommandError:
            found.append(True)
    return found


# -- conditions -------------------------------------------------------------------------------------------------------


def test_a_hooks_rule_is_for_that_hook_alone() -> None:
    with upon(fault("write -> write-error")) as disk:
        with pytest.raises(WriteError):
            disk.write(0, bytes(512))
        assert disk.read(0, 512) == bytes(512)
        disk.flush()


def test_without_a_hook_or_with_any_it_is_for_all() -> None:
    for text in ("-> busy", "any -> busy"):
        with upon(fault(text)) as disk:
            for call in (disk.flush, lambda: disk.read(0, 512), lambda: disk.write(0, bytes(512))):
                with pytest.raises(Busy):
                    call()


@pytest.mark.parametrize(
    ("lba", "count", "fails"), [(9, 1, False), (10, 1, True), (0, 11, True), (12, 5, True), (13, 5, False)]
)
def test_an_lba_range_is_blocks_that_are_touched(lba: int, count: int, fails: bool) -> None:
    with upon(fault("read lba=10-12 -> read-error")) as disk:
        if fails:
            with pytest.raises(ReadError):
                disk.read(lba * 512, count * 512)
        else:
            disk.read(lba * 512, count * 512)


def test_the_block_size_of_the_disk_counts() -> None:
    with upon(fault("read lba=1 -> read-error"), block_size=4096) as disk:
        disk.read(0, 4096)
        with pytest.raises(ReadError):
            disk.read(4096, 4096)


COUNTS = {
    "nth=3": [2],
    "every=4": [3, 7, 11],
    "after=9": [9, 10, 11],
    "times=2": [0, 1],
    "every=2 times=3": [1, 3, 5],
    "after=4 every=3": [5, 8, 11],
}


@pytest.mark.parametrize("words", COUNTS)
def test_counting(words: str) -> None:
    with upon(fault(f"read {words} -> read-error")) as disk:
        assert [at for at, failed in enumerate(outcomes(disk, 12)) if failed] == COUNTS[words]


def test_the_same_seed_and_commands_give_the_same_faults() -> None:
    runs = []
    for seed in (7, 7, 8):
        with upon(fault("read probability=0.3 -> read-error", seed=seed)) as disk:
            runs.append(outcomes(disk))
    assert runs[0] == runs[1] != runs[2]
    assert 5 < sum(runs[0]) < 30


def test_one_rules_chance_is_not_changed_by_another_rule() -> None:
    runs = []
    for more in ([], ["write probability=0.5 -> write-error"]):
        with upon(fault("read probability=0.3 -> read-error", *more)) as disk:
            for _ in range(100 * len(more)):
                with contextlib.suppress(WriteError):
                    disk.write(0, bytes(512))
            runs.append(outcomes(disk))
    assert runs[0] == runs[1]


def test_a_rule_holds_while_a_file_exists(tmp_path: Path) -> None:
    switch = tmp_path / "broken"
    with upon(fault(f"read while={switch} -> read-error")) as disk:
        disk.read(0, 512)
        switch.touch()
        with pytest.raises(ReadError):
            disk.read(0, 512)
        switch.unlink()
        disk.read(0, 512)


def test_a_commands_rule_is_for_its_operation_code_and_initiator() -> None:
    rig = rig_upon(fault("op=WRITE_10,0x8a initiator=*b -> busy"))
    rig.good(cdb10(WRITE, 0, 1), bytes(512), who="a")
    rig.good(cdb10(READ, 0, 1), room=512, who="b")
    assert rig.send(cdb10(WRITE, 0, 1), bytes(512), who="b").status == Status.BUSY


def test_a_commands_rule_knows_its_blocks() -> None:
    rig = rig_upon(fault("op=READ_10 lba=5 -> read-error"))
    rig.good(cdb10(READ, 0, 4), room=2048)
    assert rig.send(cdb10(READ, 4, 4), room=2048).error == (3, 0x11, 0)


def test_rules_of_hooks_leave_the_fast_path_open_and_rules_of_commands_close_it() -> None:
    assert READ in rig_upon(fault("write -> busy")).engine.fast
    assert READ not in rig_upon(fault("op=INQUIRY -> busy")).engine.fast


# -- actions ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("action", "status", "error"),
    [
        ("sense=b/47/03", Status.CHECK_CONDITION, (0xB, 0x47, 0x03)),
        ("sense=3/0c/00", Status.CHECK_CONDITION, (3, 0x0C, 0)),
        ("medium-not-present", Status.CHECK_CONDITION, (2, 0x3A, 0)),
        ("hardware-error", Status.CHECK_CONDITION, (4, 0x44, 0)),
        ("space-allocation-failed", Status.CHECK_CONDITION, (7, 0x27, 7)),
        ("busy", Status.BUSY, (0, 0, 0)),
        ("task-set-full", Status.TASK_SET_FULL, (0, 0, 0)),
        ("reservation-conflict", Status.RESERVATION_CONFLICT, (0, 0, 0)),
    ],
)
def test_an_initiator_hears_what_the_rule_says(action: str, status: Status, error: tuple[int, int, int]) -> None:
    rig = rig_upon(fault(f"write -> {action}"))
    got = rig.send(cdb10(WRITE, 0, 1), bytes(512))
    assert (got.status, got.error) == (status, error)


def test_a_write_that_fails_changes_nothing() -> None:
    rig = rig_upon(fault("write -> write-error"))
    rig.send(cdb10(WRITE, 0, 1), b"x" * 512)
    assert not any(rig.memory.data[:512])


def test_a_wait_ends_in_its_time(clock: HandClock) -> None:
    rig = rig_upon(fault("read -> wait=5ms", clock=clock))
    command, ended = rig.start(cdb10(READ, 0, 1), room=512)
    clock.pass_by(0.0049)
    rig.turn()
    assert not ended
    clock.pass_by(0.0002)
    rig.turn()
    assert ended == [command]
    assert command.status == Status.GOOD


def test_what_hangs_is_not_done_until_it_is_released() -> None:
    made = fault("write -> hang")
    rig = rig_upon(made)
    commands = [rig.start(cdb10(WRITE, lba, 1), bytes([lba + 1]) * 512) for lba in range(3)]
    rig.turn()
    assert not any(ended for _, ended in commands)
    assert not any(rig.memory.data[:2048])
    made.clear()
    assert made.release() == 3
    rig.turn()
    assert all(ended == [command] and command.status == Status.GOOD for command, ended in commands)
    assert bytes(rig.memory.data[:1536:512]) == b"\1\2\3"


def test_a_command_that_hangs_can_not_write_after_its_abort_unnoticed() -> None:
    made = fault("write times=1 -> hang")
    rig = rig_upon(made)
    command, ended = rig.start(cdb10(WRITE, 0, 1), b"old!" * 128)
    told: list[str] = []
    rig.engine.abort(command, lambda: told.append("aborted"))
    rig.turn()
    assert not told, "the abort is answered when the hook has returned, not before"
    made.release()
    rig.turn()
    assert told == ["aborted"]
    rig.good(cdb10(WRITE, 0, 1), b"new!" * 128)
    assert bytes(rig.memory.data[:4]) == b"new!"
    assert ended == [command]


def test_a_disk_that_closes_ends_what_hangs() -> None:
    with upon(fault("write -> hang")) as disk:
        pending = disk.disk.operations.write(0, [memoryview(bytearray(512))])
    assert isinstance(pending, Future)
    with pytest.raises(CommandError, match="closed"):
        pending.result(0)


def test_of_a_torn_write_the_first_blocks_arrive() -> None:
    with upon(fault("write times=1 -> torn=2")) as disk:
        disk.write(0, b"n" * 2048, parts=[700, 800])
        assert disk.read(0, 2048) == b"n" * 1024 + bytes(1024)
        disk.write(0, b"m" * 2048)
        assert disk.read(0, 2048) == b"m" * 2048


def test_of_a_write_torn_at_nothing_nothing_arrives() -> None:
    with upon(fault("write -> torn=0")) as disk:
        disk.write(0, b"n" * 2048)
        assert disk.read(0, 2048) == bytes(2048)


def test_a_torn_write_may_be_told() -> None:
    with upon(fault("write -> torn=1 write-error")) as disk:
        with pytest.raises(WriteError):
            disk.write(0, b"n" * 1024)
        assert disk.read(0, 1024) == b"n" * 512 + bytes(512)


@pytest.mark.parametrize(("lba", "shift", "lands"), [(4, "3", 7), (4, "-3", 1), (0, "-3", 0), (2047, "9", 2047)])
def test_a_misdirected_write_lands_elsewhere_on_the_disk(lba: int, shift: str, lands: int) -> None:
    with upon(fault(f"write -> misdirect={shift}")) as disk:
        disk.write(lba * 512, b"m" * 512)
        whole = disk.read(0, disk.size)
        assert whole.find(b"m") == lands * 512
        assert whole.count(b"m") == 512


def test_a_lost_write_is_good_and_gone() -> None:
    rig = rig_upon(fault("write times=1 -> lose"))
    rig.good(cdb10(WRITE, 0, 1), b"l" * 512)
    assert not any(rig.memory.data[:512])


def test_a_flush_that_lies_is_good_and_never_done() -> None:
    rig = rig_upon(fault("flush -> lose"))
    rig.good(cdb10(SYNC, 0, 0))
    assert rig.memory.flushed == 0


def test_a_flipped_bit_of_a_read_is_in_what_is_read_and_not_on_the_disk() -> None:
    made = fault("read times=1 -> flip=8195")
    with upon(made) as disk:
        assert disk.read(0, 2048, parts=[512, 513]) == bytes(1024) + b"\x08" + bytes(1023)
        assert disk.read(0, 2048) == bytes(2048)


def test_a_flipped_bit_of_a_write_is_on_the_disk_and_not_in_the_initiators_data() -> None:
    with upon(fault("write -> flip=0")) as disk:
        data = bytearray(512)
        disk.disk.operations.write(0, [memoryview(data)])
        assert data == bytes(512)
        assert disk.read(0, 512) == b"\x01" + bytes(511)


def test_a_random_bit_is_the_same_with_the_same_seed() -> None:
    found = set()
    for _ in range(3):
        with upon(fault("write -> flip=random", seed=5)) as disk:
            disk.write(0, bytes(4096))
            data = disk.read(0, 4096)
            assert sum(byte.bit_count() for byte in data) == 1
            found.add(data)
    assert len(found) == 1


def test_a_bit_of_a_read_that_comes_later_is_flipped_too() -> None:
    handler = Memory()
    with upon(fault("read -> flip=0"), handler=handler) as disk:
        handler.hold = True
        room = bytearray(512)
        pending = disk.disk.operations.read(0, [memoryview(room)])
        assert not any(room)
        handler.release()
        assert isinstance(pending, Future)
        pending.result(0)
        assert room[0] == 1


def test_a_unit_attention_goes_to_every_initiator_and_the_command_goes_on() -> None:
    rig = rig_upon(fault("write times=1 -> attention=2a/09"))
    rig.nexus("b")
    rig.good(cdb10(WRITE, 0, 1), b"a" * 512)
    for who in ("a", "b"):
        assert rig.send(cdb10(READ, 0, 1), room=512, who=who).error == (6, 0x2A, 0x09)
        rig.good(cdb10(READ, 0, 1), room=512, who=who)


def refreshed(rig: Rig, made: Fault, action: str) -> dict[str, Any]:
    told = rig.engine.disk.tell("fault", {"action": action})
    rig.engine.refresh()
    rig.turn()
    return told


def test_a_medium_that_is_gone_comes_back_when_it_is_released() -> None:
    made = fault("read nth=2 -> gone")
    rig = rig_upon(made)
    rig.good(cdb10(READ, 0, 1), room=512)
    assert rig.send(cdb10(READ, 0, 1), room=512).error == (2, 0x3A, 0)
    assert rig.send(cdb10(WRITE, 0, 1), bytes(512)).error == (2, 0x3A, 0)
    assert rig.send(bytes(6)).error == (2, 0x3A, 0), "TEST UNIT READY"
    rig.good("12 00 00 00 24 00", room=36)
    refreshed(rig, made, "release")
    assert rig.send(cdb10(READ, 0, 1), room=512).error == (6, 0x28, 0)
    rig.good(cdb10(READ, 0, 1), room=512)


def test_a_dropped_link_is_the_initiators_that_sent_the_command(clock: HandClock) -> None:
    rig = rig_upon(fault("op=READ_10 -> drop", clock=clock))
    dropped: list[str] = []
    rig.engine.device.dropped = dropped.append
    command, ended = rig.start(cdb10(READ, 0, 1), room=512, who="b")
    rig.turn()
    assert dropped == ["b"]
    assert not ended, "its answer must not come before the connection has gone"
    clock.pass_by(2)
    rig.turn()
    assert ended == [command]


def test_actions_on_data_of_a_commands_rule_reach_its_hook() -> None:
    rig = rig_upon(fault("op=WRITE_10 initiator=b -> lose"))
    rig.good(cdb10(WRITE, 0, 1), b"b" * 512, who="b")
    assert not any(rig.memory.data[:512])
    rig.good(cdb10(WRITE, 0, 1), b"a" * 512, who="a")
    assert bytes(rig.memory.data[:1]) == b"a"


def test_several_actions_are_done_in_their_order(clock: HandClock) -> None:
    with upon(fault("write -> wait=1s torn=1", clock=clock)) as disk:
        pending = disk.disk.operations.write(0, [memoryview(bytearray(b"w" * 1024))])
        assert isinstance(pending, Future)
        clock.pass_by(2)
        pending.result(0)
        assert disk.read(0, 1024) == b"w" * 512 + bytes(512)


def odd(event: Event) -> str | None:
    return "read-error" if event.offset // 512 % 2 else None


def test_a_python_function_decides() -> None:
    made = fault()
    made.add("read", call=odd)
    with upon(made) as disk:
        disk.read(0, 512)
        with pytest.raises(ReadError):
            disk.read(512, 512)


def test_a_python_function_can_be_named_by_a_rule() -> None:
    with upon(fault(f"read -> call={__name__}:odd")) as disk:
        disk.read(0, 512)
        with pytest.raises(ReadError):
            disk.read(512, 512)


def test_a_python_function_can_raise() -> None:
    def full(event: Event) -> None:
        raise OSError(28, "No space left on device")

    made = fault()
    made.add("write lba=7", call=full)
    rig = rig_upon(made)
    assert rig.send(cdb10(WRITE, 7, 1), bytes(512)).error == (7, 0x27, 7)


# -- texts ------------------------------------------------------------------------------------------------------------

WRONG = {
    "write": "is no rule: write CONDITIONS -> ACTIONS",
    "write -> ": "no action: there are sense, wait",
    "wirte -> busy": "'wirte' is no condition",
    "write lbas=3 -> busy": "'lbas=3' is no condition",
    "write lba=x -> busy": "'x' is no whole number",
    "write -> bussy": "'bussy' is no action",
    "write -> sense=3": "'3' is no sense: write KEY/ASC/ASCQ",
    "write -> wait=fast": "'fast' is no time",
    "write -> wait": "wait needs a value",
    "write -> lose=3": "lose takes no value",
    "write -> wait=normal/5ms": "write normal/MEAN/DEVIATION",
    "read -> torn=3": "'torn' is for write only",
    "flush -> flip=random": "'flip' is for read and write only",
    "read -> lose": "'lose' is for discard and flush and write and write_zeroes only",
    "write op=WRITE_10 -> busy": "a rule is of hooks or of commands",
    "op=WRIET_10 -> busy": "'WRIET_10' is no operation code",
    "write probability=2 -> busy": "write a number from 0 to 1",
    "write -> call=nowhere:f": "No module named 'nowhere'",
}


@pytest.mark.parametrize("text", WRONG)
def test_a_wrong_rule_is_named(text: str) -> None:
    with pytest.raises(ConfigError, match=WRONG[text]):
        parse_rule(text)


def test_rules_come_from_a_file_and_a_wrong_line_is_named(tmp_path: Path) -> None:
    file = tmp_path / "rules"
    file.write_text("# the middle is bad\nread lba=8-15 -> read-error\n\nwrite nth=2 -> busy\n")
    with upon(given(Fault(), file=file)) as disk:
        disk.write(0, bytes(512))
        for call, kind in ((lambda: disk.read(8 * 512, 512), ReadError), (lambda: disk.write(0, bytes(512)), Busy)):
            with pytest.raises(kind):
                call()
    file.write_text("read -> read-error\nrite -> busy\n")
    with pytest.raises(ConfigError, match="rules: line 2: 'rite' is no condition"), upon(given(Fault(), file=file)):
        pass


def test_a_file_of_rules_that_is_a_pipe_is_refused_at_once(tmp_path: Path) -> None:
    file = tmp_path / "rules"
    os.mkfifo(file)
    with pytest.raises(ConfigError, match="no regular file"), upon(given(Fault(), file=file)):
        pass


def test_a_wrong_rule_among_several_adds_none() -> None:
    made = fault()
    with upon(made) as disk:
        with pytest.raises(ConfigError, match="line 2"):
            disk.disk.tell("fault", {"action": "add", "rules": "read -> busy\nrad -> busy"})
        assert not made.rules
        disk.read(0, 512)


def test_rules_are_added_listed_and_cleared_while_the_disk_is_in_use() -> None:
    with upon(fault()) as disk:
        disk.disk.tell("fault", {"action": "add", "rules": "read nth=2 -> read-error"})
        assert outcomes(disk, 3) == [False, True, False]
        told = disk.disk.tell("fault", {"action": "list"})
        assert told["rules"] == [{"rule": "read nth=2 -> read-error", "seen": 3, "fired": 1}]
        disk.disk.tell("fault", {"action": "clear"})
        assert outcomes(disk, 3) == [False, False, False]
        with pytest.raises(ConfigError, match="add, list, clear or release"):
            disk.disk.tell("fault", {"action": "forget"})


def test_a_medium_error_is_a_missing_medium_only_when_it_is_gone() -> None:
    with upon(fault("read -> gone")) as disk:
        for _ in range(2):
            with pytest.raises(MediumNotPresent):
                disk.read(0, 512)
