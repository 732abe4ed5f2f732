"""libiscsi's conformance suite against disks that `tcmu serve` serves: nothing fails, and each skip is explained.

`docs/conformance.md` lists what is skipped and why; these tests hold the list against what happens.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.conformance.conftest import Serve
from tests.conformance.suite import run

DOCUMENT = Path(__file__).parents[2] / "docs" / "conformance.md"
ALL_TESTS = 230  # libiscsi 1.19
SIZE = "64M"

REMOVABLE = """\
from tcmu_core import hookimpl
from tcmu_ram import RamHandler

class Removable(RamHandler):
    @hookimpl
    def open(self, device):
        super().open(device)
        device.removable = True
"""
LARGE_SECTORS = REMOVABLE.replace("removable = True", "physical_block_size = 4096")
# Each chunk of a sanitize takes a quarter of a second: it is still going on when the suite looks for it.
SLOW = """\
import time
from tcmu_core import hookimpl
from tcmu_ram import RamHandler

class Slow(RamHandler):
    @hookimpl
    def open(self, device):
        super().open(device)
        device.threads = 1

    @hookimpl
    def write(self, offset, buffers):
        if len(buffers[0]) == 1 << 20:
            time.sleep(0.25)
        return super().write(offset, buffers)
"""


def explained() -> set[str]:
    """Return the tests that the document's first section names as skipped."""
    section = DOCUMENT.read_text().split("\n## ")[1]
    assert section.startswith("What is skipped there"), section
    return set(re.findall(r"^\| `(\w+\.\w+)` \|", section, re.MULTILINE))


def drop_in(directory: Path, source: str) -> Path:
    (directory / "handler_variant.py").write_text(source)
    return directory


@pytest.mark.parametrize("handler", ["file", "ram"])
def test_the_whole_suite(serve: Serve, tmp_path: Path, handler: str) -> None:
    disk = ["file", tmp_path / "disk.img"] if handler == "file" else ["ram"]
    results = run(serve(*disk, "--size", SIZE), "ALL")
    assert results.failed == {}
    assert results.skipped == explained()
    assert results.ran == ALL_TESTS


def test_sanitize(serve: Serve) -> None:
    families = ["BlockErase", "BlockEraseReserved", "ExitFailureMode", "InvalidServiceAction", "Overwrite"]
    families += ["OverwriteReserved", "Readonly", "Reservations"]
    results = run(serve("ram", "--size", SIZE), *[f"ALL.Sanitize.{name}" for name in families], sanitize=True)
    assert results.failed == {}
    # It tries overwrite and block erase, then skips for want of a key to erase.
    assert results.skipped <= {"Sanitize.Readonly", "Sanitize.Reservations"}


@pytest.mark.soak  # the suite looks at it for a minute
def test_no_reset_ends_a_sanitize(serve: Serve, tmp_path: Path) -> None:
    uri = serve("variant", "--handler-path", drop_in(tmp_path, SLOW), "--size", SIZE)
    results = run(uri, "ALL.Sanitize.Reset", sanitize=True)
    assert (results.failed, results.passed) == ({}, {"Sanitize.Reset"})


def test_a_removable_disk(serve: Serve, tmp_path: Path) -> None:
    uri = serve("variant", "--handler-path", drop_in(tmp_path, REMOVABLE), "--size", SIZE)
    results = run(uri, "ALL.PreventAllow", "ALL.NoMedia", "ALL.StartStopUnit.Simple")
    assert (results.failed, results.skipped) == ({}, set())


def test_a_read_only_disk(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "disk.img").write_bytes(bytes(1 << 20))
    results = run(serve("file", tmp_path / "disk.img", "--read-only"), "ALL.ReadOnly")
    assert (results.failed, results.passed) == ({}, {"ReadOnly.ReadOnlySBC"})


def test_a_disk_of_4096_byte_sectors_with_512_byte_blocks(serve: Serve, tmp_path: Path) -> None:
    uri = serve("variant", "--handler-path", drop_in(tmp_path, LARGE_SECTORS), "--size", SIZE)
    tests = [
        f"{op}.{test}" for op in ("WriteSame10", "WriteSame16") for test in ("UnmapUnaligned", "InvalidDataOutSize")
    ]
    tests.append("CompareAndWrite.InvalidDataOutSize")
    results = run(uri, *[f"ALL.{test}" for test in tests])
    assert (results.failed, results.passed) == ({}, set(tests))
