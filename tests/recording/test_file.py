"""A recording holds what was done, in a file that can be cut anywhere."""

from __future__ import annotations

import itertools
import os
import random
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given as provided
from hypothesis import strategies as st

from tcmu_core.errors import ConfigError, WriteError
from tcmu_core.filters.record import Record as Recorder
from tcmu_core.recording.file import GOOD, Outcome, Record, Recording, Writer, pack
from tcmu_core.recording.layout import RECORD, Flag, Form, Kind
from tests.filters.conftest import given, rig_upon, upon
from tests.scsi.harness import Memory, cdb10, cdb16

ABOUT = {"format": 1, "size": 1 << 20, "block_size": 512}


def records(path: Path) -> list[Record]:
    return list(Recording(path))


def filled(record: Record) -> Record:
    """Return it with as much data as fits what it did, in one of the forms."""
    length = record.length % 4096
    data = random.Random(record.start).choice([b"\0", b"ab", bytes(range(256))]) * length
    form, stored = pack(data[:length], hashed=record.offset % 1024 == 0)
    return replace(record, length=length, form=form, stored=stored)


@provided(
    st.lists(
        st.builds(
            Record,
            st.sampled_from(Kind),
            st.integers(0, 2**63),
            st.integers(0, 2**63),
            st.integers(0, 2**52).map(lambda block: block * 512),
            st.integers(0, 2**52).map(lambda block: block * 512),
            st.builds(Outcome, st.integers(0, 255), st.tuples(*[st.integers(0, 255)] * 3)),
            st.sampled_from([Flag.NONE, Flag.FUA, Flag.IMPLIED]),
        ).map(lambda record: record if record.kind not in (Kind.READ, Kind.WRITE) else filled(record)),
        max_size=5,
    )
)
def test_what_was_written_is_read_again(tmp_path_factory: Any, entries: list[Record]) -> None:
    path = tmp_path_factory.mktemp("recording") / "file"
    writer = Writer(path, {**ABOUT, "size": 2**63 - 1})
    for entry in entries:
        writer.add(entry)
    writer.close()
    assert records(path) == entries
    assert Recording(path).about == {**ABOUT, "size": 2**63 - 1}


@pytest.mark.parametrize(
    ("data", "form"),
    [(bytes(4096), Form.ZEROS), (b"ab" * 2048, Form.DEFLATED), (random.Random(1).randbytes(4096), Form.PLAIN)],
)
def test_data_is_kept_as_small_as_it_can_be(data: bytes, form: Form) -> None:
    kept, stored = pack(data, hashed=False)
    assert kept is form
    assert len(stored) <= len(data)
    record = Record(Kind.WRITE, 0, 0, 0, len(data), form=kept, stored=stored)
    assert record.data() == data
    assert record.same(data) is True
    assert record.same(data[:-1] + b"?") is False


def test_of_a_hash_only_sameness_is_known() -> None:
    form, stored = pack(b"x" * 512, hashed=True)
    record = Record(Kind.READ, 0, 0, 0, 512, form=form, stored=stored)
    assert len(stored) == 16
    assert record.data() is None
    assert record.same(b"x" * 512) is True
    assert record.same(b"y" * 512) is False


def test_a_file_that_is_cut_anywhere_gives_the_records_before(tmp_path: Path) -> None:
    path = tmp_path / "file"
    writer = Writer(path, ABOUT)
    entries = [Record(Kind.WRITE, n, 1, n * 512, 512, form=Form.PLAIN, stored=bytes([n]) * 512) for n in range(3)]
    ends = [path.stat().st_size]
    for entry in entries:
        writer.add(entry)
        ends.append(path.stat().st_size)
    writer.close()
    whole = path.read_bytes()
    for size in range(ends[0], len(whole) + 1):
        path.write_bytes(whole[:size])
        found = Recording(path)
        assert list(found) == entries[: sum(end <= size for end in ends[1:])]
        assert found.cut_short == size - max(end for end in ends if end <= size)


def test_a_record_that_went_bad_ends_the_recording(tmp_path: Path) -> None:
    path = tmp_path / "file"
    writer = Writer(path, ABOUT)
    for number in range(3):
        writer.add(Record(Kind.FLUSH, number, 1))
    writer.close()
    data = bytearray(path.read_bytes())
    data[-RECORD.size] ^= 1
    path.write_bytes(data)
    found = Recording(path)
    assert len(list(found)) == 2
    assert found.cut_short


@pytest.mark.parametrize("data", [b"", b"short", b"x" * 100, b"TCMUREC1" + b"\xff" * 8])
def test_what_is_no_recording_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(data)
    with pytest.raises(ConfigError, match=r"no recording|is broken"):
        Recording(path)


def test_a_file_that_holds_something_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"precious")
    with pytest.raises(ConfigError, match="there is something in it"), upon(given(Recorder(), file=path)):
        pass
    assert path.read_bytes() == b"precious"


def test_a_recording_goes_into_no_pipe_and_waits_for_nobody(tmp_path: Path) -> None:
    path = tmp_path / "file"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # who is there, for a pipe without one can't be opened
    try:
        with pytest.raises(ConfigError, match="no regular file"), upon(given(Recorder(), file=path)):
            pass
    finally:
        os.close(reader)
    with pytest.raises(OSError, match="No such device"), upon(given(Recorder(), file=path)):
        pass


# -- the filter -------------------------------------------------------------------------------------------------------


def test_each_operation_is_there_with_data_outcome_and_times(tmp_path: Path) -> None:
    path, handler = tmp_path / "file", Memory()
    with upon(given(Recorder(), file=path, data="all"), handler=handler) as disk:
        disk.write(512, b"w" * 512, parts=[100])
        disk.read(0, 1024, parts=[3])
        disk.flush()
        disk.discard(0, 512)
        disk.write_zeroes(512, 512)
        handler.error = WriteError()
        with pytest.raises(WriteError):
            disk.write(0, b"f" * 512)
    found = records(path)
    assert [(each.kind, each.offset, each.length) for each in found] == [
        (Kind.WRITE, 512, 512), (Kind.READ, 0, 1024), (Kind.FLUSH, 0, 0), (Kind.DISCARD, 0, 512),
        (Kind.WRITE_ZEROES, 512, 512), (Kind.WRITE, 0, 512),
    ]  # fmt: skip
    assert found[0].data() == b"w" * 512
    assert found[1].data() == bytes(512) + b"w" * 512
    assert [each.outcome for each in found] == [GOOD] * 5 + [Outcome(2, (3, 0x0C, 0))]
    assert all(one.end <= other.start for one, other in itertools.pairwise(found))
    about = Recording(path).about
    assert (about["size"], about["block_size"], about["format"]) == (1 << 20, 512, 1)


def test_of_reads_a_hash_is_kept_unless_asked_and_of_writes_too_if_asked(tmp_path: Path) -> None:
    for keep, forms in (("writes", [Form.DEFLATED, Form.SHA256]), ("hash", [Form.SHA256] * 2)):
        path = tmp_path / keep
        with upon(given(Recorder(), file=path, data=keep)) as disk:
            disk.write(0, b"w" * 512)
            disk.read(0, 512)
        assert [each.form for each in records(path)] == forms


def test_an_operation_is_recorded_when_it_ends(tmp_path: Path) -> None:
    path, handler = tmp_path / "file", Memory()
    with upon(given(Recorder(), file=path), handler=handler) as disk:
        handler.hold = True
        assert disk.disk.operations.write is not None
        disk.disk.operations.write(0, [memoryview(bytearray(b"1" * 512))])
        disk.disk.operations.write(512, [memoryview(bytearray(b"2" * 512))])
        assert records(path) == []
        handler.release(last=True)
        handler.release()
    assert [each.offset for each in records(path)] == [512, 0]
    first, second = records(path)
    assert second.start < first.start < first.end < second.end


def test_fua_is_known_and_the_flush_that_it_implies(tmp_path: Path) -> None:
    path = tmp_path / "file"
    rig = rig_upon(given(Recorder(), file=path))
    rig.good(cdb10(0x2A, 0, 1), b"a" * 512)
    rig.good(cdb10(0x2A, 1, 1, 0x08), b"b" * 512)
    rig.good(cdb16(0x8A, 2, 1, 0x08), b"c" * 512)
    rig.good(cdb10(0x35, 0, 0))
    rig.engine.close()
    assert [(each.kind, each.flags) for each in records(path)][:6] == [
        (Kind.WRITE, Flag.NONE),
        (Kind.WRITE, Flag.FUA), (Kind.FLUSH, Flag.IMPLIED),
        (Kind.WRITE, Flag.FUA), (Kind.FLUSH, Flag.IMPLIED),
        (Kind.FLUSH, Flag.NONE),
    ]  # fmt: skip


def test_a_recording_that_can_not_go_on_does_not_disturb_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    made = given(Recorder(), file=tmp_path / "file")
    with upon(made) as disk:

        def full(*_: Any) -> int:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "write", full)
        disk.write(0, b"w" * 512)
        monkeypatch.undo()
        assert disk.read(0, 512) == b"w" * 512
    assert "the recording ends here" in caplog.text
    assert records(tmp_path / "file") == []


KILLED = """
import os, signal, sys
from tcmu_core.recording.file import Record, Writer
from tcmu_core.recording.layout import Kind
writer = Writer(__import__("pathlib").Path(sys.argv[1]), {"format": 1, "size": 512, "block_size": 512})
for number in range(7):
    writer.add(Record(Kind.FLUSH, number, 1))
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_process_loses_no_record(tmp_path: Path) -> None:
    path = tmp_path / "file"
    done = subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(records(path)) == 7


def test_the_description_has_the_layout_that_is_written() -> None:
    text = (Path(__file__).parents[2] / "docs" / "record-format.md").read_text()
    assert f"{RECORD.size} bytes" in text
    for kind in (*Kind, *Form):
        assert f"| {kind.value} | {kind.name.lower().replace('_', ' ')} |" in text, kind
