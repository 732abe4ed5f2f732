"""CHAP (RFC 1994) as iSCSI uses it (RFC 7143 12.1.3): algorithms, responses, and binary values in text."""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Callable
from enum import IntEnum

from tcmu_core.iscsi.constants import LoginStatus
from tcmu_core.iscsi.errors import LoginError

MAX_BINARY = 1024  # bytes of a challenge or response (RFC 7143 12.1.3)


class Algorithm(IntEnum):
    """CHAP algorithms (IANA, PPP Authentication Algorithms; RFC 7143 12.1.3 names 5 alone)."""

    MD5 = 5
    SHA1 = 6
    SHA256 = 7
    SHA3_256 = 8


HASHES: dict[Algorithm, Callable[[bytes], hashlib._Hash]] = {
    Algorithm.MD5: lambda data: hashlib.md5(data, usedforsecurity=False),
    Algorithm.SHA1: lambda data: hashlib.sha1(data, usedforsecurity=False),
    Algorithm.SHA256: hashlib.sha256,
    Algorithm.SHA3_256: hashlib.sha3_256,
}


def response(algorithm: Algorithm, identifier: int, secret: bytes, challenge: bytes) -> bytes:
    """Return the response value to `challenge` (RFC 1994 4.1)."""
    return HASHES[algorithm](bytes([identifier]) + secret + challenge).digest()


def encode_binary(value: bytes) -> str:
    """Return `value` as a hex constant (RFC 7143 6.1)."""
    return "0x" + value.hex()


def decode_binary(text: str) -> bytes:
    """Return the bytes of a hex (0x…) or base64 (0b…) constant.

    Raises:
        LoginError: it is neither, or too long.
    """
    try:
        if text[:2] in {"0x", "0X"}:
            digits = text[2:]
            value = bytes.fromhex("0" * (len(digits) & 1) + digits)
        elif text[:2] in {"0b", "0B"}:
            value = base64.b64decode(text[2:], validate=True)
        else:
            raise ValueError(text)
    except (ValueError, binascii.Error):
        raise LoginError(LoginStatus.INITIATOR_ERROR, "CHAP: not a binary constant") from None
    if not 0 < len(value) <= MAX_BINARY:
        raise LoginError(LoginStatus.INITIATOR_ERROR, "CHAP: a binary constant has 1 to 1024 bytes")
    return value
