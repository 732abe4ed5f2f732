import functools
from concurrent.futures import Future
from contextlib import closing

import pytest

from tcmu_core.loop import Loop
from tcmu_core.testing import check_handler, open_device
from tcmu_file import FileHandler


@pytest.fixture
def loop():
    with closing(Loop()) as loop:
        yield loop


@pytest.mark.parametrize("waits", ["on threads", "on the loop"])
def test_every_storage_keeps_the_promises_of_a_handler(place, loop, waits):
    reactor = loop if waits == "on the loop" else None
    check_handler(
        lambda: open_device(FileHandler, place.cfgstring, size=place.size, reactor=reactor),
        persistent=True,
        examples=15,
    )


def test_and_so_does_a_device_with_blocks_of_4096_bytes(disk_dir):
    cfgstring = f"{disk_dir}/disk;block_size=4096"
    make = functools.partial(open_device, FileHandler, cfgstring, size=4 << 20)
    check_handler(make, persistent=True, examples=5, claims=["own block size"])  # the cfgstring's


@pytest.mark.uring
@pytest.mark.parametrize("option", ["", ";direct=1"])
def test_on_a_loop_nothing_goes_to_a_thread(disk_dir, loop, option):
    with open_device(FileHandler, f"{disk_dir}/disk{option}", size=1 << 20, reactor=loop) as disk:
        disk.write(512, b"w" * 512)
        disk.flush()
        assert disk.read(512, 512) == b"w" * 512
        pending = disk.operations.flush()
        assert isinstance(pending, Future)
        disk.finish(pending)
        assert disk.device.in_flight() == 0
        assert disk.device._threads._pool is None


def test_closing_waits_for_what_is_in_flight(disk_dir, loop):
    with open_device(FileHandler, f"{disk_dir}/disk;direct=1", size=1 << 20, reactor=loop) as disk:
        pending = [disk.operations.write(at, [memoryview(bytearray(b"w" * 4096))]) for at in range(0, 1 << 20, 4096)]
    assert all(future.exception(0) is None for future in pending)
    assert (disk_dir / "disk").read_bytes() == b"w" * (1 << 20)
