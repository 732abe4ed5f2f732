"""The sense that only an optical drive gives (MMC-6 annex F), and the data of REQUEST SENSE."""

from __future__ import annotations

from tcmu_core import CommandError, IllegalRequest, MediumNotPresent
from tcmu_fbo.layout import Field, Layout, flag, long, word


class TrayClosed(MediumNotPresent):
    """There is no medium, and the tray is closed."""

    ascq = 0x01


class TrayOpen(MediumNotPresent):
    """There is no medium, and the tray is open."""

    ascq = 0x02


class CannotRead(IllegalRequest):
    """The command is for another kind of medium."""

    asc, ascq = 0x30, 0x02


class CannotWrite(IllegalRequest):
    """A disc of this kind can't be written."""

    asc, ascq = 0x30, 0x05


class IllegalMode(IllegalRequest):
    """The track has no sectors of this type."""

    asc, ascq = 0x64, 0x00


class InvalidFieldInCommandInformation(IllegalRequest):
    """Invalid field in command information unit: there is less data than the command wants (SPC-4 annex F)."""

    asc, ascq = 0x0E, 0x03


# Fixed format sense data (SPC-4 4.5.3).
FIXED = Layout(
    18,
    response_code=Field(0, 6, 7),
    sense_key=Field(2, 3, 4),
    information=long(3),
    additional_length=Field(7),
    asc=Field(12),
    ascq=Field(13),
    sksv=flag(15, 7),
    progress=word(16),
)
# Descriptor format sense data with one sense key specific descriptor (SPC-4 4.5.2, 4.5.2.4).
DESCRIPTOR = Layout(
    16,
    response_code=Field(0, 6, 7),
    sense_key=Field(1, 3, 4),
    asc=Field(2),
    ascq=Field(3),
    additional_length=Field(7),
    descriptor_type=Field(8),
    descriptor_length=Field(9),
    sksv=flag(12, 7),
    progress=word(13),
)


def data_of(error: CommandError, *, descriptor: bool) -> bytes:
    """Return what REQUEST SENSE answers while `error` is what others get, with its progress (SPC-4 4.5.2.4.4)."""
    values = {"sense_key": error.sense_key, "asc": error.asc, "ascq": error.ascq}
    progress = {"sksv": int(error.progress is not None), "progress": error.progress or 0}
    if descriptor and error.progress is None:
        return DESCRIPTOR.pack(response_code=0x72, **values)[:8]
    if descriptor:
        head = {"response_code": 0x72, "additional_length": 8, "descriptor_type": 2, "descriptor_length": 6}
        return DESCRIPTOR.pack(**head, **values, **progress)
    return FIXED.pack(response_code=0x70, additional_length=10, **values, **progress)
