"""Failures: what an exception means to the initiator, and what of it the owner of the storage reads in the log."""

from __future__ import annotations

import time
import traceback

from tcmu_core.disk.disk import Disk
from tcmu_core.errors import CommandError, HardwareError, InvalidOpcode, NotHandled, from_oserror, text_of
from tcmu_core.scsi import sense
from tcmu_core.scsi.command import Command, Status
from tcmu_core.scsi.opcodes import Access, describe, find
from tcmu_core.scsi.unit import Unit

AT_FIRST = 8  # times that the same is logged, one by one
AGAIN_SECONDS = 10.0  # after which it is logged once more, with how often it has been
MANY = 256  # different texts that are remembered


class Failures:
    """Gives the commands of a unit the status and the sense data of what went wrong."""

    def __init__(self, disk: Disk, unit: Unit) -> None:
        self._disk = disk
        self._log = disk.device.log
        self._unit = unit
        self._said: dict[tuple[int, str], tuple[float, int]] = {}  # by command and text: when last, and how often
        self._reported: set[tuple[str, str, int]] = set()  # exceptions whose traceback was logged already

    def give(self, command: Command, error: BaseException) -> None:
        """Give `command` the status and sense that `error` means, and log what is nobody's request.

        Whatever a hook raises is this command's error alone: SystemExit and its like end no process here, and neither
        does an exception that is itself broken: an `asc` of two bytes, an errno that is a list.
        """
        self._disk.end_child(error)
        command.sense = b""
        command.transferred = 0
        try:
            error = self._meaning(command, error)
            self._answer(command, error)
        except BaseException as broken:
            self._report(command, broken)
            self._answer(command, HardwareError(text_of(broken)))

    def _meaning(self, command: Command, error: BaseException) -> CommandError:
        """Return what an exception means to the initiator; log what the owner of the storage wants to read."""
        if isinstance(error, NotHandled):
            error = InvalidOpcode()
        elif isinstance(error, OSError):
            row = find(self._unit.table, command.cdb)
            error = from_oserror(error, writing=row is not None and row.access is Access.WRITE)
            self._log_failure(command, error)
        elif not isinstance(error, CommandError):
            self._report(command, error)
            error = HardwareError(text_of(error))
        elif error.of_storage:
            self._log_failure(command, error)
        assert isinstance(error, CommandError)
        return error

    def _answer(self, command: Command, error: CommandError) -> None:
        """Give the status and the sense data that an error has; raises for one that has none."""
        status = Status(error.status)
        if status in (Status.GOOD, Status.CONDITION_MET):
            raise ValueError(f"{status.name} is no error")
        if status == Status.CHECK_CONDITION:
            command.sense = sense.encode(error, descriptor=self._unit.modes.descriptor_sense)
        command.status = status

    def _log_failure(self, command: Command, error: BaseException) -> None:
        """Log what the storage says. A disk that is full says the same of each write: that is told now and then."""
        said = text_of(error)
        key, now = (command.cdb[0], said), time.monotonic()
        since, count = self._said.get(key, (now, 0))
        if count >= AT_FIRST and now - since < AGAIN_SECONDS:
            self._said[key] = since, count + 1
            return
        more = f"; so did {count - AT_FIRST} like it meanwhile" if count > AT_FIRST else ""
        self._log.error("%s failed: %s%s", describe(command.cdb, self._unit.table), said, more)
        if len(self._said) >= MANY:  # each of them says something else
            self._said.clear()
        self._said[key] = now, min(count + 1, AT_FIRST)

    def _report(self, command: Command, error: BaseException) -> None:
        """Log an exception that is no SCSI error: with its traceback the first time, in one line from then on."""
        frames = traceback.extract_tb(error.__traceback__)
        place = (frames[-1].filename, frames[-1].lineno or 0) if frames else ("", 0)
        key = (type(error).__name__, *place)
        what = describe(command.cdb, self._unit.table)
        if key in self._reported:
            self._log.error("%s failed again: %s", what, text_of(error))
            return
        self._reported.add(key)
        self._log.error("%s failed: %s", what, text_of(error), exc_info=error)
