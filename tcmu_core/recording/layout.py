"""The layout of a recording; docs/record-format.md is its description. All numbers are little-endian."""

from __future__ import annotations

import struct
from enum import IntEnum, IntFlag

MAGIC = b"TCMUREC1"
FORMAT = 1  # what the header says in `format`
HEAD = struct.Struct("<8sII")  # magic, length of the JSON text that follows, CRC32C of that text
# kind, flags, status, sense key, ASC, ASCQ, form of the data, reserved, start, took, offset, length, stored bytes
RECORD = struct.Struct("<BBBBBBBxQQQQI")
CHECKSUM = struct.Struct("<I")  # CRC32C of record and data
DIGEST = 16  # bytes of a SHA-256 that are kept


class Kind(IntEnum):
    """What was asked of the disk."""

    READ = 1
    WRITE = 2
    FLUSH = 3
    DISCARD = 4
    WRITE_ZEROES = 5


class Flag(IntFlag):
    """What else is known of it."""

    NONE = 0
    FUA = 1  # the write's command had its FUA bit set
    IMPLIED = 2  # the flush is the end of such a write, no command of its own


class Form(IntEnum):
    """How its data is kept."""

    NONE = 0
    PLAIN = 1
    DEFLATED = 2
    SHA256 = 3  # the first 16 bytes
    ZEROS = 4  # all of it is zeros
