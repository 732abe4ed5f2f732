"""Partition tables that mean harm: refused, and never a loop or all memory."""

from __future__ import annotations

import struct
import zlib

import pytest

from tcmu_core.errors import ConfigError
from tcmu_core.filters.partitions import Partition, find

SIZE = 1 << 50  # bytes, of which nearly all are zeros
BLOCK = 512
MOST_READ = 8 << 20  # bytes in one piece


class Sparse:
    """A disk that is zeros but for some blocks, and counts what is read of it."""

    def __init__(self, blocks: dict[int, bytes]) -> None:
        self.blocks = blocks
        self.reads = 0

    def read(self, offset: int, length: int) -> bytes:
        self.reads += 1
        assert self.reads < 1000, "it reads without end"
        assert 0 <= offset <= offset + length <= SIZE
        assert length <= MOST_READ, "it reads as much as somebody likes"
        room = bytearray(length)
        for lba, data in self.blocks.items():
            at = lba * BLOCK - offset
            if 0 <= at < length:
                room[at : at + len(data)] = data
        return bytes(room)


def mbr(*entries: tuple[int, int, int]) -> bytes:
    """Return a boot record of (type, first, blocks)."""
    packed = b"".join(struct.pack("<B3xB3xII", 0, *entry) for entry in entries)
    return bytes(0x1BE) + packed.ljust(64, b"\0") + b"\x55\xaa"


def gpt(*partitions: tuple[int, int], **fields: int) -> dict[int, bytes]:
    """Return a disk's blocks with a GPT of (first, last), with right checksums whatever its fields say."""
    table = b"".join(
        struct.pack("<16s16sQQQ72s", b"t" * 16, bytes(16), first, last, 0, b"") for first, last in partitions
    ).ljust(128 * 128, b"\0")
    told = {"length": 92, "table": 2, "count": 128, "entry_size": 128, "checksum": zlib.crc32(table)} | fields
    values = [b"EFI PART", 0x10000, told["length"], 0, 0, 1, SIZE // BLOCK - 1, 34, SIZE // BLOCK - 34, bytes(16),
              told["table"], told["count"], told["entry_size"], told["checksum"]]  # fmt: skip
    header = struct.Struct("<8sIIIIQQQQ16sQIII")
    values[3] = zlib.crc32(header.pack(*values).ljust(BLOCK, b"\0")[: told["length"]])
    return {0: mbr((0xEE, 1, 2**32 - 1)), 1: header.pack(*values), 2: table}


LINKED = (0x05, 10, 1000)
CASES: dict[str, tuple[dict[int, bytes], str]] = {
    "a loop": ({0: mbr(LINKED), 10: mbr((0x83, 1, 1), (5, 0, 1))}, "it has no end"),
    "a loop of empty records": ({0: mbr(LINKED), 10: mbr((0, 0, 0), (5, 0, 1))}, "it has no end"),
    "a loop of two": ({0: mbr(LINKED), 10: mbr((0, 0, 0), (5, 5, 1)), 15: mbr((0, 0, 0), (5, 0, 1))}, "it has no end"),
    "two chains": ({0: mbr(LINKED, (5, 20, 9)), 10: mbr((0x83, 1, 1)), 20: mbr((0x83, 1, 1))}, "two chains"),
    "a chain into nothing": ({0: mbr((5, 2**32 - 1, 1))}, "chain of logical partitions is broken"),
    "no blocks": ({0: mbr((0x83, 1, 0))}, "partition 1 ends beyond"),
    "overlapping": ({0: mbr((0x83, 100, 50), (0x83, 149, 50))}, "partitions 1 and 2 overlap"),
    "one in the other": ({0: mbr((0x83, 100, 500), (0x83, 200, 5))}, "partitions 1 and 2 overlap"),
    "a logical one in a primary one": (
        {0: mbr((0x83, 5, 100), LINKED), 10: mbr((0x83, 1, 1))}, "partitions 1 and 5 overlap"),
    "entries of 0 bytes": (gpt((34, 40), entry_size=0), "GPT header is broken"),
    "entries of 2 GiB": (gpt((34, 40), entry_size=1 << 31), "GPT header is broken"),
    "entries of 8 KiB": (gpt((34, 40), entry_size=8192), "GPT header is broken"),
    "entries of no whole words": (gpt((34, 40), entry_size=129), "GPT header is broken"),
    "no entries": (gpt((34, 40), count=0), "GPT header is broken"),
    "2^32 entries": (gpt((34, 40), count=2**32 - 1), "GPT header is broken"),
    "a short header": (gpt((34, 40), length=0), "GPT header is broken"),
    "a header beyond its block": (gpt((34, 40), length=2**32 - 1), "GPT header is broken"),
    "a table beyond the disk": (gpt((34, 40), table=SIZE // BLOCK - 1), "beyond the disk"),
    "a table at the end of all numbers": (gpt((34, 40), table=2**64 - 1), "beyond the disk"),
    "a wrong checksum": (gpt((34, 40), checksum=1), "checksum is wrong"),
    "a partition backwards": (gpt((40, 34)), "partition 1 ends beyond"),
    "a partition beyond": (gpt((34, SIZE // BLOCK)), "partition 1 ends beyond"),
    "a partition of all numbers": (gpt((34, 2**64 - 1)), "partition 1 ends beyond"),
    "a partition upon another": (gpt((34, 40), (40, 41)), "partitions 1 and 2 overlap"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_table_that_means_harm_is_refused(case: str) -> None:
    blocks, said = CASES[case]
    with pytest.raises(ConfigError, match=said):
        find(Sparse(blocks).read, SIZE, BLOCK)


def test_tables_as_they_should_be_are_read() -> None:
    chain = {0: mbr((0x83, 1, 5), LINKED), 10: mbr((0x83, 1, 2), (5, 20, 9)), 30: mbr((0x83, 1, 3))}
    assert find(Sparse(chain).read, SIZE, BLOCK) == [
        Partition(1, 512, 5 * 512), Partition(5, 11 * 512, 1024), Partition(6, 31 * 512, 3 * 512),
    ]  # fmt: skip
    assert find(Sparse(gpt((34, 40), (41, 41))).read, SIZE, BLOCK) == [
        Partition(1, 34 * 512, 7 * 512), Partition(2, 41 * 512, 512),
    ]  # fmt: skip
