"""Following the commands of an engine: what is told of each, and that it costs nothing when nobody looks."""

from __future__ import annotations

import importlib
import pkgutil

import pytest

import tcmu_core
from tcmu_core import errors
from tcmu_core.errors import CommandError
from tcmu_core.scsi import attention, sense, words
from tcmu_core.scsi.following import Followed, Follower
from tests.scsi.harness import Looker, Rig, cdb10

READ, WRITE = 0x28, 0x2A
RESERVE, RELEASE = "16 00 00 00 00 00", "17 00 00 00 00 00"


@pytest.fixture
def told(rig: Rig) -> list[Followed]:
    """What is told of the commands of a rig, followed from the start."""
    looker = Looker()
    rig.engine.follow(looker)
    return looker.found


def test_a_command_that_ends_at_once_is_told_with_all_that_there_is_to_say(rig: Rig, told: list[Followed]) -> None:
    rig.good(cdb10(READ, 5, 2), room=1024, who="b")
    (one,) = told
    assert (one.name, one.initiator, one.lba, one.blocks, one.moved) == ("READ(10)", "b", 5, 2, 1024)
    assert (one.status, one.good, one.sense, one.cdb) == ("GOOD", True, "", cdb10(READ, 5, 2))


def test_a_command_that_names_no_blocks_has_none(rig: Rig, told: list[Followed]) -> None:
    rig.good("00 00 00 00 00 00")
    assert [(one.name, one.lba, one.blocks) for one in told] == [("TEST UNIT READY", None, None)]


def test_one_that_waits_for_its_storage_is_told_when_it_ends(rig: Rig, told: list[Followed]) -> None:
    rig.memory.hold = True
    _, ended = rig.start(cdb10(WRITE, 0, 1), bytes(512))
    assert not told
    rig.memory.release()
    rig.turn()
    assert len(ended) == 1
    assert [(one.name, one.status) for one in told] == [("WRITE(10)", "GOOD")]


def test_what_went_wrong_is_told_in_words(rig: Rig, told: list[Followed]) -> None:
    rig.memory.error = OSError(5, "broken")
    rig.send(cdb10(READ, 0, 1), room=512)
    rig.memory.error = None
    rig.send(cdb10(READ, 1 << 20, 1), room=512)
    rig.send("ee 00 00 00 00 00")
    rig.good(RESERVE)
    rig.send(cdb10(WRITE, 0, 1), bytes(512), who="b")
    rig.good(RELEASE)
    assert [(one.name, one.status, one.sense) for one in told if not one.good] == [
        ("READ(10)", "CHECK CONDITION", "MEDIUM ERROR: UNRECOVERED READ ERROR (11/00)"),
        ("READ(10)", "CHECK CONDITION", "ILLEGAL REQUEST: LOGICAL BLOCK ADDRESS OUT OF RANGE (21/00)"),
        ("opcode EEh", "CHECK CONDITION", "ILLEGAL REQUEST: INVALID COMMAND OPERATION CODE (20/00)"),
        ("WRITE(10)", "RESERVATION CONFLICT", ""),
    ]


def test_one_that_was_aborted_is_told_as_such(rig: Rig, told: list[Followed]) -> None:
    rig.memory.hold = True
    command, _ = rig.start(cdb10(WRITE, 0, 1), bytes(512))
    rig.engine.abort(command, lambda: None)
    rig.memory.release()
    rig.turn()
    assert [one.status for one in told] == ["ABORTED"]


def test_the_time_is_told_that_it_waited_for_others_and_that_it_ran(rig: Rig) -> None:
    now = 0.0
    follower = Follower(lambda: now)
    looker = Looker()
    follower.readers.append(looker)
    rig.engine._follower = follower
    rig.engine.gate()
    rig.memory.hold = True
    rig.start(cdb10(WRITE, 0, 1), bytes(512))
    now = 1.0
    rig.start(cdb10(WRITE, 0, 1), bytes(512), attribute=2)  # ORDERED: waits for the one before
    now = 3.0
    rig.memory.release()
    rig.turn()
    now = 7.0
    rig.memory.release()
    rig.turn()
    assert [(one.queued, one.ran) for one in looker.found] == [(0.0, 3.0), (2.0, 4.0)]


def test_the_fast_path_is_closed_while_somebody_looks_and_open_afterwards(rig: Rig) -> None:
    readers = [Looker(), Looker()]
    rig.nexus()
    assert rig.engine.fast
    for reader in readers:
        rig.engine.follow(reader)
        assert not rig.engine.fast
    rig.engine.unfollow(readers[0])
    assert not rig.engine.fast
    rig.engine.unfollow(readers[1])
    assert rig.engine.fast


def test_a_command_outlives_the_reader_that_saw_it_come(rig: Rig) -> None:
    first, later = Looker(), Looker()
    rig.engine.follow(first)
    rig.memory.hold = True
    _, ended = rig.start(cdb10(READ, 0, 1), room=512)
    rig.engine.unfollow(first)
    rig.engine.follow(later)
    rig.memory.release()
    rig.turn()
    rig.engine.unfollow(later)
    assert len(ended) == 1
    assert not first.found
    assert not later.found


def test_when_its_status_is_out_is_told_too_unless_nobody_is_told_how_it_ended(rig: Rig) -> None:
    looker, sinks = Looker(), []
    rig.engine.follow(looker)
    rig.nexus().luns[0][1].outgoing = sinks.append
    rig.good(cdb10(READ, 5, 2), room=1024)
    rig.memory.hold = True
    command, _ = rig.start(cdb10(WRITE, 0, 1), bytes(512))
    rig.engine.abort(command, lambda: None)
    rig.memory.release()
    rig.turn()
    assert [one.status for one in looker.found] == ["GOOD", "ABORTED"]
    (sink,) = sinks
    sink.add(1_500_000)
    assert looker.out == [0.0015]


def test_one_that_was_there_before_is_not_told_of(rig: Rig) -> None:
    rig.memory.hold = True
    _, ended = rig.start(cdb10(READ, 0, 1), room=512)
    looker = Looker()
    rig.engine.follow(looker)
    rig.memory.release()
    rig.turn()
    assert len(ended) == 1
    assert not looker.found


def every_error(kind: type[CommandError] = CommandError) -> list[type[CommandError]]:
    return [kind, *(below for one in kind.__subclasses__() for below in every_error(one))]


def test_all_that_this_target_says_has_words() -> None:
    for module in pkgutil.walk_packages(tcmu_core.__path__, "tcmu_core."):
        if module.name.startswith(("tcmu_core.scsi.", "tcmu_core.iscsi.")):
            importlib.import_module(module.name)
    kinds = [kind for kind in every_error() if kind.__module__.startswith("tcmu_core.") and kind.status == 0x02]
    said = {(kind.asc, kind.ascq) for kind in kinds}
    said |= {value for value in vars(attention).values() if isinstance(value, tuple)}
    assert len(said) > 30
    assert not said - words.ADDITIONAL.keys()


@pytest.mark.parametrize("descriptor", [False, True])
def test_sense_is_read_in_either_format(descriptor: bool) -> None:
    data = sense.encode(errors.SpaceAllocationFailed(), descriptor=descriptor)
    assert words.words_of(data) == "DATA PROTECT: SPACE ALLOCATION FAILED WRITE PROTECT (27/07)"


def test_sense_without_words_is_told_in_numbers() -> None:
    assert words.words_of(bytes([0x72, 0x9, 0x80, 0x01])) == "VENDOR SPECIFIC: 80/01"
    assert words.words_of(bytes([0x72, 0xF, 0x80, 0x01])) == "SENSE KEY Fh: 80/01"
    assert words.words_of(b"\x70\x00") == "70 00"
