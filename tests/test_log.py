"""Logging: the runner's line format, and where lines go."""

from __future__ import annotations

import io
import logging
import os
import re
import socket
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tcmu_core import Device
from tcmu_core import log as tcmu_log
from tcmu_core.log import DEBUG_SCSI_CMD, FILE_NAME, Level, Log

LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} (\d+) \[(\w+)\] (\w+):(\d+) (\S*): (.*)")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Captured:
    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys
        self.text = ""

    def getvalue(self) -> str:
        self.text += self.capsys.readouterr().err
        return self.text


@pytest.fixture
def stderr(capsys: pytest.CaptureFixture[str]) -> Captured:
    return Captured(capsys)


@pytest.fixture
def logger() -> logging.Logger:
    return logging.getLogger("tcmu.test")


@pytest.fixture
def device() -> Device:
    return Device("disk1", "file")


@pytest.fixture
def syslog(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    path = tmp_path / "log"
    monkeypatch.setattr(tcmu_log, "DEV_LOG", str(path))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as daemon:
        daemon.bind(str(path))
        daemon.setblocking(False)
        yield daemon


def test_a_line_has_time_pid_level_and_place(stderr: Captured, logger: logging.Logger) -> None:
    with Log():
        logger.info("a %s", "text")
    match = LINE.fullmatch(stderr.getvalue().rstrip("\n"))
    assert match is not None
    pid, level, function, line, name, text = match.groups()
    assert int(pid) == os.getpid()
    assert (level, function, name, text) == ("INFO", "test_a_line_has_time_pid_level_and_place", "", "a text")
    assert int(line) > 0


def test_a_devices_line_has_its_name(stderr: Captured, device: Device) -> None:
    with Log():
        device.log.warning("slow")
    match = LINE.fullmatch(stderr.getvalue().rstrip("\n"))
    assert match is not None
    assert match.group(2, 5, 6) == ("WARN", "file/disk1", "slow")


@pytest.mark.parametrize("level", Level)
def test_a_level_lets_through_itself_and_what_is_graver(stderr: Captured, logger: logging.Logger, level: Level) -> None:
    with Log(level):
        for one in Level:
            logger.log(one.number, "x")
    assert re.findall(r"\[(\w+)\]", stderr.getvalue()) == [one.name for one in Level if one <= level]


def test_levels_are_numbered_as_the_c_runner_does() -> None:
    assert [f"{level.value} {level.name}" for level in Level] == [
        "0 CRIT",
        "1 ERROR",
        "2 WARN",
        "3 INFO",
        "4 DEBUG",
        "5 DEBUG_SCSI_CMD",
    ]


def test_one_device_can_have_a_level_of_its_own(stderr: Captured, device: Device, logger: logging.Logger) -> None:
    with Log(Level.WARN) as log:
        log.set_level(Level.WARN, {"file/disk1": Level.DEBUG_SCSI_CMD})
        device.log.log(DEBUG_SCSI_CMD, "READ(10)")
        Device("disk2", "file").log.debug("no")
        logger.info("no")
        assert log.level_of("file/disk1") is Level.DEBUG_SCSI_CMD
        assert log.level_of("file/disk2") is Level.WARN
    assert [line.rpartition(" ")[2] for line in stderr.getvalue().splitlines()] == ["READ(10)"]


def test_text_from_outside_can_t_write_lines_of_its_own(stderr: Captured, logger: logging.Logger) -> None:
    with Log():
        logger.error("initiator %s", "evil\n2017-06-30 12:40:09.014 1 [CRIT] x:1 : \x1b[31m")
    assert stderr.getvalue().count("\n") == 1
    assert r"evil\x0a2017" in stderr.getvalue()
    assert "\x1b" not in stderr.getvalue()


def test_a_traceback_follows_its_line(stderr: Captured, logger: logging.Logger) -> None:
    with Log():
        try:
            raise ValueError("deep")
        except ValueError:
            logger.exception("it failed")
    lines = stderr.getvalue().splitlines()
    assert lines[0].endswith("it failed")
    assert lines[1].startswith("Traceback")
    assert lines[-1] == "ValueError: deep"


def test_a_terminal_gets_colours(monkeypatch: pytest.MonkeyPatch, logger: logging.Logger) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    with Log():
        logger.error("x")
    assert terminal.getvalue().startswith("\x1b[31m")
    assert terminal.getvalue().endswith("\x1b[0m\n")


def test_no_color_is_honoured(monkeypatch: pytest.MonkeyPatch, logger: logging.Logger) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("NO_COLOR", "1")
    with Log():
        logger.error("x")
    assert "\x1b" not in terminal.getvalue()


def test_the_journal_learns_the_priority(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logger: logging.Logger
) -> None:
    with (tmp_path / "journal").open("w+") as stream:
        status = os.fstat(stream.fileno())
        monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
        monkeypatch.setattr(sys, "stderr", stream)
        with Log(Level.DEBUG):
            logger.error("bad")
            logger.debug("fine")
        stream.seek(0)
        lines = stream.read().splitlines()
    assert lines[0].startswith("<3>test_the_journal")
    assert lines[1].startswith("<7>test_the_journal")


def test_the_file_is_private_and_its_directory_is_made(tmp_path: Path, logger: logging.Logger) -> None:
    with Log(directory=tmp_path / "a" / "b", stderr=False):
        logger.info("x")
    file = tmp_path / "a" / "b" / FILE_NAME
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert LINE.fullmatch(file.read_text().rstrip("\n"))


def test_the_file_is_appended_to(tmp_path: Path, logger: logging.Logger) -> None:
    for word in ("one", "two"):
        with Log(directory=tmp_path, stderr=False):
            logger.info(word)
    assert [line.rpartition(" ")[2] for line in (tmp_path / FILE_NAME).read_text().splitlines()] == ["one", "two"]


def test_reopen_follows_a_rotation(tmp_path: Path, logger: logging.Logger) -> None:
    file = tmp_path / FILE_NAME
    with Log(directory=tmp_path, stderr=False) as log:
        logger.info("one")
        file.rename(tmp_path / "rotated")
        logger.info("two")
        log.reopen()
        logger.info("three")
    assert (tmp_path / "rotated").read_text().count("\n") == 2
    assert file.read_text().endswith("three\n")


def test_reopen_that_fails_keeps_the_old_file(tmp_path: Path, logger: logging.Logger) -> None:
    directory = tmp_path / "logs"
    with Log(directory=directory, stderr=False) as log:
        directory.rename(tmp_path / "moved")
        directory.write_text("in the way")
        log.reopen()
        logger.info("still here")
    lines = (tmp_path / "moved" / FILE_NAME).read_text().splitlines()
    assert "can't be opened again" in lines[0]
    assert lines[1].endswith("still here")


def test_the_directory_can_change(tmp_path: Path, logger: logging.Logger) -> None:
    with Log(directory=tmp_path / "a", stderr=False) as log:
        log.set_directory(tmp_path / "b")
        logger.info("x")
    assert not (tmp_path / "a" / FILE_NAME).read_text()
    assert (tmp_path / "b" / FILE_NAME).read_text()


def test_a_directory_that_can_t_be_used_keeps_the_old_one(tmp_path: Path, logger: logging.Logger) -> None:
    (tmp_path / "file").write_text("")
    with Log(directory=tmp_path / "a", stderr=False) as log:
        with pytest.raises(OSError, match="file"):
            log.set_directory(tmp_path / "file" / "b")
        logger.info("x")
    assert (tmp_path / "a" / FILE_NAME).read_text()


def test_a_full_disk_stops_nobody(tmp_path: Path, logger: logging.Logger) -> None:
    (tmp_path / FILE_NAME).symlink_to("/dev/full")
    with Log(directory=tmp_path, stderr=False):
        logger.info("lost")


def test_syslog_gets_lines_with_their_severity(syslog: socket.socket, logger: logging.Logger) -> None:
    with Log(Level.DEBUG_SCSI_CMD, stderr=False) as log:
        log.set_syslog(True)
        logger.error("bad")
        logger.log(DEBUG_SCSI_CMD, "READ(10)")
        logger.debug("fine")
    # RFC 5424 6.2.1: facility 3 (daemon) times 8, and the severity
    texts = [syslog.recv(4096).decode() for _ in range(2)]
    assert texts[0].startswith(f"<{3 * 8 + 3}>tcmu-runner[{os.getpid()}]: test_syslog")
    assert texts[1].startswith(f"<{3 * 8 + 7}>tcmu-runner")
    with pytest.raises(BlockingIOError):
        syslog.recv(4096)


def test_a_missing_syslog_is_said_and_harmless(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stderr: Captured
) -> None:
    monkeypatch.setattr(tcmu_log, "DEV_LOG", str(tmp_path / "none"))
    with Log() as log:
        log.set_syslog(True)
    assert "no log lines for syslog" in stderr.getvalue()


def test_close_leaves_the_logger_as_it_was(stderr: Captured) -> None:
    logger = logging.getLogger("tcmu")
    before = (logger.level, logger.propagate, list(logger.handlers))
    with Log(Level.DEBUG):
        pass
    assert (logger.level, logger.propagate, list(logger.handlers)) == before


class Mute:
    def __str__(self) -> str:
        raise SystemExit(3)

    __repr__ = __str__


def test_what_a_handler_logs_wrongly_is_a_line_all_the_same(stderr: Captured, device: Device, tmp_path: Path) -> None:
    with Log(directory=tmp_path):
        device.log.error("%d blocks", "many")
        device.log.error("%s", Mute())
        device.log.error(Mute())
        device.log.error("broken", exc_info=("no", "traceback"))
        device.log.error("done")
    for text in (stderr.getvalue(), (tmp_path / FILE_NAME).read_text()):
        lines = text.splitlines()
        assert "'%d blocks', which can't be filled in: TypeError" in lines[0]
        assert "'%s', which can't be filled in: SystemExit: 3" in lines[1]
        assert "a Mute (which can't be printed), which can't be filled in" in lines[2]
        assert lines[-1].endswith("file/disk1: done")
