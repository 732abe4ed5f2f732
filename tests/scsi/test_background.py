"""SANITIZE and FORMAT UNIT."""

from __future__ import annotations

import threading

import pytest

from tcmu_core import hookimpl
from tcmu_core.progress import Progress
from tcmu_core.scsi.limits import CHUNK
from tests.scsi.harness import BLOCK, Memory, Rig, answer, cdb10, make_rig

OVERWRITE, BLOCK_ERASE, EXIT = 1, 2, 31
IMMED, AUSE = 0x80, 0x20


def sanitize(action: int, data: bytes = b"", flags: int = 0) -> tuple[bytes, bytes]:
    return bytes([0x48, flags | action, 0, 0, 0, 0, 0]) + len(data).to_bytes(2, "big") + b"\0", data


def pattern(value: bytes, passes: int = 1, invert: bool = False) -> bytes:
    return bytes([passes | (0x80 if invert else 0), 0]) + len(value).to_bytes(2, "big") + value


@pytest.fixture
def full(rig: Rig) -> Rig:
    rig.memory.data[:] = b"x" * len(rig.memory.data)
    return rig


def test_overwrite_writes_the_pattern_everywhere(full: Rig) -> None:
    full.good(*sanitize(OVERWRITE, pattern(b"\xa5\x5a")))
    assert full.memory.data == b"\xa5\x5a" * (len(full.memory.data) // 2)


@pytest.mark.parametrize("passes", [1, 2, 3])
def test_inversion_ends_with_the_pattern(full: Rig, passes: int) -> None:
    full.good(*sanitize(OVERWRITE, pattern(b"\x0f", passes, invert=True)))
    assert full.memory.data == b"\x0f" * len(full.memory.data)


def test_block_erase_leaves_zeros(full: Rig) -> None:
    full.good(*sanitize(BLOCK_ERASE))
    assert not any(full.memory.data)


def test_with_immed_the_unit_is_not_ready_with_progress_until_done(full: Rig) -> None:
    full.memory.hold = True
    _, ended = full.start(*sanitize(OVERWRITE, pattern(b"p"), IMMED))
    assert ended
    assert ended[0].status == 0
    full.turn()
    full.memory.hold = False
    got = full.send(cdb10(0x28, 0, 1), room=BLOCK)
    assert got.error == (2, 4, 0x1B)
    assert got.sense[15] & 0x80
    told = full.good("3 0 0 0 12 0", room=18)
    assert (told[2], told[12], told[13]) == (2, 4, 0x1B)
    assert len(full.good("12 0 0 0 24 0", room=36)) == 36
    assert full.send(*sanitize(BLOCK_ERASE)).error == (2, 4, 0x1B)
    full.memory.release()
    full.turn()
    assert full.good(cdb10(0x28, 0, 1), room=BLOCK) == b"p" * BLOCK


def test_initiators_and_people_are_told_how_far_it_is() -> None:
    rig = make_rig(size=4 * CHUNK)
    told: list[Progress | None] = []
    rig.unit.device.reported = told.append
    rig.memory.hold = True
    rig.start(*sanitize(OVERWRITE, pattern(b"p"), IMMED))
    rig.turn()
    for step in range(4):
        done = step * CHUNK
        assert rig.unit.device.doing == Progress("sanitizing", done, 4 * CHUNK)
        sense = rig.good("3 0 0 0 12 0", room=18)
        assert (sense[15], int.from_bytes(sense[16:18], "big")) == (0x80, done * 65536 // (4 * CHUNK))
        rig.memory.release()
        rig.turn()
    assert rig.unit.device.doing == Progress("sanitizing", 4 * CHUNK - 1, 4 * CHUNK)  # the flush comes yet
    assert rig.good("3 0 0 0 12 0", room=18)[15:18] == b"\x80\xff\xff"
    rig.memory.release()
    rig.turn()
    assert rig.unit.device.doing is None
    assert told[-1] is None


def test_a_format_is_told_as_such_and_a_failure_ends_it(full: Rig) -> None:
    told: list[Progress | None] = []
    full.unit.device.reported = told.append
    full.good("4 0 0 0 0 0")
    assert told[0] == Progress("formatting", 0, len(full.memory.data))
    told.clear()
    full.memory.error = OSError(5, "broken")
    full.send(*sanitize(BLOCK_ERASE))
    assert [one and one.what for one in told] == ["sanitizing", None]
    assert full.unit.device.doing is None


def test_commands_that_come_in_between_are_refused_and_no_reset_ends_it(full: Rig) -> None:
    full.memory.hold = True
    full.nexus("b")
    _, ended = full.start(*sanitize(OVERWRITE, pattern(b"p")))
    full.turn()
    for cdb in (cdb10(0x28, 0, 1), "1b 0 0 0 12 0", "1b 0 0 0 1 0", "0 0 0 0 0 0"):
        assert full.send(cdb, room=BLOCK, who="b").error == (2, 4, 0x1B)
    told: list[str] = []
    full.engine.reset(None, lambda: told.append("reset"))
    full.turn()
    assert told == ["reset"]  # without waiting for the end of the sanitize
    full.target.disconnect(full.nexuses.pop("a"))
    full.turn()
    assert full.send("0 0 0 0 0 0", who="b").error == (6, 0x29, 3)
    assert full.send("0 0 0 0 0 0", who="b").error == (2, 4, 0x1B)
    full.memory.hold = False
    full.memory.release()
    full.turn()
    full.good("0 0 0 0 0 0", who="b")
    assert full.memory.data == b"p" * len(full.memory.data)
    assert len(ended) == 1
    assert ended[0].aborted


def test_it_waits_for_what_is_in_flight(full: Rig) -> None:
    full.memory.hold = True
    write, _ = full.start(cdb10(0x2A, 0, 1), b"w" * BLOCK)
    _, ended = full.start(*sanitize(BLOCK_ERASE))
    assert len(full.memory.held) == 1
    full.memory.hold = False
    full.memory.release()
    full.turn()
    assert ended
    assert answer(write).status == 0
    assert not any(full.memory.data)


def test_a_failed_sanitize_keeps_the_unit_not_ready_until_it_is_left(full: Rig) -> None:
    full.memory.error = OSError(5, "broken")
    assert full.send(*sanitize(BLOCK_ERASE, flags=AUSE)).error[0] == 3
    full.memory.error = None
    for cdb in (cdb10(0x28, 0, 1), "4 0 0 0 0 0"):
        assert full.send(cdb, room=BLOCK).error == (3, 0x31, 3)
    full.good(*sanitize(EXIT))
    full.good(cdb10(0x28, 0, 1), room=BLOCK)


@pytest.mark.parametrize("sent", [(BLOCK_ERASE,), (OVERWRITE, pattern(b"x"))])
def test_a_failed_sanitize_without_ause_is_left_by_one_that_succeeds_alone(
    full: Rig, sent: tuple[int, bytes] | tuple[int]
) -> None:
    full.memory.error = OSError(5, "broken")
    assert full.send(*sanitize(*sent)).error[0] == 3
    full.memory.error = None
    got = full.send(*sanitize(EXIT))
    assert (got.error, got.field) == ((5, 0x24, 0), (1, 4))
    assert full.send(cdb10(0x28, 0, 1), room=BLOCK).error == (3, 0x31, 3)
    full.good(*sanitize(*sent))
    full.good(cdb10(0x28, 0, 1), room=BLOCK)


@pytest.mark.parametrize(
    ("sent", "error"),
    [
        (sanitize(OVERWRITE), (5, 0x24, 0)),
        (sanitize(OVERWRITE, bytes(4)), (5, 0x24, 0)),
        (sanitize(OVERWRITE, pattern(b"x", 0)), (5, 0x26, 0)),
        (sanitize(OVERWRITE, b"\x01\0\0\x05x"), (5, 0x26, 0)),
        (sanitize(OVERWRITE, pattern(bytes(BLOCK + 1))), (5, 0x24, 0)),
        (sanitize(BLOCK_ERASE, bytes(8)), (5, 0x24, 0)),
        (sanitize(3), (5, 0x24, 0)),  # there is no key to erase
    ],
)
def test_a_wrong_sanitize_erases_nothing(full: Rig, sent: tuple[bytes, bytes], error: tuple[int, int, int]) -> None:
    assert full.send(*sent).error == error
    assert full.memory.data == b"x" * len(full.memory.data)


def test_format_unit_leaves_zeros(full: Rig) -> None:
    full.good("4 0 0 0 0 0")
    assert not any(full.memory.data)


@pytest.mark.parametrize("data", ["00 00 00 00", "00 80 00 00", "00 f2 00 00"])
def test_format_unit_with_a_parameter_list_that_asks_for_nothing(full: Rig, data: str) -> None:
    full.good("4 10 0 0 0 0", bytes.fromhex(data))
    full.turn()
    assert not any(full.memory.data)


@pytest.mark.parametrize(
    ("flags", "data", "at"),
    [
        (0x10, "00 88 00 00 00 00 00 04 a5 a5 a5 a5", 1),  # IP: an initialization pattern follows
        (0x10, "00 08 00 00", 1),
        (0x10, "00 20 00 00", 1),  # an option without FOV
        (0x10, "01 00 00 00", 0),  # PROTECTION FIELD USAGE
        (0x10, "00 00 00 08 00 00 00 00 00 00 00 00", 2),  # a defect list
        (0x30, "00 00 00 10 00 00 00 00", 2),  # P_I_INFORMATION
        (0x30, "00 00 00 00 00 00 00 08", 2),
    ],
)
def test_a_format_that_asks_for_what_there_is_not_erases_nothing(full: Rig, flags: int, data: str, at: int) -> None:
    got = full.send(bytes([4, flags, 0, 0, 0, 0]), bytes.fromhex(data))
    assert got.error == (5, 0x26, 0)
    assert got.field is not None
    assert got.field[0] == at
    assert full.memory.data == b"x" * len(full.memory.data)


def test_a_failed_format_keeps_others_off_until_one_succeeds(full: Rig) -> None:
    full.memory.error = OSError(5, "broken")
    assert full.send("4 0 0 0 0 0").error[0] == 3
    full.memory.error = None
    corrupted = (3, 0x31, 0)
    assert full.send(cdb10(0x28, 0, 1), room=BLOCK).error == corrupted
    assert full.send(*sanitize(EXIT)).error == corrupted, "that is for sanitize operations"
    full.good("4 0 0 0 0 0")
    full.good(cdb10(0x28, 0, 1), room=BLOCK)


def test_a_read_only_disk_is_not_sanitized() -> None:
    assert make_rig(read_only=True).send(*sanitize(BLOCK_ERASE)).error == (7, 0x27, 0)


def test_a_disk_is_not_closed_before_the_hook_of_a_background_operation_has_returned() -> None:
    class Closing(Memory):
        closed_with: int | None = None

        @hookimpl
        def close(self) -> None:
            self.closed_with = len(self.held)

    rig = make_rig(Closing())
    rig.nexus()
    rig.memory.hold = True
    rig.good("48 82 00 00 00 00 00 00 00 00")
    assert len(rig.memory.held) == 1
    assert rig.engine.idle
    rig.memory.hold = False
    late = threading.Timer(0.1, rig.memory.release)
    late.start()
    rig.engine.close()
    late.join()
    assert rig.memory.closed_with == 0
    rig.turn()


class Leaves(Memory):
    """A handler whose hook ends as a generator that is closed does."""

    @hookimpl
    def discard(self, offset: int, length: int) -> None:
        raise GeneratorExit


@pytest.mark.parametrize("flags", [0, IMMED])
def test_a_hook_that_raises_generator_exit_fails_the_operation_and_nobody_waits(flags: int) -> None:
    rig = make_rig(Leaves())
    got = rig.send(*sanitize(BLOCK_ERASE, flags=flags))
    assert got.error == ((0, 0, 0) if flags else (4, 0x44, 0))
    assert rig.send(cdb10(0x28, 0, 1), room=BLOCK).error == (3, 0x31, 3)
