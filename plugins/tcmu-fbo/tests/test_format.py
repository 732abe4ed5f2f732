"""DVD-RAM: FORMAT UNIT, its progress, MODE SELECT, speeds."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

BLOCK = 2048
BLOCKS = 64
TEST_UNIT_READY = "00 00 00 00 00 00"
FORMAT = "04 11 00 0000 00"
PLAIN, IMMED, TRY_OUT = 0x00, 0x02, 0x04


def parameters(flags: int = PLAIN, blocks: int = BLOCKS, kind: int = 0) -> bytes:
    return bytes([0, flags, 0, 8]) + blocks.to_bytes(4, "big") + bytes([kind << 2]) + BLOCK.to_bytes(3, "big")


@pytest.fixture
def ram(bench: Callable[..., Any], image: Callable[..., Path]) -> Any:
    return bench(str(image(blocks=BLOCKS)))


def read_all(drive: Any) -> bytes:
    data: bytes = drive.good(b"\x28\0\0\0\0\0\0" + BLOCKS.to_bytes(2, "big") + b"\0", room=BLOCKS * BLOCK)
    return data


@pytest.mark.parametrize("blocks", [BLOCKS, 0, 0xFFFFFFFF])
def test_format_makes_the_disc_zeros(ram: Any, blocks: int) -> None:
    assert read_all(ram) != bytes(BLOCKS * BLOCK)
    ram.good(FORMAT, parameters(blocks=blocks))
    assert read_all(ram) == bytes(BLOCKS * BLOCK)


def test_format_without_a_parameter_list_is_the_default_one(ram: Any) -> None:
    ram.good("04 00 00 0000 00")
    assert read_all(ram) == bytes(BLOCKS * BLOCK)


def test_a_try_out_changes_nothing(ram: Any) -> None:
    before = read_all(ram)
    ram.good(FORMAT, parameters(TRY_OUT))
    assert read_all(ram) == before


@pytest.mark.parametrize(
    ("cdb", "data", "error"),
    [
        ("04 12 00 0000 00", parameters(), (0x05, 0x24, 0x00)),
        (FORMAT, parameters(blocks=BLOCKS + 1), (0x05, 0x26, 0x00)),
        (FORMAT, parameters(blocks=BLOCKS + 0x10000), (0x05, 0x26, 0x00)),
        (FORMAT, parameters(kind=0x26), (0x05, 0x26, 0x00)),
        (FORMAT, parameters()[:8], (0x05, 0x1A, 0x00)),
        (FORMAT, b"\0\0\0\0" + parameters()[4:], (0x05, 0x26, 0x00)),
    ],
)
def test_a_format_that_the_disc_does_not_have_is_refused(
    ram: Any, cdb: str, data: bytes, error: tuple[int, int, int]
) -> None:
    before = read_all(ram)
    assert ram.send(cdb, data).error == error
    assert read_all(ram) == before


def test_a_disc_that_is_not_writable_is_not_formatted(bench: Callable[..., Any], image: Callable[..., Path]) -> None:
    path = image(blocks=BLOCKS)
    assert bench(f"ro/{path}").send(FORMAT, parameters()).error == (0x05, 0x30, 0x05)
    assert bench(f"ro/{path};profile=dvd-ram").send(FORMAT, parameters()).error == (0x07, 0x27, 0x00)


class SlowErase:
    """Holds a format half way."""

    def __init__(self, drive: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.go, self.half = threading.Event(), threading.Event()
        self.error: OSError | None = None
        monkeypatch.setattr(drive.drive.medium, "erase", self.erase)

    def erase(self, progress: Callable[[int, int], None]) -> None:
        progress(1, 2)
        self.half.set()
        assert self.go.wait(60)
        if self.error is not None:
            raise self.error


def test_a_format_with_immed_goes_on_while_the_drive_tells_its_progress(
    ram: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = SlowErase(ram, monkeypatch)
    ram.good(FORMAT, parameters(IMMED))
    assert slow.half.wait(60)
    for cdb in (TEST_UNIT_READY, "28 00 00000000 00 0001 00", "2a 00 00000000 00 0001 00", "1b 00 00 00 02 00"):
        got = ram.send(cdb, bytes(BLOCK))
        assert (got.error, got.progress) == ((0x02, 0x04, 0x04), 0x7FFF)
    sense = ram.good("03 00 00 00 12 00")
    assert sense.hex() == "70000200000000" + "0a" + "00000000" + "0404" + "00" + "80" + "7fff"
    described = ram.good("03 01 00 00 ff 00")
    assert described.hex() == "72020404" + "000000" + "08" + "0206" + "0000" + "80" + "7fff" + "00"
    assert ram.good("4a 01 0000 40 0000 00ff 00")[5] == 1  # device busy
    ram.good("12 00 00 00 24 00")
    ram.good("46 00 0000 000000 00ff 00")
    with pytest.raises(Exception, match="being formatted"):
        ram.insert("")
    assert (ram.device.doing.what, ram.device.doing.percent) == ("formatting", 50)
    slow.go.set()
    ram.device.shutdown()
    assert ram.send(TEST_UNIT_READY).error == (0, 0, 0)
    assert ram.good("4a 01 0000 40 0000 00ff 00")[5] == 0
    assert ram.device.doing is None


def test_a_format_without_immed_ends_when_it_is_done(ram: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = SlowErase(ram, monkeypatch)
    command, ended = ram.start(FORMAT, parameters())
    assert slow.half.wait(60)
    assert not ended
    assert ram.send(TEST_UNIT_READY, who="b").error == (0x02, 0x04, 0x04)
    slow.go.set()
    ram.finish(ended)
    assert command.status == 0


def test_a_format_that_fails_says_so(ram: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = SlowErase(ram, monkeypatch)
    slow.error = OSError(5, "Input/output error")
    slow.go.set()
    assert ram.send(FORMAT, parameters()).error == (0x03, 0x0C, 0x00)
    assert ram.send(TEST_UNIT_READY).error == (0, 0, 0)


# -- MODE SELECT


def page(drive: Any, code: int) -> bytes:
    data: bytes = drive.good(bytes([0x5A, 0, code, 0, 0, 0, 0, 0, 0xFF, 0]))
    return data[8:]


def select(body: bytes, flags: int = 0x10) -> tuple[bytes, bytes]:
    data = bytes(8) + body
    return bytes([0x55, flags, 0, 0, 0, 0, 0]) + len(data).to_bytes(2, "big") + b"\0", data


def test_the_write_cache_can_be_changed_and_the_other_initiators_hear_of_it(ram: Any) -> None:
    ram.nexus("b")
    new = bytearray(page(ram, 0x08))
    new[2] ^= 0x04
    ram.good(*select(bytes(new)))
    assert page(ram, 0x08) == bytes(new)
    assert ram.send(TEST_UNIT_READY, who="a").error == (0, 0, 0)
    assert ram.send(TEST_UNIT_READY, who="b").error == (0x06, 0x2A, 0x01)


def test_what_was_read_can_be_written_back_in_both_forms(ram: Any) -> None:
    ram.nexus("b")
    pages = ram.good("5a 00 3f 00000000 00ff 00")[8:]
    ram.good(*select(pages))
    short = bytes(4) + pages
    ram.good(bytes([0x15, 0x10, 0, 0, len(short), 0]), short)
    assert ram.send(TEST_UNIT_READY, who="b").error == (0, 0, 0)


def test_turning_the_write_cache_off_flushes(ram: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    flushed: list[int] = []
    monkeypatch.setattr(os, "fdatasync", flushed.append)
    new = bytearray(page(ram, 0x08))
    new[2] &= ~0x04
    ram.good(*select(bytes(new)))
    assert flushed
    assert not page(ram, 0x08)[2] & 0x04


def test_what_nobody_looks_at_can_not_be_changed(ram: Any) -> None:
    new = bytearray(page(ram, 0x01))
    new[3] ^= 9  # READ RETRY COUNT: nothing is tried again
    assert ram.send(*select(bytes(new))).error == (0x05, 0x26, 0x00)


@pytest.mark.parametrize(
    ("change", "flags", "error"),
    [
        (lambda body: body[:2] + b"\xff" + body[3:], 0x10, (0x05, 0x26, 0x00)),
        (lambda body: b"\x0e" + body[1:], 0x10, (0x05, 0x26, 0x00)),
        (lambda body: body[:1] + b"\x0b" + body[2:], 0x10, (0x05, 0x26, 0x00)),
        (lambda body: body[:-1], 0x10, (0x05, 0x1A, 0x00)),
        (lambda body: body, 0x11, (0x05, 0x24, 0x00)),
        (lambda body: body, 0x00, (0x05, 0x24, 0x00)),
    ],
)
def test_a_wrong_mode_select_changes_nothing(
    ram: Any, change: Callable[[bytes], bytes], flags: int, error: tuple[int, int, int]
) -> None:
    before = page(ram, 0x08)
    good = bytearray(before)
    good[2] ^= 0x04
    assert ram.send(*select(bytes(good) + change(before), flags)).error == error
    assert page(ram, 0x08) == before


def test_there_are_no_saved_pages_and_no_others(ram: Any) -> None:
    assert ram.send("5a 00 c1 00000000 00ff 00").error == (0x05, 0x39, 0x00)
    assert ram.send("5a 00 0e 00000000 00ff 00").error == (0x05, 0x24, 0x00)


# -- speeds


def nominal(drive: Any) -> int:
    return int.from_bytes(drive.good("ac 10 00000000 0000 0001 00 00")[12:16], "big")


def test_set_cd_speed_is_what_the_drive_reports(ram: Any) -> None:
    ram.good("bb 00 1000 0800 000000000000")
    assert nominal(ram) == 0x1000
    assert page(ram, 0x2A)[14:16] == b"\x10\x00"
    assert page(ram, 0x2A)[28:30] == b"\x08\x00"
    ram.good("bb 00 ffff ffff 000000000000")
    assert nominal(ram) == 22160


def streaming(rdd: int = 0, start: int = 0, end: int = BLOCKS - 1, size: int = 5000, time: int = 1000) -> bytes:
    numbers = (start, end, size, time, size, time)
    return bytes([rdd << 2, 0, 0, 0]) + b"".join(number.to_bytes(4, "big") for number in numbers)


def test_set_streaming_is_what_the_drive_reports(ram: Any) -> None:
    ram.good("b6 00 000000000000 00 001c 00", streaming())
    assert nominal(ram) == 5000
    ram.good("b6 00 000000000000 00 001c 00", streaming(rdd=1))
    assert nominal(ram) == 22160


@pytest.mark.parametrize(
    ("cdb", "data", "error"),
    [
        ("b6 00 000000000000 00 001c 00", streaming(end=BLOCKS), (0x05, 0x26, 0x00)),
        ("b6 00 000000000000 00 001c 00", streaming(start=5, end=4), (0x05, 0x26, 0x00)),
        ("b6 00 000000000000 00 001c 00", streaming(time=0), (0x05, 0x26, 0x00)),
        ("b6 00 000000000000 00 001b 00", streaming()[:27], (0x05, 0x1A, 0x00)),
        ("b6 00 000000000000 00 001c 00", streaming()[:20], (0x05, 0x1A, 0x00)),
        ("b6 00 000000000000 05 001c 00", streaming(), (0x05, 0x24, 0x00)),
    ],
)
def test_a_wrong_set_streaming_is_refused(ram: Any, cdb: str, data: bytes, error: tuple[int, int, int]) -> None:
    assert ram.send(cdb, data).error == error
    assert nominal(ram) == 22160
