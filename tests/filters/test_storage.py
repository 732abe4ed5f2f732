"""`cow`, `cache`, `offset`, `truncate` and `partition`: other data, and other places, than the handler's."""

from __future__ import annotations

import itertools
import random
import subprocess
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from tcmu_core.disk.device import Device, Extent
from tcmu_core.disk.layers import Operations
from tcmu_core.errors import ConfigError
from tcmu_core.filters.cache import LINE, Cache
from tcmu_core.filters.cow import Cow
from tcmu_core.filters.overlay import Overlay
from tcmu_core.filters.window import Offset, Partition, Truncate
from tests.filters.conftest import SIZE, given, rig_upon, upon
from tests.scsi.harness import Memory, Plain, cdb10


def filled(size: int = SIZE) -> Memory:
    """Return memory that holds no zeros, once it is open."""

    class Filled(Memory):
        from tcmu_core import hookimpl as _hook

        @_hook
        def open(self, device: Any) -> None:
            Memory.open(self, device)
            self.data[:] = random.Random(1).randbytes(len(self.data))

    return Filled()


# -- cow --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("in_file", [False, True])
def test_writes_are_read_again_and_never_reach_the_handler(tmp_path: Path, in_file: bool) -> None:
    handler = filled()
    options = {"directory": tmp_path} if in_file else {}
    with upon(given(Cow(), **options), handler=handler) as disk:
        before = bytes(handler.data)
        disk.write(1024, b"w" * 1024, parts=[3, 600])
        disk.discard(4096, 8192)
        disk.write_zeroes(512, 512)
        disk.flush()
        expected = bytearray(before)
        expected[1024:2048], expected[4096:12288], expected[512:1024] = b"w" * 1024, bytes(8192), bytes(512)
        assert disk.read(0, SIZE, parts=[1, 1000, 5000]) == expected
        assert bytes(handler.data) == before
        assert handler.flushed == 0
    assert not list(tmp_path.iterdir())


def test_a_read_that_crosses_the_overlay_waits_for_what_lies_below() -> None:
    handler = filled()
    with upon(Cow(), handler=handler) as disk:
        disk.write(512, b"w" * 512)
        handler.hold = True
        room = bytearray(1536)
        pending: Any = disk.disk.operations.read(0, [memoryview(room)])
        assert len(handler.held) == 2
        handler.release()
        assert not pending.done()
        handler.release()
        assert pending.result(0) is None
        assert room == bytes(handler.data[:512]) + b"w" * 512 + bytes(handler.data[1024:1536])


def test_a_handler_that_can_only_read_becomes_a_disk_that_can_be_written() -> None:
    with upon(Cow(), handler=Plain()) as disk:
        assert not disk.disk.read_only
        disk.write(0, b"w" * 512)
        assert disk.read(0, 1024) == b"w" * 512 + b"r" * 512
        assert disk.extents(0, 1024) == [Extent(0, 512, mapped=True), Extent(512, 512, mapped=True)]


def test_a_read_only_disk_stays_one() -> None:
    with upon(Cow(), read_only=True) as disk:
        assert disk.disk.read_only


def test_the_overlay_takes_no_room_for_what_was_not_written(tmp_path: Path) -> None:
    for directory in ("", str(tmp_path)):
        overlay = Overlay(1 << 40, 512, directory)
        overlay.write(1 << 39, [memoryview(bytearray(b"x" * 512))])
        room = bytearray(512)
        overlay.read(1 << 39, [memoryview(room)])
        assert room == b"x" * 512
        overlay.close()


def test_runs_are_found_in_any_pattern() -> None:
    chance = random.Random(3)
    overlay = Overlay(512 * 400, 512)
    model = [False] * 400
    for _ in range(60):
        first, count = chance.randrange(390), chance.randint(1, 10)
        overlay.mark(first * 512, count * 512)
        model[first : first + count] = [True] * count
        at, length = chance.randrange(300), chance.randint(1, 100)
        found = [state for _, size, state in overlay.runs(at * 512, length * 512) for _ in range(size // 512)]
        assert found == model[at : at + length]
        runs = [state for _, _, state in overlay.runs(at * 512, length * 512)]
        assert all(one is not other for one, other in itertools.pairwise(runs))
    overlay.close()


# -- cache ------------------------------------------------------------------------------------------------------------


class Counting(Memory):
    """Counts the bytes that are read from it."""

    taken = 0
    from tcmu_core import hookimpl as _hook

    @_hook
    def read(self, offset: int, buffers: list[memoryview]) -> Any:
        self.taken += sum(map(len, buffers))
        return Memory.read(self, offset, buffers)


def test_what_was_read_is_not_read_again() -> None:
    handler = Counting()
    with upon(Cache(), handler=handler) as disk:
        for _ in range(3):
            disk.read(0, 4 * LINE)
        assert handler.taken == 4 * LINE
        disk.read(2 * LINE, 6 * LINE)
        assert handler.taken == 8 * LINE


def test_what_was_written_is_below_and_in_the_cache() -> None:
    handler = Counting()
    with upon(Cache(), handler=handler) as disk:
        disk.write(0, b"w" * LINE)
        assert bytes(handler.data[:LINE]) == b"w" * LINE
        assert disk.read(0, LINE) == b"w" * LINE
        assert handler.taken == 0


@pytest.mark.parametrize("change", ["write", "discard", "write_zeroes"])
def test_a_change_of_a_part_of_a_line_is_seen(change: str) -> None:
    with upon(Cache(), handler=filled()) as disk:
        disk.read(0, 4 * LINE)
        arguments = (LINE + 512, b"n" * 512) if change == "write" else (LINE + 512, 512)
        getattr(disk, change)(*arguments)
        assert disk.read(LINE + 512, 512) == (b"n" * 512 if change == "write" else bytes(512))


def test_a_write_that_fails_is_not_kept() -> None:
    handler = Counting()
    with upon(Cache(), handler=handler) as disk:
        disk.read(0, LINE)
        handler.error = OSError("full")
        with pytest.raises(OSError, match="full"):
            disk.write(0, b"w" * LINE)
        handler.error = None
        assert disk.read(0, LINE) == bytes(LINE)


def test_a_read_that_began_before_a_write_does_not_bring_the_old_data_back() -> None:
    handler = Counting()
    with upon(Cache(), handler=handler) as disk:
        handler.hold = True
        disk.disk.operations.read(0, [memoryview(bytearray(LINE))])
        told_late, work = handler.held.popleft()
        work()
        handler.hold = False
        disk.write(0, b"n" * LINE)
        told_late.set_result(None)
        assert disk.read(0, LINE) == b"n" * LINE


@pytest.mark.parametrize("in_file", [False, True])
def test_a_line_that_went_bad_is_read_again(tmp_path: Path, in_file: bool, caplog: pytest.LogCaptureFixture) -> None:
    made = given(Cache(), **({"directory": tmp_path} if in_file else {}))
    assert isinstance(made, Cache)
    with upon(made, handler=filled()) as disk:
        data = disk.read(0, LINE)
        slot, _ = made._lines[0]
        made._room.write(slot * LINE, [memoryview(bytearray(b"bad"))])
        assert disk.read(0, LINE) == data
        assert disk.disk.tell("cache", {})["corrupt"] == 1
    assert "the line at byte 0 is corrupt" in caplog.text


def test_the_oldest_lines_make_room() -> None:
    handler = Counting()
    with upon(given(Cache(), size=4 * LINE), handler=handler) as disk:
        for line in range(4):
            disk.read(line * LINE, LINE)
        disk.read(0, LINE)
        disk.read(4 * LINE, LINE)
        taken = handler.taken
        disk.read(0, LINE)
        assert handler.taken == taken
        disk.read(LINE, LINE)
        assert handler.taken == taken + LINE
        assert disk.disk.tell("cache", {"action": "drop"})["lines"] == 0


@pytest.mark.parametrize("size", ["1E", "99999999999999999999999"])
@pytest.mark.parametrize("in_file", [False, True])
def test_a_cache_is_no_larger_than_its_disk(tmp_path: Path, size: str, in_file: bool) -> None:
    with upon(given(Cache(), size=size, **({"directory": tmp_path} if in_file else {})), handler=filled()) as disk:
        disk.read(0, disk.size)
        assert disk.disk.tell("cache", {})["lines"] == disk.size // LINE


def test_a_cache_of_a_large_disk_takes_memory_as_it_fills(tmp_path: Path) -> None:
    made = given(Cache(), size="16G", directory=tmp_path)
    tracemalloc.start()
    made.open(Device("disk", "memory", size=1 << 40), Operations(read=lambda offset, buffers: None), made.given)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()
    made.close()


# -- windows ----------------------------------------------------------------------------------------------------------


def test_a_part_of_a_disk_is_a_disk() -> None:
    handler = filled()
    with upon(given(Offset(), start="64K", length="128K"), handler=handler) as disk:
        assert disk.size == 128 << 10
        assert disk.read(0, disk.size) == bytes(handler.data[64 << 10 : 192 << 10])
        disk.write(disk.size - 512, b"e" * 512)
        assert bytes(handler.data[(192 << 10) - 512 : 192 << 10]) == b"e" * 512
        disk.discard(0, 1024)
        disk.write_zeroes(2048, 512)
        assert bytes(handler.data[64 << 10 : (64 << 10) + 1024]) == bytes(1024)
        assert disk.extents(512, 1024) == [Extent(512, 512, mapped=False), Extent(1024, 512, mapped=False)]


def test_an_initiator_sees_the_size_of_the_part() -> None:
    rig = rig_upon(given(Truncate(), size="100K"))
    assert int.from_bytes(rig.good(cdb10(0x25, 0, 0), room=8)[:4], "big") == 199
    assert rig.send(cdb10(0x28, 200, 1), room=512).error == (5, 0x21, 0)


WRONG = {
    "beyond": (Offset, {"start": "2M"}, "from byte 2097152 on: the disk below ends at 1048576"),
    "odd": (Offset, {"start": 100}, "not whole blocks"),
    "long": (Offset, {"start": "512K", "length": "1M"}, "1048576 bytes from byte 524288 on: the disk below ends"),
    "larger": (Truncate, {"size": "2M"}, "2097152 bytes from byte 0 on: the disk below ends at 1048576"),
    "no multiple": (Truncate, {"multiple": "3M"}, "nothing is left of the 1048576 bytes of the disk below"),
    "nothing": (Truncate, {}, "takes size= or multiple="),
    "no table": (Partition, {}, "there is no partition table"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_part_that_there_is_not_is_refused(name: str) -> None:
    kind, options, message = WRONG[name]
    with pytest.raises(ConfigError, match=message), upon(given(kind(), **options)):
        pass


def test_a_disk_with_a_window_keeps_its_size() -> None:
    with upon(given(Truncate(), size="100K")) as disk:
        with pytest.raises(NotImplementedError, match="'truncate' is open on a disk of this size"):
            disk.reconfigure(size=SIZE)
        disk.reconfigure(size=100 << 10)


PARTED = {
    "msdos": "mklabel msdos mkpart primary 1MiB 2MiB mkpart extended 2MiB 8MiB mkpart logical 3MiB 4MiB "
    "mkpart logical 5MiB 7MiB",
    "gpt": "mklabel gpt mkpart one 1MiB 2MiB mkpart two 3MiB 7MiB",
}
FOUND = {
    "msdos": {1: (1, 1), 5: (3, 1), 6: (5, 2)},
    "gpt": {1: (1, 1), 2: (3, 4)},
}


@pytest.fixture
def image(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """An image with partitions, made by parted; each MiB of it is filled with its number."""
    path = tmp_path / "image"
    with path.open("wb") as file:
        file.truncate(10 << 20)
    subprocess.run(["parted", "-s", str(path), *PARTED[request.param].split()], check=True, capture_output=True)
    with path.open("r+b") as file:
        for mib in (1, 3, 5):
            file.seek((mib << 20) + 4096)
            file.write(bytes([mib]) * 512)
    return path


class FileMemory(Memory):
    """Memory with the contents of a file."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    from tcmu_core import hookimpl as _hook

    @_hook
    def open(self, device: Any) -> None:
        Memory.open(self, device)
        self.data[:] = self.path.read_bytes()


@pytest.mark.parametrize("image", PARTED, indirect=True)
def test_each_partition_is_where_parted_has_put_it(image: Path, request: pytest.FixtureRequest) -> None:
    label = request.node.callspec.params["image"]
    for number, (start, length) in FOUND[label].items():
        with upon(given(Partition(), number=number), handler=FileMemory(image), size=10 << 20) as disk:
            assert disk.size == length << 20
            assert disk.read(4096, 512) == bytes([start]) * 512
    none = given(Partition(), number=9)
    said = "there is no partition 9: there are 1, "
    with pytest.raises(ConfigError, match=said), upon(none, handler=FileMemory(image), size=10 << 20):
        pass


@pytest.mark.parametrize("image", ["gpt"], indirect=True)
def test_a_broken_gpt_is_found_by_its_backup_and_two_broken_ones_are_refused(image: Path) -> None:
    with image.open("r+b") as file:
        file.seek(512 + 72)
        file.write(b"\xff" * 8)
    with upon(given(Partition(), number=2), handler=FileMemory(image), size=10 << 20) as disk:
        assert disk.size == 4 << 20
    with image.open("r+b") as file:
        file.seek((10 << 20) - 512 + 72)
        file.write(b"\xff" * 8)
    with (
        pytest.raises(ConfigError, match="checksum is wrong"),
        upon(Partition(), handler=FileMemory(image), size=10 << 20),
    ):
        pass


@pytest.mark.parametrize("image", ["msdos"], indirect=True)
def test_logical_partitions_in_a_loop_are_refused(image: Path) -> None:
    with image.open("r+b") as file:
        sector = bytearray(file.read(512))
        start = int.from_bytes(sector[0x1CE + 8 : 0x1CE + 12], "little")
        file.seek(start * 512 + 0x1CE)
        entry = bytearray(file.read(16))
        entry[8:12] = bytes(4)  # the next one is the first one again
        file.seek(start * 512 + 0x1CE)
        file.write(entry)
    made, said = given(Partition(), number=5), "the chain of logical partitions is broken"
    with pytest.raises(ConfigError, match=said), upon(made, handler=FileMemory(image), size=10 << 20):
        pass
