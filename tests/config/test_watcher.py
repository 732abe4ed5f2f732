"""Reading tcmu.conf again: every way of changing it is noticed, and a bad edit changes nothing."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from tcmu_core.config.configuration import Config
from tcmu_core.config.watcher import Watcher
from tcmu_core.errors import ConfigError
from tcmu_core.log import Level


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "tcmu.conf"
    path.write_text("log_level = 3\n")
    return path


def look_twice(watcher: Watcher) -> bool:
    return [watcher.poll(), watcher.poll()][-1]


def watch(file: Path) -> tuple[Watcher, list[Config]]:
    applied: list[Config] = []
    return Watcher(file, applied.append), applied


def test_an_unchanged_file_is_not_read_again(file: Path) -> None:
    watcher, applied = watch(file)
    assert not look_twice(watcher)
    assert not applied


def test_a_write_is_noticed(file: Path) -> None:
    watcher, applied = watch(file)
    file.write_text("log_level = 4 # more\n")
    assert look_twice(watcher)
    assert [config.log_level for config in applied] == [Level.DEBUG]


def test_a_rename_over_the_file_is_noticed(file: Path) -> None:
    watcher, applied = watch(file)
    other = file.with_name("new")
    other.write_text("log_level = 5\n")
    os.utime(other, ns=(file.stat().st_mtime_ns,) * 2)
    other.rename(file)
    assert look_twice(watcher)
    assert applied[0].log_level is Level.DEBUG_SCSI_CMD


def test_a_file_that_is_still_being_written_is_left_alone(file: Path) -> None:
    watcher, applied = watch(file)
    file.write_text("")
    assert not watcher.poll()
    file.write_text("log_level = 1\n")
    assert not watcher.poll()
    assert watcher.poll()
    assert [config.log_level for config in applied] == [Level.ERROR]


def test_a_bad_edit_keeps_the_settings_and_says_so(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    watcher, applied = watch(file)
    file.write_text("log_level = 4\nlog_dri = /x\n")
    with caplog.at_level(logging.ERROR, "tcmu"):
        assert not look_twice(watcher)
    assert not applied
    assert watcher.config.log_level is Level.INFO
    assert f"{file}:2: unknown key 'log_dri': did you mean 'log_dir'?" in caplog.text
    assert "the settings stay as they were" in caplog.text


def test_a_bad_edit_is_complained_of_once(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    watcher, _applied = watch(file)
    file.write_text("x = 1\n")
    look_twice(watcher)
    caplog.clear()
    look_twice(watcher)
    assert not caplog.records


def test_a_repaired_file_is_read(file: Path) -> None:
    watcher, applied = watch(file)
    file.write_text("x = 1\n")
    look_twice(watcher)
    file.write_text("log_level = 2\n")
    assert look_twice(watcher)
    assert applied[-1].log_level is Level.WARN


def test_a_removed_file_keeps_the_settings(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    watcher, applied = watch(file)
    file.unlink()
    assert not look_twice(watcher)
    assert not applied
    assert "No such file" in caplog.text


def test_a_key_that_is_taken_out_means_its_default_again(file: Path) -> None:
    file.write_text("log_level = 5\n")
    watcher, applied = watch(file)
    file.write_text("# log_level = 5\n")
    assert look_twice(watcher)
    assert applied[-1].log_level is Level.INFO


def test_a_file_that_is_bad_at_the_start_is_refused(file: Path) -> None:
    file.write_text("x = 1\n")
    with pytest.raises(ConfigError, match="unknown key 'x'"):
        watch(file)


@pytest.mark.parametrize("text", ["", "\n", "# soon\n\n", "[targets]\n"])
def test_a_file_without_a_word_does_not_end_targets(file: Path, text: str, caplog: pytest.LogCaptureFixture) -> None:
    file.write_text("[targets]\n[[iqn.2026-01.org.example:a]]\n[[[lun 0]]]\nhandler = ram\n")
    watcher, applied = watch(file)
    file.write_text(text)
    assert not look_twice(watcher)
    assert not look_twice(watcher)
    assert not applied
    assert caplog.text.count("is empty: the settings stay as they were") == 1
    assert watcher.reload()
    assert applied[0].targets == ()
