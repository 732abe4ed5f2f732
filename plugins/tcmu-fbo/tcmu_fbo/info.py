"""Commands that tell of the drive and its disc; each returns data, of which the initiator gets what it has room for.

Layouts are those of MMC-6 clause 6, under the name of the command.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tcmu_core import Command, InvalidFieldInCdb
from tcmu_fbo import events, features, modes
from tcmu_fbo.address import msf, msf_address
from tcmu_fbo.drive import FULL
from tcmu_fbo.events import EventClass
from tcmu_fbo.layout import Field, Layout, flag, long, triple, word
from tcmu_fbo.profiles import BLOCK, DVD_RAM, Code, Profile
from tcmu_fbo.sense import CannotRead

if TYPE_CHECKING:
    from tcmu_fbo.drive import Drive
    from tcmu_fbo.medium import Medium

BUFFER_SIZE = 2 << 20  # bytes: what the drive says of its buffer
LAST_LBA = 0xFFFFFFFF  # what 32 bits hold
LEAD_OUT = 0xAA  # track number of the lead-out

# -- READ CAPACITY ----------------------------------------------------------------------------------------------------

CAPACITY_10 = Layout(8, last_lba=long(0), block_length=long(4))
CAPACITY_16 = Layout(32, last_lba=Field(0, 7, 64), block_length=long(8))


def read_capacity_10(drive: Drive, command: Command) -> bytes:
    """READ CAPACITY: the last LBA, FFFFFFFFh for a disc with more than 32 bits can name."""
    return CAPACITY_10.pack(last_lba=min(drive.ready().blocks - 1, LAST_LBA), block_length=BLOCK)


def read_capacity_16(drive: Drive, command: Command) -> bytes:
    """READ CAPACITY (16): SBC-4 5.20."""
    return CAPACITY_16.pack(last_lba=drive.ready().blocks - 1, block_length=BLOCK)


# -- READ FORMAT CAPACITIES -------------------------------------------------------------------------------------------

CAPACITY_LIST_HEADER = Layout(4, length=Field(3))
CURRENT_CAPACITY = Layout(8, blocks=long(0), type=Field(4, 1, 2), block_length=triple(5))
FORMATTABLE_CAPACITY = Layout(8, blocks=long(0), format_type=Field(4, 7, 6), parameter=triple(5))
FORMATTED, NO_MEDIUM = 2, 3  # descriptor type
FULL_FORMAT = 0x00  # format type


def read_format_capacities(drive: Drive, command: Command) -> bytes:
    """READ FORMAT CAPACITIES: the current or the greatest possible capacity, and how the disc may be formatted."""
    medium = drive.medium
    if medium is None:
        listed = CURRENT_CAPACITY.pack(blocks=DVD_RAM.capacity, type=NO_MEDIUM, block_length=BLOCK)
    else:
        blocks = min(medium.blocks, LAST_LBA)
        listed = CURRENT_CAPACITY.pack(blocks=blocks, type=FORMATTED, block_length=BLOCK)
        if medium.profile.writable:
            listed += FORMATTABLE_CAPACITY.pack(blocks=blocks, format_type=FULL_FORMAT, parameter=BLOCK)
    return CAPACITY_LIST_HEADER.pack(length=len(listed)) + listed


# -- GET CONFIGURATION ------------------------------------------------------------------------------------------------

ALL, CURRENT, ONE = 0, 1, 2  # requested type


def get_configuration(drive: Drive, command: Command) -> bytes:
    """GET CONFIGURATION: all features from a starting number on, those that are current, or one."""
    requested, start = command.cdb[1] & 0x03, int.from_bytes(command.cdb[2:4], "big")
    if requested > ONE:
        raise InvalidFieldInCdb("RT 11b is reserved", field=(1, 1))
    body = b"".join(
        feature.encode(drive)
        for feature in features.FEATURES
        if (feature.code == start if requested == ONE else feature.code >= start)
        and (requested != CURRENT or feature.is_current(drive))
    )
    return features.HEADER.pack(data_length=4 + len(body), current_profile=drive.profile_code) + body


# -- GET EVENT STATUS NOTIFICATION ------------------------------------------------------------------------------------


def get_event_status(drive: Drive, command: Command) -> bytes:
    """GET EVENT STATUS NOTIFICATION, polled: the lowest class asked for that has an event, or else the lowest."""
    if not command.cdb[1] & 0x01:
        raise InvalidFieldInCdb("asynchronous notification is not supported", field=(1, 0))
    asked = [kind for kind in EventClass if command.cdb[4] & 1 << kind]
    if not asked:
        return events.HEADER.pack(length=2, nea=1, supported=events.SUPPORTED)
    kind = next((kind for kind in asked if drive.events.pending(command.nexus, kind)), asked[0])
    room = int.from_bytes(command.cdb[7:9], "big")
    # An event that the initiator left no room for has not been reported: it stays.
    code = drive.events.take(command.nexus, kind) if room > events.HEADER.size else 0
    body = _event(drive, kind, code)
    header = events.HEADER.pack(length=2 + len(body), notification_class=kind, supported=events.SUPPORTED)
    return header + body


def _event(drive: Drive, kind: EventClass, code: int) -> bytes:
    if kind is EventClass.OPERATIONAL_CHANGE:
        change = events.FEATURE_CHANGE if code else 0
        return events.OPERATIONAL.pack(
            event=code, persistent_prevent=drive.persistent_prevent, operational_change=change
        )
    if kind is EventClass.POWER_MANAGEMENT:
        return events.POWER.pack(event=code, status=drive.power)
    if kind is EventClass.MEDIA:
        return events.MEDIA.pack(event=code, present=drive.medium is not None, open=drive.tray_open)
    busy = drive.formatting is not None
    return events.DEVICE_BUSY.pack(event=code, status=events.BUSY if busy else events.NOT_BUSY, time=10 if busy else 0)


# -- READ TOC/PMA/ATIP ------------------------------------------------------------------------------------------------

TOC_HEADER = Layout(4, length=word(0), first=Field(2), last=Field(3))
TRACK_DESCRIPTOR = Layout(8, adr=Field(1, 7, 4), control=Field(1, 3, 4), track=Field(2), address=long(4))
FULL_TOC_DESCRIPTOR = Layout(
    11,
    session=Field(0), adr=Field(1, 7, 4), control=Field(1, 3, 4), tno=Field(2), point=Field(3),
    minute=Field(4), second=Field(5), frame=Field(6), zero=Field(7),
    p_minute=Field(8), p_second=Field(9), p_frame=Field(10),
)  # fmt: skip
POSITION, DATA_TRACK = 1, 4  # ADR: current position; CONTROL: data, recorded uninterrupted
TOC, SESSION_INFO, FULL_TOC, ATIP = 0, 1, 2, 4


def read_toc(drive: Drive, command: Command) -> bytes:
    """READ TOC/PMA/ATIP: one session with one data track. A CD-ROM has no ATIP: that answer has its header alone."""
    medium = drive.ready()
    cdb = command.cdb
    # SFF-8020 initiators, Linux among them, give the format in the two highest bits of the control byte.
    form = cdb[2] & 0x0F or cdb[9] >> 6
    in_msf = bool(cdb[1] & 0x02)
    if form == TOC:
        return _toc(medium, cdb[6], in_msf)
    if form == SESSION_INFO:
        return TOC_HEADER.pack(length=10, first=1, last=1) + _track(1, 0, in_msf)
    if form == FULL_TOC and medium.profile.code is Code.CD_ROM:
        return _full_toc(medium)
    if form == ATIP and medium.profile.code is Code.CD_ROM:
        return TOC_HEADER.pack(length=2)
    raise InvalidFieldInCdb("the disc has no such table", field=(2, 3))


def _track(number: int, lba: int, in_msf: bool) -> bytes:
    address = msf_address(lba) if in_msf else min(lba, LAST_LBA)
    return TRACK_DESCRIPTOR.pack(adr=POSITION, control=DATA_TRACK, track=number, address=address)


def _toc(medium: Medium, start: int, in_msf: bool) -> bytes:
    if start > 1 and start != LEAD_OUT:
        raise InvalidFieldInCdb("there is no such track", field=(6, 7))
    tracks = _track(1, 0, in_msf) if start <= 1 else b""
    tracks += _track(LEAD_OUT, medium.blocks, in_msf)
    return TOC_HEADER.pack(length=2 + len(tracks), first=1, last=1) + tracks


def _full_toc(medium: Medium) -> bytes:
    # Points A0h, A1h: the first and the last track (PSEC 00h: CD-ROM); A2h: the lead-out; 1: the track.
    points = [(0xA0, (1, 0, 0)), (0xA1, (1, 0, 0)), (0xA2, msf(medium.blocks)), (0x01, msf(0))]
    body = b"".join(
        FULL_TOC_DESCRIPTOR.pack(
            session=1,
            adr=POSITION,
            control=DATA_TRACK,
            point=point,
            p_minute=where[0],
            p_second=where[1],
            p_frame=where[2],
        )
        for point, where in points
    )
    return TOC_HEADER.pack(length=2 + len(body), first=1, last=1) + body


# -- READ DISC INFORMATION --------------------------------------------------------------------------------------------

DISC_INFORMATION = Layout(
    34,
    length=word(0),
    data_type=Field(2, 7, 3), erasable=flag(2, 4), last_session_state=Field(2, 3, 2), disc_status=Field(2, 1, 2),
    first_track=Field(3), sessions=Field(4), first_track_in_last_session=Field(5), last_track_in_last_session=Field(6),
    did_v=flag(7, 7), dbc_v=flag(7, 6), uru=flag(7, 5), dac_v=flag(7, 4), bg_format=Field(7, 1, 2),
    disc_type=Field(8), sessions_msb=Field(9), first_track_msb=Field(10), last_track_msb=Field(11),
    disc_identification=long(12), last_lead_in=long(16), last_possible_lead_out=long(20), bar_code=Field(24, 7, 64),
    application_code=Field(32), opc_entries=Field(33),
)  # fmt: skip
COMPLETE_SESSION = 3
FINALIZED, RANDOM_WRITABLE = 2, 3  # disc status
NOT_AVAILABLE = 0xFFFFFFFF  # start of a lead-in or lead-out that can't be written any more


def read_disc_information(drive: Drive, command: Command) -> bytes:
    """READ DISC INFORMATION: standard disc information of one session with one track."""
    medium = drive.ready()
    if command.cdb[1] & 0x07:
        raise InvalidFieldInCdb("the disc has standard information only", field=(1, 2))
    return DISC_INFORMATION.pack(
        length=DISC_INFORMATION.size - 2,
        erasable=medium.profile.writable,
        last_session_state=COMPLETE_SESSION,
        disc_status=RANDOM_WRITABLE if medium.profile.writable else FINALIZED,
        first_track=1,
        sessions=1,
        first_track_in_last_session=1,
        last_track_in_last_session=1,
        uru=1,
        disc_type=medium.profile.disc_type,
        last_lead_in=NOT_AVAILABLE,
        last_possible_lead_out=NOT_AVAILABLE,
    )


# -- READ TRACK INFORMATION -------------------------------------------------------------------------------------------

TRACK_INFORMATION = Layout(
    48,
    length=word(0), track=Field(2), session=Field(3),
    ljrs=Field(5, 7, 2), damage=flag(5, 5), copy=flag(5, 4), track_mode=Field(5, 3, 4),
    rt=flag(6, 7), blank=flag(6, 6), packet=flag(6, 5), fp=flag(6, 4), data_mode=Field(6, 3, 4),
    lra_v=flag(7, 1), nwa_v=flag(7, 0),
    start=long(8), next_writable=long(12), free_blocks=long(16), packet_size=long(20), size=long(24),
    last_recorded=long(28), track_msb=Field(32), session_msb=Field(33), read_compatibility=long(36),
)  # fmt: skip
BY_LBA, BY_TRACK, BY_SESSION = 0, 1, 2
MODE_1 = 1  # data mode


def read_track_information(drive: Drive, command: Command) -> bytes:
    """READ TRACK INFORMATION: of the track at an LBA, of track 1, or of the first track of session 1."""
    medium = drive.ready()
    kind, number = command.cdb[1] & 0x03, int.from_bytes(command.cdb[2:6], "big")
    if kind > BY_SESSION:
        raise InvalidFieldInCdb("ADDRESS/NUMBER TYPE 11b is reserved", field=(1, 1))
    if kind == BY_LBA:
        medium.check(number, 1)
    elif number != 1:
        raise InvalidFieldInCdb("there is no such track or session", field=(2, 7))
    packets = medium.profile.writable
    return TRACK_INFORMATION.pack(
        length=TRACK_INFORMATION.size - 2,
        track=1,
        session=1,
        track_mode=DATA_TRACK,
        packet=packets,
        fp=packets,
        data_mode=MODE_1,
        packet_size=medium.profile.blocking if packets else 0,
        size=min(medium.blocks, LAST_LBA),
        lra_v=1,
        last_recorded=min(medium.blocks - 1, LAST_LBA),
    )


# -- READ SUB-CHANNEL -------------------------------------------------------------------------------------------------

SUB_CHANNEL_HEADER = Layout(4, audio_status=Field(1), length=word(2))
CURRENT_POSITION = Layout(
    12, format=Field(0), adr=Field(1, 7, 4), control=Field(1, 3, 4), track=Field(2), index=Field(3),
    absolute=long(4), relative=long(8),
)  # fmt: skip
CATALOGUE_NUMBER = Layout(20, format=Field(0), mcval=flag(4, 7))
ISRC = Layout(20, format=Field(0), adr=Field(1, 7, 4), control=Field(1, 3, 4), track=Field(2), tcval=flag(4, 7))
NO_AUDIO_STATUS = 0x15
POSITION_LIST, CATALOGUE_LIST, ISRC_LIST = 1, 2, 3


def read_sub_channel(drive: Drive, command: Command) -> bytes:
    """READ SUB-CHANNEL: the current position; there is neither a catalogue number nor an ISRC on a CD-ROM image."""
    medium = drive.ready()
    if medium.profile.code is not Code.CD_ROM:
        raise CannotRead("only a CD has sub-channels")
    cdb = command.cdb
    body = b""
    if cdb[2] & 0x40:  # SUBQ
        position = {"adr": POSITION, "control": DATA_TRACK, "track": 1}
        if cdb[3] == POSITION_LIST:
            lba = drive.position
            # A relative address counts from the track's start, without the two seconds in front of LBA 0.
            where = msf_address(lba) if cdb[1] & 0x02 else lba
            since = msf_address(lba - 150) if cdb[1] & 0x02 else lba
            body = CURRENT_POSITION.pack(format=cdb[3], **position, index=1, absolute=where, relative=since)
        elif cdb[3] == CATALOGUE_LIST:
            body = CATALOGUE_NUMBER.pack(format=cdb[3])
        elif cdb[3] == ISRC_LIST and cdb[6] == 1:
            body = ISRC.pack(format=cdb[3], **position)
        else:
            raise InvalidFieldInCdb("no such sub-channel data", field=(6, 7) if cdb[3] == ISRC_LIST else (3, 7))
    return SUB_CHANNEL_HEADER.pack(audio_status=NO_AUDIO_STATUS, length=len(body)) + body


# -- MECHANISM STATUS -------------------------------------------------------------------------------------------------

MECHANISM = Layout(
    8,
    fault=flag(0, 7), changer_state=Field(0, 6, 2), slot=Field(0, 4, 5),
    mechanism_state=Field(1, 7, 3), door_open=flag(1, 4), slot_high=Field(1, 2, 3),
    lba=triple(2), slots=Field(5), table_length=word(6),
)  # fmt: skip


def mechanism_status(drive: Drive, command: Command) -> bytes:
    """MECHANISM STATUS: idle, with the tray open or closed; there is no changer."""
    return MECHANISM.pack(door_open=drive.tray_open, lba=min(drive.position, 0xFFFFFF))


# -- speeds -----------------------------------------------------------------------------------------------------------

PERFORMANCE_HEADER = Layout(8, length=long(0), write=flag(4, 1), exceptions=flag(4, 0))
NOMINAL = Layout(16, start=long(0), start_speed=long(4), end=long(8), end_speed=long(12))
WRITE_SPEED = Layout(
    16, wrc=Field(0, 4, 2), rdd=flag(0, 2), exact=flag(0, 1), mrw=flag(0, 0),
    end=long(4), read_speed=long(8), write_speed=long(12),
)  # fmt: skip
PERFORMANCE, WRITE_SPEEDS = 0x00, 0x03  # type
TOLERANCE_10_20 = 2


def speeds(drive: Drive, profile: Profile) -> tuple[int, int]:
    """Return the read and the write speed that are in force, in kB/s."""
    return min(drive.read_speed, profile.read_speed), min(drive.write_speed, profile.write_speed)


def get_performance(drive: Drive, command: Command) -> bytes:
    """GET PERFORMANCE: nominal performance (one speed from end to end, no exceptions), and the write speeds."""
    cdb = command.cdb
    data_type, start, most, kind = (
        cdb[1] & 0x1F,
        int.from_bytes(cdb[2:6], "big"),
        int.from_bytes(cdb[8:10], "big"),
        cdb[10],
    )
    if kind not in (PERFORMANCE, WRITE_SPEEDS):
        raise InvalidFieldInCdb("no such performance data", field=(10, 7))
    medium = drive.ready()
    last = min(medium.blocks - 1, LAST_LBA)
    read_speed, write_speed = speeds(drive, medium.profile)
    if kind == WRITE_SPEEDS:
        if data_type:
            raise InvalidFieldInCdb("DATA TYPE is reserved with write speeds", field=(1, 4))
        listed = (
            [WRITE_SPEED.pack(exact=1, end=last, read_speed=read_speed, write_speed=write_speed)] if write_speed else []
        )
        body = b"".join(listed[:most])
        return PERFORMANCE_HEADER.pack(length=4 + 16 * len(listed)) + body
    tolerance, writing, exceptions = data_type >> 3, data_type >> 2 & 1, data_type & 3
    if tolerance != TOLERANCE_10_20 or exceptions == 3:
        raise InvalidFieldInCdb("TOLERANCE must be 10b, EXCEPT not 11b", field=(1, 4 if exceptions < 3 else 1))
    medium.check(start, 1)
    speed = write_speed if writing else read_speed
    body = b""
    if exceptions == 0 and speed:
        body = NOMINAL.pack(start=start, start_speed=speed, end=last, end_speed=speed)
    # 1 and 2 ask for deviations from the nominal speed: there are none.
    header = PERFORMANCE_HEADER.pack(length=4 + len(body), write=writing, exceptions=exceptions != 0)
    return header + (body if most else b"")


BUFFER_CAPACITY = Layout(12, length=word(0), block=flag(3, 0), buffer_length=long(4), blank_length=long(8))


def read_buffer_capacity(drive: Drive, command: Command) -> bytes:
    """READ BUFFER CAPACITY: all of the buffer is always free, in bytes or in blocks."""
    drive.ready()
    if command.cdb[1] & 0x01:
        return BUFFER_CAPACITY.pack(length=10, block=1, blank_length=BUFFER_SIZE // BLOCK)
    return BUFFER_CAPACITY.pack(length=10, buffer_length=BUFFER_SIZE, blank_length=BUFFER_SIZE)


# -- MODE SENSE -------------------------------------------------------------------------------------------------------


def capabilities(drive: Drive) -> dict[str, int]:
    """Return the values of mode page 2Ah."""
    profile = drive.profile or DVD_RAM
    read_speed, write_speed = speeds(drive, profile)
    return {
        "dvd_ram_read": 1,
        "dvd_rom_read": 1,
        "cd_r_read": 1,  # these three are what the Multi-Read feature says: every kind of CD, packets too
        "cd_rw_read": 1,
        "method_2": 1,
        "dvd_ram_write": 1,
        "loading_mechanism": features.TRAY,
        "eject": 1,
        "lock_state": drive.device.prevented(),
        "lock": 1,
        "maximum_read_speed": min(profile.read_speed, FULL),
        "buffer_size": BUFFER_SIZE >> 10,
        "current_read_speed": min(read_speed, FULL),
        "maximum_write_speed": min(profile.write_speed, FULL),
        "current_write_speed": min(write_speed, FULL),
        "write_speed": min(write_speed, FULL),
        "write_speed_descriptors": 1,
        "descriptor_write_speed": min(profile.write_speed, FULL),
    }


def mode_sense_6(drive: Drive, command: Command) -> bytes:
    """MODE SENSE (6): SPC-4 6.13. MMC defines neither block descriptors nor a device-specific parameter."""
    pages = _mode_pages(drive, command.cdb)
    return modes.HEADER_6.pack(mode_data_length=min(3 + len(pages), 0xFF)) + pages


def mode_sense_10(drive: Drive, command: Command) -> bytes:
    """MODE SENSE (10): SPC-4 6.14."""
    pages = _mode_pages(drive, command.cdb)
    return modes.HEADER_10.pack(mode_data_length=6 + len(pages)) + pages


def _mode_pages(drive: Drive, cdb: bytes) -> bytes:
    if cdb[3] not in (0x00, 0xFF):
        raise InvalidFieldInCdb("there are no subpages", field=(3, 7))
    return drive.modes.sense(cdb[2] & 0x3F, cdb[2] >> 6, capabilities(drive))
