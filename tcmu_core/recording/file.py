"""Writing and reading recordings: append-only, so what was written before a crash can be read after it."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import threading
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import crc32c

from tcmu_core import files
from tcmu_core.errors import ConfigError
from tcmu_core.recording.layout import CHECKSUM, DIGEST, FORMAT, HEAD, MAGIC, RECORD, Flag, Form, Kind

MAX_HEADER = 1 << 20
MAX_DATA = 256 << 20  # bytes of one read or write; a command has 16 MiB at most
MAX_SIZE = (1 << 63) - 1
MAX_BLOCK = 65536
_KINDS, _FLAGS, _FORMS = frozenset(Kind), range(2 * max(Flag)), frozenset(Form)
_PIECE = 1 << 20  # bytes that are inflated at a time to see how many there are
_AGAIN = "take another copy of it, or record again"


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an operation ended: status (SAM-5 5.3.1), and sense key, ASC, ASCQ of a CHECK CONDITION."""

    status: int = 0
    sense: tuple[int, int, int] = (0, 0, 0)

    def __str__(self) -> str:
        if self.status == 2:
            key, asc, ascq = self.sense
            return f"CHECK CONDITION {key:X}/{asc:02X}/{ascq:02X}"
        return {0: "GOOD", 8: "BUSY", 0x18: "RESERVATION CONFLICT", 0x28: "TASK SET FULL"}.get(
            self.status, f"status {self.status:02X}h"
        )


GOOD = Outcome()


@dataclass(frozen=True, slots=True)
class Record:
    """One operation. Times are nanoseconds since the recording began, offset and length bytes."""

    kind: Kind
    start: int
    took: int
    offset: int = 0
    length: int = 0
    outcome: Outcome = GOOD
    flags: Flag = Flag.NONE
    form: Form = Form.NONE
    stored: bytes = b""

    @property
    def end(self) -> int:
        """Return when it ended."""
        return self.start + self.took

    def data(self) -> bytes | None:
        """Return the data, None if it was not kept."""
        match self.form:
            case Form.PLAIN:
                return self.stored
            case Form.DEFLATED:
                return zlib.decompressobj().decompress(self.stored, self.length + 1)
            case Form.ZEROS:
                return bytes(self.length)
        return None

    def same(self, data: bytes) -> bool | None:
        """Say whether `data` is what was recorded; None if that is not known."""
        if self.form is Form.SHA256:
            return digest(data) == self.stored
        kept = self.data()
        return None if kept is None else kept == data


def digest(data: bytes | memoryview) -> bytes:
    """Return what is kept of data in the form `SHA256`."""
    return hashlib.sha256(data).digest()[:DIGEST]


def pack(data: bytes, *, hashed: bool) -> tuple[Form, bytes]:
    """Return the form and the bytes that are stored of data."""
    if hashed:
        return Form.SHA256, digest(data)
    if not data.strip(b"\0"):
        return Form.ZEROS, b""
    deflated = zlib.compress(data, 1)
    return (Form.DEFLATED, deflated) if len(deflated) < len(data) else (Form.PLAIN, data)


class Writer:
    """Appends records to a file; from any thread. Each is one system call, so a killed process loses none."""

    def __init__(self, path: Path, about: Mapping[str, Any]) -> None:
        """Begin a new file; raises `OSError`, `FileExistsError` if there is one that holds something, or is no file."""
        # O_NONBLOCK: a FIFO must not keep us waiting for who reads it. It means nothing to files.
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK, 0o600)
        self._lock = threading.Lock()
        self.count = 0
        info = os.fstat(self._fd)
        if info.st_size or not stat.S_ISREG(info.st_mode):
            os.close(self._fd)
            raise FileExistsError(f"{path}: there is something in it already, or it is no regular file")
        text = json.dumps(about, separators=(",", ":")).encode()
        os.write(self._fd, HEAD.pack(MAGIC, len(text), crc32c.crc32c(text)) + text)

    def add(self, record: Record) -> None:
        """Append one; after `close` it is forgotten."""
        key, asc, ascq = record.outcome.sense
        head = RECORD.pack(record.kind, record.flags, record.outcome.status, key, asc, ascq, record.form,
                           record.start, record.took, record.offset, record.length, len(record.stored))  # fmt: skip
        checksum = CHECKSUM.pack(crc32c.crc32c(record.stored, crc32c.crc32c(head)))
        with self._lock:
            if self._fd < 0:
                return
            whole = memoryview(head + record.stored + checksum)
            while whole:
                whole = whole[os.write(self._fd, whole) :]
            self.count += 1

    def close(self) -> None:
        """End the recording."""
        with self._lock:
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1


class Recording:
    """A file that a `Writer` made. `about` is its header; iterating gives the records in the order of their ends.

    A record that is not whole, or whose checksum is wrong, is where a process was killed, and ends it. What has a right
    checksum and makes no sense was not written by a `Writer` of this version: that is a `ConfigError` that says where.
    """

    def __init__(self, path: Path) -> None:
        """Read the header; raises `OSError`, or `ConfigError` if the file is no recording."""
        self.path = path
        self.cut_short = 0  # bytes at the end, once that was reached, that are no whole record
        with files.opened(path) as file:
            head = file.read(HEAD.size)
            if len(head) < HEAD.size or head[: len(MAGIC)] != MAGIC:
                raise ConfigError(f"{path}: byte 0: this is no recording: `tcmu record` and the filter record make one")
            _, length, checksum = HEAD.unpack(head)
            text = file.read(min(length, MAX_HEADER))
        if len(text) != length or crc32c.crc32c(text) != checksum:
            raise self._broken(HEAD.size, "the header of the recording is broken")
        self._first = HEAD.size + length
        self.about = self._parsed(text)
        self.size: int = self._number("size", 1, MAX_SIZE)
        self.block_size: int = self._number("block_size", 512, MAX_BLOCK)
        if self.block_size & (self.block_size - 1):
            raise self._broken(HEAD.size, f"block_size in the header is {self.block_size}, no power of two")

    def _parsed(self, text: bytes) -> dict[str, Any]:
        try:
            about = json.loads(text)
        except (ValueError, RecursionError):  # bytes that are no UTF-8, no JSON, lists in lists in lists
            raise self._broken(HEAD.size, "the header is no JSON") from None
        if not isinstance(about, dict):
            raise self._broken(HEAD.size, "the header is no JSON object")
        if about.get("format") != FORMAT:
            said = repr(about.get("format"))[:40]
            raise ConfigError(
                f"{self.path}: byte {HEAD.size}: the recording's format is {said}, this version reads {FORMAT}: "
                "use the version of tcmu that has written it"
            )
        return about

    def _number(self, name: str, least: int, most: int) -> int:
        value = self.about.get(name)
        if type(value) is not int or not least <= value <= most:
            said = repr(value)[:40]
            raise self._broken(HEAD.size, f"{name} in the header is {said}, no number from {least} to {most}")
        return value

    def _broken(self, at: int, what: str) -> ConfigError:
        return ConfigError(f"{self.path}: byte {at}: {what}: {_AGAIN}")

    def __iter__(self) -> Iterator[Record]:
        with files.opened(self.path) as file:
            size = os.fstat(file.fileno()).st_size
            at = file.seek(self._first)
            while (parts := _read(file, size - at)) is not None:
                yield self._record(at, *parts)
                at = file.tell()
            self.cut_short = max(0, size - at)

    def _record(self, at: int, head: bytes, stored: bytes) -> Record:
        kind, flags, status, key, asc, ascq, form, start, took, offset, length, _ = RECORD.unpack(head)
        for name, value, known in (("kind", kind, _KINDS), ("flags", flags, _FLAGS), ("form", form, _FORMS)):
            if value not in known:
                raise ConfigError(
                    f"{self.path}: byte {at}: a record of {name} {value}, which this version does not know: "
                    "use the version of tcmu that has written it, or record again"
                )
        record = Record(Kind(kind), start, took, offset, length, Outcome(status, (key, asc, ascq)), Flag(flags),
                        Form(form), stored)  # fmt: skip
        if problem := self._problem(record):
            what = f"a {record.kind.name.lower()} of {length} bytes at {offset}"
            raise self._broken(at, f"{what}, {problem}")
        return record

    def _problem(self, record: Record) -> str:
        """Return what is wrong with a record, nothing if it is sound: before a disk is overwritten by half of them."""
        if record.offset + record.length > self.size:
            return f"which lies beyond the disk of {self.size} bytes"
        if record.offset % self.block_size or record.length % self.block_size:
            return f"which are not whole blocks of {self.block_size}"
        stored = len(record.stored)
        if record.kind not in (Kind.READ, Kind.WRITE):
            return "which has data that it can't have" if stored or record.form is not Form.NONE else ""
        if record.length > MAX_DATA:
            return f"which is more than {MAX_DATA}"
        expected = {Form.PLAIN: record.length, Form.SHA256: DIGEST, Form.DEFLATED: stored}.get(record.form, 0)
        if stored != expected:
            return f"with {stored} bytes of data stored instead of {expected}"
        if record.form is Form.DEFLATED and not _inflates(record.stored, record.length):
            return "whose deflated data is broken, or of another length"
        return ""


def _read(file: BinaryIO, left: int) -> tuple[bytes, bytes] | None:
    """Return the next record's head and data; None at the end, or where the file is cut short or broken."""
    head = file.read(RECORD.size)
    if len(head) < RECORD.size:
        return None
    count = RECORD.unpack(head)[-1]
    if count > min(MAX_DATA, left):
        return None
    stored = file.read(count)
    checksum = file.read(CHECKSUM.size)
    if len(checksum) < CHECKSUM.size or CHECKSUM.unpack(checksum)[0] != crc32c.crc32c(stored, crc32c.crc32c(head)):
        return None
    return head, stored


def _inflates(stored: bytes, length: int) -> bool:
    """Say whether it is one zlib stream of so many bytes, without having them all at once."""
    machine, left = zlib.decompressobj(), length
    try:
        while not machine.eof:
            piece = machine.decompress(stored, _PIECE)
            left -= len(piece)
            stored = machine.unconsumed_tail
            if left < 0 or not (piece or machine.eof):
                return False
    except zlib.error:
        return False
    return not left and not machine.unused_data
