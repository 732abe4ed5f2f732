"""What the unit tells of itself, what it refuses, and what it remembers of each nexus."""

from __future__ import annotations

import dataclasses

import pytest

from tcmu_core.scsi.alua import ONE_GROUP
from tcmu_core.scsi.attention import CAPACITY_CHANGED, LUNS_CHANGED
from tcmu_core.scsi.opcodes import Tpgs
from tcmu_core.scsi.table import ROWS
from tests.scsi.harness import BLOCK, Memory, Plain, Rig, cdb10, cdb16, make_rig

EVERYTHING = dataclasses.replace(ONE_GROUP, tpgs=Tpgs.BOTH)  # groups that initiators may move


def test_every_row_of_the_table_is_reported_with_its_own_usage_and_timeout() -> None:
    rig = make_rig(arrangement=EVERYTHING)
    data = rig.good("a3 c 80 0 0 0 0 0 ff ff 0 0", room=65535)
    listed = {}
    for at in range(4, len(data), 20):
        action = int.from_bytes(data[at + 2 : at + 4], "big") if data[at + 5] & 1 else None
        listed[data[at], action] = int.from_bytes(data[at + 6 : at + 8], "big")
        assert data[at + 5] & 2
        assert int.from_bytes(data[at + 8 : at + 10], "big") == 10
    assert listed == {row.key: len(row.usage) for row in ROWS}
    for code, action in listed:
        option = 1 if action is None else 2
        cdb = bytes([0xA3, 0x0C, option, code]) + (action or 0).to_bytes(2, "big") + bytes([0, 0, 1, 0, 0, 0])
        one = rig.good(cdb, room=256)
        assert one[1] == 3
        assert one[4] == code
        assert action is None or one[5] & 0x1F == action


@pytest.mark.parametrize(
    ("cdb", "expected"),
    [
        ("a3 c 1 c1 0 0 0 0 1 0 0 0", bytes([0, 1, 0, 0])),
        ("a3 c 3 28 0 0 0 0 1 0 0 0", bytes.fromhex("00 03 00 0a 28 18 ff ff ff ff 1f ff ff 00")),
        ("a3 c 3 9e 0 10 0 0 1 0 0 0", bytes.fromhex("00 03 00 10 9e 10 ff ff ff ff ff ff ff ff ff ff ff ff 00 00")),
        ("a3 c 3 9e 0 11 0 0 1 0 0 0", bytes([0, 1, 0, 0])),
        (
            "a3 c 81 0 0 0 0 0 1 0 0 0",
            bytes.fromhex("00 83 00 06 00 00 00 00 00 00 00 0a 00 00 00 00 00 00 00 00 00 1e"),
        ),
    ],
)
def test_one_command(rig: Rig, cdb: str, expected: bytes) -> None:
    assert rig.good(cdb, room=256) == expected


@pytest.mark.parametrize("cdb", ["a3 c 1 9e 0 0 0 0 1 0 0 0", "a3 c 2 28 0 0 0 0 1 0 0 0", "a3 c 7 28 0 0 0 0 1 0 0 0"])
def test_an_option_that_does_not_fit_the_command_is_refused(rig: Rig, cdb: str) -> None:
    got = rig.send(cdb, room=256)
    assert (got.error, got.field) == ((5, 0x24, 0), (2, 2))


def test_task_management_functions(rig: Rig) -> None:
    assert rig.good("a3 d 0 0 0 0 0 0 0 ff 0 0", room=255) == bytes.fromhex("da 00 00 00")
    assert len(rig.good("a3 d 80 0 0 0 0 0 0 ff 0 0", room=255)) == 16


@pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])
def test_every_reserved_bit_is_refused_with_a_pointer_to_it(row: object) -> None:
    rig = make_rig(arrangement=EVERYTHING)
    usage = bytearray(row.usage)  # type: ignore[attr-defined]
    for byte in range(1, len(usage)):
        for bit in range(8):
            if usage[byte] >> bit & 1:
                continue
            if row.name == "INQUIRY" and byte == 1 and bit >= 5:  # type: ignore[attr-defined]
                continue  # SCSI-2's LUN
            cdb = bytearray(len(usage))
            cdb[0] = row.code  # type: ignore[attr-defined]
            if row.service_action is not None:  # type: ignore[attr-defined]
                cdb[1] = row.service_action  # type: ignore[attr-defined]
            cdb[byte] |= 1 << bit
            got = rig.send(bytes(cdb), bytes(BLOCK))
            assert (got.error, got.field) == ((5, 0x24, 0), (byte, bit))


@pytest.mark.parametrize("lun", range(8))
def test_an_inquiry_with_the_lun_of_scsi_2_is_answered(rig: Rig, lun: int) -> None:
    assert len(rig.good(bytes([0x12, lun << 5, 0, 0, 36, 0]), room=36)) == 36


@pytest.mark.parametrize("code", [*range(0xC0, 0x100), *range(0x60, 0x80), 0x02, 0x5B, 0xA2, 0xB5])
def test_vendor_and_unknown_opcodes_are_answered_at_once(rig: Rig, code: int) -> None:
    for length in (6, 10, 16, 32):
        got = rig.send(bytes([code]) + bytes(length - 1), room=64)
        assert got.error == (5, 0x20, 0)


def test_an_unknown_service_action_is_an_invalid_field(rig: Rig) -> None:
    got = rig.send("9e 1f 0 0 0 0 0 0 0 0 0 0 0 20 0 0", room=32)
    assert (got.error, got.field) == ((5, 0x24, 0), (1, 4))


# -- LUNs that are not there -------------------------------------------------------------------------------------------


def test_a_lun_that_is_not_there(rig: Rig) -> None:
    assert rig.good("12 0 0 0 24 0", room=36, lun=3)[0] == 0x7F
    assert rig.good("a0 0 0 0 0 0 0 0 0 40 0 0", room=64, lun=3)[:4] == (8).to_bytes(4, "big")
    assert rig.send("3 0 0 0 12 0", room=18, lun=3).data[12] == 0x25
    assert rig.send("0 0 0 0 0 0", lun=3).error == (5, 0x25, 0)


def test_report_luns_lists_every_unit() -> None:
    rig = make_rig(Memory(), Memory())
    assert rig.good("a0 0 0 0 0 0 0 0 0 40 0 0", room=64, lun=1)[8:] == bytes(8) + bytes([0, 1]) + bytes(6)
    assert rig.send("a0 0 0 0 0 0 0 0 0 f 0 0", room=15).error == (5, 0x24, 0)


@pytest.mark.parametrize(
    ("select", "listed"), [(0, 8), (1, 0), (2, 8), (0x10, 0), (0x11, 0), (0x12, 0), (3, None), (0x13, None)]
)
def test_report_luns_by_select_report(rig: Rig, select: int, listed: int | None) -> None:
    got = rig.send(bytes([0xA0, 0, select, 0, 0, 0, 0, 0, 0, 64, 0, 0]), room=64)
    if listed is None:
        assert (got.error, got.field) == ((5, 0x24, 0), (2, 7))
    else:
        assert int.from_bytes(got.data[:4], "big") == listed


@pytest.mark.parametrize("asked", [0, 1, 7], ids=["one unit", "another", "one that there is not"])
def test_who_has_listed_the_units_need_not_be_told_that_they_have_changed(asked: int) -> None:
    rig = make_rig(Memory(), Memory())
    for who in ("a", "a:2", "b"):
        rig.nexus(who)
    for engine in rig.engines:
        engine.unit.attention(*LUNS_CHANGED)
        engine.unit.attention(*CAPACITY_CHANGED)
    rig.good("a0 0 0 0 0 0 0 0 0 40 0 0", room=64, lun=asked)
    for lun in range(2):
        assert rig.send("0 0 0 0 0 0", lun=lun).error == (6, *CAPACITY_CHANGED)
        rig.good("0 0 0 0 0 0", lun=lun)
        for other in ("a:2", "b"):
            assert rig.send("0 0 0 0 0 0", who=other, lun=lun).error == (6, *LUNS_CHANGED)


# -- unit attentions ---------------------------------------------------------------------------------------------------


def test_a_new_nexus_hears_of_the_power_on_once(rig: Rig) -> None:
    nexus = rig.nexus("n")
    nexus.luns[0][1].attentions.append((0x29, 0))
    assert len(rig.good("12 0 0 0 24 0", room=36, who="n")) == 36  # INQUIRY does not take it away
    assert rig.send(cdb10(0x28, 0, 1), room=BLOCK, who="n").error == (6, 0x29, 0)
    rig.good(cdb10(0x28, 0, 1), room=BLOCK, who="n")


def test_request_sense_takes_a_unit_attention_away(rig: Rig) -> None:
    rig.nexus().luns[0][1].attentions.append((0x2A, 9))
    data = rig.good("3 0 0 0 12 0", room=18)
    assert (data[0], data[2], data[12], data[13]) == (0x70, 6, 0x2A, 9)
    assert rig.good("3 0 0 0 12 0", room=18)[2] == 0
    assert rig.good("3 1 0 0 12 0", room=18) == b"\x72" + bytes(7)


def test_resize_tells_every_nexus_and_changes_the_capacity(rig: Rig) -> None:
    rig.nexus("b")
    rig.nexus()
    rig.engine.resize(1 << 19)
    for who in "ab":
        assert rig.send("0 0 0 0 0 0", who=who).error == (6, 0x2A, 9)
        assert rig.good("25 0 0 0 0 0 0 0 0 0", room=8, who=who)[:4] == (1023).to_bytes(4, "big")
    assert rig.send(cdb10(0x28, 1024, 1), room=BLOCK).error == (5, 0x21, 0)


def test_a_handler_can_notify_from_any_thread(rig: Rig) -> None:
    rig.nexus()
    rig.unit.device.notify(0x28, 0)
    rig.turn()
    assert rig.send("0 0 0 0 0 0").error == (6, 0x28, 0)


def test_a_handler_can_notice_that_its_storage_has_another_size(rig: Rig) -> None:
    rig.nexus()
    rig.unit.device.size = 1 << 19
    rig.unit.device.notify(0x2A, 9)
    rig.turn()
    assert rig.send("0 0 0 0 0 0").error == (6, 0x2A, 9)
    assert rig.good("25 0 0 0 0 0 0 0 0 0", room=8)[:4] == (1023).to_bytes(4, "big")
    assert rig.send(cdb10(0x28, 1024, 1), room=BLOCK).error == (5, 0x21, 0)


# -- starting, stopping, diagnostics, logs -----------------------------------------------------------------------------


def test_a_stopped_unit_is_not_ready_until_started(rig: Rig) -> None:
    rig.good("1b 0 0 0 0 0")
    assert rig.memory.flushed == 1
    for cdb in ("0 0 0 0 0 0", cdb10(0x28, 0, 1), cdb16(0x8A, 0, 1)):
        assert rig.send(cdb, room=BLOCK).error == (2, 4, 2)
    rig.good("12 0 0 0 24 0", room=36)
    rig.good("1b 0 0 0 1 0")
    rig.good("0 0 0 0 0 0")


@pytest.mark.parametrize(("byte", "field"), [(0x10, (4, 7)), (0x02, (4, 1))])
def test_power_conditions_and_ejecting_a_fixed_disk_are_refused(rig: Rig, byte: int, field: tuple[int, int]) -> None:
    got = rig.send(bytes([0x1B, 0, 0, 0, byte, 0]))
    assert (got.error, got.field) == ((5, 0x24, 0), field)


def test_preventing_the_removal_from_a_fixed_disk_is_harmless(rig: Rig) -> None:
    rig.good("1e 0 0 0 1 0")
    rig.good("1b 0 0 0 0 0")
    rig.good("1b 0 0 0 1 0")


def test_a_removable_medium_that_is_prevented_is_not_ejected() -> None:
    rig = make_rig(removable=True)
    rig.nexus("b")
    rig.good("1e 0 0 0 1 0", who="b")
    assert rig.send("1b 0 0 0 2 0").error == (5, 0x53, 2)
    rig.good("1e 0 0 0 0 0", who="b")
    rig.good("1b 0 0 0 2 0")
    for cdb in ("0 0 0 0 0 0", cdb10(0x28, 0, 1), cdb10(0x2A, 0, 1)):
        assert rig.send(cdb, room=BLOCK).error == (2, 0x3A, 0)
    rig.good("1b 0 0 0 3 0")
    rig.good("0 0 0 0 0 0")
    assert rig.send("0 0 0 0 0 0", who="b").error == (6, 0x28, 0)


@pytest.mark.parametrize(
    ("cdb", "data", "error"),
    [
        ("1d 4 0 0 0 0", b"", (0, 0, 0)),
        ("1d 20 0 0 0 0", b"", (0, 0, 0)),
        ("1d a0 0 0 0 0", b"", (0, 0, 0)),
        ("1d 60 0 0 0 0", b"", (5, 0x24, 0)),
        ("1d 4 0 0 4 0", bytes(4), (5, 0x24, 0)),
        ("1d 10 0 0 4 0", bytes(4), (0, 0, 0)),
        ("1d 10 0 0 4 0", b"\x05" + bytes(3), (5, 0x26, 0)),
        ("1c 1 0 0 ff 0", b"", (0, 0, 0)),
        ("1c 1 5 0 ff 0", b"", (5, 0x24, 0)),
    ],
)
def test_diagnostics(rig: Rig, cdb: str, data: bytes, error: tuple[int, int, int]) -> None:
    assert rig.send(cdb, data, room=0 if data else 255).error == error


def test_a_self_test_finds_a_broken_medium(rig: Rig) -> None:
    rig.memory.error = OSError(5, "broken")
    assert rig.send("1d 4 0 0 0 0").error == (3, 0x0C, 0)


def test_log_pages(rig: Rig) -> None:
    assert rig.good("4d 0 40 0 0 0 0 0 ff 0", room=255) == bytes.fromhex("00 00 00 03 00 0c 0e")
    listed = rig.good("4d 0 40 ff 0 0 0 0 ff 0", room=255)
    assert listed == bytes.fromhex("40 ff 00 08 00 00 0c 00 0e 00 00 ff")
    rig.memory.mapped.update(range(48))
    page = rig.good("4d 0 4c 0 0 0 0 0 ff 0", room=255)
    assert page[:4] == bytes.fromhex("0c 00 00 18")
    assert page[4:12] == bytes.fromhex("00 01 03 08") + (2000).to_bytes(4, "big")
    assert page[16:24] == bytes.fromhex("00 02 03 08") + (48).to_bytes(4, "big")
    assert len(rig.good("4d 0 4c 0 0 0 2 0 ff 0", room=255)) == 16
    assert rig.send("4d 0 4c 0 0 0 3 0 ff 0", room=255).error == (5, 0x24, 0)
    assert rig.send("4d 0 5f 0 0 0 0 0 ff 0", room=255).error == (5, 0x24, 0)
    assert rig.good("4d 0 4e 0 0 0 0 0 ff 0", room=255)[:2] == b"\x0e\x00"


def test_defect_lists_are_empty(rig: Rig) -> None:
    assert rig.good("37 0 18 0 0 0 0 0 ff 0", room=255) == bytes([0, 0x18, 0, 0])
    assert rig.good("b7 18 0 0 0 0 0 0 0 ff 0 0", room=255) == bytes([0, 0x18]) + bytes(6)


def test_allocation_length_cuts_every_answer(rig: Rig) -> None:
    assert len(rig.good("12 0 0 0 5 0", room=255)) == 5
    assert len(rig.good("1a 0 3f 0 4 0", room=255)) == 4
    assert rig.good("12 0 0 0 0 0") == b""


def test_vpd_pages_listed_are_the_pages_that_there_are(rig: Rig) -> None:
    listed = rig.good("12 1 0 0 ff 0", room=255)[4:]
    for page in range(256):
        got = rig.send(bytes([0x12, 1, page, 0, 255, 0]), room=255)
        assert (got.status == 0) == (page in listed)
        if got.status == 0:
            assert got.data[1] == page
            assert int.from_bytes(got.data[2:4], "big") == len(got.data) - 4


def test_a_device_that_is_no_disk_has_no_pages_of_a_disk() -> None:
    rig = make_rig(device_type=5)
    assert rig.good("12 1 0 0 ff 0", room=255)[4:] == bytes([0x00, 0x80, 0x83, 0x86])
    for page in ("b0", "b1", "b2"):
        assert rig.send(f"12 1 {page} 0 ff 0", room=255).error == (5, 0x24, 0)
    assert rig.send(cdb10(0x2F, 0, 1)).error == (5, 0x20, 0)


def test_provisioning_page_follows_the_handler() -> None:
    assert make_rig(thin=True).good("12 1 b2 0 ff 0", room=255)[4:] == bytes([0, 0xE4, 2, 0])
    assert make_rig(Plain()).good("12 1 b2 0 ff 0", room=255)[4:] == bytes(4)


@pytest.mark.parametrize("told", [0, 32 << 20, 1 << 40])
def test_maximum_transfer_length_is_never_more_than_transports_move(told: int) -> None:
    rig = make_rig(size=64 << 20, max_transfer_length=told, optimal_transfer_length=told)
    limits = rig.good("12 1 b0 0 40 0", room=64)
    assert int.from_bytes(limits[8:12], "big") == (16 << 20) // 512
    assert int.from_bytes(limits[12:16], "big") <= (16 << 20) // 512
    assert rig.send(cdb16(0x88, 0, (16 << 20) // 512 + 1), room=16 << 20).error == (5, 0x24, 0)


@pytest.mark.parametrize("descriptor", [0, 1])
def test_request_sense_says_that_there_is_no_medium(descriptor: int) -> None:
    rig = make_rig(removable=True)
    rig.good("1b 0 0 0 2 0")  # eject
    data = rig.good(bytes([3, descriptor, 0, 0, 0xFF, 0]), room=252)
    assert (data[1:4] if descriptor else (data[2], data[12], data[13])) == (
        bytes([2, 0x3A, 0]) if descriptor else (2, 0x3A, 0)
    )
    rig.good("1b 0 0 0 3 0")
    assert not any(rig.good("3 0 0 0 12 0", room=18)[8:])
