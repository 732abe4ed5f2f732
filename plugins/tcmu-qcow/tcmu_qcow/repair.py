"""Refcounts from the ground up: count every reference in the image, write a new refcount structure, switch to it.

The old structure stays as it is until the header names the new one, so a power cut in between leaves an image that is
as dirty as it was. Whatever is wrong beyond refcounts stops the repair before anything is written.
"""

from __future__ import annotations

from array import array

from tcmu_qcow import layout as q
from tcmu_qcow.bitmaps import read_bitmaps
from tcmu_qcow.compression import locate
from tcmu_qcow.errors import CorruptImage
from tcmu_qcow.files import HostFile
from tcmu_qcow.header import Header, check_region
from tcmu_qcow.snapshots import read_snapshots
from tcmu_qcow.tables import TYPECODES, decode, encode, load_l1

CHUNK_BITS = 12  # counts are kept for 4096 clusters at a time, where there are any


class References:
    """How often each cluster of a file is referred to; memory only for parts that are."""

    def __init__(self, file: HostFile, header: Header) -> None:
        self._file = file
        self._bits = header.cluster_bits
        self._end = -(-file.size >> self._bits)
        self._chunks: dict[int, array[int]] = {}
        self.tables: set[int] = set()  # clusters that can only be in use once

    def add(self, offset: int, length: int, what: str) -> None:
        """One reference to every cluster of the region."""
        first, stop = offset >> self._bits, -(-(offset + length) >> self._bits)
        if stop > self._end + 1:
            raise CorruptImage(f"{self._file.path}: the {what} at {offset:#x} lies past the end of the file")
        for cluster in range(first, stop):
            chunk = self._chunks.get(cluster >> CHUNK_BITS)
            if chunk is None:
                chunk = self._chunks[cluster >> CHUNK_BITS] = array("Q", bytes(8 << CHUNK_BITS))
            chunk[cluster & ((1 << CHUNK_BITS) - 1)] += 1

    def add_table(self, offset: int, length: int, what: str) -> None:
        """The same for something that nothing else may overlap."""
        self.add(offset, length, what)
        self.tables.update(range(offset >> self._bits, -(-(offset + length) >> self._bits)))

    def get(self, cluster: int) -> int:
        """References to the cluster."""
        chunk = self._chunks.get(cluster >> CHUNK_BITS)
        return chunk[cluster & ((1 << CHUNK_BITS) - 1)] if chunk is not None else 0

    def counts(self, first: int, count: int, bits: int) -> array[int]:
        """References to `count` clusters from `first` on, as a refcount block of `bits` wide numbers has them."""
        counts = array(TYPECODES[bits])
        counts.frombytes(bytes(count * counts.itemsize))
        for number in range(first >> CHUNK_BITS, ((first + count - 1) >> CHUNK_BITS) + 1):
            chunk = self._chunks.get(number)
            if chunk is None:
                continue
            start = number << CHUNK_BITS
            part = chunk[max(0, first - start) : first + count - start]
            if max(part) >> bits:
                raise CorruptImage(
                    f"{self._file.path}: a cluster has more uses than a refcount of {bits} bits can count"
                )
            at = max(0, start - first)
            counts[at : at + len(part)] = array(counts.typecode, part)
        return counts

    def spans(self, clusters: int) -> set[int]:
        """Numbers of the spans of that many clusters which may have one in use."""
        used: set[int] = set()
        for chunk in self._chunks:
            first, last = chunk << CHUNK_BITS, ((chunk + 1) << CHUNK_BITS) - 1
            used.update(range(first // clusters, last // clusters + 1))
        return used

    @property
    def end(self) -> int:
        """The cluster behind the last one in use."""
        top = max(self._chunks, default=0)
        chunk = self._chunks.get(top, array("Q"))
        return max((top << CHUNK_BITS) + at + 1 for at, n in enumerate(chunk) if n)


def count_references(file: HostFile, header: Header) -> References:
    """Every reference but those of the refcount structure itself. CorruptImage for an image that contradicts itself."""
    references = References(file, header)
    references.add_table(0, header.cluster_size, "header")
    snapshots, table_size = read_snapshots(file, header)
    if snapshots:
        references.add_table(header.snapshots_offset, table_size, "snapshot table")
    l1_tables = [(header.l1_table_offset, header.l1_size)]
    l1_tables += [(snapshot.l1_table_offset, snapshot.l1_size) for snapshot in snapshots]
    for offset, entries in l1_tables:
        if entries:
            references.add_table(offset, entries * 8, "L1 table")
    for offset, entries in l1_tables:
        _count_l1(file, header, references, load_l1(file, offset, entries))
    _count_bitmaps(file, header, references)
    for cluster in references.tables:
        if references.get(cluster) != 1:
            raise CorruptImage(f"{file.path}: cluster {cluster:#x} holds a table and something else")
    _check_copied(file, header, references)
    return references


def _check_copied(file: HostFile, header: Header, references: References) -> None:
    """An entry of the active tables that says COPIED is the only reference: else a snapshot would be written to."""
    size = header.cluster_size
    for entry in load_l1(file, header.l1_table_offset, header.l1_size):
        offset = entry & q.OFFSET_MASK
        if not offset:
            continue
        entries = decode(file.pread(size, offset).ljust(size, b"\0"), 64)
        copied = [entry] if entry & q.COPIED else []
        if not header.has_data_file:
            copied += [word for word in entries[:: 2 if header.extended_l2 else 1] if word & q.COPIED]
        for word in copied:
            if references.get((word & q.OFFSET_MASK) >> header.cluster_bits) != 1:
                raise CorruptImage(f"{file.path}: {word:#x} says that its cluster has one use, but it has others")


def _count_l1(file: HostFile, header: Header, references: References, l1: array[int]) -> None:
    seen: set[int] = set()
    size = header.cluster_size
    for index, entry in enumerate(l1):
        offset = entry & q.OFFSET_MASK
        if not offset:
            continue
        if offset % size or offset in seen or offset >= file.size:
            raise CorruptImage(f"{file.path}: L1 entry {index} is {entry:#x}, where no L2 table can be")
        seen.add(offset)
        references.add(offset, size, "L2 table")
        _count_l2(file, header, references, decode(file.pread(size, offset).ljust(size, b"\0"), 64))


def _count_l2(file: HostFile, header: Header, references: References, entries: array[int]) -> None:
    stride = 2 if header.extended_l2 else 1
    for entry in entries[::stride] if stride == 2 else entries:
        if not entry:
            continue
        if entry & q.COMPRESSED:
            offset, length = locate(entry, header.cluster_bits)
            references.add(offset, length, "compressed cluster")
        elif entry & q.OFFSET_MASK and not header.has_data_file:
            offset = entry & q.OFFSET_MASK
            if offset % header.cluster_size:
                raise CorruptImage(f"{file.path}: the L2 entry {entry:#x} is not aligned to a cluster")
            references.add(offset, header.cluster_size, "data cluster")


def _count_bitmaps(file: HostFile, header: Header, references: References) -> None:
    if header.bitmaps is None:
        return
    references.add_table(header.bitmaps.directory_offset, header.bitmaps.directory_size, "bitmap directory")
    for bitmap in read_bitmaps(file, header):
        check_region(header, file, f"table of bitmap “{bitmap.name}”", bitmap.table_offset, bitmap.table_size * 8)
        references.add_table(bitmap.table_offset, bitmap.table_size * 8, "bitmap table")
        for entry in decode(file.pread(bitmap.table_size * 8, bitmap.table_offset), 64):
            if entry & q.OFFSET_MASK:
                references.add_table(entry & q.OFFSET_MASK, header.cluster_size, "bitmap")


def rebuild_refcounts(file: HostFile, header: Header) -> None:
    """Give the image refcounts that are right, and clear the dirty bit. Changes `header` likewise."""
    references = count_references(file, header)
    size, bits = header.cluster_size, 1 << header.refcount_order
    per_block = size * 8 // bits
    start = max(references.end, -(-file.size // size))
    needed = {number for number in references.spans(per_block) if number * per_block < start}
    # Blocks and table lie at the end of the file and describe themselves too.
    clusters = 0
    while True:
        last = -(-(start + clusters) // per_block)
        own = range(start // per_block, last)
        blocks = sorted(needed.union(own))
        table_clusters = -(-last * 8 // size)
        if len(blocks) + table_clusters <= clusters:
            break
        clusters = len(blocks) + table_clusters
    if table_clusters * size > q.MAX_REFCOUNT_TABLE_BYTES:
        raise CorruptImage(f"{file.path}: the refcounts of the image would need a table of more than 8 MiB")
    table = array("Q", bytes(table_clusters * size))
    for position, number in enumerate(blocks):
        first = number * per_block
        counts = references.counts(first, per_block, bits)
        for cluster in range(max(first, start), min(first + per_block, start + clusters)):
            counts[cluster - first] = 1
        offset = (start + position) * size
        file.pwrite(encode(counts, bits), offset)
        table[number] = offset
    table_offset = (start + clusters - table_clusters) * size
    file.pwrite(encode(table, 64), table_offset)
    file.flush()
    file.pwrite(q.REFCOUNT_TABLE_FIELDS.pack(table_offset, table_clusters), q.AT_REFCOUNT_TABLE)
    file.flush()
    header.refcount_table_offset, header.refcount_table_clusters = table_offset, table_clusters
    if header.dirty:
        header.incompatible_features &= ~int(q.Incompatible.DIRTY)
        file.pwrite(q.U64.pack(header.incompatible_features), q.AT_INCOMPATIBLE)
        file.flush()
