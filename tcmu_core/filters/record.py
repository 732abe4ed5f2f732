"""The filter `record`: every operation into a file, with times, outcome and data."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from tcmu_core.disk.device import Device
from tcmu_core.disk.layers import Operations, changes_nothing
from tcmu_core.errors import CommandError, ConfigError, HardwareError, from_oserror
from tcmu_core.filters.base import Filter
from tcmu_core.filters.waiting import failure
from tcmu_core.options import Option, Options, path
from tcmu_core.recording.file import GOOD, Outcome, Writer, pack
from tcmu_core.recording.file import Record as Entry
from tcmu_core.recording.layout import FORMAT, Flag, Form, Kind
from tcmu_core.scsi.command import Command
from tcmu_core.scsi.opcodes import Op

_FUA = 0x08  # byte 1 (SBC-4 5.11)
_WITH_FUA = frozenset({
    Op.WRITE_10, Op.WRITE_12, Op.WRITE_16, Op.WRITE_ATOMIC_16, Op.ORWRITE_16, Op.COMPARE_AND_WRITE,
})  # fmt: skip
_SYNCHRONIZE = frozenset({Op.SYNCHRONIZE_CACHE_10, Op.SYNCHRONIZE_CACHE_16})


class Record(Filter):
    """Write every operation into a file that `tcmu replay` and `tcmu crash` read."""

    options = Options(
        Option("file", path, "a new file"),
        Option("data", help="what is kept: what is written and hashes of what is read, both, or hashes",
               default="writes", choices=("writes", "all", "hash")),
    )  # fmt: skip
    passes = frozenset({"extents"})

    def open(self, device: Device, below: Operations, options: Mapping[str, Any]) -> None:
        """Begin the file."""
        if "file" not in options:
            raise ConfigError(f"the filter {self.name!r} needs file=")
        keep = options.get("data", "writes")
        self._hashed = {Kind.READ: keep != "all", Kind.WRITE: keep == "hash"}
        self._device = device
        self._log = device.log
        self._fua = False  # of the command whose hook comes next
        self._asked = True  # whether the flush that comes next is a command's own
        about = {
            "format": FORMAT,
            "handler": device.handler,
            "cfgstring": device.cfgstring,
            "name": device.name,
            "size": device.size,
            "block_size": device.block_size,
            "began": time.time(),
        }
        try:
            self._writer = Writer(Path(options["file"]), about)
        except FileExistsError as error:
            raise ConfigError(str(error)) from error
        self._began = time.monotonic_ns()

    def close(self) -> None:
        """End the file."""
        self._writer.close()

    def control(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """Tell how many records there are."""
        return {"records": self._writer.count}

    def handle_cmd(self, below: Callable[..., Any], command: Command) -> Any:
        """Note what a command means for the hook that it calls next."""
        code = command.cdb[0]
        self._fua = code in _WITH_FUA and bool(command.cdb[1] & _FUA)
        self._asked = code in _SYNCHRONIZE
        return below(command)

    def _recorded(
        self,
        kind: Kind,
        fn: Callable[..., Any],
        offset: int,
        length: int,
        buffers: list[memoryview] | None,
        flags: Flag,
    ) -> Any:
        began = time.monotonic_ns()

        def ended(error: BaseException | None) -> None:
            took = time.monotonic_ns() - began
            form, stored = Form.NONE, b""
            if buffers is not None and (error is None or kind is Kind.WRITE):
                form, stored = pack(b"".join(buffers), hashed=self._hashed[kind])
            outcome = outcome_of(error, writing=kind is not Kind.READ)
            try:
                self._writer.add(Entry(kind, began - self._began, took, offset, length, outcome, flags, form, stored))
            except OSError as problem:
                self._log.error("the recording ends here: %s", problem)
                self._writer.close()

        try:
            pending = fn()
        except BaseException as error:
            ended(error)
            raise
        if isinstance(pending, Future):
            pending.add_done_callback(lambda done: ended(failure(done)))
        else:
            ended(None)
        return pending

    def read(self, below: Callable[..., Any], offset: int, buffers: list[memoryview]) -> Any:
        """Record a read."""
        length = sum(map(len, buffers))
        return self._recorded(Kind.READ, lambda: below(offset, buffers), offset, length, buffers, Flag.NONE)

    def write(self, below: Callable[..., Any], offset: int, buffers: list[memoryview]) -> Any:
        """Record a write."""
        length = sum(map(len, buffers))
        flags, self._fua = Flag.FUA if self._fua else Flag.NONE, False
        return self._recorded(Kind.WRITE, lambda: below(offset, buffers), offset, length, buffers, flags)

    def flush(self, below: Callable[..., Any]) -> Any:
        """Record a flush."""
        flags = Flag.NONE if self._asked else Flag.IMPLIED
        return self._recorded(Kind.FLUSH, below, 0, 0, None, flags)

    def discard(self, below: Callable[..., Any], offset: int, length: int) -> Any:
        """Record a discard."""
        return self._recorded(Kind.DISCARD, lambda: below(offset, length), offset, length, None, Flag.NONE)

    def write_zeroes(self, below: Callable[..., Any], offset: int, length: int) -> Any:
        """Record a write of zeros."""
        return self._recorded(Kind.WRITE_ZEROES, lambda: below(offset, length), offset, length, None, Flag.NONE)

    def reconfigure(self, below: Callable[..., Any], change: Any) -> None:
        """Let the write cache be changed; a recording is of one size."""
        if change.write_cache is not None:
            below(change)
        elif not changes_nothing(self._device, change):
            raise NotImplementedError("the disk is being recorded: another size or storage would be another disk")


def outcome_of(error: BaseException | None, *, writing: bool) -> Outcome:
    """Return what an initiator hears of an exception."""
    if error is None:
        return GOOD
    if isinstance(error, OSError):
        error = from_oserror(error, writing=writing)
    if not isinstance(error, CommandError):
        error = HardwareError()
    if error.status != 0x02:
        return Outcome(error.status)
    return Outcome(error.status, (error.sense_key, error.asc, error.ascq))
