"""The key, from a file that nobody else can read."""

from __future__ import annotations

import os
import stat

from tcmu_core import ConfigError

LENGTHS = (32, 64)  # bytes: two keys of AES-128, or two of AES-256


def read_key(path: str) -> bytes:
    """Return what is in the file; no message ever holds any of it.

    Raises:
        ConfigError: it can't be read, is no plain file, is another's, may be read by others, or has a wrong
            length or equal halves.
    """
    try:
        # Not to wait for a pipe's writer; and what is checked is what is read, whatever is at the path by then.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise ConfigError(f"key={path}: {error.strerror}") from None
    with open(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise ConfigError(f"key={path}: it is no file")
        if found.st_uid not in (0, os.geteuid()):
            raise ConfigError(f"key={path}: it belongs to somebody else")
        if found.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise ConfigError(f"key={path}: others may read or write it: chmod 600 {path}")
        key = file.read(max(LENGTHS) + 1)
    if len(key) not in LENGTHS:
        raise ConfigError(f"key={path}: it must have {' or '.join(map(str, LENGTHS))} bytes: head -c 64 /dev/urandom")
    half = len(key) // 2
    if key[:half] == key[half:]:  # FIPS 140-2 IG A.9
        raise ConfigError(f"key={path}: both halves are the same, which makes XTS weak")
    return key
