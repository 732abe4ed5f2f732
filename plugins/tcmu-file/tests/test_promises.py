import functools

from tcmu_core.testing import check_handler, open_device
from tcmu_file import FileHandler


def test_every_storage_keeps_the_promises_of_a_handler(place):
    check_handler(lambda: open_device(FileHandler, place.cfgstring, size=place.size), persistent=True, examples=15)


def test_and_so_does_a_device_with_blocks_of_4096_bytes(disk_dir):
    cfgstring = f"{disk_dir}/disk;block_size=4096"
    make = functools.partial(open_device, FileHandler, cfgstring, size=4 << 20)
    check_handler(make, persistent=True, examples=5, claims=["own block size"])  # the cfgstring's
