"""Partition tables: where the partitions of an MBR or a GPT disk begin, and how long they are."""

from __future__ import annotations

import itertools
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass

from tcmu_core.errors import ConfigError

# The classic MBR: 16-byte entries from 1BEh on, 55AAh at the end of 512 bytes.
_ENTRY = struct.Struct("<B3xB3xII")  # status, type, first LBA, number of blocks
_ENTRIES = 0x1BE
_EXTENDED = frozenset({0x05, 0x0F, 0x85})
_PROTECTIVE = 0xEE
_MOST_LINKS = 128  # a chain of extended boot records that is longer is a loop
# The GPT header (UEFI 2.10 5.3.2) and entry (5.3.3)
_HEADER = struct.Struct("<8sIIIIQQQQ16sQIII")
_GPT_ENTRY = struct.Struct("<16s16sQQQ72s")
_SIGNATURE = b"EFI PART"
_MOST_ENTRIES = 1024
_LARGEST_ENTRY = 4096  # bytes; 128 are usual

Read = Callable[[int, int], bytes]


@dataclass(frozen=True, slots=True)
class Partition:
    """One partition; offset and length in bytes."""

    number: int
    offset: int
    length: int


def find(read: Read, size: int, block: int) -> list[Partition]:
    """Return the partitions of a disk of `size` bytes that `read(offset, length)` reads.

    Raises:
        ConfigError: it has no partition table, or a broken one.
    """
    first = read(0, max(block, 512))
    if first[510:512] != b"\x55\xaa":
        raise ConfigError("there is no partition table on it: neither MBR nor GPT")
    entries = _mbr_entries(first)
    if any(kind == _PROTECTIVE for kind, _, _ in entries):
        found = _gpt(read, size, block)
    else:
        found = _mbr(read, size, entries, block)
    for partition in found:
        if partition.offset + partition.length > size or partition.length <= 0:
            raise ConfigError(f"partition {partition.number} ends beyond the disk")
    for one, other in itertools.pairwise(sorted(found, key=lambda partition: partition.offset)):
        if one.offset + one.length > other.offset:
            raise ConfigError(
                f"the partitions {one.number} and {other.number} overlap: a write to one would be in both"
            )
    return found


def _mbr_entries(sector: bytes) -> list[tuple[int, int, int]]:
    found = (_ENTRY.unpack_from(sector, _ENTRIES + 16 * number) for number in range(4))
    return [(kind, first, count) for _status, kind, first, count in found]


def _mbr(read: Read, size: int, entries: list[tuple[int, int, int]], block: int) -> list[Partition]:
    found: list[Partition] = []
    for number, (kind, first, count) in enumerate(entries, 1):
        if kind in _EXTENDED:
            if any(partition.number > 4 for partition in found):
                raise ConfigError("there are two chains of logical partitions: which one has number 5, nobody can say")
            found += _logical(read, size, first, block)
        elif kind:
            found.append(Partition(number, first * block, count * block))
    return sorted(found, key=lambda partition: partition.number)


def _logical(read: Read, size: int, base: int, block: int) -> list[Partition]:
    """Follow the chain of extended boot records; logical partitions are numbered from 5 on."""
    found: list[Partition] = []
    at = base
    for _ in range(_MOST_LINKS):
        if at * block + max(block, 512) > size:
            raise ConfigError("the chain of logical partitions is broken")
        sector = read(at * block, max(block, 512))
        if sector[510:512] != b"\x55\xaa":
            raise ConfigError("the chain of logical partitions is broken")
        (kind, first, count), (following, distance, _) = _mbr_entries(sector)[:2]
        if kind:
            found.append(Partition(5 + len(found), (at + first) * block, count * block))
        if following not in _EXTENDED:
            return found
        at = base + distance
    raise ConfigError("the chain of logical partitions is broken: it has no end")


def _gpt(read: Read, size: int, block: int) -> list[Partition]:
    """Read the primary table, or the backup at the end where that is broken."""
    problem = ""
    for at in (block, size - block):
        try:
            return _gpt_at(read, at, size, block)
        except ConfigError as error:
            problem = problem or str(error)
    raise ConfigError(problem)


def _gpt_at(read: Read, at: int, size: int, block: int) -> list[Partition]:
    header = read(at, block)
    (signature, _revision, length, checksum, _reserved, _own, _other, _first, _last, _guid, table, count, entry_size,
     table_checksum) = _HEADER.unpack_from(header)  # fmt: skip
    if signature != _SIGNATURE or not _HEADER.size <= length <= block:
        raise ConfigError("the GPT header is broken")
    plain = header[:16] + bytes(4) + header[20:length]
    if zlib.crc32(plain) != checksum:
        raise ConfigError("the GPT header is broken: its checksum is wrong")
    if not _GPT_ENTRY.size <= entry_size <= _LARGEST_ENTRY or entry_size % 8 or not 0 < count <= _MOST_ENTRIES:
        raise ConfigError("the GPT header is broken")
    whole = -(-count * entry_size // block) * block
    if table * block + whole > size:
        raise ConfigError("the GPT entries lie beyond the disk")
    data = read(table * block, whole)[: count * entry_size]
    if zlib.crc32(data) != table_checksum:
        raise ConfigError("the GPT entries are broken: their checksum is wrong")
    found = []
    for number in range(count):
        kind, _unique, first, last, _flags, _name = _GPT_ENTRY.unpack_from(data, number * entry_size)
        if any(kind):
            found.append(Partition(number + 1, first * block, (last - first + 1) * block))
    return found
