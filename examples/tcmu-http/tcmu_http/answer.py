"""What an answer to a range request says, sans I/O (RFC 9110 14 and 15)."""

from __future__ import annotations

import errno
import re
from dataclasses import dataclass
from email.message import Message
from email.utils import parsedate_to_datetime

from tcmu_core import ReadError

OK, PARTIAL, NOT_SATISFIABLE = 200, 206, 416
REDIRECTIONS = frozenset({301, 302, 303, 307, 308})
PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})  # what may be otherwise in a moment
GONE = frozenset({404, 410})
_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)", re.ASCII)  # RFC 9110 14.4
_LAST = 18  # digits of a number of bytes that can be meant


class Unusable(OSError):
    """The server does not do what a disk needs of it."""

    def __init__(self, message: str) -> None:
        super().__init__(errno.EPROTO, message)


class Refused(OSError):
    """The server says no: an HTTP status of 400 and more."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(errno.ENOENT if status in GONE else errno.EIO, f"the server says {status} {reason}")


class Changed(ReadError):
    """The file is another one than when the disk was opened."""


@dataclass(frozen=True, slots=True)
class Version:
    """What tells a file from what it was before: its size in bytes, and the validators (RFC 9110 8.8)."""

    size: int
    etag: str = ""
    modified: str = ""
    date: str = ""  # when the server said so

    @property
    def condition(self) -> str:
        """Return what If-Range takes, empty where there is no strong validator (RFC 9110 13.1.5)."""
        if self.etag:
            return "" if self.etag.startswith("W/") else self.etag
        try:
            age = parsedate_to_datetime(self.date) - parsedate_to_datetime(self.modified)
        except (ValueError, TypeError):
            return ""
        return self.modified if age.total_seconds() >= 1 else ""  # RFC 9110 8.8.2.2

    @property
    def known(self) -> bool:
        """Whether a change can be noticed that leaves the size as it is."""
        return bool(self.etag or self.modified)

    def difference(self, other: Version) -> str:
        """Return what `other` has changed, empty where it is the same file."""
        for name in ("size", "etag", "modified"):
            before, now = getattr(self, name), getattr(other, name)
            if before != now:
                return f"its {name} was {before or 'not told'}, and is {now or 'not told'}"
        return ""


def version_of(headers: Message, size: int) -> Version:
    """Return the version that the headers of an answer tell."""
    return Version(size, headers.get("ETag", ""), headers.get("Last-Modified", ""), headers.get("Date", ""))


def understand(status: int, reason: str, headers: Message, wanted: tuple[int, int], before: Version | None) -> Version:
    """Return the version that a part of `wanted` (offset, length; bytes) is of, when it is just what was asked for.

    `before` is what the file was when the disk was opened, None for the first answer.

    Raises:
        Changed: it is another file now.
        Unusable: the server does no ranges, or sends something else than was asked for.
        Refused: an error status.
    """
    offset, length = wanted
    if status == NOT_SATISFIABLE:
        if before is None:
            raise Unusable("the file is empty")
        raise Changed("it has become shorter")
    if status == OK:
        if before is not None and (what := before.difference(version_of(headers, _length(headers)))):
            raise Changed(what)
        raise Unusable("the server sends all of the file when it is asked for a range of it: it does no ranges")
    if status != PARTIAL:
        raise Refused(status, reason)
    if headers.get("Content-Encoding", "identity") != "identity":
        raise Unusable(f"the server sends it as {headers['Content-Encoding']}, which has no ranges of the file")
    match = _RANGE.fullmatch(headers.get("Content-Range", ""))
    if match is None or max(map(len, match.groups())) > _LAST:
        raise Unusable(f"the server does not say which range of what size it sends: {headers.get('Content-Range')}")
    first, last, size = map(int, match.groups())
    now = version_of(headers, size)
    if before is not None and (what := before.difference(now)):
        raise Changed(what)
    if (first, last) != (offset, offset + length - 1) or last >= size:
        raise Unusable(f"the server sends the bytes {first} to {last}, not {offset} to {offset + length - 1}")
    return now


def patience(headers: Message) -> float:
    """Return the seconds that the server wants to be left alone (RFC 9110 10.2.3); a date is taken for none."""
    text = headers.get("Retry-After", "")
    return float(text) if text.isascii() and text.isdigit() and len(text) <= _LAST else 0.0


def _length(headers: Message) -> int:
    text = headers.get("Content-Length", "")
    return int(text) if text.isascii() and text.isdigit() and len(text) <= _LAST else -1
