"""Mode pages: what they say, what may change, and what a change does."""

from __future__ import annotations

import pytest

from tests.scsi.harness import BLOCK, Rig, cdb10, make_rig

DATA = b"d" * BLOCK
CACHING = bytes.fromhex("08 12 04") + bytes(17)
CONTROL = bytes.fromhex("0a 0a 02 10 00 00 00 00 ff ff 00 00")


def sense(rig: Rig, page: int, subpage: int = 0, control: int = 0, *, dbd: bool = True) -> bytes:
    """Return the pages of a MODE SENSE(10) without its header."""
    cdb = bytes([0x5A, 8 if dbd else 0, control << 6 | page, subpage, 0, 0, 0, 4, 0, 0])
    data = rig.good(cdb, room=1024)
    assert int.from_bytes(data[:2], "big") == len(data) - 2
    return data[8 + int.from_bytes(data[6:8], "big") :]


def select(rig: Rig, page: bytes, who: str = "a") -> tuple[int, int, int]:
    data = bytes(8) + page
    return rig.send(bytes([0x55, 0x10, 0, 0, 0, 0, 0]) + len(data).to_bytes(2, "big") + b"\0", data, who=who).error


def changed(page: bytes, byte: int, value: int) -> bytes:
    copy = bytearray(page)
    copy[byte] = value
    return bytes(copy)


@pytest.mark.parametrize(
    ("page", "subpage", "expected"),
    [
        (0x01, 0, bytes.fromhex("01 0a") + bytes(10)),
        (0x02, 0, bytes.fromhex("02 0e") + bytes(14)),
        (0x08, 0, CACHING),
        (0x0A, 0, CONTROL),
        (0x0A, 1, bytes.fromhex("4a 01 00 1c") + bytes(28)),
        (0x1C, 0, bytes.fromhex("1c 0a 08") + bytes(9)),
    ],
)
def test_page(rig: Rig, page: int, subpage: int, expected: bytes) -> None:
    assert sense(rig, page, subpage) == expected


def test_all_pages_come_in_ascending_order_with_and_without_subpages(rig: Rig) -> None:
    plain, everything = sense(rig, 0x3F), sense(rig, 0x3F, 0xFF)
    assert [plain[at] & 0x3F for at in (0, 12, 28, 48, 60)] == [0x01, 0x02, 0x08, 0x0A, 0x1C]
    assert len(everything) == len(plain) + 32
    assert sense(rig, 0x0A, 0xFF) == CONTROL + bytes.fromhex("4a 01 00 1c") + bytes(28)


def test_a_thin_disk_has_the_provisioning_page() -> None:
    assert sense(make_rig(thin=True), 0x1C, 2) == bytes.fromhex("5c 02 00 0c") + bytes(12)


def test_changeable_values_are_wce_d_sense_swp_and_tas(rig: Rig) -> None:
    assert sense(rig, 0x08, control=1) == bytes.fromhex("08 12 04") + bytes(17)
    assert sense(rig, 0x0A, control=1) == bytes.fromhex("0a 0a 04 00 08 40") + bytes(6)
    assert sense(rig, 0x01, control=1) == bytes.fromhex("01 0a") + bytes(10)


def test_default_values_stay_when_current_ones_change(rig: Rig) -> None:
    assert select(rig, changed(CACHING, 2, 0)) == (0, 0, 0)
    assert sense(rig, 0x08)[2] == 0
    assert sense(rig, 0x08, control=2) == CACHING


def test_saved_values_are_not_supported(rig: Rig) -> None:
    assert rig.send("5a 8 c8 0 0 0 0 4 0 0", room=64).error == (5, 0x39, 0)


@pytest.mark.parametrize("page", ["1a 0 7 0 ff 0", "1a 0 8 1 ff 0", "5a 0 20 0 0 0 0 ff 0 0", "1a 0 3f 1 ff 0"])
def test_a_page_that_is_not_there_is_refused(rig: Rig, page: str) -> None:
    assert rig.send(page, room=64).error == (5, 0x24, 0)


def test_block_descriptors_tell_the_capacity(rig: Rig) -> None:
    short = rig.good("1a 0 8 0 ff 0", room=255)
    assert short[:12] == bytes.fromhex("1f 00 10 08 00 00 08 00 00 00 02 00")
    long = rig.good("5a 10 8 0 0 0 0 ff 0 0", room=255)
    assert long[4:8] == bytes([1, 0, 0, 16])
    assert long[8:24] == (2048).to_bytes(8, "big") + bytes(4) + (512).to_bytes(4, "big")


def test_without_wce_every_write_reaches_stable_storage(rig: Rig) -> None:
    rig.good(cdb10(0x2A, 0, 1), DATA)
    assert rig.memory.flushed == 0
    select(rig, changed(CACHING, 2, 0))
    assert rig.memory.flushed == 1  # what was cached until then
    rig.good(cdb10(0x2A, 0, 1), DATA)
    assert rig.memory.flushed == 2
    select(rig, CACHING)
    rig.good(cdb10(0x2A, 0, 1), DATA)
    assert rig.memory.flushed == 2


def test_swp_protects_the_medium_and_shows_in_the_header(rig: Rig) -> None:
    select(rig, changed(CONTROL, 4, 8))
    assert rig.send(cdb10(0x2A, 0, 1), DATA).error == (7, 0x27, 0)
    assert rig.good("1a 0 8 0 ff 0", room=255)[2] == 0x90
    assert rig.good(cdb10(0x28, 0, 1), room=BLOCK) == bytes(BLOCK)
    select(rig, CONTROL)
    rig.good(cdb10(0x2A, 0, 1), DATA)


def test_what_is_cached_is_written_before_swp_protects_the_medium(rig: Rig) -> None:
    rig.good(cdb10(0x2A, 0, 1), DATA)
    rig.memory.error = OSError(5, "broken")
    assert select(rig, changed(CONTROL, 4, 8)) != (0, 0, 0)
    rig.memory.error = None
    rig.good(cdb10(0x2A, 0, 1), DATA)
    assert select(rig, changed(CONTROL, 4, 8)) == (0, 0, 0)
    assert rig.memory.flushed == 1
    assert select(rig, changed(CONTROL, 4, 8)) == select(rig, CONTROL) == (0, 0, 0)
    assert rig.memory.flushed == 1


def test_d_sense_switches_to_descriptor_format(rig: Rig) -> None:
    select(rig, changed(CONTROL, 2, 6))
    got = rig.send(cdb10(0x28, 5000, 1), room=BLOCK)
    assert got.sense[:4] == bytes([0x72, 5, 0x21, 0])


def test_the_other_nexuses_hear_of_a_change_and_the_changer_does_not(rig: Rig) -> None:
    rig.nexus("b")
    select(rig, changed(CACHING, 2, 0))
    assert rig.send("0 0 0 0 0 0", who="b").error == (6, 0x2A, 1)
    rig.good("0 0 0 0 0 0", who="b")
    rig.good("0 0 0 0 0 0")


def test_selecting_what_is_already_so_tells_nobody(rig: Rig) -> None:
    rig.nexus("b")
    assert select(rig, CACHING + CONTROL) == (0, 0, 0)
    rig.good("0 0 0 0 0 0", who="b")


@pytest.mark.parametrize(
    ("page", "error"),
    [
        (changed(CONTROL, 3, 0), (5, 0x26, 0)),  # a field that can't change
        (b"\x0a\x09" + bytes(9), (5, 0x26, 0)),  # wrong PAGE LENGTH
        (CONTROL[:-1], (5, 0x1A, 0)),  # cut short
        (b"\x07\x0a" + bytes(10), (5, 0x26, 0)),  # no such page
        (b"\x88" + CACHING[1:], (5, 0x26, 0)),  # PS is reserved
    ],
)
def test_a_wrong_mode_select_changes_nothing(rig: Rig, page: bytes, error: tuple[int, int, int]) -> None:
    assert select(rig, changed(CACHING, 2, 0) + page) == error
    assert sense(rig, 0x08) == CACHING


def test_a_list_that_would_keep_others_waiting_is_refused(rig: Rig) -> None:
    off = changed(CACHING, 2, 0)
    assert select(rig, off + CONTROL * 5000) == (5, 0x1A, 0)
    assert sense(rig, 0x08) == CACHING
    assert select(rig, off + CONTROL * 300) == (0, 0, 0)


@pytest.mark.parametrize("descriptor", [b"", bytes(8)])
@pytest.mark.parametrize(
    ("page", "field"),
    [
        (changed(CONTROL, 3, 0), (3, None)),
        (CONTROL + changed(CACHING, 17, 1), (12 + 17, None)),
        (CONTROL + b"\x08\x11" + bytes(17), (12 + 1, None)),
        (b"\x07\x0a" + bytes(10), (0, 5)),
        (b"\x4a\x00" + bytes(2) + CONTROL[2:], (0, 5)),  # the format of a subpage, for one that is none
        (b"\x88" + CACHING[1:], (0, 7)),
    ],
)
def test_the_sense_data_point_into_the_parameter_list(
    rig: Rig, page: bytes, field: tuple[int, int | None], descriptor: bytes
) -> None:
    data = bytes([0, 0, 0, len(descriptor)]) + descriptor + page
    got = rig.send(bytes([0x15, 0x10, 0, 0, len(data), 0]), data)
    assert got.error == (5, 0x26, 0)
    assert got.field == (4 + len(descriptor) + field[0], field[1])
    assert not got.sense[15] & 0x40  # not in the CDB


@pytest.mark.parametrize(
    ("cdb", "data", "error"),
    [
        ("15 11 0 0 4 0", bytes(4), (5, 0x24, 0)),  # SP
        ("15 0 0 0 4 0", bytes(4), (5, 0x24, 0)),  # no PF
        ("15 10 0 0 3 0", bytes(3), (5, 0x1A, 0)),  # shorter than its header
        ("15 10 0 0 0 0", b"", (0, 0, 0)),
        ("15 10 0 0 18 0", bytes(4) + CACHING, (0, 0, 0)),
        ("15 10 0 0 c 0", bytes.fromhex("00 00 00 08 00 00 08 00 00 00 02 00"), (0, 0, 0)),
        ("15 10 0 0 c 0", bytes.fromhex("00 00 00 08 00 00 07 00 00 00 02 00"), (5, 0x26, 0)),  # another capacity
        ("55 10 0 0 0 0 0 0 18 0", bytes(4) + b"\1\0\0\x10" + b"\xff" * 8 + bytes(8), (0, 0, 0)),
        ("55 10 0 0 0 0 0 0 18 0", bytes(4) + b"\1\0\0\x10" + bytes(4) + b"\xff" * 4 + bytes(8), (5, 0x26, 0)),
        ("15 10 0 0 ff 0", bytes(4), (5, 0x1A, 0)),  # fewer bytes than the CDB announces
    ],
)
def test_mode_select_6(rig: Rig, cdb: str, data: bytes, error: tuple[int, int, int]) -> None:
    assert rig.send(cdb, data).error == error
