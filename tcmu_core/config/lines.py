"""Where each key of a configuration file stands: configobj knows line numbers of syntax errors only."""

from __future__ import annotations

import re
from collections.abc import Sequence

Place = tuple[str, ...]  # the sections, then the key

_SECTION = re.compile(r"\s*(\[+)\s*((?:'[^']*')|(?:\"[^\"]*\")|[^'\"\]]*?)\s*(\]+)\s*(?:#.*)?")
_KEY = re.compile(r"\s*((?:'[^']*')|(?:\"[^\"]*\")|[^'\"=#\[]+?)\s*=(.*)")
_BARE = re.compile(r"(\s*[A-Za-z_]\w*)\s*(#.*)?")


def plain(lines: Sequence[str]) -> list[str]:
    """Return the lines with each bare `key` written as `key = true`, which the C runner's grammar means by it."""
    result = []
    quote = ""
    for line in lines:
        match = None if quote else _BARE.fullmatch(line)
        result.append(f"{match[1]} = true" if match else line)
        quote = _still_open(line, quote)
    return result


def places(lines: Sequence[str]) -> dict[Place, int]:
    """Return the line number (from 1) of every section and key."""
    found: dict[Place, int] = {}
    section: list[str] = []
    quote = ""
    for number, line in enumerate(lines, 1):
        if not quote:
            if match := _SECTION.fullmatch(line):
                section = [*section[: len(match[1]) - 1], match[2].strip("'\"")]
                found.setdefault(tuple(section), number)
            elif match := _KEY.match(line):
                found.setdefault((*section, match[1].strip("'\"")), number)
        quote = _still_open(line, quote)
    return found


def _still_open(line: str, quote: str) -> str:
    """Return the triple quote that is open after `line`, when `quote` was open before it."""
    if quote:
        return "" if quote in line else quote
    match = _KEY.match(line)
    value = match[2].strip() if match else ""
    opened = value[:3]
    return opened if opened in ("'''", '"""') and opened not in value[3:] else ""
