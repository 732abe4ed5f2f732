"""Commands that move blocks: READ, WRITE, VERIFY, READ CD, SEEK, SYNCHRONIZE CACHE."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING

from tcmu_core import (
    Command,
    InvalidFieldInCdb,
    LbaOutOfRange,
    Miscompare,
    Status,
    WriteProtected,
    posix,
)
from tcmu_fbo import sector
from tcmu_fbo.address import lba_of
from tcmu_fbo.profiles import BLOCK, Code
from tcmu_fbo.sense import CannotRead, CannotWrite, IllegalMode, InvalidFieldInCommandInformation

if TYPE_CHECKING:
    from tcmu_fbo.drive import Drive
    from tcmu_fbo.medium import Medium

Answer = Status | Future[Status]

FUA = 0x08  # byte 1 of WRITE (SBC-4 5.40)
BYTCHK = 0x02  # byte 1 of VERIFY
STEP = 1 << 20  # bytes that VERIFY holds at once
SECTORS = STEP // BLOCK  # that READ CD holds at once


def extent(cdb: bytes) -> tuple[int, int]:
    """Return the LBA and the number of blocks of a 6, 10, 12 or 16-byte CDB (SPC-4 4.3)."""
    group = cdb[0] >> 5
    if group == 0:
        return int.from_bytes(cdb[1:4], "big") & 0x1FFFFF, cdb[4] or 256
    if group == 4:
        return int.from_bytes(cdb[2:10], "big"), int.from_bytes(cdb[10:14], "big")
    return int.from_bytes(cdb[2:6], "big"), int.from_bytes(cdb[6:10] if group == 5 else cdb[7:9], "big")


def _range(drive: Drive, medium: Medium, cdb: bytes) -> tuple[int, int]:
    """Return the extent of a CDB, checked against the disc."""
    lba, count = extent(cdb)
    medium.check(lba, count)
    if count:
        drive.position = lba + count - 1
    return lba, count


def writable(drive: Drive) -> Medium:
    """Return the disc if it can be written."""
    medium = drive.ready()
    if not medium.profile.writable:
        raise CannotWrite
    if medium.read_only:
        raise WriteProtected
    return medium


def read(drive: Drive, command: Command) -> Answer:
    """READ (6), (10), (12), (16): from the page cache at once, from storage while the loop goes on."""
    medium = drive.ready()
    lba, count = _range(drive, medium, command.cdb)
    command.wanted = count * BLOCK
    size = min(command.wanted, command.length)
    buffers = command.window(size)
    if medium.read_cached(lba * BLOCK, buffers):
        command.transferred = size
        return Status.GOOD
    end = lba * BLOCK + size

    def ended(error: BaseException | None) -> Status | Future[Status]:
        if error is None and medium.has(end):
            command.transferred = size
            return Status.GOOD
        return drive.device.offload(_read, medium, command, lba, buffers, size)  # again, to tell which block it is

    return _then(medium, medium.start_read(lba * BLOCK, buffers), ended)


def _sent(command: Command) -> int:
    """Return how many bytes there are to write, of those that the CDB wants.

    Raises:
        InvalidFieldInCommandInformation: the data ends inside a block: the rest of that can't be known here.
    """
    size = min(command.length, command.wanted)
    if size % BLOCK:
        raise InvalidFieldInCommandInformation(f"{size} bytes are not whole blocks of {BLOCK}")
    return size


def _then(
    medium: Medium,
    work: Future[None],
    ended: Callable[[BaseException | None], Status | Future[Status] | Future[None]],
) -> Future[Status]:
    """Return what `ended(error)` makes of the end of `work`: a status, an error, or what more there is to wait for.

    The image stays open until then, even if the disc is ejected meanwhile.
    """
    answer: Future[Status] = Future()
    medium.hold()

    def finish(outcome: Status | BaseException) -> None:
        medium.release()
        if isinstance(outcome, BaseException):
            answer.set_exception(outcome)
        else:
            answer.set_result(outcome)

    def done(work: Future[None]) -> None:
        try:
            outcome = ended(work.exception())
        except Exception as error:
            finish(error)
            return
        if isinstance(outcome, Future):
            outcome.add_done_callback(lambda more: finish(more.exception() or more.result() or Status.GOOD))
        else:
            finish(outcome)

    work.add_done_callback(done)
    return answer


def _read(medium: Medium, command: Command, lba: int, buffers: list[memoryview], size: int) -> Status:
    with medium.used():
        medium.read(lba * BLOCK, buffers)
    command.transferred = size
    return Status.GOOD


def write(drive: Drive, command: Command) -> Answer:
    """WRITE (6), (10), (12), (16). FUA, and a write cache that is off, write through."""
    medium = writable(drive)
    cdb = command.cdb
    lba, count = _range(drive, medium, cdb)
    command.wanted = count * BLOCK
    size = _sent(command)
    stable = not drive.modes.write_cache or bool(cdb[0] >> 5 and cdb[1] & FUA)
    buffers = command.window(size)

    def ended(error: BaseException | None) -> Status | Future[None]:
        if isinstance(error, OSError):
            raise medium.write_error(error, lba * BLOCK) from error
        medium.wrote(lba * BLOCK, buffers)
        command.transferred = size
        return medium.start_flush() if stable else Status.GOOD

    return _then(medium, medium.start_write(lba * BLOCK, buffers), ended)


def _write(medium: Medium, command: Command, lba: int, size: int, stable: bool) -> Status:
    with medium.used():
        medium.write(lba * BLOCK, command.window(size), stable=stable)
    command.transferred = size
    return Status.GOOD


def write_and_verify(drive: Drive, command: Command) -> Answer:
    """WRITE AND VERIFY (10): write through, then compare with what the disc holds."""
    medium = writable(drive)
    lba, count = _range(drive, medium, command.cdb)
    command.wanted = count * BLOCK
    size = _sent(command)

    def run() -> Status:
        _write(medium, command, lba, size, True)
        with medium.used():
            _compare(medium, lba * BLOCK, command.window(size))
        return Status.GOOD

    return drive.device.offload(run)


def verify(drive: Drive, command: Command) -> Answer:
    """VERIFY (10), (12), (16): read the blocks, and with BYTCHK compare them with the initiator's data."""
    medium = drive.ready()
    lba, count = extent(command.cdb)
    medium.check(lba, count)
    compared = bool(command.cdb[1] & BYTCHK)
    size = count * BLOCK
    if compared:
        command.wanted = size
        command.transferred = size = min(command.length, size)

    def run() -> Status:
        with medium.used():
            if compared:
                _compare(medium, lba * BLOCK, command.window(size))
                return Status.GOOD
            room = memoryview(bytearray(min(STEP, size)))
            for at in range(0, size, STEP):
                medium.read(lba * BLOCK + at, [room[: min(STEP, size - at)]])
        return Status.GOOD

    return drive.device.offload(run)


def _compare(medium: Medium, offset: int, buffers: list[memoryview]) -> None:
    """Raise `Miscompare` with the offset of the first byte that differs unless the disc holds what `buffers` do."""
    room = memoryview(bytearray(STEP))
    base = 0
    while buffers:
        mine, buffers = posix.split(buffers, STEP)
        expected = b"".join(mine)
        found = room[: len(expected)]
        medium.read(offset + base, [found])
        if found != expected:
            pairs = enumerate(zip(found, expected, strict=True))
            raise Miscompare(information=base + next(at for at, (one, other) in pairs if one != other))
        base += len(expected)


def synchronize_cache(drive: Drive, command: Command) -> Answer:
    """SYNCHRONIZE CACHE (10): the whole disc; IMMED is answered at once."""
    medium = drive.ready()
    lba, count = extent(command.cdb)
    if lba + count > medium.blocks:
        raise LbaOutOfRange
    if medium.read_only:
        return Status.GOOD
    done = _then(medium, medium.start_flush(), _flushed)
    if command.cdb[1] & 0x02:
        done.add_done_callback(lambda done: _log_failure(drive, done))
        return Status.GOOD
    return done


def _flushed(error: BaseException | None) -> Status:
    if error is not None:
        raise error
    return Status.GOOD


def _log_failure(drive: Drive, done: Future[Status]) -> None:
    if not done.cancelled() and done.exception() is not None:
        drive.device.log.error("SYNCHRONIZE CACHE with IMMED failed: %s", done.exception())


def seek(drive: Drive, command: Command) -> Status:
    """SEEK (10)."""
    medium = drive.ready()
    lba = int.from_bytes(command.cdb[2:6], "big")
    medium.check(lba, 1)
    drive.position = lba
    return Status.GOOD


# -- READ CD ----------------------------------------------------------------------------------------------------------

ANY_SECTOR, MODE_1_SECTOR = 0, 2  # expected sector type
# Byte 9: what of a sector is wanted, in the order in which it lies on the disc. Mode 1 has no sub-header.
SYNC, HEADER, USER, PARITY = 0x80, 0x20, 0x10, 0x08
ORDER = (SYNC, HEADER, USER, PARITY)
C2_ERRORS = 0x06
SIZES = {SYNC: 12, HEADER: 4, USER: sector.USER_DATA, PARITY: 288}


def read_cd(drive: Drive, command: Command) -> Answer:
    """READ CD: any part of Mode 1 sectors by LBA."""
    cdb = command.cdb
    return _read_sectors(drive, command, int.from_bytes(cdb[2:6], "big"), int.from_bytes(cdb[6:9], "big"))


def read_cd_msf(drive: Drive, command: Command) -> Answer:
    """READ CD MSF: the same from one MSF address up to, and without, another."""
    cdb = command.cdb
    for at in (4, 5, 7, 8):
        if cdb[at] > (59 if at in (4, 7) else 74):
            raise InvalidFieldInCdb("no such second or frame", field=(at, 7))
    first, last = lba_of(*cdb[3:6]), lba_of(*cdb[6:9])
    if last < first:
        raise InvalidFieldInCdb("the end lies in front of the start", field=(6, 7))
    if first < 0:
        raise LbaOutOfRange
    return _read_sectors(drive, command, first, last - first)


def _read_sectors(drive: Drive, command: Command, lba: int, count: int) -> Answer:
    medium = drive.ready()
    cdb = command.cdb
    if medium.profile.code is not Code.CD_ROM:
        raise CannotRead("READ CD is for CDs")
    if cdb[1] >> 2 & 7 not in (ANY_SECTOR, MODE_1_SECTOR):
        raise IllegalMode
    if cdb[9] & C2_ERRORS:
        raise InvalidFieldInCdb("C2 error flags are not supported", field=(9, 2))
    if cdb[10] & 0x07:
        raise InvalidFieldInCdb("sub-channel data is not supported", field=(10, 2))
    chosen = [part for part in ORDER if cdb[9] & part]
    first = ORDER.index(chosen[0]) if chosen else 0
    if chosen and list(ORDER[first : first + len(chosen)]) != chosen:
        raise InvalidFieldInCdb("what is wanted of a sector must be in one piece", field=(9, 7))
    medium.check(lba, count)
    each = sum(SIZES[part] for part in chosen)
    command.wanted = each * count
    if not each or not count:
        return Status.GOOD
    drive.position = lba + count - 1

    def run() -> Status:
        wanted, sectors = command.wanted, min(count, -(-command.length // each))
        with medium.used():
            for first in range(0, sectors, SECTORS):  # a header of four bytes costs a whole block to be read
                _fill(medium, command, lba + first, min(SECTORS, sectors - first), chosen, first * each)
        command.transferred, command.wanted = min(command.length, wanted), wanted
        return Status.GOOD

    return drive.device.offload(run)


def _fill(medium: Medium, command: Command, lba: int, count: int, chosen: list[int], at: int) -> None:
    """Put the chosen parts of `count` sectors into the command's buffers from byte `at` on, as far as there is room."""
    data = memoryview(bytearray(count * BLOCK))
    medium.read(lba * BLOCK, [data])
    out = bytearray()
    for number in range(count):
        user = bytes(data[number * BLOCK : (number + 1) * BLOCK])
        pieces = dict(zip(ORDER, sector.parts(lba + number, user, with_parity=PARITY in chosen), strict=True))
        for part in chosen:
            out += pieces[part]
    command.put_at(at, out[: command.length - at])
