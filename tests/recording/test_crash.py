"""What a power cut could have left: which states there are, and that they find a bug, and none where there is none."""

from __future__ import annotations

import os
import random
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from tcmu_core.cli.tcmu import main
from tcmu_core.errors import ConfigError
from tcmu_core.filters.record import Record as Recorder
from tcmu_core.recording.crash import Epoch, Part, State, Write, epochs
from tcmu_core.recording.file import Outcome, Record, Recording
from tcmu_core.recording.images import MOST_SAID, Failure, Image, shell_check, shrink
from tcmu_core.recording.layout import Flag, Form, Kind
from tests.filters.conftest import given, upon
from tests.recording import ledger
from tests.recording.ledger import Ledger

BLOCK = 512


def write(
    start: int, lba: int = 0, fill: bytes = b"w", blocks: int = 1, took: int = 1, flags: Flag = Flag.NONE
) -> Record:
    data = fill * (blocks * BLOCK)
    return Record(Kind.WRITE, start, took, lba * BLOCK, len(data), flags=flags, form=Form.PLAIN, stored=data)


def flush(start: int, took: int = 1, flags: Flag = Flag.NONE) -> Record:
    return Record(Kind.FLUSH, start, took, flags=flags)


def numbers(writes: list[Write]) -> list[int]:
    return [each.number for each in writes]


def shape(records: list[Record]) -> list[tuple[list[int], list[int]]]:
    return [(numbers(epoch.durable), numbers(epoch.pending)) for epoch in epochs(records)]


# -- epochs -----------------------------------------------------------------------------------------------------------


def test_a_flush_makes_durable_what_ended_before_it_began() -> None:
    assert shape([write(0), write(2), flush(4), write(6)]) == [([], [0, 1]), ([0, 1], [3])]


def test_a_write_that_was_in_flight_when_the_flush_began_is_uncertain() -> None:
    assert shape([write(0), write(2, took=9), flush(4)]) == [([], [0]), ([0], [1])]
    assert shape([write(0), write(2, took=3), flush(4, took=9)]) == [([], [0, 1]), ([0], [1])]


def test_a_flush_that_failed_makes_nothing_durable() -> None:
    failed = Record(Kind.FLUSH, 4, 1, outcome=Outcome(2, (4, 0x44, 0)))
    assert shape([write(0), failed]) == [([], [0])]


def test_a_write_with_fua_is_durable_and_those_before_it_are_not() -> None:
    records = [write(0, 1), write(2, 2, flags=Flag.FUA), flush(4, flags=Flag.IMPLIED), write(6, 3)]
    assert shape(records) == [([], [0, 1]), ([1], [0, 3])]


def test_the_flush_of_a_disk_without_a_write_cache_is_one() -> None:
    assert shape([write(0), flush(2, flags=Flag.IMPLIED)]) == [([], [0]), ([0], [])]


def test_an_older_write_never_lies_upon_a_newer_durable_one() -> None:
    records = [write(0, 0, b"o", 3), write(2, 1, b"n", flags=Flag.FUA), flush(4, flags=Flag.IMPLIED)]
    *_, last = epochs(records)
    assert [(each.offset, each.length) for each in last.pending] == [(0, 512), (1024, 512)]


def test_discards_and_zeros_are_writes_of_zeros() -> None:
    records = [Record(Kind.DISCARD, 0, 1, 0, 1024), Record(Kind.WRITE_ZEROES, 2, 1, 1024, 512)]
    (epoch,) = epochs(records)
    assert [(each.offset, each.length, each.data()) for each in epoch.pending] == [(0, 1024, None), (1024, 512, None)]


def test_without_the_data_there_are_no_images() -> None:
    with pytest.raises(ConfigError, match="record with data=writes"):
        list(epochs([Record(Kind.WRITE, 0, 1, 0, 512, form=Form.SHA256, stored=bytes(16))]))


# -- states -----------------------------------------------------------------------------------------------------------


def pending(*blocks: int) -> Epoch:
    records = [write(number, number * 128, b"w", count) for number, count in enumerate(blocks)]
    return Epoch(0, [], [Write(number, each.offset, each.length, each) for number, each in enumerate(records)])


def test_of_few_writes_every_subset_is_tried() -> None:
    states = list(pending(1, 1, 1, 1).states(BLOCK, 100, 0))
    assert {tuple(position for position, _ in state) for state in states} == {
        tuple(position for position in range(4) if bits >> position & 1) for bits in range(16)
    }
    assert len(states) == len(set(states)) == 16


def test_of_many_writes_prefixes_are_tried_and_each_missing_and_each_alone() -> None:
    states = set(pending(*[1] * 30).states(BLOCK, 100, 0))
    everything = tuple((position, Part.WHOLE) for position in range(30))
    for position in range(31):
        assert everything[:position] in states
    for position in range(30):
        assert everything[:position] + everything[position + 1 :] in states
        assert (everything[position],) in states


def test_no_more_are_tried_than_the_limit_and_by_the_same_seed_the_same() -> None:
    epoch = pending(*[2] * 40)
    assert len(list(epoch.states(BLOCK, 50, 0))) == 50
    assert list(epoch.states(BLOCK, 400, 1)) == list(epoch.states(BLOCK, 400, 1)) != list(epoch.states(BLOCK, 400, 2))


def test_a_write_of_several_blocks_is_torn_and_a_block_never() -> None:
    parts = {state[-1][1] for state in pending(8).states(BLOCK, 100, 0) if state}
    assert parts == {Part.WHOLE, Part.FIRST, Part.HALF, Part.LAST}
    assert {part for state in pending(1).states(BLOCK, 100, 0) for _, part in state} == {Part.WHOLE}
    data = b"".join(bytes([number]) * BLOCK for number in range(8))
    torn = Write(0, 0, len(data), Record(Kind.WRITE, 0, 1, 0, len(data), form=Form.PLAIN, stored=data))
    for part, first, last in ((Part.FIRST, 0, 1), (Part.HALF, 0, 4), (Part.LAST, 7, 8)):
        piece = torn.part(part, BLOCK)
        assert (piece.offset, piece.data()) == (first * BLOCK, data[first * BLOCK : last * BLOCK])


# -- images -----------------------------------------------------------------------------------------------------------


def test_each_image_is_what_the_state_says_whatever_was_built_before(tmp_path: Path) -> None:
    chance = random.Random(5)
    records: list[Record] = []
    for number in range(40):
        if chance.random() < 0.2:
            records.append(flush(number * 2))
        elif chance.random() < 0.2:
            lba, blocks = chance.randrange(20), chance.randint(1, 4)
            records.append(Record(Kind.DISCARD, number * 2, 1, lba * BLOCK, blocks * BLOCK))
        else:
            records.append(write(number * 2, chance.randrange(20), bytes([number + 1]), chance.randint(1, 4)))
    base = tmp_path / "base"
    base.write_bytes(b"\xee" * (16 * BLOCK))
    image = Image(tmp_path / "image", 32 * BLOCK, BLOCK, base)
    durable = bytearray(base.read_bytes().ljust(32 * BLOCK, b"\0"))
    for epoch in epochs(records):
        image.settle(epoch)
        for each in epoch.durable:
            durable[each.offset : each.offset + each.length] = each.data() or bytes(each.length)
        for count, state in enumerate(epoch.states(BLOCK, 12, 0)):
            expected = bytearray(durable)
            for position, part in state:
                piece = epoch.pending[position].part(part, BLOCK)
                data = piece.data()
                expected[piece.offset : piece.offset + piece.length] = bytes(piece.length) if data is None else data
            image.build(epoch, state)
            assert image.path.read_bytes() == expected
            if count % 3 == 0:  # a check that repairs what it finds
                image.path.write_bytes(b"scribble" * 100)
    image.close()
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


def test_a_failure_is_shrunk_to_the_fewest_writes(tmp_path: Path) -> None:
    epoch = pending(*[3] * 24)
    image = Image(tmp_path / "image", 24 * 65536, BLOCK)

    def bad(path: Path) -> tuple[int, str]:
        data = path.read_bytes()
        return int(bool(data[5 * 65536]) and bool(data[17 * 65536]) and not data[3 * 65536]), "both, and not 3"

    state = tuple((position, Part.FIRST if position == 17 else Part.WHOLE) for position in range(24) if position != 3)
    image.build(epoch, state)
    small = shrink(image, Failure(epoch, state, 1, ""), bad)
    assert small.state == ((5, Part.WHOLE), (17, Part.WHOLE))
    assert "2 of 24 writes since the last flush are there" in next(iter(small.lines()))
    image.close()


def test_a_check_that_does_not_end_has_failed(tmp_path: Path) -> None:
    assert shell_check("sleep 60", 0.1)(tmp_path) == (-1, "it did not end within 0.1 seconds")


def test_nothing_of_a_check_that_does_not_end_meets_the_next_image(tmp_path: Path) -> None:
    image = tmp_path / "image"
    began = time.monotonic()
    assert shell_check("(sleep 0.5; echo late > $image) && true", 0.1)(image)[0] == -1
    time.sleep(max(0.0, began + 1 - time.monotonic()))
    assert not image.exists()


def test_a_check_that_says_more_than_anybody_reads_takes_no_memory(tmp_path: Path) -> None:
    tracemalloc.start()
    status, said = shell_check("head -c 100M /dev/zero | tr '\\0' x; exit 3", 60)(tmp_path)
    assert (status, said) == (3, "x" * MOST_SAID)
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()
    assert shell_check("yes", 0.3)(tmp_path) == (-1, "it did not end within 0.3 seconds")


def test_what_a_check_leaves_behind_is_not_waited_for(tmp_path: Path) -> None:
    status, said = shell_check("sleep 5 & echo $! said; exit 2", 60)(tmp_path)
    os.kill(int(said.split()[0]), 9)
    assert (status, said.split()[1]) == (2, "said")


SPOILS = {
    "a link": "ln -sf $PWD/other $image",
    "a directory": "rm $image; mkdir $image; touch $image/x",
    "nothing": "rm $image",
    "a shorter one": "truncate -s 0 $image",
}


@pytest.mark.parametrize("what", SPOILS)
def test_whatever_a_check_puts_in_the_place_of_an_image_the_next_one_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other").write_bytes(b"somebody else's")
    (tmp_path / "images").mkdir()
    record = Record(Kind.WRITE, 0, 1, 0, BLOCK, form=Form.PLAIN, stored=b"d" * BLOCK)
    image = Image(tmp_path / "images" / "image", 4 * BLOCK, BLOCK)
    check = shell_check(SPOILS[what], 60)
    epoch = Epoch(0, [Write(0, 0, BLOCK, record)], [Write(1, 0, BLOCK, record).within(0, BLOCK)])
    for _ in range(2):
        image.settle(epoch)
        image.build(epoch, ())
        assert image.path.read_bytes() == b"d" * BLOCK + bytes(3 * BLOCK)
        assert check(image.path)[0] == 0
    assert (tmp_path / "other").read_bytes() == b"somebody else's"


@pytest.mark.parametrize("what", ["fifo", "directory"])
def test_what_is_no_file_is_not_kept_to_and_stays(tmp_path: Path, what: str) -> None:
    goal = tmp_path / "goal"
    os.mkfifo(goal) if what == "fifo" else goal.mkdir()
    mode = goal.stat().st_mode
    image = Image(tmp_path / "image", 4 * BLOCK, BLOCK)
    with pytest.raises(ConfigError, match="no regular file"):
        image.keep(goal)
    assert goal.stat().st_mode == mode


def test_a_limit_that_is_higher_than_there_are_states_ends() -> None:
    epoch = Epoch(0, [], [Write(number, number * BLOCK, BLOCK, None) for number in range(3)])
    states = threading.Thread(target=lambda: found.extend(epoch.states(BLOCK, 10**12, 0)), daemon=True)
    found: list[State] = []
    states.start()
    states.join(60)
    assert (states.is_alive(), len(found)) == (False, 8)


# -- the whole of it --------------------------------------------------------------------------------------------------


def recorded(path: Path, *, careful: bool) -> Recording:
    with upon(given(Recorder(), file=path), size=1 << 17) as disk:
        book = Ledger(disk.write, disk.flush, careful=careful)
        for number in range(6):
            book.append(b"entry %d" % number)
    return Recording(path)


@pytest.fixture
def crash(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    def run(path: Path, *more: object) -> tuple[int, str]:
        command = f"{sys.executable} {ledger.__file__} $image"
        status = main(["crash", str(path), "--check", command, *map(str, more)])
        return status, capsys.readouterr().out

    return run


def test_a_log_that_forgets_a_flush_is_caught_with_the_one_write_that_matters(
    tmp_path: Path, crash: Callable[..., tuple[int, str]]
) -> None:
    recorded(tmp_path / "file", careful=False)
    status, said = crash(tmp_path / "file", "--keep", tmp_path / "bad", "--limit", 8)
    assert status == 1
    assert "1 of 2 writes since the last flush are there" in said
    assert "2048 bytes at 512: missing" in said
    assert "512 bytes at 0: there" in said
    assert "entry 0 of 1 is not whole" in said
    assert ledger.check(tmp_path / "bad") == "entry 0 of 1 is not whole"


def test_a_log_that_flushes_passes_every_cut(tmp_path: Path, crash: Callable[..., tuple[int, str]]) -> None:
    recorded(tmp_path / "file", careful=True)
    status, said = crash(tmp_path / "file", "--limit", 8)
    assert (status, said.splitlines()[-1].split(", ")[1]) == (0, "0 failures")


def test_cuts_are_tried_from_the_flush_that_is_named(tmp_path: Path, crash: Callable[..., tuple[int, str]]) -> None:
    path = tmp_path / "file"
    with upon(given(Recorder(), file=path), size=1 << 17) as disk:
        for careful in (False, True):
            book = Ledger(disk.write, disk.flush, careful=careful)
            for number in range(3):
                book.append(b"entry %d" % number)
    flushes = [epoch.number for epoch in epochs(Recording(path)) if epoch.durable and epoch.durable[0].number >= 8]
    assert crash(path, "--limit", 6, "--all")[0] == 1
    assert crash(path, "--limit", 6, "--from", flushes[0] + 1)[0] == 0
    assert crash(path, "--from", 1000) == (4, "")  # nothing was checked, which is not that all is well


def test_an_image_that_can_not_be_kept_hides_no_failure(tmp_path: Path, crash: Callable[..., tuple[int, str]]) -> None:
    recorded(tmp_path / "file", careful=False)
    status, said = crash(tmp_path / "file", "--keep", tmp_path / "nowhere" / "bad", "--limit", 8)
    assert status == 1
    assert "entry 0 of 1 is not whole" in said


def test_what_was_on_the_disk_before_is_a_file_or_a_block_device(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(ConfigError, match="fifo: no regular file, and no block device"):
        Image(tmp_path / "image", BLOCK, BLOCK, tmp_path / "fifo")
