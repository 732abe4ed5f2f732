"""Reading, writing and verifying blocks, and what goes wrong with them."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tcmu_fbo import data

BLOCK = 2048


def block(number: int) -> bytes:
    return number.to_bytes(8, "big") * (BLOCK // 8)


def cdb6(code: int, lba: int, count: int) -> bytes:
    return bytes([code]) + lba.to_bytes(3, "big") + bytes([count & 0xFF, 0])


def cdb10(code: int, lba: int, count: int, flags: int = 0) -> bytes:
    return bytes([code, flags]) + lba.to_bytes(4, "big") + b"\0" + count.to_bytes(2, "big") + b"\0"


def cdb12(code: int, lba: int, count: int, flags: int = 0) -> bytes:
    return bytes([code, flags]) + lba.to_bytes(4, "big") + count.to_bytes(4, "big") + bytes(2)


def cdb16(code: int, lba: int, count: int, flags: int = 0) -> bytes:
    return bytes([code, flags]) + lba.to_bytes(8, "big") + count.to_bytes(4, "big") + bytes(2)


READS = [cdb6(0x08, 3, 2), cdb10(0x28, 3, 2), cdb12(0xA8, 3, 2), cdb16(0x88, 3, 2)]
WRITES = [cdb6(0x0A, 3, 2), cdb10(0x2A, 3, 2), cdb12(0xAA, 3, 2), cdb16(0x8A, 3, 2)]


# -- reading


@pytest.mark.parametrize("cdb", READS, ids=["6", "10", "12", "16"])
def test_read_gives_the_blocks(bench: Callable[..., Any], image: Callable[..., Path], cdb: bytes) -> None:
    assert bench(f"ro/{image()}").good(cdb, room=2 * BLOCK) == block(3) + block(4)


def test_a_read_6_of_zero_blocks_reads_256(bench: Callable[..., Any], image: Callable[..., Path]) -> None:
    got = bench(f"ro/{image(blocks=300)}").send(cdb6(0x08, 1, 0), room=256 * BLOCK)
    assert got.data == b"".join(block(number) for number in range(1, 257))


def test_a_read_of_no_blocks_is_good(bench: Callable[..., Any], image: Callable[..., Path]) -> None:
    got = bench(f"ro/{image()}").send(cdb10(0x28, 5, 0), room=0)
    assert (got.status, got.wanted, got.transferred) == (0, 0, 0)


def test_a_read_with_less_room_gives_what_fits(bench: Callable[..., Any], image: Callable[..., Path]) -> None:
    got = bench(f"ro/{image()}").send(cdb10(0x28, 0, 2), room=BLOCK + 100)
    assert (got.data, got.wanted) == (block(0) + block(1)[:100], 2 * BLOCK)


def test_a_read_may_be_as_long_as_its_cdb_can_say(bench: Callable[..., Any], image: Callable[..., Path]) -> None:
    drive = bench(f"ro/{image(blocks=0xFFFF, sparse=True)}")
    got = drive.send(cdb10(0x28, 0, 0xFFFF), room=4096)
    assert (got.status, got.transferred, got.wanted) == (0, 4096, 0xFFFF * BLOCK)


def test_a_last_block_that_is_not_whole_ends_in_zeros(bench: Callable[..., Any], image: Callable[..., Path]) -> None:
    drive = bench(f"ro/{image(blocks=10, extra=700)}")
    assert drive.good("25 00 00000000 0000 00 00")[:4] == (10).to_bytes(4, "big")
    assert drive.good(cdb10(0x28, 9, 2), room=2 * BLOCK) == block(9) + block(10)[:700] + bytes(BLOCK - 700)


@pytest.mark.parametrize("lba", [100, 1000, 0xFFFFFFFF])
@pytest.mark.parametrize("cdb", [cdb10, cdb12, cdb16])
def test_a_read_past_the_end_is_refused_at_once(
    bench: Callable[..., Any], image: Callable[..., Path], cdb: Callable[..., bytes], lba: int
) -> None:
    code = {cdb10: 0x28, cdb12: 0xA8, cdb16: 0x88}[cdb]
    got = bench(f"ro/{image(blocks=100)}").send(cdb(code, lba, 1))
    assert (got.error, got.transferred) == ((0x05, 0x21, 0x00), 0)


def test_a_read_across_the_end_is_refused_with_the_first_block_that_there_is_not(
    bench: Callable[..., Any], image: Callable[..., Path]
) -> None:
    got = bench(f"ro/{image(blocks=100)}").send(cdb10(0x28, 98, 5))
    assert (got.error, got.information) == ((0x05, 0x21, 0x00), 100)


def test_an_image_that_shrank_gives_a_read_error_with_the_block(
    bench: Callable[..., Any], image: Callable[..., Path]
) -> None:
    path = image(blocks=100)
    drive = bench(f"ro/{path}")
    os.truncate(path, 50 * BLOCK + 10)
    assert drive.good(cdb10(0x28, 49, 1), room=BLOCK) == block(49)
    got = drive.send(cdb10(0x28, 48, 5), room=5 * BLOCK)
    assert (got.error, got.information) == ((0x03, 0x11, 0x00), 50)
    assert drive.send(cdb10(0x28, 99, 1), room=BLOCK).error == (0x03, 0x11, 0x00)


@pytest.mark.parametrize(
    ("number", "error"),
    [(errno.EIO, (0x03, 0x11, 0x00)), (errno.EBADMSG, (0x03, 0x11, 0x00)), (errno.ENXIO, (0x02, 0x3A, 0x00))],
)
def test_a_read_that_fails_says_so(
    bench: Callable[..., Any],
    image: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    error: tuple[int, int, int],
) -> None:
    drive = bench(f"ro/{image()}")

    def fail(*args: Any) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "preadv", fail)
    got = drive.send(cdb10(0x28, 7, 1), room=BLOCK)
    assert got.error == error
    assert got.information == (7 if error[0] == 0x03 else None)


def test_a_deleted_image_can_be_read_on(bench: Callable[..., Any], image: Callable[..., Path]) -> None:
    path = image()
    drive = bench(f"ro/{path}")
    path.unlink()
    assert drive.good(cdb10(0x28, 7, 1), room=BLOCK) == block(7)


def test_more_buffers_than_one_system_call_takes_are_filled(
    bench: Callable[..., Any], image: Callable[..., Path]
) -> None:
    drive = bench(f"ro/{image(blocks=20)}")
    room = bytearray(20 * BLOCK)
    views = [memoryview(room)[at : at + 16] for at in range(0, len(room), 16)]
    drive.drive.medium.read(0, views)
    assert room == b"".join(block(number) for number in range(20))


# -- writing


@pytest.mark.parametrize("cdb", WRITES, ids=["6", "10", "12", "16"])
def test_what_is_written_is_read_back_and_in_the_image(
    bench: Callable[..., Any], image: Callable[..., Path], cdb: bytes
) -> None:
    path = image()
    drive = bench(str(path))
    drive.good(cdb, block(70) + block(71))
    assert drive.good(cdb10(0x28, 2, 4), room=4 * BLOCK) == block(2) + block(70) + block(71) + block(5)
    assert path.read_bytes()[3 * BLOCK : 5 * BLOCK] == block(70) + block(71)


def test_a_last_block_that_is_not_whole_becomes_whole_when_written(
    bench: Callable[..., Any], image: Callable[..., Path]
) -> None:
    path = image(blocks=10, extra=700)
    drive = bench(str(path))
    drive.good(cdb10(0x2A, 10, 1), block(77))
    assert drive.good(cdb10(0x28, 10, 1), room=BLOCK) == block(77)
    assert path.stat().st_size == 11 * BLOCK


@pytest.mark.parametrize("cdb", [cdb10(0x2A, 3, 2), cdb12(0xAA, 3, 2), cdb16(0x8A, 3, 2), cdb10(0x2E, 3, 2)])
@pytest.mark.parametrize("sent", [100, BLOCK + 100])
def test_a_write_whose_data_ends_inside_a_block_writes_nothing_and_says_so(
    bench: Callable[..., Any], image: Callable[..., Path], cdb: bytes, sent: int
) -> None:
    drive = bench(str(image()))
    assert drive.send(cdb, (block(70) * 2)[:sent]).error == (0x05, 0x0E, 0x03)
    assert drive.good(cdb10(0x28, 3, 2), room=2 * BLOCK) == block(3) + block(4)
    got = drive.send(cdb, block(70))
    assert (got.status, got.wanted) == (0, 2 * BLOCK)
    assert drive.good(cdb10(0x28, 3, 2), room=2 * BLOCK) == block(70) + block(4)


@pytest.mark.parametrize(
    ("cache", "flags", "stable"),
    [(True, 0x00, False), (True, 0x08, True), (False, 0x00, True)],
    ids=["cached", "FUA", "WCE 0"],
)
def test_fua_and_a_write_cache_that_is_off_write_through(
    bench: Callable[..., Any],
    image: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    cache: bool,
    flags: int,
    stable: bool,
) -> None:
    drive = bench(str(image()))
    drive.drive.modes.current[0x08]["wce"] = int(cache)
    flushed: list[int] = []
    monkeypatch.setattr(os, "fdatasync", flushed.append)
    drive.good(cdb10(0x2A, 3, 1, flags), block(70))
    assert flushed == [drive.drive.medium.fd] * stable


@pytest.mark.parametrize("cdb", [*WRITES, cdb10(0x2E, 3, 2)])
@pytest.mark.parametrize(
    ("config", "error"),
    [
        ("ro/{}", (0x05, 0x30, 0x05)),
        ("{};profile=dvd-rom", (0x05, 0x30, 0x05)),
        ("{};ro=1;profile=dvd-ram", (0x07, 0x27, 0x00)),
    ],
)
def test_a_disc_that_is_not_writable_is_not_written(
    bench: Callable[..., Any], image: Callable[..., Path], cdb: bytes, config: str, error: tuple[int, int, int]
) -> None:
    path = image()
    before = path.read_bytes()
    assert bench(config.format(path)).send(cdb, block(70) + block(71)).error == error
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("number", "error"),
    [(errno.EIO, (0x03, 0x0C, 0x00)), (errno.ENOSPC, (0x07, 0x27, 0x07))],
)
def test_a_write_that_fails_says_so(
    bench: Callable[..., Any],
    image: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    error: tuple[int, int, int],
) -> None:
    drive = bench(str(image()))

    def fail(*args: Any) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "pwritev", fail)
    assert drive.send(cdb10(0x2A, 7, 1), block(1)).error == error


def test_a_write_past_the_end_is_refused(bench: Callable[..., Any], image: Callable[..., Path]) -> None:
    path = image(blocks=10)
    assert bench(str(path)).send(cdb10(0x2A, 9, 2), block(1) * 2).error == (0x05, 0x21, 0x00)
    assert path.stat().st_size == 10 * BLOCK


def test_synchronize_cache_flushes(
    bench: Callable[..., Any], image: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    drive = bench(str(image()))
    flushed: list[int] = []
    monkeypatch.setattr(os, "fdatasync", flushed.append)
    drive.good(cdb10(0x35, 0, 0))
    assert flushed == [drive.drive.medium.fd]


@pytest.mark.parametrize("first", [cdb10(0x35, 0, 0), cdb10(0x2A, 3, 1, 0x08)], ids=["flush", "FUA"])
def test_once_a_flush_has_failed_each_later_one_fails_until_the_disc_is_put_in_anew(
    bench: Callable[..., Any],
    image: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    first: bytes,
) -> None:
    path = image()
    drive = bench(str(path))
    broken = [OSError(errno.EIO, "Input/output error")]

    def fdatasync(fd: int) -> None:
        if broken:
            raise broken.pop()  # the kernel tells it once

    monkeypatch.setattr(os, "fdatasync", fdatasync)
    for cdb in (first, cdb10(0x35, 0, 0), cdb10(0x2A, 4, 1, 0x08), cdb10(0x35, 0, 0)):
        got = drive.send(cdb, block(70) if cdb[0] == 0x2A else b"")
        assert (got.status, got.error[0]) == (0x02, 0x03)
    assert sum("a flush failed" in message for message in caplog.messages) == 1
    assert str(path) in caplog.text
    drive.insert(str(path))
    drive.send("00 00 00 00 00 00")
    drive.good(cdb10(0x35, 0, 0))


def test_a_read_error_names_the_block(
    bench: Callable[..., Any], image: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    drive = bench(f"ro/{image()}")
    real = os.preadv

    def preadv(fd: int, buffers: list[memoryview], offset: int, flags: int = 0) -> int:
        if offset <= 7 * BLOCK < offset + sum(map(len, buffers)):
            raise OSError(errno.EIO, "Input/output error")
        return real(fd, buffers, offset, flags)

    monkeypatch.setattr(os, "preadv", preadv)
    got = drive.send(cdb10(0x28, 3, 8))
    assert got.error == (0x03, 0x11, 0x00)
    assert got.information == 7


# -- verifying


def test_verify_without_data_reads_the_blocks(bench: Callable[..., Any], image: Callable[..., Path]) -> None:
    path = image(blocks=100)
    drive = bench(f"ro/{path}")
    assert drive.good(cdb10(0x2F, 0, 100)) == b""
    os.truncate(path, 50 * BLOCK)
    assert drive.send(cdb10(0x2F, 0, 100)).error == (0x03, 0x11, 0x00)


@pytest.mark.parametrize("cdb", [cdb10(0x2F, 5, 2, 0x02), cdb12(0xAF, 5, 2, 0x02), cdb16(0x8F, 5, 2, 0x02)])
def test_verify_with_data_compares(bench: Callable[..., Any], image: Callable[..., Path], cdb: bytes) -> None:
    drive = bench(f"ro/{image()}")
    drive.good(cdb, block(5) + block(6))
    got = drive.send(cdb, block(5) + b"\xff" + block(6)[1:])
    assert (got.error, got.information) == ((0x0E, 0x1D, 0x00), BLOCK)


def test_verify_compares_the_last_bytes_too(bench: Callable[..., Any], image: Callable[..., Path]) -> None:
    drive = bench(f"ro/{image()}")
    assert drive.send(cdb10(0x2F, 5, 2, 0x02), block(5)[:100]).status == 0
    got = drive.send(cdb10(0x2F, 5, 2, 0x02), block(5) + block(6)[:99] + b"\xff")
    assert (got.error, got.information) == ((0x0E, 0x1D, 0x00), BLOCK + 99)


def test_write_and_verify_writes_through_and_compares(bench: Callable[..., Any], image: Callable[..., Path]) -> None:
    path = image()
    bench(str(path)).good(cdb10(0x2E, 5, 2, 0x02), block(50) + block(51))
    assert path.read_bytes()[5 * BLOCK : 7 * BLOCK] == block(50) + block(51)


# -- READ CD and SEEK


def read_cd(lba: int, count: int, what: int, kind: int = 0, sub: int = 0) -> bytes:
    return bytes([0xBE, kind << 2]) + lba.to_bytes(4, "big") + count.to_bytes(3, "big") + bytes([what, sub, 0])


@pytest.mark.parametrize(
    ("what", "first", "last"),
    [
        (0x10, 16, 2064), (0xF8, 0, 2352), (0xB8, 0, 2352), (0x80, 0, 12), (0x20, 12, 16), (0x30, 12, 2064),
        (0xB0, 0, 2064), (0x18, 16, 2352), (0x08, 2064, 2352), (0x50, 16, 2064),
    ],
)  # fmt: skip
def test_read_cd_gives_the_parts_of_a_sector_that_are_asked_for(
    bench: Callable[..., Any], image: Callable[..., Path], what: int, first: int, last: int
) -> None:
    drive = bench(f"ro/{image()}")
    whole = drive.good(read_cd(7, 2, 0xF8), room=2 * 2352)
    assert whole[16:2064] == block(7)
    assert whole[2352 + 16 : 2352 + 2064] == block(8)
    assert drive.good(read_cd(7, 2, what)) == whole[first:last] + whole[2352 + first : 2352 + last]


def test_headers_of_many_sectors_cost_the_memory_of_a_few(
    bench: Callable[..., Any], image: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    drive = bench(f"ro/{image(blocks=100)}")
    whole = drive.good(read_cd(0, 100, 0x20), room=400)
    monkeypatch.setattr(data, "SECTORS", 7)
    read: list[int] = []
    real = drive.drive.medium.read
    monkeypatch.setattr(
        drive.drive.medium, "read", lambda at, buffers: (read.append(sum(map(len, buffers))), real(at, buffers))
    )
    assert drive.good(read_cd(0, 100, 0x20), room=400) == whole
    assert max(read) == 7 * BLOCK
    assert drive.good(read_cd(0, 100, 0x20), room=10) == whole[:10]


def test_read_cd_of_nothing_is_good(bench: Callable[..., Any], image: Callable[..., Path]) -> None:
    drive = bench(f"ro/{image()}")
    assert drive.good(read_cd(7, 2, 0x00)) == b""
    assert drive.good(read_cd(7, 0, 0x10)) == b""


def test_read_cd_msf_reads_up_to_its_end(bench: Callable[..., Any], image: Callable[..., Path]) -> None:
    drive = bench(f"ro/{image()}")
    data = drive.good(bytes([0xB9, 0, 0, 0, 2, 3, 0, 2, 5, 0x10, 0, 0]))
    assert data == block(3) + block(4)


@pytest.mark.parametrize(
    ("cdb", "error"),
    [
        (read_cd(100, 1, 0x10), (0x05, 0x21, 0x00)),
        (read_cd(99, 2, 0x10), (0x05, 0x21, 0x00)),
        (read_cd(7, 1, 0x10, kind=1), (0x05, 0x64, 0x00)),
        (read_cd(7, 1, 0x10, kind=4), (0x05, 0x64, 0x00)),
        (read_cd(7, 1, 0x90), (0x05, 0x24, 0x00)),
        (read_cd(7, 1, 0x28), (0x05, 0x24, 0x00)),
        (read_cd(7, 1, 0x12), (0x05, 0x24, 0x00)),
        (read_cd(7, 1, 0x10, sub=1), (0x05, 0x24, 0x00)),
        (bytes([0xB9, 0, 0, 0, 2, 5, 0, 2, 3, 0x10, 0, 0]), (0x05, 0x24, 0x00)),
        (bytes([0xB9, 0, 0, 0, 2, 75, 0, 3, 3, 0x10, 0, 0]), (0x05, 0x24, 0x00)),
        (bytes([0xB9, 0, 0, 0, 1, 5, 0, 2, 3, 0x10, 0, 0]), (0x05, 0x21, 0x00)),
    ],
)
def test_read_cd_refuses_what_is_not_on_the_disc(
    bench: Callable[..., Any], image: Callable[..., Path], cdb: bytes, error: tuple[int, int, int]
) -> None:
    assert bench(f"ro/{image(blocks=100)}").send(cdb).error == error


@pytest.mark.parametrize("cdb", [read_cd(7, 1, 0x10), bytes.fromhex("42024001000001 00ff00")])
def test_a_dvd_has_no_cd_sectors(bench: Callable[..., Any], image: Callable[..., Path], cdb: bytes) -> None:
    assert bench(f"{image()};profile=dvd-rom").send(cdb).error == (0x05, 0x30, 0x02)


def test_seek_goes_to_a_block_of_the_disc(bench: Callable[..., Any], image: Callable[..., Path]) -> None:
    drive = bench(f"ro/{image(blocks=100)}")
    drive.good("2b 00 00000063 00 0000 00")
    assert drive.good("bd 00 000000000000 0008 00 00")[2:5] == (99).to_bytes(3, "big")
    assert drive.send("2b 00 00000064 00 0000 00").error == (0x05, 0x21, 0x00)


# -- images


def test_a_size_that_was_asked_for_makes_a_new_image(bench: Callable[..., Any], tmp_path: Path) -> None:
    path = tmp_path / "new.img"
    drive = bench(str(path), size=1 << 20)
    assert path.stat().st_size == 1 << 20
    assert drive.good("46 02 0020 000000 00ff 00")[6:8] == b"\x00\x12"


def test_an_image_keeps_its_size_when_less_was_asked_for(bench: Callable[..., Any], image: Callable[..., Path]) -> None:
    path = image(blocks=100)
    assert bench(str(path), size=BLOCK).drive.medium.blocks == 100
    assert path.stat().st_size == 100 * BLOCK


def test_a_read_only_image_ignores_the_size_that_was_asked_for(
    bench: Callable[..., Any], image: Callable[..., Path]
) -> None:
    path = image(blocks=100)
    assert bench(f"ro/{path}", size=1 << 30).drive.medium.blocks == 100


def test_a_drive_that_is_to_be_read_only_takes_no_writable_disc(
    bench: Callable[..., Any], image: Callable[..., Path]
) -> None:
    drive = bench(str(image()), read_only=True)
    assert drive.send(cdb10(0x2A, 0, 1), block(1)).error == (0x05, 0x30, 0x05)
    drive.insert(str(image("two.iso")))
    drive.send("00 00 00 00 00 00")
    assert drive.send(cdb10(0x2A, 0, 1), block(1)).error == (0x05, 0x30, 0x05)


def test_an_image_that_is_missing_or_holds_nothing_is_not_opened(bench: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        bench(f"ro/{tmp_path}/none.iso")
    with pytest.raises(FileNotFoundError):
        bench(f"{tmp_path}/none.iso")
    (tmp_path / "empty.iso").touch()
    with pytest.raises(Exception, match="a disc has at least one block"):
        bench(f"ro/{tmp_path}/empty.iso")
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(Exception, match="neither a file nor a block device"):
        bench(f"ro/{tmp_path}/fifo")
