"""The promises of every handler on a file of a volume; what the brick holds is what the disk shows."""

from __future__ import annotations

import functools
import gc
import os
import random
import subprocess
import sys
import time
from concurrent.futures import Future
from pathlib import Path

import pytest

from tcmu_core import Busy, ConfigError, Extent
from tcmu_core.testing import OpenDevice, check_handler, open_device
from tcmu_glfs import GlfsHandler, connection
from tests.clusters.gluster import VOLUME, Gluster
from tests.clusters.load import Load
from tests.clusters.processes import until
from tests.conformance.suite import run as run_suite

MIB = 1 << 20


@pytest.mark.parametrize("block", [512, pytest.param(4096, marks=pytest.mark.soak)])
def test_a_file_keeps_the_promises_of_a_handler(cfgstring: str, block: int) -> None:
    make = functools.partial(open_device, GlfsHandler, cfgstring, size=8 * MIB, block_size=block)
    # libgfapi is not to be used in a forked child; what a crash leaves is tested with processes of their own.
    check_handler(make, persistent=True, examples=15, claims=["not forked"])


def test_what_was_written_is_what_the_brick_holds(gluster: Gluster, cfgstring: str, name: str) -> None:
    data = random.Random(1).randbytes(3 * MIB)
    with open_device(GlfsHandler, cfgstring, size=8 * MIB) as disk:
        disk.write(MIB, data, [512, 4096, MIB])
        # Nothing is kept back in this process: not in a cache of gluster's either.
        assert (gluster.brick / name).read_bytes() == bytes(MIB) + data + bytes(4 * MIB)
        with (gluster.brick / name).open("r+b") as file:
            file.write(b"other" * 1000)
        assert disk.read(0, 4608)[:4600] == (b"other" * 1000)[:4600]


def test_a_discard_gives_space_back_and_zeros_take_it(gluster: Gluster, cfgstring: str, name: str) -> None:
    with open_device(GlfsHandler, cfgstring, size=16 * MIB) as disk:
        disk.write(0, b"x" * (8 * MIB))
        full = (gluster.brick / name).stat().st_blocks
        disk.discard(2 * MIB, 4 * MIB)
        assert (gluster.brick / name).stat().st_blocks <= full - 4 * MIB // 512
        assert disk.extents(0, 16 * MIB) == [
            Extent(0, 2 * MIB, True),
            Extent(2 * MIB, 4 * MIB, False),
            Extent(6 * MIB, 2 * MIB, True),
            Extent(8 * MIB, 8 * MIB, False),
        ]
        disk.write_zeroes(2 * MIB, 4 * MIB)
        assert not any(disk.read(2 * MIB, 4 * MIB))


def test_a_new_file_is_as_large_as_the_device_and_its_owners(gluster: Gluster, cfgstring: str, name: str) -> None:
    with open_device(GlfsHandler, cfgstring, size=4 * MIB):
        made = (gluster.brick / name).stat()
        assert (made.st_size, made.st_mode & 0o777) == (4 * MIB, 0o600)


def test_a_file_that_is_there_keeps_its_size(gluster: Gluster, cfgstring: str, name: str) -> None:
    with open_device(GlfsHandler, cfgstring, size=4 * MIB):
        pass
    with open_device(GlfsHandler, cfgstring, size=8 * MIB) as disk:  # as the C runner does it
        assert disk.size == 4 * MIB
    with open_device(GlfsHandler, cfgstring) as disk:
        assert disk.size == 4 * MIB


def test_a_resize_grows_the_file_and_never_cuts_it_off(gluster: Gluster, cfgstring: str, name: str) -> None:
    with open_device(GlfsHandler, cfgstring, size=4 * MIB) as disk:
        disk.reconfigure(size=6 * MIB)
        disk.write(5 * MIB, b"g" * 512)
        assert (gluster.brick / name).stat().st_size == 6 * MIB
        with pytest.raises(ConfigError, match="what is cut off is lost"):
            disk.reconfigure(size=2 * MIB)
        assert disk.size == 6 * MIB


def test_a_file_that_others_make_longer_makes_the_disk_longer(gluster: Gluster, cfgstring: str, name: str) -> None:
    with open_device(GlfsHandler, cfgstring, size=4 * MIB) as disk:
        told: list[tuple[int, int]] = []
        disk.device.changed = lambda asc, ascq, but: told.append((asc, ascq))
        os.truncate(gluster.brick / name, 6 * MIB)
        until(lambda: bool(told), "the disk grows")
        assert (told, disk.size) == ([(0x2A, 0x09)], 6 * MIB)


def test_read_only_nothing_is_made_and_nothing_is_written(cfgstring: str) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        open_device(GlfsHandler, f"{cfgstring};ro=1", size=4 * MIB).__enter__()
    with open_device(GlfsHandler, cfgstring, size=4 * MIB) as disk:
        disk.write(0, b"r" * 512)
    with open_device(GlfsHandler, f"{cfgstring};ro=1") as disk:
        assert disk.device.read_only
        assert disk.read(0, 512) == b"r" * 512


@pytest.mark.parametrize(
    ("path", "says"), [("no/disk", "the directory does not exist"), ("", "is a directory"), ("missing", "give a size")]
)
def test_what_is_wrong_with_the_file_is_told(gluster: Gluster, path: str, says: str) -> None:
    if not path:
        (gluster.brick / "directory").mkdir(exist_ok=True)
    cfgstring = gluster.cfgstring(path or "directory")
    with pytest.raises(ConfigError, match=says):
        open_device(GlfsHandler, cfgstring, size=None if path == "missing" else MIB).__enter__()


def test_a_volume_that_is_not_there_is_told(gluster: Gluster) -> None:
    with pytest.raises(ConfigError, match="no volume 'nothing'"):
        open_device(GlfsHandler, f"nothing@{gluster.host}/disk", size=MIB).__enter__()


def test_disks_of_a_volume_share_a_connection(gluster: Gluster, cfgstring: str) -> None:
    before = len(connection._open)
    with (
        open_device(GlfsHandler, cfgstring, size=MIB),
        open_device(GlfsHandler, f"{cfgstring}-other", size=MIB),
    ):
        assert len(connection._open) == before == 1


def test_buffers_that_nobody_else_holds_are_written_and_filled(cfgstring: str) -> None:
    with open_device(GlfsHandler, cfgstring, size=8 * MIB) as disk:
        write = disk.hook("write")
        pending: list[Future[None]] = []
        for number in range(64):
            pending.append(write(number * 4096, [memoryview(bytearray([number + 1]) * 4096)]))
        gc.collect()
        for future in pending:
            future.result(60)
        assert disk.read(0, 64 * 4096) == b"".join(bytes([number + 1]) * 4096 for number in range(64))


# -- failures ----------------------------------------------------------------------------------------------------------


def test_a_brick_that_is_killed_and_started_again_loses_nothing_that_was_acknowledged(
    gluster: Gluster, cfgstring: str, name: str
) -> None:
    with open_device(GlfsHandler, cfgstring, size=64 * MIB) as disk:
        load = Load(disk)
        load.start()
        load.more()
        gluster.kill_brick()
        until(lambda: load.busy > 0, "it is noticed")
        gluster.start_brick()
        load.more()
        load.finish()
        held = (gluster.brick / name).read_bytes()
        assert all(held[at : at + len(data)] == data for at, data in load.acknowledged.items())


@pytest.mark.soak
def test_a_flush_that_failed_is_not_followed_by_one_that_succeeds(gluster: Gluster, cfgstring: str) -> None:
    with open_device(GlfsHandler, cfgstring, size=MIB) as disk:
        disk.write(0, b"f" * 4096)
        disk.flush()
        errors = {"error-gen": "client", "error-fops": "fsync", "error-number": "EIO", "error-failure": "100"}
        for option, value in errors.items():
            gluster.gluster("volume", "set", VOLUME, f"debug.{option}", value)

        try:
            until(lambda: not _flushes(disk), "a flush fails")
        finally:
            gluster.gluster("volume", "reset", VOLUME)

        def well() -> bool:
            with open_device(GlfsHandler, cfgstring) as other:
                return _flushes(other)

        until(well, "the volume is well again")
        assert not _flushes(disk)


def _flushes(disk: OpenDevice) -> bool:
    """Say whether a flush succeeds; it may be BUSY first, since the volume's new options have its files opened anew."""
    for _ in range(300):
        try:
            disk.flush()
        except Busy:
            time.sleep(0.1)
        except OSError:
            return False
        else:
            return True
    raise AssertionError("BUSY for ever")


def test_nobody_answers_is_told(gluster: Gluster) -> None:
    with pytest.raises(ConfigError, match=r"no glusterd answers at 127\.255\.255\.254"):
        open_device(GlfsHandler, f"{VOLUME}@127.255.255.254/disk", size=MIB).__enter__()


def test_a_process_ends_without_waiting_for_gluster_to_end(gluster: Gluster, cfgstring: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tcmu_core.cli.tcmu", "serve", "glfs", cfgstring, "--size", "4M"]
    command += ["--state-dir", str(tmp_path), "--run", "true"]
    assert subprocess.run(command, timeout=60, check=False).returncode == 0


# -- clients that we did not write -------------------------------------------------------------------------------------


def test_libiscsis_suite_finds_nothing_in_what_touches_the_file(serve, cfgstring: str) -> None:
    results = run_suite(serve(cfgstring, "--size", "64M").uri, "ALL.Read10", "ALL.GetLBAStatus")
    assert results.failed == {}
    assert len(results.passed) > 7


@pytest.mark.soak
def test_libiscsis_whole_suite(serve, cfgstring: str) -> None:
    results = run_suite(serve(cfgstring, "--size", "64M").uri, "ALL")
    assert results.failed == {}
    assert len(results.passed) >= 190


def test_a_file_that_grows_is_seen_by_the_initiator(serve, gluster: Gluster, cfgstring: str, name: str) -> None:
    uri = serve(cfgstring, "--size", "16M").uri
    os.truncate(gluster.brick / name, 24 * MIB)

    def capacity() -> int:
        # It fails when the unit attention is what it is answered: it does not ask again.
        said = subprocess.run(["iscsi-readcapacity16", uri], capture_output=True, text=True, check=False).stdout
        return int(said.split("Total size:")[1].split()[0]) if "Total size:" in said else 0

    until(lambda: capacity() == 24 * MIB, "the disk grows")
    tool = ["qemu-io", "-f", "raw", "-c", "write -P 7 23M 1M", "-c", "flush", "-c", "read -P 7 23M 1M", uri]
    subprocess.run(tool, check=True, capture_output=True)
    assert (gluster.brick / name).read_bytes()[23 * MIB :] == b"\7" * MIB
