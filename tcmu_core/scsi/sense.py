"""Sense data: what CHECK CONDITION tells the initiator (SPC-4 4.5)."""

from __future__ import annotations

import struct
from enum import IntEnum

from tcmu_core.errors import CommandError

MAX_SENSE_LENGTH = 96  # also the room that the kernel's ring has
_FIXED = struct.Struct(">BxBIB4xBBx")  # 4.5.3, up to the field replaceable unit code
_SKSV = 0x80
_IN_CDB = 0x40
_BIT_VALID = 0x08


class SenseKey(IntEnum):
    """Sense keys (SPC-4 4.5.6)."""

    NO_SENSE = 0x0
    RECOVERED_ERROR = 0x1
    NOT_READY = 0x2
    MEDIUM_ERROR = 0x3
    HARDWARE_ERROR = 0x4
    ILLEGAL_REQUEST = 0x5
    UNIT_ATTENTION = 0x6
    DATA_PROTECT = 0x7
    BLANK_CHECK = 0x8
    VENDOR_SPECIFIC = 0x9
    COPY_ABORTED = 0xA
    ABORTED_COMMAND = 0xB
    VOLUME_OVERFLOW = 0xD
    MISCOMPARE = 0xE


def _key_specific(error: CommandError) -> bytes:
    """Return the three sense-key-specific bytes (SPC-4 4.5.2.4): a field pointer, a progress, or zeros."""
    if error.progress is not None:
        return bytes([_SKSV]) + error.progress.to_bytes(2, "big")
    if error.field is None:
        return bytes(3)
    byte, bit = error.field
    first = _SKSV | (_IN_CDB if error.in_cdb else 0)
    if bit is not None:
        first |= _BIT_VALID | bit
    return bytes([first]) + byte.to_bytes(2, "big")


def encode(error: CommandError, *, descriptor: bool = False) -> bytes:
    """Return the sense data of `error`: 18 bytes fixed format (4.5.3), or descriptor format (4.5.2).

    INFORMATION that does not fit into the 32 bits of fixed format is left out, as 4.5.3 has it.
    """
    specific = _key_specific(error)
    if descriptor:
        parts = b""
        if error.information is not None:
            parts += struct.pack(">BBBxQ", 0x00, 0x0A, 0x80, error.information)
        if specific[0]:
            parts += bytes([0x02, 0x06, 0, 0]) + specific + b"\0"
        return bytes([0x72, error.sense_key, error.asc, error.ascq, 0, 0, 0, len(parts)]) + parts
    information = error.information
    valid = information is not None and information < 1 << 32
    head = _FIXED.pack(
        0x70 | (0x80 if valid else 0),
        error.sense_key,
        information if valid and information is not None else 0,
        10,
        error.asc,
        error.ascq,
    )
    return head + specific


NO_SENSE_FIXED = bytes([0x70, 0, 0, 0, 0, 0, 0, 10]) + bytes(10)
NO_SENSE_DESCRIPTOR = bytes([0x72]) + bytes(7)
