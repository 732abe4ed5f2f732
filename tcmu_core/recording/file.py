"""Writing and reading recordings: append-only, so what was written before a crash can be read after it."""

from __future__ import annotations

import hashlib
import json
import os
import threading
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import crc32c

from tcmu_core.errors import ConfigError
from tcmu_core.recording.layout import CHECKSUM, DIGEST, HEAD, MAGIC, RECORD, Flag, Form, Kind

MAX_HEADER = 1 << 20
MAX_DATA = 1 << 30


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
                return zlib.decompress(self.stored)
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
        """Begin a new file; raises `OSError`, `FileExistsError` if there is one that holds something."""
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._lock = threading.Lock()
        self.count = 0
        if os.fstat(self._fd).st_size:
            os.close(self._fd)
            raise FileExistsError(f"{path}: there is something in it already")
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
    """A file that a `Writer` made. `about` is its header; iterating gives the records in the order of their ends."""

    def __init__(self, path: Path) -> None:
        """Read the header; raises `OSError`, or `ConfigError` if the file is no recording."""
        self.path = path
        self.cut_short = 0  # bytes at the end, once that was reached, that are no whole record
        with path.open("rb") as file:
            head = file.read(HEAD.size)
            if len(head) < HEAD.size or head[: len(MAGIC)] != MAGIC:
                raise ConfigError(f"{path}: this is no recording")
            _, length, checksum = HEAD.unpack(head)
            text = file.read(min(length, MAX_HEADER))
        if len(text) != length or crc32c.crc32c(text) != checksum:
            raise ConfigError(f"{path}: the header of the recording is broken")
        self.about: dict[str, Any] = json.loads(text)
        self._first = HEAD.size + length

    def __iter__(self) -> Iterator[Record]:
        with self.path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            at = file.seek(self._first)
            while True:
                record = _read(file.read, size - at)
                if record is None:
                    self.cut_short = size - at
                    return
                at = file.tell()
                yield record


def _read(read: Any, left: int) -> Record | None:
    """Return the next record; None at the end, or where the file is cut short or broken."""
    head = read(RECORD.size)
    if len(head) < RECORD.size:
        return None
    kind, flags, status, key, asc, ascq, form, start, took, offset, length, count = RECORD.unpack(head)
    if count > min(MAX_DATA, left):
        return None
    stored = read(count)
    checksum = read(CHECKSUM.size)
    if len(checksum) < CHECKSUM.size or CHECKSUM.unpack(checksum)[0] != crc32c.crc32c(stored, crc32c.crc32c(head)):
        return None
    return Record(Kind(kind), start, took, offset, length, Outcome(status, (key, asc, ascq)), Flag(flags), Form(form),
                  stored)  # fmt: skip
