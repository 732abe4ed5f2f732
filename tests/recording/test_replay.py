"""A recording done again: no difference on a disk that does the same, each difference on one that does not."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.servers import tgt
from tcmu_core.cli.tcmu import main
from tcmu_core.errors import ConfigError
from tcmu_core.filters.fault import Fault
from tcmu_core.filters.record import Record as Recorder
from tcmu_core.recording.file import Outcome, Record, Recording
from tcmu_core.recording.layout import Flag, Form, Kind
from tcmu_core.recording.replay import replay
from tcmu_core.testing import Client
from tcmu_core.testing.goals import IscsiGoal, LocalGoal
from tcmu_core.testing.served import ServedDisk
from tests.filters.conftest import SIZE, given, upon
from tests.scsi.harness import Memory


@pytest.fixture
def recording(tmp_path: Path) -> Recording:
    """Everything that a disk can be asked for, twice over, by chance."""
    chance = random.Random(11)
    with upon(given(Recorder(), file=tmp_path / "file")) as disk:
        for _ in range(40):
            lba, blocks = chance.randrange(100), chance.randint(1, 20)
            disk.write(lba * 512, chance.randbytes(blocks * 512))
            disk.read(chance.choice([lba, chance.randrange(100)]) * 512, 1024)
            chance.choice([disk.flush, lambda: disk.discard(512, 5120), lambda: disk.write_zeroes(9 * 512, 1024)])()
    return Recording(tmp_path / "file")


def test_the_same_disk_does_the_same(recording: Recording) -> None:
    handler = Memory()
    with upon(handler=handler) as disk:
        found = list(replay(recording, LocalGoal(disk.disk)))
        assert found == [None] * 120
        assert handler.flushed > 0


def test_other_data_is_found(recording: Recording) -> None:
    with upon(given(Fault(), rule="write every=3 -> flip=100")) as disk:
        found = [each for each in replay(recording, LocalGoal(disk.disk)) if each is not None]
    assert found
    assert all(each.data and each.record.kind is Kind.READ for each in found)
    assert "other data was read" in str(found[0])


def test_another_outcome_is_found(recording: Recording) -> None:
    with upon(given(Fault(), rule="flush nth=2 -> hardware-error")) as disk:
        (found,) = [each for each in replay(recording, LocalGoal(disk.disk)) if each is not None]
    assert found.outcome == Outcome(2, (4, 0x44, 0))
    assert str(found).endswith("flush: recorded GOOD, now CHECK CONDITION 4/44/00")


def test_an_error_that_comes_again_is_no_difference(tmp_path: Path) -> None:
    rule = "write lba=5 -> write-error"
    with upon(given(Fault(), rule=rule), given(Recorder(), file=tmp_path / "file")) as disk:
        for lba in (4, 5):
            try:
                disk.write(lba * 512, b"x" * 512)
            except Exception as error:
                assert lba == 5, error  # noqa: PT017 - one of the two fails
    recording = Recording(tmp_path / "file")
    with upon(given(Fault(), rule=rule)) as disk:
        assert list(replay(recording, LocalGoal(disk.disk))) == [None, None]
    with upon() as disk:
        assert [each is not None for each in replay(recording, LocalGoal(disk.disk))] == [False, True]


def test_reads_beside_a_write_in_flight_are_not_compared() -> None:
    write = Record(Kind.WRITE, 0, 100, 0, 512, form=Form.PLAIN, stored=b"w" * 512)
    beside = Record(Kind.READ, 50, 10, 0, 512, form=Form.PLAIN, stored=bytes(512))
    later = Record(Kind.READ, 200, 10, 0, 512, form=Form.PLAIN, stored=bytes(512))
    with upon() as disk:
        found = list(replay([beside, write, later], LocalGoal(disk.disk)))
    assert [each is not None for each in found] == [False, False, True]


def test_what_a_failed_write_has_left_is_not_compared() -> None:
    failed = Record(Kind.WRITE, 0, 10, 0, 512, Outcome(2, (3, 0x0C, 0)))
    read = Record(Kind.READ, 20, 10, 0, 512, form=Form.PLAIN, stored=b"half" * 128)
    with upon() as disk:
        assert list(replay([failed, read], LocalGoal(disk.disk))) == [None]


def test_a_disk_that_can_not_do_it_says_so(recording: Recording) -> None:
    class Bare(Memory):
        discard = None  # type: ignore[assignment]

    with upon(handler=Bare()) as disk, pytest.raises(ConfigError, match="the disk has no discard"):
        list(replay(recording, LocalGoal(disk.disk)))


def test_it_is_done_over_iscsi_too(recording: Recording, tcmu_disk: Callable[..., ServedDisk]) -> None:
    disk = tcmu_disk("ram", size=SIZE)
    with Client(disk.uri) as client:
        assert list(replay(recording, IscsiGoal(client))) == [None] * 120
    counts = disk.stats
    assert counts["write"]["count"] == 40
    assert counts["discard"]["count"] + counts["write_zeroes"]["count"] + counts["flush"]["count"] >= 40


def test_a_disk_that_can_not_be_reached_is_named(recording: Recording, capsys: pytest.CaptureFixture[str]) -> None:
    uri = "iscsi://127.0.0.1:1/iqn.2026-01.org.example:a/0"
    assert main(["replay", str(recording.path), uri]) == 1
    assert capsys.readouterr().err == f"tcmu: {uri} can't be reached: Connection refused\n"


def test_differences_are_found_over_iscsi_too(recording: Recording, tcmu_disk: Callable[..., ServedDisk]) -> None:
    disk = tcmu_disk("ram", size=SIZE)
    disk.fault("write every=3 -> flip=100", "read nth=3 -> sense=b/47/03")
    with Client(disk.uri) as client:
        found = [each for each in replay(recording, IscsiGoal(client)) if each is not None]
    assert Outcome(2, (0xB, 0x47, 3)) in [each.outcome for each in found]
    assert any(each.data for each in found)


def test_fua_is_sent_again_and_the_flush_it_implies_is_not(tcmu_disk: Callable[..., ServedDisk]) -> None:
    entries = [
        Record(Kind.WRITE, 0, 5, 0, 512, flags=Flag.FUA, form=Form.PLAIN, stored=b"f" * 512),
        Record(Kind.FLUSH, 6, 1, flags=Flag.IMPLIED),
    ]
    disk = tcmu_disk("ram", size=SIZE)
    with Client(disk.uri) as client:
        assert list(replay(entries, IscsiGoal(client))) == [None]
    assert disk.stats["flush"]["count"] == 1


def test_it_is_done_to_a_target_of_somebody_else_too(tmp_path: Path) -> None:
    """What every disk can do, on tgt: reads, writes, FUA, flushes; then with an image that holds something else."""
    chance = random.Random(3)
    with upon(given(Recorder(), file=tmp_path / "file", data="all")) as disk:
        for _ in range(30):
            lba, blocks = chance.randrange(1000), chance.randint(1, 200)
            disk.write(lba * 512, chance.randbytes(blocks * 512))
            disk.read(chance.choice([lba, chance.randrange(1000)]) * 512, blocks * 512)
            disk.flush()
    recording = Recording(tmp_path / "file")
    image = tmp_path / "image"
    for content, same in ((bytes(SIZE), True), (b"\xff" * SIZE, False)):
        image.write_bytes(content)
        with tgt(image, tmp_path, {}) as server, Client(server.uri) as client:
            found = list(replay(recording, IscsiGoal(client)))
        assert len(found) == 90
        assert (found == [None] * 90) is same
        assert all(each is None or each.data for each in found)
