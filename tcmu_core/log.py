"""Logging: the runner's levels and line format, and where lines go (file, stderr, syslog).

A line is `2017-06-30 12:40:09.014 2815 [DEBUG] main:832 : text`; that of a device has `subtype/name` before the
second colon. Everything that tcmu logs goes through loggers below `tcmu`; `Log` is the one place that gives them
destinations, so an embedding program that never makes a `Log` keeps its own logging.
"""

from __future__ import annotations

import contextlib
import logging
import logging.handlers
import os
import re
import sys
import time
from collections.abc import Mapping
from enum import IntEnum
from pathlib import Path
from types import MappingProxyType
from typing import TextIO

from tcmu_core.errors import repr_of, text_of
from tcmu_core.outlet import Outlet

DEBUG_SCSI_CMD = 5  # a level of the logging module, below DEBUG
FILE_NAME = "tcmu-runner.log"
DEV_LOG = "/dev/log"


class Level(IntEnum):
    """The levels of `log_level` in tcmu.conf, numbered as the C runner numbers them."""

    CRIT = 0
    ERROR = 1
    WARN = 2
    INFO = 3
    DEBUG = 4
    DEBUG_SCSI_CMD = 5

    @property
    def number(self) -> int:
        """Return the level of the logging module that this one means."""
        return _NUMBERS[self]


_NUMBERS = {
    Level.CRIT: logging.CRITICAL,
    Level.ERROR: logging.ERROR,
    Level.WARN: logging.WARNING,
    Level.INFO: logging.INFO,
    Level.DEBUG: logging.DEBUG,
    Level.DEBUG_SCSI_CMD: DEBUG_SCSI_CMD,
}
_NAMES = {number: level.name for level, number in _NUMBERS.items()}
_COLOURS = {
    logging.CRITICAL: "\x1b[1;31m",
    logging.ERROR: "\x1b[31m",
    logging.WARNING: "\x1b[33m",
    logging.DEBUG: "\x1b[2m",
    DEBUG_SCSI_CMD: "\x1b[2m",
}
# What an initiator sends (its name, a login text) may end up in a line: it must not be able to write lines of its own.
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f]")

logging.addLevelName(DEBUG_SCSI_CMD, Level.DEBUG_SCSI_CMD.name)


class LineFormatter(logging.Formatter):
    """The runner's line format; tracebacks follow on lines of their own."""

    def __init__(self, *, colour: bool = False, short: bool = False) -> None:
        super().__init__()
        self.colour = colour
        self.short = short  # without time, pid and level: syslog has its own

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line, and its traceback if there is one."""
        text = _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", _message(record))
        line = f"{record.funcName}:{record.lineno} {getattr(record, 'device', '')}: {text}"
        if not self.short:
            stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.created))
            name = _NAMES.get(record.levelno, record.levelname)
            line = f"{stamp}.{int(record.msecs):03d} {record.process} [{name}] {line}"
        if record.exc_info and record.exc_info[0] is not None:
            line += "\n" + _traceback(self, record)
        if self.colour and (start := _COLOURS.get(record.levelno)):
            return f"{start}{line}\x1b[0m"
        return line


def _message(record: logging.LogRecord) -> str:
    """Return a record's text; what a handler has logged wrongly is no reason for its hook to fail."""
    try:
        return record.getMessage()
    except BaseException as error:
        return f"{repr_of(record.msg)}, which can't be filled in: {text_of(error)}"


def _traceback(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    try:
        return formatter.formatException(record.exc_info)  # type: ignore[arg-type]
    except BaseException as error:
        return f"(no traceback: {text_of(error)})"


class FileHandler(logging.Handler):
    """Appends whole lines to a file of mode 0600, so that several processes can share it; `reopen` after a rotation."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self._fd = -1
        self.reopen()

    def reopen(self) -> None:
        """Open the file by its name again; its directory is made when missing. Raises `OSError`."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        with self.lock or contextlib.nullcontext():
            old, self._fd = self._fd, fd
        if old >= 0:
            os.close(old)

    def emit(self, record: logging.LogRecord) -> None:
        """Write the line; a full disk loses it and must not stop a device."""
        with contextlib.suppress(OSError):
            os.write(self._fd, (self.format(record) + "\n").encode(errors="backslashreplace"))

    def close(self) -> None:
        """Close the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        super().close()


class StderrHandler(logging.StreamHandler[TextIO]):
    """Lines on stderr: coloured on a terminal, with the journal's priority prefix when the journal reads them."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._outlet: Outlet | None = None
        with contextlib.suppress(OSError, ValueError):  # a stream that has no descriptor
            self._outlet = Outlet(stream.fileno())
        self.journal = _is_journal(stream)
        self.setFormatter(LineFormatter(colour=wants_colour(stream), short=self.journal))

    def format(self, record: logging.LogRecord) -> str:
        """Return the line; sd-daemon(3) says how the journal learns its priority."""
        line = super().format(record)
        if not self.journal:
            return line
        priority = _PRIORITIES.get(record.levelno, 7)
        return "\n".join(f"<{priority}>{part}" for part in line.split("\n"))

    def emit(self, record: logging.LogRecord) -> None:
        """Write the line, unless nobody reads: no disk waits for a reader."""
        if self._outlet is None:
            super().emit(record)
        else:
            self._outlet.write((self.format(record) + "\n").encode(errors="backslashreplace"))


# Severities of RFC 5424 6.2.1
_PRIORITIES = {logging.CRITICAL: 2, logging.ERROR: 3, logging.WARNING: 4, logging.INFO: 6, logging.DEBUG: 7}


def wants_colour(stream: TextIO) -> bool:
    """Return whether to colour what goes to `stream`: a terminal, and NO_COLOR (no-color.org) is not set."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _is_journal(stream: TextIO) -> bool:
    """Return whether `stream` goes to the systemd journal (systemd.exec(5), JOURNAL_STREAM)."""
    try:
        status = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


class SyslogHandler(logging.handlers.SysLogHandler):
    """Lines for the syslog daemon; those of a time without one are lost in silence, and it is looked for again.

    So are those that it has no room for: a daemon that hangs, perhaps because of a disk of ours, is not waited for.
    """

    def _connect_unixsocket(self, address: str) -> None:
        super()._connect_unixsocket(address)  # type: ignore[misc]  # the one place where it makes its socket, each time
        self.socket.setblocking(False)  # type: ignore[attr-defined]

    def handleError(self, record: logging.LogRecord) -> None:
        """Say nothing: a traceback on stderr for each line helps nobody."""


class _Threshold(logging.Filter):
    """Lets a record pass by its device's own level, else by the general one."""

    def __init__(self, level: Level, devices: Mapping[str, Level]) -> None:
        super().__init__()
        self.number = level.number
        self.devices = {name: own.number for name, own in devices.items()}

    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno >= self.devices.get(getattr(record, "device", ""), self.number)


class Log:
    """The destinations of everything below the logger `tcmu`, until `close`."""

    def __init__(self, level: Level = Level.INFO, *, directory: str | Path | None = None, stderr: bool = True) -> None:
        self.logger = logging.getLogger("tcmu")
        self._before = (self.logger.level, self.logger.propagate)
        self._handlers: dict[str, logging.Handler] = {}
        self.level = level
        self.devices: Mapping[str, Level] = MappingProxyType({})
        self.logger.propagate = False
        try:
            if stderr:
                self._set("stderr", StderrHandler(sys.stderr))
            if directory is not None:
                self.set_directory(directory)
            self.set_level(level)
        except BaseException:
            self.close()
            raise

    def set_level(self, level: Level, devices: Mapping[str, Level] = MappingProxyType({})) -> None:
        """Take a new general level and the levels of single devices, by `subtype/name`."""
        self.level, self.devices = level, MappingProxyType(dict(devices))
        self.logger.setLevel(min(one.number for one in (level, *devices.values())))
        for handler in self._handlers.values():
            handler.filters = [_Threshold(level, devices)]

    def level_of(self, device: str) -> Level:
        """Return the level for the device `subtype/name`: at DEBUG_SCSI_CMD its CDBs are logged."""
        return self.devices.get(device, self.level)

    def set_directory(self, directory: str | Path | None) -> None:
        """Log into `directory`/tcmu-runner.log from now on, or into no file. Raises `OSError` and keeps the old one."""
        if directory is None:
            self._set("file", None)
            return
        path = Path(directory) / FILE_NAME
        old = self._handlers.get("file")
        if isinstance(old, FileHandler) and old.path == path:
            return
        self._set("file", FileHandler(path))

    def set_syslog(self, wanted: bool) -> None:
        """Log to syslog too, or not; CDB lines never go there. Without a syslog daemon a warning says so."""
        if wanted == ("syslog" in self._handlers):
            return
        if not wanted:
            self._set("syslog", None)
            return
        if not Path(DEV_LOG).exists():
            self.logger.warning("no log lines for syslog until there is %s", DEV_LOG)
        handler = SyslogHandler(DEV_LOG, logging.handlers.SysLogHandler.LOG_DAEMON)
        handler.ident = f"tcmu-runner[{os.getpid()}]: "
        handler.setLevel(logging.DEBUG)
        self._set("syslog", handler)

    def reopen(self) -> None:
        """Open the log file again (SIGHUP, after logrotate moved it); the old one stays when that fails."""
        handler = self._handlers.get("file")
        if isinstance(handler, FileHandler):
            try:
                handler.reopen()
            except OSError as error:
                self.logger.error("the log file %s can't be opened again: %s", handler.path, error.strerror)

    def close(self) -> None:
        """Take the destinations away and leave the logger as it was."""
        for name in list(self._handlers):
            self._set(name, None)
        level, self.logger.propagate = self._before
        self.logger.setLevel(level)

    def _set(self, name: str, handler: logging.Handler | None) -> None:
        old = self._handlers.pop(name, None)
        if handler is not None:
            if handler.formatter is None:
                handler.setFormatter(LineFormatter(short=name == "syslog"))
            handler.filters = [_Threshold(self.level, self.devices)]
            self._handlers[name] = handler
            self.logger.addHandler(handler)
        if old is not None:
            self.logger.removeHandler(old)
            old.close()

    def __enter__(self) -> Log:
        """Return the log itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()
