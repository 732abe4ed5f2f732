"""Metadata tables in memory: big-endian on disk, native arrays here, bounded, and written back in dirty slices."""

from __future__ import annotations

import sys
from array import array

from tcmu_qcow import layout as q
from tcmu_qcow.files import HostFile

SLICE = 4096  # the least that is written back; a smaller cluster is written whole
TYPECODES = {1: "B", 2: "B", 4: "B", 8: "B", 16: "H", 32: "I", 64: "Q"}  # of arrays, by width in bits
_SWAP = sys.byteorder == "little"


def decode(raw: bytes, bits: int) -> array[int]:
    """The entries of a table of `bits` wide numbers."""
    entries = array(TYPECODES[bits])
    if bits >= 8:
        entries.frombytes(raw)
        if _SWAP and bits > 8:
            entries.byteswap()
        return entries
    # The least significant bits come first (Refcount block entry). The table is one long number here, masked whole.
    per_byte = 8 // bits
    number = int.from_bytes(raw)
    mask = int.from_bytes(bytes([(1 << bits) - 1]) * len(raw))
    unpacked = bytearray(len(raw) * per_byte)
    for column in range(per_byte):
        unpacked[column::per_byte] = (number >> column * bits & mask).to_bytes(len(raw))
    entries.frombytes(unpacked)
    return entries


def any_bits(entries: array[int], mask: int) -> bool:
    """True if some entry of a 64-bit table has one of these bits. The table is one long number here, as in decode."""
    return bool(int.from_bytes(entries.tobytes(), sys.byteorder) & int.from_bytes(q.U64.pack(mask) * len(entries)))


def encode(entries: array[int], bits: int) -> bytes:
    """The bytes of a table; the inverse of decode."""
    if bits < 8:
        per_byte, raw = 8 // bits, entries.tobytes()
        number = 0
        for column in range(per_byte):
            number |= int.from_bytes(raw[column::per_byte]) << column * bits
        return number.to_bytes(len(raw) // per_byte)
    if _SWAP and bits > 8:
        entries = entries[:]
        entries.byteswap()
    return entries.tobytes()


def load_l1(file: HostFile, offset: int, entries: int) -> array[int]:
    """An L1 table of `entries`, whose place in the file was checked."""
    return decode(file.pread(entries * 8, offset).ljust(entries * 8, b"\0"), 64)


class Table:
    """One cluster of metadata: an L2 table or a refcount block."""

    __slots__ = ("_pending", "bits", "dirty", "entries", "offset", "used")

    def __init__(self, offset: int, entries: array[int], bits: int, pending: set[Table]) -> None:
        self.offset = offset  # in the image file
        self.entries = entries
        self.bits = bits  # of an entry
        self.dirty: set[int] = set()  # slices that differ from the file
        self.used = True  # since the cache last looked
        self._pending = pending  # the cache's tables that differ from the file

    def touch(self, index: int, count: int = 1) -> None:
        """Entries from `index` on were changed."""
        first = index * self.bits // 8 // SLICE
        last = (index + count - 1) * self.bits // 8 // SLICE
        if first == last:
            self.dirty.add(first)
        else:
            self.dirty.update(range(first, last + 1))
        self._pending.add(self)

    def write_back(self, file: HostFile) -> None:
        """Write the dirty slices, adjoining ones together."""
        per_slice = SLICE * 8 // self.bits
        pending = sorted(self.dirty)
        while pending:
            first = last = pending.pop(0)
            while pending and pending[0] == last + 1:
                last = pending.pop(0)
            part = self.entries[first * per_slice : (last + 1) * per_slice]
            file.pwrite(encode(part, self.bits), self.offset + first * SLICE)
        self.dirty.clear()
        self._pending.discard(self)

    def write_whole(self, file: HostFile) -> None:
        """Write all of it."""
        file.pwrite(encode(self.entries, self.bits), self.offset)
        self.dirty.clear()
        self._pending.discard(self)


class TableCache(dict[int, Table]):
    """Tables by their index. The one that was not used since the last round leaves first (second chance)."""

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity = max(2, capacity)
        self.pending: set[Table] = set()  # those that differ from the file

    def victim(self) -> int | None:
        """The index of the table that has to leave before another comes; None while there is room."""
        if len(self) < self.capacity:
            return None
        while True:
            index = next(iter(self))
            table = self[index]
            if not table.used:
                return index
            table.used = False
            del self[index]
            self[index] = table
