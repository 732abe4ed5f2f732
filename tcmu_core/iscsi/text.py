"""key=value text of Login and Text PDUs (RFC 7143 6.1)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from tcmu_core.iscsi.errors import TextError
from tcmu_core.iscsi.pdu import Buffer

# A standard label, or an extension's: X-, Y- and Z- with a reversed domain name, X#, Y# and Z# with a registered name
KEY = re.compile(r"(?=.{1,63}\Z)(?:[XYZ]#)?[A-Za-z0-9.\-+@_]+")
MAX_VALUE = 8192  # bytes; a binary value may have 1024 bytes, a list a few hundred
MAX_PAIRS = 128


def parse_text(data: Buffer) -> dict[str, str]:
    """Return the pairs of `data`, in order.

    Raises:
        TextError: it is no text of key=value pairs, a key comes twice, or there are more than anybody needs.
    """
    try:
        text = str(data, "utf-8")
    except UnicodeDecodeError:
        raise TextError("text is not UTF-8") from None
    pairs: dict[str, str] = {}
    for part in text.split("\0"):
        if not part:
            continue
        key, equals, value = part.partition("=")
        if not equals or not KEY.fullmatch(key):
            raise TextError(f"no key=value pair: {part[:80]!r}")
        if key in pairs:
            raise TextError(f"{key} comes twice")
        if len(value) > MAX_VALUE:
            raise TextError(f"the value of {key} is longer than {MAX_VALUE} bytes")
        if len(pairs) >= MAX_PAIRS:
            raise TextError(f"more than {MAX_PAIRS} keys")
        pairs[key] = value
    return pairs


def format_text(pairs: Mapping[str, str] | Iterable[tuple[str, str]]) -> bytes:
    """Return `pairs` as they stand in a data segment; an iterable may hold a key more than once."""
    items = pairs.items() if isinstance(pairs, Mapping) else pairs
    return b"".join(f"{key}={value}\0".encode() for key, value in items)
