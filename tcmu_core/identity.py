"""Serial numbers: made of what stays with a disk, or of chance for one that nothing stays with."""

from __future__ import annotations

import hashlib
import secrets

DIGITS = 32  # hexadecimal ones, as many as rtslib's UUIDs have; the NAA designator takes the first 25


def serial_of(*identity: str) -> str:
    """Return the unit serial number of what `identity` tells from everything else: the same each time."""
    return hashlib.sha256("\0".join(identity).encode()).hexdigest()[:DIGITS]


def fresh_serial() -> str:
    """Return a serial number that nobody else has."""
    return secrets.token_hex(DIGITS // 2)
