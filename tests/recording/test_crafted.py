"""Recordings that nobody recorded: one error that says where, and never a traceback, all memory, or a wait."""

from __future__ import annotations

import json
import os
import random
import resource
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import crc32c
import pytest
from hypothesis import given as provided
from hypothesis import strategies as st

from tcmu_core.cli.output import Exit
from tcmu_core.cli.tcmu import main
from tcmu_core.errors import ConfigError
from tcmu_core.filters.record import Record as Recorder
from tcmu_core.recording.crash import Part, epochs
from tcmu_core.recording.file import MAX_DATA, Record, Recording, Writer
from tcmu_core.recording.images import Image
from tcmu_core.recording.layout import CHECKSUM, HEAD, MAGIC, RECORD, Flag, Form, Kind
from tcmu_core.recording.replay import replay
from tcmu_core.testing.goals import MOST_BLOCKS, IscsiGoal, LocalGoal
from tests.filters.conftest import given, upon

SIZE = 1 << 40
MEMORY = 1 << 30  # bytes of address space that a process may have beside what it begins with
GOOD_HEADER = {"format": 1, "size": SIZE, "block_size": 512}


def header(text: bytes | dict[str, Any], length: int | None = None) -> bytes:
    """Return a header with a right checksum."""
    if isinstance(text, dict):
        text = json.dumps(text).encode()
    return HEAD.pack(MAGIC, len(text) if length is None else length, crc32c.crc32c(text)) + text


def record(
    kind: int, offset: int, length: int, form: int = 0, stored: bytes = b"", flags: int = 0, start: int = 0
) -> bytes:
    """Return a record with a right checksum, whatever it says."""
    head = RECORD.pack(kind, flags, 0, 0, 0, 0, form, start, 1, offset, length, len(stored))
    return head + stored + CHECKSUM.pack(crc32c.crc32c(stored, crc32c.crc32c(head)))


BOMB = zlib.compress(bytes(256 << 20), 9)
LAST = 2**64 - 512
HEADERS: dict[str, tuple[bytes, int, str]] = {
    "nothing": (b"", 0, "no recording"),
    "zeros": (bytes(4096), 0, "no recording"),
    "header cut": (header(GOOD_HEADER)[:-1], 16, "header of the recording is broken"),
    "header without end": (header(b"{}", 2**32 - 1), 16, "header of the recording is broken"),
    "header beyond the limit": (header(b" " * (1 << 20) + b"{}"), 16, "header of the recording is broken"),
    "no JSON": (header(b"{size: 1}"), 16, "is no JSON"),
    "no UTF-8": (header(b'{"name": "\xff"}'), 16, "is no JSON"),
    "deep JSON": (header(b"[" * 100000), 16, "is no JSON"),
    "endless number": (header(b'{"size": ' + b"9" * 10000 + b"}"), 16, "is no JSON"),
    "a list": (header(b"[]"), 16, "is no JSON object"),
    "another format": (header({**GOOD_HEADER, "format": 2}), 16, "format is 2, this version reads 1"),
    "no format": (header({"size": 512, "block_size": 512}), 16, "format is None"),
    "no size": (header({"format": 1, "block_size": 512}), 16, "size in the header is None"),
    "size of another type": (header({**GOOD_HEADER, "size": "1"}), 16, "size in the header is '1'"),
    "size without end": (header({**GOOD_HEADER, "size": float("inf")}), 16, "size in the header is inf"),
    "size that is true": (header({**GOOD_HEADER, "size": True}), 16, "size in the header is True"),
    "negative size": (header({**GOOD_HEADER, "size": -512}), 16, "size in the header is -512"),
    "size beyond all files": (header({**GOOD_HEADER, "size": 2**63}), 16, "size in the header is 9223372036854775808"),
    "no blocks": (header({**GOOD_HEADER, "block_size": 0}), 16, "block_size in the header is 0"),
    "crooked blocks": (header({**GOOD_HEADER, "block_size": 513}), 16, "513, no power of two"),
}  # fmt: skip
RECORDS: dict[str, tuple[bytes, str]] = {
    "kind 0": (record(0, 0, 512), "a record of kind 0"),
    "kind 99": (record(99, 0, 512), "a record of kind 99"),
    "unknown form": (record(2, 0, 512, form=5), "a record of form 5"),
    "unknown flag": (record(2, 0, 512, flags=4, form=4), "a record of flags 4"),
    "zeros of the whole disk": (record(2, 0, SIZE, form=4), f"which is more than {MAX_DATA}"),
    "a read of the whole disk": (record(1, 0, SIZE), f"which is more than {MAX_DATA}"),
    "length of 2^64": (record(2, 0, LAST, form=4), "lies beyond the disk"),
    "offset of -512": (record(2, LAST, 512, form=4), "lies beyond the disk"),
    "offset and length that overflow": (record(4, LAST, 1024), "lies beyond the disk"),
    "discard beyond the disk": (record(4, SIZE - 512, 1024), "lies beyond the disk"),
    "no whole blocks": (record(2, 0, 100, 1, b"x" * 100), "not whole blocks"),
    "between blocks": (record(5, 256, 512), "not whole blocks"),
    "plain, too short": (record(2, 0, 1024, 1, b"x" * 512), "512 bytes of data stored instead of 1024"),
    "plain, too long": (record(2, 0, 512, 1, b"x" * 513), "513 bytes of data stored instead of 512"),
    "half a hash": (record(1, 0, 512, 3, b"x" * 8), "8 bytes of data stored instead of 16"),
    "zeros with data": (record(2, 0, 512, 4, b"x"), "1 bytes of data stored instead of 0"),
    "none with data": (record(2, 0, 512, 0, b"x"), "1 bytes of data stored instead of 0"),
    "a flush with data": (record(3, 0, 0, 1, b"x"), "data that it can't have"),
    "a discard with zeros": (record(4, 0, 512, 4), "data that it can't have"),
    "a bomb": (record(2, 0, 512, 2, BOMB), "deflated data is broken, or of another length"),
    "deflated, too short": (record(2, 0, 1024, 2, zlib.compress(bytes(512))), "of another length"),
    "deflated, cut": (record(2, 0, 512, 2, zlib.compress(b"ab" * 256)[:-2]), "deflated data is broken"),
    "deflated, and more": (record(2, 0, 512, 2, zlib.compress(b"ab" * 256) + b"more"), "deflated data is broken"),
    "not deflated": (record(2, 0, 512, 2, b"x" * 20), "deflated data is broken"),
    "deflated nothing": (record(2, 0, 512, 2, b""), "deflated data is broken"),
    "deflated with a dictionary": (record(2, 0, 512, 2, b"\x78\xbb\0\0\0\1" + b"x" * 20), "deflated data is broken"),
}  # fmt: skip


def refused(path: Path, at: int, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    """See that all that reads recordings says the same of a file, on one line."""
    for command in (["replay", str(path), "ram"], ["crash", str(path), "--check", "true"]):
        assert main(command) == Exit.BAD_CONFIG
        out, err = capsys.readouterr()
        assert out == ""
        assert err.count("\n") == 1, err
        assert f"{path}: byte {at}: " in err
        assert said in err
        assert err.rstrip().endswith(("record again", "make one", "that has written it")), err


@pytest.mark.parametrize("case", HEADERS)
def test_a_crafted_header_is_named_with_its_place(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, at, said = HEADERS[case]
    path = tmp_path / "file"
    path.write_bytes(data)
    refused(path, at, said, capsys)


@pytest.mark.parametrize("case", RECORDS)
def test_a_crafted_record_is_named_with_its_place(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, said = RECORDS[case]
    path = tmp_path / "file"
    before = header(GOOD_HEADER) + record(2, 0, 512, 1, b"w" * 512)
    path.write_bytes(before + data + record(3, 0, 0))
    refused(path, len(before), said, capsys)


def test_nothing_is_written_before_all_of_the_recording_was_looked_at(tmp_path: Path) -> None:
    path = tmp_path / "file"
    about = {**GOOD_HEADER, "size": 1 << 20}
    path.write_bytes(header(about) + record(2, 0, 512, 1, b"w" * 512) + record(2, 0, 512, 2, BOMB))
    with upon() as disk:
        with pytest.raises(ConfigError, match="deflated"):
            list(replay(Recording(path), LocalGoal(disk.disk)))
        assert disk.read(0, 512) == bytes(512)


def test_only_a_regular_file_is_read(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (pipe, tmp_path, Path("/dev/zero")):
        with pytest.raises(ConfigError, match=f"{path}: no regular file"):
            Recording(path)


def test_of_a_recording_that_was_cut_all_before_the_cut_is_done_and_it_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "file"
    whole = header({**GOOD_HEADER, "size": 1 << 20}) + record(2, 0, 512, 1, b"w" * 512) + record(3, 0, 0)
    path.write_bytes(whole + record(2, 512, 512, 1, b"x" * 512)[:100])
    said = f"{path}: byte {len(whole)}: the recording is cut short: its last 100 bytes are no whole record"
    assert main(["replay", str(path), "ram"]) == 0
    assert said in (out := capsys.readouterr().out)
    assert "2 operations, 0 differences" in out
    assert main(["crash", str(path), "--check", "true"]) == 0
    assert said in capsys.readouterr().out
    assert main(["crash", str(path), "--check", "true", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["cut_short"] == 100


LIMITED = """
import resource, sys
from tcmu_core.cli.tcmu import main
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + int(sys.argv[1]),) * 2)
sys.exit(main(sys.argv[2:]))
"""


def limited(*words: object) -> subprocess.CompletedProcess[str]:
    """Run `tcmu` with so much memory and no more."""
    command = [sys.executable, "-c", LIMITED, str(MEMORY), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_small_files_with_much_data_take_little_memory(tmp_path: Path) -> None:
    """A hundred writes of 64 MiB, and the whole disk discarded, in half a megabyte: sound, and much."""
    path, length = tmp_path / "file", 64 << 20
    deflated = zlib.compress(b"\1" * length, 1)
    writes = [record(2, 0, length, 2, deflated), *[record(2, number * length, length, 4) for number in range(100)]]
    path.write_bytes(header(GOOD_HEADER) + b"".join(writes) + record(3, 0, 0, start=1) + record(4, 0, SIZE, start=2))
    keep = tmp_path / "kept"
    words = ["--check", 'test "$(stat -c %s $image)" = 1', "--limit", 2, "--from", 1, "--keep", keep]
    done = limited("crash", path, *words, "--directory", tmp_path)
    assert (done.returncode, done.stderr) == (1, "")
    assert "1 failures" in done.stdout
    assert (keep.stat().st_size, keep.stat().st_blocks) == (SIZE, 0)


def test_a_discard_of_a_whole_disk_takes_no_memory_when_it_is_done_again() -> None:
    class Nothing:
        """A disk's operations, which do nothing."""

        def __getattr__(self, name: str) -> Callable[..., None]:
            return lambda *_: None

    class Disk:
        operations = Nothing()

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    goal = LocalGoal(Disk())  # type: ignore[arg-type]
    for kind in (Kind.DISCARD, Kind.WRITE_ZEROES, Kind.FLUSH):
        goal.do(Record(kind, 0, 1, 0, 1 << 30), b"")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 19  # KiB


def test_more_blocks_than_one_command_can_have_are_sent_in_several() -> None:
    class Target:
        """An initiator whose target takes all."""

        sent: list[tuple[int, int]] = []

        def capacity(self) -> tuple[int, int]:
            return 1 << 40, 512

        def command(self, cdb: bytes, write: bytes = b"", read: int = 0) -> Any:
            span = cdb[2:14] if cdb[0] == 0x93 else write[8:20]
            self.sent.append((int.from_bytes(span[:8], "big"), int.from_bytes(span[8:], "big")))

            class Reply:
                status, error, data = 0, (0, 0, 0), b""

            return Reply()

    for kind in (Kind.DISCARD, Kind.WRITE_ZEROES):
        target = Target()
        target.sent = []
        outcome, _ = IscsiGoal(target).do(Record(kind, 0, 1, 512, (MOST_BLOCKS + 10) * 512), b"")  # type: ignore[arg-type]
        assert outcome.status == 0
        assert target.sent == [(1, MOST_BLOCKS), (1 + MOST_BLOCKS, 10)]


def test_many_writes_with_fua_beside_many_others_are_told_apart_soon() -> None:
    """It was done in the square of the writes for each flush: for ever, with some thousands."""
    count = 400
    plain = [Record(Kind.WRITE_ZEROES, 0, 1, number * 1024, 512) for number in range(count)]
    rest = []
    for number in range(count):
        start = 10 + 3 * number
        rest.append(Record(Kind.WRITE_ZEROES, start, 1, number * 1024 + 512, 512, flags=Flag.FUA))
        rest.append(Record(Kind.FLUSH, start + 1, 1, flags=Flag.IMPLIED))
    *_, last = epochs([*plain, *rest])
    assert len(last.pending) == count


def test_places_of_writes_without_data_are_merged() -> None:
    """Of a recording with hashes alone each read asks whether a write was there before."""
    order = list(range(3000))
    random.Random(4).shuffle(order)
    entries = [Record(Kind.WRITE, number, 1, place * 512, 512) for number, place in enumerate(order) if place % 10]
    entries += [
        Record(Kind.READ, 10000 + place, 1, place * 512, 512, form=Form.PLAIN, stored=b"?" * 512) for place in order
    ]
    with upon(size=3000 * 512) as disk:
        found = [each for each in replay(entries, LocalGoal(disk.disk)) if each is not None]
    assert sorted(each.record.offset // 512 for each in found) == list(range(0, 3000, 10))


# -- damage by chance -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A recording as it is made."""
    path = tmp_path_factory.mktemp("real") / "file"
    chance = random.Random(2)
    with upon(given(Recorder(), file=path, data="all")) as disk:
        for number in range(8):
            disk.write(number * 512, chance.choice([bytes(512), b"ab" * 256, chance.randbytes(512)]))
            disk.read(number * 512, 512)
            chance.choice([disk.flush, lambda: disk.discard(512, 1024)])()
    return path.read_bytes()


def mend(data: bytearray) -> None:
    """Give every record that can be found a right checksum, and the header too: as somebody would who means harm."""
    _, length, _ = HEAD.unpack_from(data)
    end = HEAD.size + length
    if end > len(data):
        return
    HEAD.pack_into(data, 0, MAGIC, length, crc32c.crc32c(bytes(data[HEAD.size : end])))
    while end + RECORD.size <= len(data):
        behind = end + RECORD.size + RECORD.unpack_from(data, end)[-1]
        if behind + CHECKSUM.size > len(data):
            return
        CHECKSUM.pack_into(data, behind, crc32c.crc32c(bytes(data[end:behind])))
        end = behind + CHECKSUM.size


@provided(
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), max_size=4),
    st.floats(0, 1),
    st.booleans(),
)
def test_damage_is_refused_with_its_place_or_what_is_sound_is_read(
    tmp_path_factory: pytest.TempPathFactory,
    real: bytes,
    flips: list[tuple[float, int]],
    kept: float,
    mended: bool,
) -> None:
    path = tmp_path_factory.mktemp("damaged") / "file"
    data = bytearray(real)
    for where, mask in flips:
        data[int(where * len(data))] ^= mask
    del data[round(kept * len(data)) :]
    if mended and len(data) >= HEAD.size:
        mend(data)
    path.write_bytes(data)
    try:
        recording = Recording(path)
        found = list(recording)
        for epoch in epochs(found):
            for write in epoch.pending:
                piece = write.data()
                assert piece is None or len(piece) == write.length
    except ConfigError as error:
        said = str(error)
        known = f"{path}: byte " in said or "record with data=writes" in said
        if not known:
            pytest.fail(said)
        return
    assert all(each.offset + each.length <= recording.size for each in found)
    if not mended and not flips:
        assert recording.cut_short or len(data) == len(real) or len(found) < 24


def test_a_state_of_zeros_is_a_hole_in_the_image(tmp_path: Path) -> None:
    (epoch,) = epochs([Record(Kind.DISCARD, 0, 1, 0, 1 << 34)])
    image = Image(tmp_path / "image", 1 << 34, 512)
    image.build(epoch, ((0, Part.WHOLE),))
    assert image.path.stat().st_blocks == 0
    image.close()


def test_what_a_writer_writes_is_sound_by_these_rules(real: bytes, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(real)
    again = tmp_path / "again"
    recording = Recording(path)
    writer = Writer(again, recording.about)
    for each in recording:
        writer.add(each)
    writer.close()
    assert recording.cut_short == 0
    assert again.read_bytes() == real
