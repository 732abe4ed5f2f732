"""Who may have an image besides the drive, agreed with other programs through QEMU's bytes."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tcmu_core import ConfigError

Bench = Callable[..., Any]
Images = Callable[..., Path]


@pytest.mark.parametrize("second", ["{}", "ro/{}"], ids=["writer", "reader"])
def test_a_disc_that_is_written_is_nobody_elses(bench: Bench, image: Images, second: str) -> None:
    path = image()
    bench(str(path))
    with pytest.raises(ConfigError, match=f"is in use by process {os.getpid()} .*lock=no"):
        bench(second.format(path))


def test_readers_share_and_keep_writers_out(bench: Bench, image: Images) -> None:
    path = image()
    bench(f"ro/{path}")
    bench(f"ro/{path}")
    with pytest.raises(ConfigError, match="is in use"):
        bench(str(path))


def test_lock_no_takes_no_lock(bench: Bench, image: Images) -> None:
    path = image()
    bench(f"{path};lock=no")
    bench(str(path))
    bench(f"ro/{path};lock=no")


def test_qemu_may_not_write_to_a_disc_that_is_in(bench: Bench, image: Images) -> None:
    path = image()
    write = ["qemu-io", "-f", "raw", "-c", "write 0 512", str(path)]
    drive = bench(f"ro/{path}")
    refused = subprocess.run(write, capture_output=True, text=True, check=False)
    assert "Is another process using the image" in refused.stderr
    drive.insert("")
    subprocess.run(write, check=True, capture_output=True)


@pytest.mark.parametrize("first", ["{}", "ro/{}"], ids=["writer", "reader"])
@pytest.mark.parametrize("second", ["{}", "ro/{}"], ids=["writer", "reader"])
def test_a_disc_can_be_put_in_again_in_its_own_place(bench: Bench, image: Images, first: str, second: str) -> None:
    path = image()
    drive = bench(first.format(path))
    drive.insert(second.format(path))
    assert drive.drive.medium.read_only == second.startswith("ro/")
    with pytest.raises(ConfigError, match="is in use"):
        bench(str(path))


def test_a_disc_that_could_not_be_put_in_again_keeps_its_lock(bench: Bench, image: Images) -> None:
    path = image()
    drive = bench(str(path))
    os.truncate(path, 0)
    with pytest.raises(ConfigError, match="at least one block"):
        drive.insert(str(path))
    os.truncate(path, 2048)
    with pytest.raises(ConfigError, match="is in use"):
        bench(str(path))


def test_an_ejected_disc_is_free(bench: Bench, image: Images) -> None:
    path = image()
    drive = bench(str(path))
    drive.good("1b 00 00 00 02 00")
    other = bench(str(path))
    assert drive.send("1b 00 00 00 03 00").error == (0x02, 0x3A, 0x01)
    other.insert("")
    drive.good("1b 00 00 00 03 00")


def test_no_descriptor_stays_open_when_a_disc_is_refused(bench: Bench, image: Images) -> None:
    path = image()
    drive = bench(f"ro/{path}")
    before = len(os.listdir("/proc/self/fd"))
    for cfgstring in (str(path.parent), f"{path}.missing", str(image("empty", 0))):
        with pytest.raises((ConfigError, OSError)):
            drive.insert(cfgstring)
    with pytest.raises(ConfigError, match="in use"):
        bench(str(path))
    assert len(os.listdir("/proc/self/fd")) == before


def test_an_image_that_could_not_be_made_leaves_no_file(bench: Bench, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="File too large"):
        bench(f"{tmp_path}/new.img", size=1 << 62)
    assert not (tmp_path / "new.img").exists()


def test_an_image_that_is_truncated_under_the_disc_is_mentioned(
    bench: Bench, image: Images, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("tcmu_core.posix.watch.INTERVAL", 0.01)
    path = image()
    bench(f"ro/{path}")
    os.truncate(path, 2048)
    until = time.monotonic() + 60
    while "was truncated while it is served" not in caplog.text:
        assert time.monotonic() < until
        time.sleep(0.01)
    assert str(path) in caplog.text
