"""READ DISC STRUCTURE: what the lead-in of a DVD or BD holds (MMC-6, the command of that name)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tcmu_core import Command, InvalidFieldInCdb
from tcmu_fbo.layout import Field, Layout, flag, long, triple, word
from tcmu_fbo.profiles import Code
from tcmu_fbo.sense import CannotRead

if TYPE_CHECKING:
    from tcmu_fbo.drive import Drive
    from tcmu_fbo.medium import Medium

HEADER = Layout(4, length=word(0))
DVD_MEDIA, BD_MEDIA = 0, 1  # media type, byte 1 of the CDB
MEDIA_TYPE = {Code.DVD_ROM: DVD_MEDIA, Code.DVD_RAM: DVD_MEDIA, Code.BD_ROM: BD_MEDIA}

PHYSICAL = Layout(
    2048,
    book_type=Field(0, 7, 4), part_version=Field(0, 3, 4), disc_size=Field(1, 7, 4), maximum_rate=Field(1, 3, 4),
    layers=Field(2, 6, 2), track_path=flag(2, 4), layer_type=Field(2, 3, 4),
    linear_density=Field(3, 7, 4), track_density=Field(3, 3, 4),
    first_sector=triple(5), last_sector=triple(9), last_sector_layer_0=triple(13), bca=flag(16, 7),
)  # fmt: skip
COPYRIGHT = Layout(4, protection=Field(0), regions=Field(1))
MANUFACTURER = Layout(2048)
MANAGEMENT = Layout(4, cpm=flag(0, 7), cgms=Field(0, 3, 2))
RAM_STATUS = Layout(
    4, cartridge=flag(0, 7), out=flag(0, 6), mswi=flag(0, 3), cwp=flag(0, 2), pwp=flag(0, 1), disc_type=Field(1)
)
SPARE_AREA = Layout(12, unused_primary=long(0), unused_supplementary=long(4), allocated_supplementary=long(8))
# Disc Information of a BD: one unit of 112 bytes, in the 4096 bytes that the PIC or the ADIP holds.
DISC_INFORMATION = Layout(
    4096,
    identifier=word(0), format=Field(2), units_in_block=Field(3, 7, 5), layer=Field(3, 2, 3), sequence=Field(5),
    continuation=flag(6, 7), bytes_in_use=Field(6, 6, 7), disc_type=triple(8),
    disc_size=Field(11, 7, 2), disc_class=Field(11, 5, 2), disc_version=Field(11, 3, 4),
    layers=Field(12, 7, 4), layer_type=Field(12, 3, 4),
)  # fmt: skip
WRITE_PROTECTION = Layout(4, mswi=flag(0, 3), cwp=flag(0, 2), pwp=flag(0, 1), swpp=flag(0, 0))
LISTED = Layout(4, format=Field(0), sds=flag(1, 7), rds=flag(1, 6), length=word(2))

BOOK = {Code.DVD_ROM: 0, Code.DVD_RAM: 1}
PART_VERSION = {Code.DVD_ROM: 1, Code.DVD_RAM: 6}
LAYER_TYPE = {Code.DVD_ROM: 1, Code.DVD_RAM: 4}  # embossed, rewritable
FIRST_SECTOR = {Code.DVD_ROM: 0x030000, Code.DVD_RAM: 0x031000}
DENSITY = {Code.DVD_ROM: (0, 0), Code.DVD_RAM: (4, 2)}  # linear: 0.267, 0.280 to 0.291 micrometres; track: 0.74, 0.615
RATE_10_08 = 2  # Mbit/s
OPPOSITE = 1  # track path of two layers
SECTORS = 0xFFFFFF  # physical sector numbers have 24 bits
ANY_REGION = 0x00  # a bit that is set keeps a region out
ROM_DI, DI_BYTES_IN_USE = int.from_bytes(b"BDO", "big"), 112


def _layers(medium: Medium) -> int:
    """Return how many layers the disc has; a writable one has one, whatever its size."""
    return 1 if medium.profile.writable else -(-medium.blocks // medium.profile.layer)


def _physical(drive: Drive, medium: Medium) -> bytes:
    code, profile = medium.profile.code, medium.profile
    first = FIRST_SECTOR[code]
    last, middle, path = first + medium.blocks - 1, 0, 0
    two = _layers(medium) > 1
    if two:
        # Opposite track path: layer 1 begins at the inverted number of layer 0's end, which is that of an ECC block.
        half = -(-medium.blocks // (2 * profile.blocking)) * profile.blocking
        middle = first + half - 1
        last, path = (middle ^ SECTORS) + medium.blocks - half - 1, OPPOSITE
    linear, track = DENSITY[code]
    return PHYSICAL.pack(
        book_type=BOOK[code],
        part_version=PART_VERSION[code],
        maximum_rate=RATE_10_08,
        layers=int(two),
        track_path=path,
        layer_type=LAYER_TYPE[code],
        linear_density=linear,
        track_density=track,
        first_sector=first,
        last_sector=min(last, SECTORS),
        last_sector_layer_0=min(middle, SECTORS),
    )


def _bd_information(drive: Drive, medium: Medium) -> bytes:
    return DISC_INFORMATION.pack(
        identifier=0x4449,  # "DI"
        format=1,
        units_in_block=1,
        bytes_in_use=DI_BYTES_IN_USE,
        disc_type=ROM_DI,
        disc_version=1,
        layers=min(_layers(medium), 15),
        layer_type=1,
    )


def _protection(drive: Drive, medium: Medium) -> bytes:
    return WRITE_PROTECTION.pack(cwp=medium.profile.writable and medium.read_only)


@dataclass(frozen=True, slots=True)
class Structure:
    """A structure that can be read: of which profiles, how long it is, and what it holds."""

    format: int
    profiles: frozenset[Code]
    layout: Layout
    make: Callable[[Drive, Medium], bytes]


_DVD = frozenset({Code.DVD_ROM, Code.DVD_RAM})
_RAM = frozenset({Code.DVD_RAM})
_BD = frozenset({Code.BD_ROM})
LIST_FORMAT = 0xFF

STRUCTURES = (
    Structure(0x00, _DVD, PHYSICAL, _physical),
    Structure(0x01, _DVD, COPYRIGHT, lambda drive, medium: COPYRIGHT.pack(regions=ANY_REGION)),
    Structure(0x04, _DVD, MANUFACTURER, lambda drive, medium: MANUFACTURER.pack()),
    Structure(0x05, _DVD, MANAGEMENT, lambda drive, medium: MANAGEMENT.pack()),
    Structure(0x09, _RAM, RAM_STATUS, lambda drive, medium: RAM_STATUS.pack(cwp=medium.read_only)),
    Structure(0x0A, _RAM, SPARE_AREA, lambda drive, medium: SPARE_AREA.pack()),
    Structure(0x00, _BD, DISC_INFORMATION, _bd_information),
    Structure(0xC0, _DVD | _BD, WRITE_PROTECTION, _protection),
)


def read_disc_structure(drive: Drive, command: Command) -> bytes:
    """READ DISC STRUCTURE: one structure, or the list of those that there are (format FFh)."""
    medium = drive.ready()
    cdb = command.cdb
    code, media_type, layer, form = medium.profile.code, cdb[1] & 0x0F, cdb[6], cdb[7]
    known = MEDIA_TYPE.get(code)
    if known is None:
        raise CannotRead("a CD has no disc structures")
    if form == LIST_FORMAT:
        listed = b"".join(
            LISTED.pack(format=each.format, rds=1, length=HEADER.size + each.layout.size)
            for each in STRUCTURES
            if code in each.profiles
        )
        return HEADER.pack(length=2 + len(listed)) + listed
    # Formats from 80h on do not depend on the media type.
    if form < 0x80 and media_type != known:
        raise CannotRead("the disc is of another media type")
    if layer >= _layers(medium):
        raise InvalidFieldInCdb("the disc has no such layer", field=(6, 7))
    for each in STRUCTURES:
        if each.format == form and code in each.profiles:
            return HEADER.pack(length=2 + each.layout.size) + each.make(drive, medium)
    raise InvalidFieldInCdb("the disc has no such structure", field=(7, 7))
