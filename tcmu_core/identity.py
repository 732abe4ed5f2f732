"""Serial numbers: made of what stays with a disk, or of chance for one that nothing stays with."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
from pathlib import Path

DIGITS = 32  # hexadecimal ones, as many as rtslib's UUIDs have; the NAA designator takes the first 25


def serial_of(*identity: str) -> str:
    """Return the unit serial number of what `identity` tells from everything else on this host: the same each time."""
    named = "\0".join((_host(), *identity))
    return hashlib.sha256(named.encode(errors="surrogatepass")).hexdigest()[:DIGITS]


def _host() -> str:
    """Return what tells this host from others: many of them are called localhost (machine-id(5))."""
    with contextlib.suppress(OSError):
        return f"{os.uname().nodename}/{Path('/etc/machine-id').read_text().strip()}"
    return os.uname().nodename


def fresh_serial() -> str:
    """Return a serial number that nobody else has."""
    return secrets.token_hex(DIGITS // 2)
