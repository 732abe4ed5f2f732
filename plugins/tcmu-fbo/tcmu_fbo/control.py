"""Commands that change the drive: load and eject, prevent, speeds, mode select, format; and those on its readiness."""

from __future__ import annotations

from concurrent.futures import Future
from typing import TYPE_CHECKING

from tcmu_core import (
    Command,
    InvalidFieldInCdb,
    InvalidFieldInParameterList,
    NotReady,
    ParameterListLengthError,
    Status,
)
from tcmu_fbo import modes
from tcmu_fbo.data import writable
from tcmu_fbo.drive import FULL
from tcmu_fbo.events import EventClass, PowerEvent
from tcmu_fbo.info import FULL_FORMAT, capabilities
from tcmu_fbo.layout import Field, Layout, flag, long, triple, word
from tcmu_fbo.sense import data_of

if TYPE_CHECKING:
    from tcmu_fbo.drive import Drive

MODE_PARAMETERS_CHANGED = (0x2A, 0x01)  # SPC-4 annex F


def parameter_list(command: Command, length: int) -> bytes:
    """Return the parameter list of `length` bytes; raise when the initiator sent less."""
    data = command.take(length)
    if len(data) < length:
        raise ParameterListLengthError
    return data


def test_unit_ready(drive: Drive, command: Command) -> None:
    """TEST UNIT READY: what there is to say against it is said here, the rest by the engine."""
    drive.ready()


def request_sense(drive: Drive, command: Command) -> bytes | None:
    """REQUEST SENSE: why the drive is not ready, a format's progress with it; everything else is the engine's."""
    if command.nexus.attentions:
        return None
    try:
        drive.ready()
    except NotReady as error:
        return data_of(error, descriptor=bool(command.cdb[1] & 0x01))
    return None


# -- load, eject, prevent ---------------------------------------------------------------------------------------------

IDLE_POWER, STANDBY_POWER, ACTIVE_POWER = 2, 3, 1
START, LOEJ = 0x01, 0x02  # byte 4 of START STOP UNIT


def start_stop_unit(drive: Drive, command: Command) -> Status | Future[Status]:
    """START STOP UNIT: close or open the tray; the disc itself spins up whenever it is needed.

    Power conditions (byte 4, high nibble) from active to standby are taken, and told as a power event.
    """
    action = command.cdb[4]
    condition = action >> 4
    if drive.formatting is not None:
        drive.ready()  # says how far it is
    if condition:
        if condition not in (ACTIVE_POWER, IDLE_POWER, STANDBY_POWER):
            raise InvalidFieldInCdb("no such power condition", field=(4, 7))
        if condition != drive.power:
            drive.power = condition
            drive.events.add(EventClass.POWER_MANAGEMENT, PowerEvent.CHANGED)
        return Status.GOOD
    if action & LOEJ:
        if action & START:
            drive.load(command.nexus)
        else:
            drive.eject()
    elif not action & START:
        return drive.device.offload(_flush, drive)
    return Status.GOOD


PERSISTENT, PREVENT = 0x02, 0x01  # byte 4 of PREVENT ALLOW MEDIUM REMOVAL


def prevent_allow(drive: Drive, command: Command) -> Status | None:
    """PREVENT ALLOW MEDIUM REMOVAL: the persistent kind.

    It makes an eject that was asked for at the drive an event instead; the initiator's own still ejects. The plain
    kind is counted by the engine, which knows when a nexus is lost.
    """
    prevent = command.cdb[4]
    if not prevent & PERSISTENT:
        return None
    drive.persistent_prevent = bool(prevent & PREVENT)
    return Status.GOOD


# -- speeds -----------------------------------------------------------------------------------------------------------

STREAMING = Layout(
    28,
    wrc=Field(0, 4, 2), rdd=flag(0, 2), exact=flag(0, 1), ra=flag(0, 0),
    start=long(4), end=long(8), read_size=long(12), read_time=long(16), write_size=long(20), write_time=long(24),
)  # fmt: skip
PERFORMANCE_DESCRIPTOR = 0x00  # type


def set_cd_speed(drive: Drive, command: Command) -> Status:
    """SET CD SPEED: the speeds, in kB/s, that the drive reports from now on; FFFFh is the fastest."""
    if command.cdb[1] & 0x03 > 1:
        raise InvalidFieldInCdb("ROTATIONAL CONTROL is reserved", field=(1, 1))
    drive.read_speed = int.from_bytes(command.cdb[2:4], "big") or FULL
    drive.write_speed = int.from_bytes(command.cdb[4:6], "big") or FULL
    return Status.GOOD


def set_streaming(drive: Drive, command: Command) -> Status:
    """SET STREAMING: a performance descriptor, whose speeds the drive reports from now on, or the defaults (RDD)."""
    medium = drive.ready()
    if command.cdb[8] != PERFORMANCE_DESCRIPTOR:
        raise InvalidFieldInCdb("no such descriptor type", field=(8, 7))
    length = int.from_bytes(command.cdb[9:11], "big")
    if not length:
        return Status.GOOD
    if length < STREAMING.size:
        raise ParameterListLengthError
    wanted = STREAMING.unpack(parameter_list(command, length))
    if wanted["rdd"]:
        drive.read_speed = drive.write_speed = FULL
        return Status.GOOD
    if wanted["start"] > wanted["end"] or wanted["end"] >= medium.blocks:
        raise InvalidFieldInParameterList("START LBA, END LBA", field=(4, 7), in_cdb=False)
    if not wanted["read_time"] or not wanted["write_time"]:
        raise InvalidFieldInParameterList("READ TIME and WRITE TIME can't be zero", field=(16, 7), in_cdb=False)
    # So many kilobytes in so many milliseconds.
    drive.read_speed = min(wanted["read_size"] * 1000 // wanted["read_time"], FULL) or FULL
    drive.write_speed = min(wanted["write_size"] * 1000 // wanted["write_time"], FULL) or FULL
    return Status.GOOD


# -- MODE SELECT ------------------------------------------------------------------------------------------------------


def mode_select(drive: Drive, command: Command) -> Status | Future[Status]:
    """MODE SELECT (6), (10): SPC-4 6.11, 6.12. Turning the write cache off flushes it."""
    cdb = command.cdb
    short = cdb[0] == 0x15
    header = modes.HEADER_6 if short else modes.HEADER_10
    if not cdb[1] & 0x10:
        raise InvalidFieldInCdb("PF must be one", field=(1, 4))
    if cdb[1] & 0x01:
        raise InvalidFieldInCdb("SP: pages can't be saved", field=(1, 0))
    length = cdb[4] if short else int.from_bytes(cdb[7:9], "big")
    if not length:
        return Status.GOOD
    data = parameter_list(command, length)
    if length < header.size:
        raise ParameterListLengthError
    if header.unpack(data)["block_descriptor_length"]:
        at = header.fields["block_descriptor_length"].byte
        raise InvalidFieldInParameterList("MMC has no block descriptors", field=(at, 7), in_cdb=False)
    cached = drive.modes.write_cache
    if drive.modes.select(data, header.size, capabilities(drive)):
        drive.device.notify(*MODE_PARAMETERS_CHANGED, but=command.nexus)
        if cached and not drive.modes.write_cache and drive.medium is not None:
            return drive.device.offload(_flush, drive)
    return Status.GOOD


def _flush(drive: Drive) -> Status:
    if drive.medium is not None:
        with drive.medium.used():
            drive.medium.flush()
    return Status.GOOD


# -- FORMAT UNIT ------------------------------------------------------------------------------------------------------

FORMAT_HEADER = Layout(
    4, fov=flag(1, 7), dpry=flag(1, 6), dcrt=flag(1, 5), stpf=flag(1, 4), ip=flag(1, 3), try_out=flag(1, 2),
    immed=flag(1, 1), length=word(2),
)  # fmt: skip
FORMAT_DESCRIPTOR = Layout(8, blocks=long(0), format_type=Field(4, 7, 6), sub_type=Field(4, 1, 2), parameter=triple(5))
FMTDATA, FORMAT_CODE = 0x10, 0x07  # byte 1
MMC_FORMAT = 1  # format code
FULL_BLOCKS = 0xFFFFFFFF  # as many as there are


def format_unit(drive: Drive, command: Command) -> Status | Future[Status]:
    """FORMAT UNIT: the whole DVD-RAM becomes zeros (format type 00h); with IMMED the drive is not ready meanwhile."""
    cdb = command.cdb
    with_list = bool(cdb[1] & FMTDATA)
    if cdb[1] & FORMAT_CODE != (MMC_FORMAT if with_list else 0):
        raise InvalidFieldInCdb("FORMAT CODE must be 001b with a parameter list", field=(1, 2))
    medium = writable(drive)
    immediate = False
    if with_list:
        data = parameter_list(command, FORMAT_HEADER.size + FORMAT_DESCRIPTOR.size)
        head, wanted = FORMAT_HEADER.unpack(data), FORMAT_DESCRIPTOR.unpack(data[FORMAT_HEADER.size :])
        if head["length"] != FORMAT_DESCRIPTOR.size:
            raise InvalidFieldInParameterList("one format descriptor is wanted", field=(2, 7), in_cdb=False)
        if wanted["format_type"] != FULL_FORMAT or wanted["sub_type"]:
            raise InvalidFieldInParameterList("no such FORMAT TYPE for this disc", field=(8, 7), in_cdb=False)
        if wanted["blocks"] not in (0, FULL_BLOCKS, medium.blocks):
            raise InvalidFieldInParameterList("NUMBER OF BLOCKS is not the disc's", field=(4, 7), in_cdb=False)
        if head["try_out"]:
            return Status.GOOD
        immediate = bool(head["immed"])
    done = drive.format(medium)
    return Status.GOOD if immediate else done
