"""Identity: the serial number of a unit, and the designators that are made of it (SPC-4 7.8.6)."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

NAA_PREFIX = "6001405"  # NAA 6, and LIO's IEEE company identifier, as the kernel and tcmu-runner have it
_DIGITS = 25  # hexadecimal ones of the serial number that an NAA designator has room for
# A UUID (RFC 9562 4), which is what rtslib gives, has the designator that LIO makes of it, and so has a hexadecimal
# number that fits and does not end as the zeros that fill it up do. Of anything else LIO takes the digits that happen
# to be hexadecimal, and the first ones alone: disk-a would be disk-A1, and ...01 be ...02. A digest tells them apart.
_LIKE_LIO = re.compile(
    r"[0-9a-f]{8}-[0-9a-f]{4}-[1-8][0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}|[0-9a-f]{15,23}[1-9a-f]"
)
CODE_SET_BINARY, CODE_SET_ASCII, CODE_SET_UTF8 = 1, 2, 3  # SPC-4 7.8.6.1
ASSOCIATION_UNIT, ASSOCIATION_PORT, ASSOCIATION_TARGET = 0x00, 0x10, 0x20


@dataclass(frozen=True, slots=True)
class Identity:
    """The unit serial number, and the NAA IEEE Registered Extended designator: 16 bytes (SPC-4 7.8.6.6.5)."""

    serial: str
    naa: bytes

    @classmethod
    def of(cls, serial: str) -> Identity:
        """Return the identity of a unit with this serial number."""
        digits = serial.replace("-", "")
        if not _LIKE_LIO.fullmatch(serial):
            digits = hashlib.sha256(serial.encode()).hexdigest()
        return cls(serial, bytes.fromhex(NAA_PREFIX + digits[:_DIGITS].ljust(_DIGITS, "0")))


def designator(code_set: int, kind: int, value: bytes) -> bytes:
    """Return one designation descriptor (SPC-4 7.8.6.1); `kind` is designator type and association.

    The PROTOCOL IDENTIFIER is iSCSI's where the association is a port or a target.
    """
    if kind & 0x30:
        return bytes([0x50 | code_set, 0x80 | kind, 0, len(value)]) + value
    return bytes([code_set, kind, 0, len(value)]) + value


def of_port(target: str, port: int, group: int | None) -> bytes:
    """Return the designators of a target port, its group, and the target device of this name (SPC-4 7.8.6.7 to 11)."""
    data = designator(CODE_SET_BINARY, 0x04 | ASSOCIATION_PORT, port.to_bytes(4, "big"))
    if group is not None:
        data += designator(CODE_SET_BINARY, 0x05 | ASSOCIATION_PORT, group.to_bytes(4, "big"))
    data += designator(CODE_SET_UTF8, 0x08 | ASSOCIATION_PORT, name_string(f"{target},t,0x{port:04x}"))
    return data + designator(CODE_SET_UTF8, 0x08 | ASSOCIATION_TARGET, name_string(target))


def name_string(text: str) -> bytes:
    """Return a SCSI name string: UTF-8, null-terminated, padded to four bytes (SPC-4 7.8.6.11)."""
    value = text.encode() + b"\0"
    return value + bytes(-len(value) % 4)
