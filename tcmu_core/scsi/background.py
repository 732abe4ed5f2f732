"""Operations that outlive their command: SANITIZE (SBC-4 5.30) and FORMAT UNIT (SBC-4 5.4)."""

from __future__ import annotations

from collections.abc import Callable, Generator
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from tcmu_core.errors import (
    CommandError,
    FormatInProgress,
    InvalidFieldInCdb,
    InvalidFieldInParameterList,
    NotReady,
    ParameterListLengthError,
    SanitizeInProgress,
)
from tcmu_core.scsi.command import Command
from tcmu_core.scsi.medium import CHUNK, flushed, parameter_list, put_blocks
from tcmu_core.scsi.steps import PAUSE, Steps
from tcmu_core.scsi.taskset import EVERYTHING

if TYPE_CHECKING:
    from tcmu_core.scsi.unit import LogicalUnit

OVERWRITE, BLOCK_ERASE, EXIT_FAILURE_MODE = 0x01, 0x02, 0x1F  # service actions of SANITIZE (SBC-4 table 111)
_IMMED = 0x80
_BREATH = 8  # chunks after which other commands have a turn
_NO_DEFECT_LIST = 4
_LONG_HEADER = 8


class Background:
    """An operation under way, or one that failed and keeps the unit not ready until it is left."""

    def __init__(self, kind: type[NotReady], total: int) -> None:
        self._kind = kind
        self._total = max(total, 1)
        self.done = 0
        self.failed = False

    def not_ready(self) -> CommandError:
        """Return what every command that needs the medium is answered, with the progress in 65536ths."""
        if self.failed:
            return SanitizeFailed()
        return self._kind(progress=min(self.done * 65536 // self._total, 65535))


class SanitizeFailed(CommandError):
    """The last sanitize operation failed; another one, or EXIT FAILURE MODE, ends this state."""

    sense_key, asc, ascq = 0x3, 0x31, 0x03  # MEDIUM ERROR, SANITIZE COMMAND FAILED


def _start(
    unit: LogicalUnit, command: Command, background: Background, work: Callable[[], Steps], immediate: bool
) -> Steps:
    """Run `work` over the whole medium, after everything in flight.

    It is nobody's command: no reset and no lost nexus ends it (SBC-4 4.11.2). Without IMMED the command waits for it.
    """
    if unit.background is not None and not unit.background.failed:
        raise unit.background.not_ready()
    yield unit.tasks.lock(command, EVERYTHING)
    unit.background = background
    unit.tasks.unlock(command)  # from here on `background` keeps the others out
    ended: Future[None] = Future()
    carrier = Command(command.cdb, [], 0, command.nexus)
    unit.post(unit.carry, carrier, _guarded(unit, background, work(), ended))
    if not immediate:
        unit.tasks.park(command)
        yield ended


def _guarded(unit: LogicalUnit, background: Background, steps: Steps, ended: Future[None]) -> Steps:
    try:
        yield from steps
    except GeneratorExit:
        unit.background = None
        raise
    except BaseException as error:
        background.failed = True
        unit.device.log.error("the background operation failed: %s", error)
        ended.set_exception(error)
        return
    unit.background = None
    unit.gate()
    ended.set_result(None)


def overwrite(unit: LogicalUnit, background: Background, pattern: bytes, passes: int, invert: bool) -> Steps:
    """Write the pattern to every block, `passes` times, inverted on every other pass when `invert`."""
    size = unit.block_size
    blocks = unit.blocks
    step = max(1, CHUNK // size)
    flipped = bytes(byte ^ 0xFF for byte in pattern)
    for number in range(passes):
        # The last pass is the pattern itself, so inversion counts backwards from it.
        fill = flipped if invert and (passes - 1 - number) % 2 else pattern
        chunk = memoryview(bytearray((fill * (size * step // len(fill) + 1))[: size * step]))
        for turn, first in enumerate(range(0, blocks, step)):
            count = min(step, blocks - first)
            yield put_blocks(unit, first, [chunk[: count * size]])
            background.done += count
            if turn % _BREATH == _BREATH - 1:
                yield PAUSE
    yield flushed(unit)


def erase(unit: LogicalUnit, background: Background) -> Steps:
    """Make every block read as zeros, by discarding where the handler can."""
    zero = unit.operations.discard or unit.operations.write_zeroes
    if zero is None:
        yield from overwrite(unit, background, bytes(unit.block_size), 1, False)
        return
    step = CHUNK * 64 // unit.block_size
    for first in range(0, unit.blocks, step):
        count = min(step, unit.blocks - first)
        yield zero(first * unit.block_size, count * unit.block_size)
        background.done += count
        yield PAUSE
    yield flushed(unit)


def sanitize(unit: LogicalUnit, command: Command) -> Generator[Any, Any, None]:
    """SANITIZE: SBC-4 5.30; overwrite, block erase, exit failure mode. There is no key to erase."""
    cdb = command.cdb
    action = cdb[1] & 0x1F
    length = int.from_bytes(cdb[7:9], "big")
    if action == EXIT_FAILURE_MODE:
        if length:
            raise InvalidFieldInCdb("PARAMETER LIST LENGTH must be zero", field=(7, 7))
        if unit.background is not None:
            if not unit.background.failed:
                raise unit.background.not_ready()
            unit.background = None
            unit.gate()
        return
    if action == BLOCK_ERASE:
        if length:
            raise InvalidFieldInCdb("PARAMETER LIST LENGTH must be zero", field=(7, 7))
        background = Background(SanitizeInProgress, unit.blocks)
        yield from _start(unit, command, background, lambda: erase(unit, background), bool(cdb[1] & _IMMED))
        return
    if not 4 < length <= 4 + unit.block_size:
        raise InvalidFieldInCdb("PARAMETER LIST LENGTH must be 5 to 4 plus a logical block", field=(7, 7))
    data = parameter_list(command, length)
    passes, told = data[0] & 0x1F, int.from_bytes(data[2:4], "big")
    if not passes:
        raise InvalidFieldInParameterList("OVERWRITE COUNT must not be zero", field=(0, 4), in_cdb=False)
    if told != length - 4 or not told:
        raise InvalidFieldInParameterList("INITIALIZATION PATTERN LENGTH is wrong", field=(2, 7), in_cdb=False)
    if data[0] & 0x60:
        raise InvalidFieldInParameterList("TEST must be zero", field=(0, 6), in_cdb=False)
    background = Background(SanitizeInProgress, unit.blocks * passes)
    pattern, invert = data[4 : 4 + told], bool(data[0] & 0x80)
    yield from _start(
        unit,
        command,
        background,
        lambda: overwrite(unit, background, pattern, passes, invert),
        bool(cdb[1] & _IMMED),
    )


def format_unit(unit: LogicalUnit, command: Command) -> Steps:
    """FORMAT UNIT: SBC-4 5.4, without defect lists and protection information. The medium reads as zeros after it."""
    cdb = command.cdb
    immediate = False
    if cdb[1] & 0xC0:
        raise InvalidFieldInCdb("FMTPINFO: there is no protection information", field=(1, 7))
    if cdb[1] & 0x10:  # FMTDATA
        head = _LONG_HEADER if cdb[1] & 0x20 else _NO_DEFECT_LIST
        if command.length < head:
            raise ParameterListLengthError
        data = command.take(head)
        immediate = bool(data[1] & 0x02)
        if any(data[2:] if head == _NO_DEFECT_LIST else data[4:]):
            raise InvalidFieldInParameterList("a defect list", field=(2, 7), in_cdb=False)
    background = Background(FormatInProgress, unit.blocks)
    yield from _start(unit, command, background, lambda: erase(unit, background), immediate)
