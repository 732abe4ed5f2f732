"""A small log on a disk: entries in order, and a first block that says how many there are.

    python ledger.py IMAGE      exit status 1 when the first block promises an entry that is not whole

`append` writes an entry, flushes, then counts it in the first block. Without the flush in between, which is what
`careful=False` leaves out, a power cut can leave the count without the entry: a bug of many a real log.
"""

from __future__ import annotations

import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

BLOCK = 512
ENTRY = 4 * BLOCK
HEAD = struct.Struct("<8sQ")
CHECK = struct.Struct("<I")
MAGIC = b"LEDGER01"


class Ledger:
    """The log, on functions that write and flush."""

    def __init__(self, write: Callable[[int, bytes], None], flush: Callable[[], None], *, careful: bool = True) -> None:
        self.write, self.flush, self.careful = write, flush, careful
        self.count = 0
        self._head()
        self.flush()

    def _head(self) -> None:
        self.write(0, HEAD.pack(MAGIC, self.count).ljust(BLOCK, b"\0"))

    def append(self, text: bytes) -> None:
        """Add an entry; it is there for good when this returns."""
        body = text.ljust(ENTRY - CHECK.size, b".")
        self.write(BLOCK + self.count * ENTRY, body + CHECK.pack(zlib.crc32(body)))
        if self.careful:
            self.flush()
        self.count += 1
        self._head()
        self.flush()


def check(image: Path) -> str:
    """Return what is wrong with the log in an image; nothing when it is sound."""
    data = image.read_bytes()
    magic, count = HEAD.unpack_from(data)
    if magic != MAGIC:
        return "there is no log" if any(data[:BLOCK]) else ""
    for number in range(count):
        at = BLOCK + number * ENTRY
        entry = data[at : at + ENTRY]
        if CHECK.unpack(entry[-CHECK.size :])[0] != zlib.crc32(entry[: -CHECK.size]):
            return f"entry {number} of {count} is not whole"
    return ""


if __name__ == "__main__":
    problem = check(Path(sys.argv[1]))
    print(problem)
    sys.exit(1 if problem else 0)
