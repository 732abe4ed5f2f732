"""A block device as storage. These need a loop device, so root; see conftest."""

import os
import re
import subprocess

import pytest

from tcmu_core import ConfigError
from tcmu_core.testing import open_device
from tcmu_file import FileHandler

from .conftest import MIB, ROOT, attach

if ROOT:

    def opened(cfgstring, size=None):
        return open_device(FileHandler, cfgstring, size=size)

    def test_the_device_gives_its_size_and_block_sizes(loop_device):
        with opened(loop_device) as disk:
            assert disk.size == 4 * MIB
            assert disk.device.block_size == 512
            assert disk.device.physical_block_size >= 512

    def test_discard_reaches_the_storage_behind_it(loop_device, disk_dir):
        with opened(loop_device) as disk:
            disk.write(0, b"x" * 4 * MIB)
            disk.flush()
            full = (disk_dir / "backing").stat().st_blocks
            disk.discard(0, 2 * MIB)
            assert (disk_dir / "backing").stat().st_blocks <= full - 2 * MIB // 512
            assert disk.read(MIB, 4096) == bytes(4096)
            assert [extent.mapped for extent in disk.extents(0, 4 * MIB)] == [True]

    def test_it_may_be_larger_than_the_disk_but_not_smaller(loop_device):
        with opened(loop_device, 2 * MIB) as disk:
            assert disk.size == 2 * MIB
            with pytest.raises(ConfigError, match="has 4194304 bytes"):
                disk.reconfigure(size=8 * MIB)
            assert disk.size == 2 * MIB
        with pytest.raises(ConfigError, match="it can't be a device of 8388608 bytes"), opened(loop_device, 8 * MIB):
            pass

    def test_a_device_that_something_else_has_claimed_is_refused(loop_device):
        claim = os.open(loop_device, os.O_RDWR | os.O_EXCL)  # as a mount, RAID or LVM do
        try:
            with pytest.raises(ConfigError, match="unmount it, or add ro=1"), opened(loop_device):
                pass
            with opened(f"{loop_device};ro=1") as disk:
                assert disk.read(0, 512) == bytes(512)
        finally:
            os.close(claim)

    def test_a_device_of_4096_byte_blocks_asks_for_such_a_disk(disk_dir):
        backing = disk_dir / "large"
        backing.touch()
        os.truncate(backing, 4 * MIB)
        device = attach(backing, "--sector-size", "4096")
        try:
            with pytest.raises(ConfigError, match=re.escape("add block_size=4096")), opened(device):
                pass
            with opened(f"{device};block_size=4096;direct=1") as disk:
                disk.write(4096, b"k" * 4096, [1])
                assert disk.read(4096, 4096) == b"k" * 4096
                assert disk.device.physical_block_size == 4096
        finally:
            subprocess.run(["losetup", "--detach", device], check=True)
