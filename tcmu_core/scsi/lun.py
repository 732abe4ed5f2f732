"""Logical unit numbers on the wire, and the list of them (SAM-5 4.7, SPC-4 6.33)."""

from __future__ import annotations

from collections.abc import Iterable

from tcmu_core.errors import InvalidFieldInCdb

_FLAT_SPACE = 0x4000  # SAM-5 4.7.4


def parse_lun(data: bytes | memoryview) -> int | None:
    """Return the number in an eight-byte LUN with peripheral or flat space addressing; None for any other."""
    first = int.from_bytes(data[:2], "big")
    if any(data[2:8]):
        return None
    method = first >> 14
    if method == 0:
        return first if first < 256 else None
    return first & 0x3FFF if method == 1 else None


def format_lun(lun: int) -> bytes:
    """Return the eight bytes of a LUN: peripheral device addressing below 256, flat space above."""
    return (lun if lun < 256 else _FLAT_SPACE | lun).to_bytes(2, "big") + bytes(6)


def report_luns_data(cdb: bytes, luns: Iterable[int]) -> bytes:
    """Return the parameter data of REPORT LUNS (SPC-4 6.33.2); there are no well known logical units."""
    room = int.from_bytes(cdb[6:10], "big")
    if cdb[2] > 0x02 and cdb[2] not in (0x10, 0x11, 0x12):
        raise InvalidFieldInCdb("SELECT REPORT", field=(2, 7))
    if room < 16:
        raise InvalidFieldInCdb("ALLOCATION LENGTH must be at least 16", field=(6, 7))
    listed = b"".join(format_lun(lun) for lun in luns) if cdb[2] in (0x00, 0x02) else b""
    return (len(listed).to_bytes(4, "big") + bytes(4) + listed)[:room]
