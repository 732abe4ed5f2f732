"""SANITIZE (SBC-4 5.30) and FORMAT UNIT (SBC-4 5.4): they start what outlives them."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future

from tcmu_core.errors import (
    FormatInProgress,
    InvalidFieldInCdb,
    InvalidFieldInParameterList,
    ParameterListLengthError,
    SanitizeInProgress,
    text_of,
)
from tcmu_core.scsi.background import Background, FormatCorrupted, SanitizeFailed
from tcmu_core.scsi.command import Command
from tcmu_core.scsi.commands.data import flushed, parameter_list, put_blocks
from tcmu_core.scsi.limits import CHUNK
from tcmu_core.scsi.steps import PAUSE, OnItsOwn, Steps
from tcmu_core.scsi.unit import Unit

OVERWRITE, BLOCK_ERASE, EXIT_FAILURE_MODE = 0x01, 0x02, 0x1F  # service actions of SANITIZE (SBC-4 table 111)
_IMMED, _AUSE = 0x80, 0x20
_FOV, _OPTIONS, _IP = 0x80, 0x70, 0x08  # byte 1 of a format parameter list; options: DPRY, DCRT, STPF (SBC-4 5.4.2.2)
_NO_DEFECT_LIST = 4
_LONG_HEADER = 8


def _start(unit: Unit, command: Command, background: Background, work: Callable[[], Steps], immediate: bool) -> Steps:
    """Run `work` over the whole medium; the command has that to itself when this begins.

    It is nobody's command: no reset and no lost nexus ends it (SBC-4 4.11.2). Without IMMED the command waits for it.
    From then on it is `background` that keeps the others out.
    """
    if unit.background is not None and not unit.background.failed:
        raise unit.background.not_ready()
    unit.must_have_medium()
    unit.background = background
    ended: Future[None] = Future()
    yield OnItsOwn(_guarded(unit, background, work(), ended))
    unit.tasks.step_back(command)
    if not immediate:
        yield ended


def _guarded(unit: Unit, background: Background, steps: Steps, ended: Future[None]) -> Steps:
    _advance(unit, background, 0)
    try:
        yield from steps
    except BaseException as error:
        if isinstance(error, GeneratorExit) and not _of_a_hook(error):  # it is broken off: the disk closes
            unit.background = None
            raise
        background.failed = True
        unit.device.log.error("the background operation failed: %s", text_of(error))
        ended.set_exception(error)
        return
    finally:
        unit.device.progress(0, 0)
    unit.background = None
    ended.set_result(None)


def _of_a_hook(error: BaseException) -> bool:
    """Return whether it was raised below the steps that caught it, and not thrown into them."""
    return error.__traceback__ is not None and error.__traceback__.tb_next is not None


def _advance(unit: Unit, background: Background, count: int) -> None:
    """Note that so many more blocks are done. It is not over with the last one: the flush comes yet."""
    background.done += count
    size = unit.block_size
    unit.device.progress(min(background.done * size, background.total * size - 1), background.total * size,
                         background.what)  # fmt: skip


def overwrite(unit: Unit, background: Background, pattern: bytes, passes: int, invert: bool) -> Steps:
    """Write the pattern to every block, `passes` times, inverted on every other pass when `invert`."""
    size = unit.block_size
    blocks = unit.blocks
    step = max(1, CHUNK // size)
    flipped = bytes(byte ^ 0xFF for byte in pattern)
    for number in range(passes):
        # The last pass is the pattern itself, so inversion counts backwards from it.
        fill = flipped if invert and (passes - 1 - number) % 2 else pattern
        chunk = memoryview(bytearray((fill * (size * step // len(fill) + 1))[: size * step]))
        for first in range(0, blocks, step):
            count = min(step, blocks - first)
            yield put_blocks(unit, first, [chunk[: count * size]])
            _advance(unit, background, count)
            yield PAUSE
    yield flushed(unit)


def erase(unit: Unit, background: Background) -> Steps:
    """Make every block read as zeros, by discarding where the handler can."""
    zero = unit.operations.discard or unit.operations.write_zeroes
    if zero is None:
        yield from overwrite(unit, background, bytes(unit.block_size), 1, False)
        return
    step = CHUNK * 64 // unit.block_size
    for first in range(0, unit.blocks, step):
        count = min(step, unit.blocks - first)
        yield zero(first * unit.block_size, count * unit.block_size)
        _advance(unit, background, count)
        yield PAUSE
    yield flushed(unit)


def sanitize(unit: Unit, command: Command) -> Steps:
    """SANITIZE: SBC-4 5.30; overwrite, block erase, exit failure mode. There is no key to erase."""
    cdb = command.cdb
    action = cdb[1] & 0x1F
    length = int.from_bytes(cdb[7:9], "big")
    if action == EXIT_FAILURE_MODE:
        if length:
            raise InvalidFieldInCdb("PARAMETER LIST LENGTH must be zero", field=(7, 7))
        if unit.background is not None:
            if not unit.background.is_failed_sanitize:
                raise unit.background.not_ready()
            if unit.background.restricted:
                raise InvalidFieldInCdb("the sanitize operation that failed had AUSE zero", field=(1, 4))
            unit.background = None
        return
    restricted = not cdb[1] & _AUSE
    if action == BLOCK_ERASE:
        if length:
            raise InvalidFieldInCdb("PARAMETER LIST LENGTH must be zero", field=(7, 7))
        background = Background(SanitizeInProgress, SanitizeFailed, "sanitizing", unit.blocks, restricted=restricted)
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
    total = unit.blocks * passes
    background = Background(SanitizeInProgress, SanitizeFailed, "sanitizing", total, restricted=restricted)
    pattern, invert = data[4 : 4 + told], bool(data[0] & 0x80)
    yield from _start(
        unit,
        command,
        background,
        lambda: overwrite(unit, background, pattern, passes, invert),
        bool(cdb[1] & _IMMED),
    )


def format_unit(unit: Unit, command: Command) -> Steps:
    """FORMAT UNIT: SBC-4 5.4, without defect lists and protection information. The medium reads as zeros after it."""
    cdb = command.cdb
    immediate = False
    if unit.background is not None and unit.background.is_failed_sanitize:
        raise unit.background.not_ready()
    if cdb[1] & 0xC0:
        raise InvalidFieldInCdb("FMTPINFO: there is no protection information", field=(1, 7))
    if cdb[1] & 0x10:  # FMTDATA
        head = _LONG_HEADER if cdb[1] & 0x20 else _NO_DEFECT_LIST
        if command.length < head:
            raise ParameterListLengthError
        data = command.take(head)
        immediate = bool(data[1] & 0x02)
        if data[0] & 0x07:
            raise InvalidFieldInParameterList("PROTECTION FIELD USAGE: there is none", field=(0, 2), in_cdb=False)
        if data[1] & _IP or (data[1] & _OPTIONS and not data[1] & _FOV):
            raise InvalidFieldInParameterList("IP, or options without FOV", field=(1, 7), in_cdb=False)
        if any(data[2:]):
            raise InvalidFieldInParameterList("a defect list", field=(2, 7), in_cdb=False)
    background = Background(FormatInProgress, FormatCorrupted, "formatting", unit.blocks)
    yield from _start(unit, command, background, lambda: erase(unit, background), immediate)
