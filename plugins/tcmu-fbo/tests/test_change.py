"""Medium change, as initiators see it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tcmu_core import Change, ConfigError, MediumRemovalPrevented

TEST_UNIT_READY = "00 00 00 00 00 00"
EJECT = "1b 00 00 00 02 00"
LOAD = "1b 00 00 00 03 00"
STOP = "1b 00 00 00 00 00"
START = "1b 00 00 00 01 00"
PREVENT = "1e 00 00 00 01 00"
ALLOW = "1e 00 00 00 00 00"
PERSISTENT_PREVENT = "1e 00 00 00 03 00"
PERSISTENT_ALLOW = "1e 00 00 00 02 00"
READ_CAPACITY = "25 00 00000000 0000 00 00"
MEDIA_EVENT = "4a 01 0000 10 0000 00ff 00"
CHANGE_EVENT = "4a 01 0000 02 0000 00ff 00"
PROFILE = "46 02 0000 000000 0008 00"

GOOD = (0, 0, 0)
CHANGED = (0x06, 0x28, 0x00)
TRAY_CLOSED = (0x02, 0x3A, 0x01)
TRAY_OPEN = (0x02, 0x3A, 0x02)
PREVENTED = (0x05, 0x53, 0x02)

NO_CHANGE, EJECT_REQUEST, NEW_MEDIA, REMOVAL = range(4)
OPEN, PRESENT = 1, 2


def media(drive: Any, who: str = "a") -> tuple[int, int]:
    """Poll for a media event: its code, and the media status."""
    data = drive.good(MEDIA_EVENT, who=who)
    return data[4] & 0x0F, data[5]


def ready(drive: Any, who: str = "a") -> tuple[int, int, int]:
    error: tuple[int, int, int] = drive.send(TEST_UNIT_READY, who=who).error
    return error


# -- from outside


def test_an_empty_drive_is_not_ready_and_takes_a_disc(bench: Callable[..., Any], image: Callable[..., Path]) -> None:
    drive = bench()
    assert ready(drive) == TRAY_CLOSED
    drive.insert(f"ro/{image(blocks=70)}")
    assert ready(drive) == CHANGED
    assert ready(drive) == GOOD
    assert drive.good(READ_CAPACITY)[:4] == (69).to_bytes(4, "big")


def test_another_disc_is_noticed_once_by_every_initiator(bench: Callable[..., Any], image: Callable[..., Path]) -> None:
    drive = bench(f"ro/{image('one.iso', 70)}")
    assert ready(drive, "a") == ready(drive, "b") == GOOD
    drive.insert(f"ro/{image('two.iso', 90)}")
    for who in "ab":
        assert [ready(drive, who), ready(drive, who)] == [CHANGED, GOOD]
        assert drive.good(READ_CAPACITY, who=who)[:4] == (89).to_bytes(4, "big")


def test_the_events_of_a_change_are_told_once_to_every_initiator(
    bench: Callable[..., Any], image: Callable[..., Path]
) -> None:
    drive = bench(f"ro/{image('one.iso')}")
    assert media(drive, "a") == media(drive, "b") == (NO_CHANGE, PRESENT)
    drive.insert(f"ro/{image('two.iso')}")
    for who in "ab":
        assert [media(drive, who) for _ in range(3)] == [(REMOVAL, PRESENT), (NEW_MEDIA, PRESENT), (NO_CHANGE, PRESENT)]


def test_an_initiator_that_comes_later_is_not_told_of_what_was(
    bench: Callable[..., Any], image: Callable[..., Path]
) -> None:
    drive = bench()
    drive.insert(f"ro/{image()}")
    assert media(drive, "late") == (NO_CHANGE, PRESENT)


def test_an_event_that_there_was_no_room_for_stays(bench: Callable[..., Any], image: Callable[..., Path]) -> None:
    drive = bench()
    drive.nexus("a")
    drive.insert(f"ro/{image()}")
    assert len(drive.good("4a 01 0000 10 0000 0004 00")) == 4
    assert media(drive) == (NEW_MEDIA, PRESENT)


def test_an_empty_cfgstring_takes_the_disc_out(bench: Callable[..., Any], image: Callable[..., Path]) -> None:
    drive = bench(f"ro/{image()}")
    drive.nexus("a")
    drive.insert("")
    assert ready(drive) == TRAY_OPEN
    assert media(drive) == (REMOVAL, OPEN)
    for cdb in (
        "25 00 00000000 0000 00 00",
        "28 00 00000000 00 0001 00",
        "43 00 00 000000 00 00ff 00",
        "51" + "00" * 9,
    ):
        assert drive.send(cdb).error == TRAY_OPEN


def test_a_disc_of_another_kind_changes_the_profile(bench: Callable[..., Any], image: Callable[..., Path]) -> None:
    drive = bench(f"ro/{image('one.iso')}")
    assert drive.good(PROFILE)[6:8] == b"\x00\x08"
    drive.insert(f"{image('two.iso')};profile=bd-rom")
    assert drive.good(PROFILE)[6:8] == b"\x00\x40"
    assert drive.good(CHANGE_EVENT)[4:8] == bytes([2, 0, 0, 1])


def test_a_disc_that_cannot_be_opened_leaves_the_old_one(bench: Callable[..., Any], image: Callable[..., Path]) -> None:
    drive = bench(f"ro/{image()}")
    drive.nexus("a")
    for wrong in ("ro//nowhere/none.iso", "/x;profile=laserdisc"):
        with pytest.raises((OSError, ConfigError)):
            drive.insert(wrong)
    assert ready(drive) == GOOD


def test_a_read_that_is_under_way_ends_with_the_old_disc(
    bench: Callable[..., Any], image: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    import os
    import threading

    drive = bench(f"ro/{image('one.iso')}")
    go, real = threading.Event(), os.preadv

    def slow(fd: int, buffers: list[memoryview], offset: int, flags: int = 0) -> int:
        if flags:
            raise BlockingIOError(11, "would wait")
        assert go.wait(60)
        return real(fd, buffers, offset)

    monkeypatch.setattr(os, "preadv", slow)
    command, ended = drive.start("28 00 00000003 00 0001 00", room=2048)
    while drive.drive.medium._users < 2:  # until the pool's thread holds the disc
        threading.Event().wait(0.001)
    drive.insert("")
    go.set()
    drive.finish(ended)
    assert command.status == 0
    assert bytes(command.buffers[0]) == (3).to_bytes(8, "big") * 256


# -- by an initiator


def test_eject_opens_the_tray_and_load_closes_it(bench: Callable[..., Any], image: Callable[..., Path]) -> None:
    drive = bench(f"ro/{image()}")
    drive.nexus("b")
    drive.good(EJECT)
    assert ready(drive) == TRAY_OPEN
    assert media(drive) == (REMOVAL, OPEN)
    assert drive.good("bd 00 000000000000 0008 00 00")[1] == 0x10
    drive.good(LOAD, who="a")
    assert [ready(drive, "b"), ready(drive, "b")] == [CHANGED, GOOD]
    assert ready(drive, "a") == GOOD  # which knows what it did
    assert media(drive, "a") == (NEW_MEDIA, PRESENT)
    assert drive.good("bd 00 000000000000 0008 00 00")[1] == 0x00


def test_ejecting_twice_and_loading_twice_is_good(bench: Callable[..., Any], image: Callable[..., Path]) -> None:
    drive = bench(f"ro/{image()}")
    drive.good(EJECT)
    drive.good(EJECT)
    drive.good(LOAD)
    assert ready(drive) == GOOD
    drive.good(LOAD)
    assert ready(drive) == GOOD


def test_a_disc_whose_last_flush_fails_is_out_all_the_same(
    bench: Callable[..., Any], image: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(fd: int) -> None:
        raise OSError(5, "Input/output error")

    drive = bench(str(image()))
    monkeypatch.setattr("os.fdatasync", fail)
    drive.good(EJECT)
    assert ready(drive) == TRAY_OPEN


def test_closing_an_empty_tray_leaves_it_empty(bench: Callable[..., Any]) -> None:
    drive = bench()
    drive.good(EJECT)
    assert ready(drive) == TRAY_OPEN
    drive.good(LOAD)
    assert ready(drive) == TRAY_CLOSED


def test_loading_a_disc_whose_image_is_missing_is_no_medium_at_once(
    bench: Callable[..., Any], image: Callable[..., Path]
) -> None:
    path = image()
    drive = bench(f"ro/{path}")
    drive.good(EJECT)
    path.unlink()
    assert drive.send(LOAD).error == TRAY_CLOSED
    assert ready(drive) == TRAY_CLOSED


def test_an_image_that_was_replaced_is_the_new_one_after_a_load(
    bench: Callable[..., Any], image: Callable[..., Path]
) -> None:
    drive = bench(f"ro/{image('disc.iso', 50)}")
    drive.good(EJECT)
    image("disc.iso", 60)
    drive.good(LOAD)
    assert drive.good(READ_CAPACITY)[:4] == (59).to_bytes(4, "big")


def test_a_stopped_disc_spins_up_when_it_is_needed(bench: Callable[..., Any], image: Callable[..., Path]) -> None:
    drive = bench(f"ro/{image()}")
    drive.good(STOP)
    assert ready(drive) == GOOD
    drive.good(START)
    assert ready(drive) == GOOD


def test_power_conditions_are_told_as_events(bench: Callable[..., Any], image: Callable[..., Path]) -> None:
    drive = bench(f"ro/{image()}")
    drive.good("1b 00 00 00 30 00")
    assert drive.good("4a 01 0000 04 0000 00ff 00")[4:6] == bytes([1, 3])
    assert drive.send("1b 00 00 00 50 00").error == (0x05, 0x24, 0x00)


# -- prevented


def test_a_locked_disc_is_not_ejected_by_anyone(bench: Callable[..., Any], image: Callable[..., Path]) -> None:
    drive = bench(f"ro/{image()}")
    drive.good(PREVENT, who="b")
    assert drive.send(EJECT, who="a").error == PREVENTED
    assert drive.send(EJECT, who="b").error == PREVENTED
    with pytest.raises(MediumRemovalPrevented):
        drive.insert("")
    with pytest.raises(MediumRemovalPrevented):
        drive.insert(f"ro/{image('two.iso')}")
    assert ready(drive) == GOOD
    assert drive.good("5a 00 2a 00000000 00ff 00")[14] & 0x02  # page 2Ah says so
    drive.good(ALLOW, who="b")
    drive.good(EJECT, who="a")


def test_an_eject_from_outside_asks_the_initiators_to_let_go(
    bench: Callable[..., Any], image: Callable[..., Path]
) -> None:
    drive = bench(f"ro/{image()}")
    drive.good(PREVENT)
    with pytest.raises(MediumRemovalPrevented, match="has been asked"):
        drive.insert("")
    assert media(drive) == (EJECT_REQUEST, PRESENT)
    drive.good(ALLOW)
    drive.good(EJECT)
    assert ready(drive) == TRAY_OPEN


def test_every_initiator_that_prevents_must_allow(bench: Callable[..., Any], image: Callable[..., Path]) -> None:
    drive = bench(f"ro/{image()}")
    drive.good(PREVENT, who="a")
    drive.good(PREVENT, who="b")
    drive.good(ALLOW, who="a")
    assert drive.send(EJECT).error == PREVENTED
    drive.good(ALLOW, who="b")
    drive.good(EJECT)


def test_an_initiator_that_is_gone_prevents_nothing(bench: Callable[..., Any], image: Callable[..., Path]) -> None:
    drive = bench(f"ro/{image()}")
    drive.good(PREVENT, who="b")
    drive.leave("b")
    drive.insert("")


def test_a_reset_ends_prevention(bench: Callable[..., Any], image: Callable[..., Path]) -> None:
    drive = bench(f"ro/{image()}")
    drive.good(PREVENT)
    drive.unit.reset(None, lambda: None)
    drive.turn()
    drive.insert("")


def test_a_persistently_prevented_disc_is_ejected_by_initiators_only(
    bench: Callable[..., Any], image: Callable[..., Path]
) -> None:
    drive = bench(f"ro/{image()}")
    drive.good(PERSISTENT_PREVENT)
    with pytest.raises(MediumRemovalPrevented):
        drive.insert("")
    assert media(drive) == (EJECT_REQUEST, PRESENT)
    assert drive.good(CHANGE_EVENT)[5] & 0x80
    drive.good(EJECT)
    drive.good(LOAD)
    assert ready(drive) == GOOD
    drive.good(PERSISTENT_ALLOW)
    drive.insert("")


def test_an_empty_drive_takes_a_disc_even_when_locked(bench: Callable[..., Any], image: Callable[..., Path]) -> None:
    drive = bench()
    drive.good(PREVENT)
    drive.insert(f"ro/{image()}")
    assert ready(drive) == CHANGED


# -- beside


def test_what_tells_of_the_drive_is_answered_while_an_attention_waits(
    bench: Callable[..., Any], image: Callable[..., Path]
) -> None:
    drive = bench()
    drive.nexus("a")
    drive.insert(f"ro/{image()}")
    drive.good("12 00 00 00 24 00")
    drive.good(PROFILE)
    drive.good(MEDIA_EVENT)
    assert ready(drive) == CHANGED


def test_commands_that_need_no_disc_are_good_without_one(bench: Callable[..., Any]) -> None:
    drive = bench()
    for cdb in (
        "12 00 00 00 24 00", "03 00 00 00 12 00", "46 00 0000 000000 00ff 00", MEDIA_EVENT, "5a 00 3f 00000000 00ff 00",
        "bd 00 000000000000 0008 00 00", "23 00 00000000 00 00ff 00", PREVENT, ALLOW, "bb 00 ffff ffff 000000000000",
    ):  # fmt: skip
        drive.good(cdb)
    assert drive.good("23 00 00000000 00 00ff 00")[8] & 3 == 3  # no medium


@pytest.mark.parametrize("descriptor", [0, 1])
def test_request_sense_says_that_there_is_no_disc(bench: Callable[..., Any], descriptor: int) -> None:
    drive = bench()
    assert drive.send("00 00 00 00 00 00").error == (0x02, 0x3A, 0x01)  # the tray is closed
    told = drive.good(bytes([0x03, descriptor, 0, 0, 0xFF, 0]))
    expected = "72023a0100000000" if descriptor else "700002000000000a000000003a0100000000"
    assert told.hex() == expected


def test_the_write_cache_can_be_switched_from_outside(bench: Callable[..., Any], image: Callable[..., Path]) -> None:
    drive = bench(str(image()))
    drive.disk.change(Change(write_cache=False))
    assert [ready(drive), ready(drive)] == [(0x06, 0x2A, 0x01), GOOD]  # MODE PARAMETERS CHANGED (SPC-4 annex F)
    assert not drive.good("5a 00 08 00000000 00ff 00")[10] & 0x04


def test_a_disc_cannot_be_resized(bench: Callable[..., Any], image: Callable[..., Path]) -> None:
    with pytest.raises(NotImplementedError, match="insert another"):
        bench(str(image())).disk.change(Change(size=1 << 20))


def test_a_reservation_holds_for_the_commands_of_the_drive(
    bench: Callable[..., Any], image: Callable[..., Path]
) -> None:
    drive = bench(str(image()))
    drive.good("16 00 00 00 00 00", who="a")
    for cdb in ("28 00 00000000 00 0001 00", "2a 00 00000000 00 0001 00", EJECT, "43 00 00 000000 00 00ff 00"):
        assert drive.send(cdb, bytes(2048), who="b").status == 0x18
    drive.good(EJECT, who="a")


@pytest.mark.parametrize("cdb", ["51 08 0000000000 00ff 00", "46 04 0000 000000 00ff 00", "28 00 00000000 00 0001 80"])
def test_a_reserved_bit_is_pointed_at(bench: Callable[..., Any], image: Callable[..., Path], cdb: str) -> None:
    got = bench(f"ro/{image()}").send(cdb)
    assert got.error == (0x05, 0x24, 0x00)
    assert got.field is not None
