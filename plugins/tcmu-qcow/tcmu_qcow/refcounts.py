"""Host cluster management: which clusters of the file are in use, and how often.

Nothing here waits for the disk but the growth of the structure itself. Counts change in memory; Metadata decides when
blocks are written: always before a table that relies on an increment, and decrements only once nothing on disk refers
to the cluster.
"""

from __future__ import annotations

import errno
from array import array
from collections.abc import Callable

from tcmu_qcow import layout as q
from tcmu_qcow.errors import CorruptImage
from tcmu_qcow.files import HostFile
from tcmu_qcow.header import Header
from tcmu_qcow.tables import Table, TableCache, any_bits, decode, encode


class Refcounts:
    """The refcount table (whole in memory), its blocks (cached), and the allocator over them. All in clusters."""

    def __init__(self, file: HostFile, header: Header, cache_bytes: int, before_growth: Callable[[], None]) -> None:
        self._file = file
        self._header = header
        self._before_growth = before_growth  # called before the structure itself changes on disk
        self.bits = 1 << header.refcount_order
        self.maximum = (1 << self.bits) - 1
        self.per_block = header.cluster_size * 8 // self.bits
        self.table = self._load(file, header) if not file.read_only else array("Q")  # who only reads needs no counts
        self.blocks = TableCache(cache_bytes // header.cluster_size)
        self.metadata: set[int] = set()  # clusters that hold tables; guest data never goes there
        first = header.refcount_table_offset >> header.cluster_bits
        self.metadata.update(range(first, first + header.refcount_table_clusters))
        self.metadata.update(entry >> header.cluster_bits for entry in set(self.table) - {0})
        self._hint = 0  # no cluster below it is free

    @staticmethod
    def _load(file: HostFile, header: Header) -> array[int]:
        """The refcount table. Its reserved bits are ignored, as QEMU does (Refcount table entry)."""
        raw = file.pread(header.refcount_table_clusters << header.cluster_bits, header.refcount_table_offset)
        table = decode(raw[: len(raw) // 8 * 8], 64)
        if any_bits(table, ~q.REFCOUNT_OFFSET_MASK & (1 << 64) - 1):
            table = array("Q", [entry & q.REFCOUNT_OFFSET_MASK for entry in table])
        if any_bits(table, header.cluster_size - 1):
            index, entry = next((n, entry) for n, entry in enumerate(table) if entry % header.cluster_size)
            raise CorruptImage(f"{file.path}: refcount table entry {index} is {entry:#x}")
        return table

    # -- counts ------------------------------------------------------------------------------------------------------

    def _block(self, index: int) -> Table | None:
        """The refcount block `index`, None if there is none (all its counts are 0)."""
        block = self.blocks.get(index)
        if block is not None:
            block.used = True
            return block
        if index >= len(self.table) or not self.table[index]:
            return None
        offset = self.table[index]
        if offset >= self._file.size:
            raise CorruptImage(f"{self._file.path}: refcount block {index} lies past the end of the file")
        raw = self._file.pread(self._header.cluster_size, offset).ljust(self._header.cluster_size, b"\0")
        block = Table(offset, decode(raw, self.bits), self.bits, self.blocks.pending)
        self._keep(index, block)
        return block

    def _keep(self, index: int, block: Table) -> None:
        victim = self.blocks.victim()
        if victim is not None:
            # Early is never wrong for a block: an increment is a leak at worst, a decrement was waited for.
            self.blocks[victim].write_back(self._file)
            del self.blocks[victim]
        self.blocks[index] = block

    def get(self, cluster: int) -> int:
        """How often the cluster is in use."""
        index, at = divmod(cluster, self.per_block)
        block = self._block(index)
        return block.entries[at] if block is not None else 0

    def end_of_use(self) -> int:
        """The cluster behind the last one in use."""
        for index in range(len(self.table) - 1, -1, -1):
            block = self._block(index)
            used = -(-len(block.entries.tobytes().rstrip(b"\0")) // block.entries.itemsize) if block is not None else 0
            if used:
                return index * self.per_block + used
        return 1

    def decrement(self, cluster: int, count: int) -> list[tuple[int, int]]:
        """One use less of each cluster. Returns the runs (cluster, count) that are free now."""
        free: list[tuple[int, int]] = []
        for number in range(cluster, cluster + count):
            index, at = divmod(number, self.per_block)
            block = self._block(index)
            if block is None or not block.entries[at]:
                raise CorruptImage(f"{self._file.path}: cluster {number:#x} is in use but its refcount is 0")
            block.entries[at] -= 1
            block.touch(at)
            if not block.entries[at]:
                if free and sum(free[-1]) == number:
                    free[-1] = (free[-1][0], free[-1][1] + 1)
                else:
                    free.append((number, 1))
        if free:
            self._hint = min(self._hint, free[0][0])
        return free

    # -- allocation --------------------------------------------------------------------------------------------------

    def allocate(self, wanted: int) -> tuple[int, int]:
        """Take the first free cluster, and those behind it that are free too, `wanted` at most: (cluster, count)."""
        cluster = self._hint
        while True:
            index, at = divmod(cluster, self.per_block)
            block = self._block(index)
            if block is None:
                if index >= len(self.table):
                    self._grow_table(index)
                else:
                    self._add_block(index, cluster)
                continue
            entries = block.entries
            try:
                at = entries.index(0, at)
            except ValueError:
                cluster = self._hint = (index + 1) * self.per_block
                continue
            cluster = index * self.per_block + at
            end = min(at + wanted, len(entries))
            stop = at
            while stop < end and not entries[stop]:
                entries[stop] = 1
                stop += 1
            block.touch(at, stop - at)
            self._hint = cluster + stop - at
            self._check_fresh(cluster, stop - at)
            return cluster, stop - at

    def allocate_contiguous(self, wanted: int) -> int:
        """The first of `wanted` clusters in a row."""
        skipped: list[tuple[int, int]] = []
        try:
            start, have = self.allocate(wanted)
            while have < wanted:
                cluster, count = self.allocate(wanted - have)
                if cluster == start + have:
                    have += count
                else:
                    skipped.append((start, have))
                    start, have = cluster, count
            return start
        finally:
            for cluster, count in skipped:
                self.decrement(cluster, count)

    def _check_fresh(self, cluster: int, count: int) -> None:
        if not self.metadata.isdisjoint(range(cluster, cluster + count)):
            raise CorruptImage(f"{self._file.path}: a cluster that holds metadata has refcount 0; run qemu-img check")
        if (cluster + count) << self._header.cluster_bits > q.MAX_HOST_OFFSET:
            raise OSError(errno.EFBIG, "the image file would exceed 64 PiB", self._file.path)

    # -- growth ------------------------------------------------------------------------------------------------------

    def _add_block(self, index: int, cluster: int) -> None:
        """A new block, in the first cluster that it describes and that the allocator came to."""
        self._check_fresh(cluster, 1)
        self._before_growth()
        entries = decode(bytes(self._header.cluster_size), self.bits)
        entries[cluster % self.per_block] = 1
        block = Table(cluster << self._header.cluster_bits, entries, self.bits, self.blocks.pending)
        block.write_whole(self._file)
        self._file.flush()  # the table may not name a block that isn't there
        self.table[index] = block.offset
        try:
            self._file.pwrite(q.U64.pack(block.offset), self._header.refcount_table_offset + index * 8)
        except OSError:
            self.table[index] = 0
            raise
        self.metadata.add(cluster)
        self._keep(index, block)

    def _grow_table(self, index: int) -> None:
        """A larger refcount table, behind everything that the present one can describe.

        Blocks that describe the new clusters come first, then the table. The header is switched when all is stable.
        """
        header, file = self._header, self._file
        self._before_growth()
        per_cluster = header.cluster_size // 8
        old_clusters, old_offset = header.refcount_table_clusters, header.refcount_table_offset
        clusters = max(old_clusters * 3 // 2 + 1, index // per_cluster + 1)
        blocks = 1
        while blocks * self.per_block < blocks + clusters:
            blocks += 1
        while index + blocks > clusters * per_cluster:
            clusters += 1
            while blocks * self.per_block < blocks + clusters:
                blocks += 1
        if clusters << header.cluster_bits > q.MAX_REFCOUNT_TABLE_BYTES:
            raise OSError(errno.EFBIG, "the refcount table would exceed 8 MiB", file.path)
        start = len(self.table) * self.per_block
        first_block = start // self.per_block
        self._check_fresh(start, blocks + clusters)
        table = self.table[:]
        table.extend([0] * (clusters * per_cluster - len(table)))
        new: list[tuple[int, Table]] = []
        for number in range(blocks):
            used = min(self.per_block, max(0, blocks + clusters - number * self.per_block))
            entries = decode(bytes(header.cluster_size), self.bits)
            for at in range(used):
                entries[at] = 1
            block = Table((start + number) << header.cluster_bits, entries, self.bits, self.blocks.pending)
            block.write_whole(file)
            table[first_block + number] = block.offset
            new.append((first_block + number, block))
        offset = (start + blocks) << header.cluster_bits
        file.pwrite(encode(table, 64), offset)
        file.flush()
        file.pwrite(q.REFCOUNT_TABLE_FIELDS.pack(offset, clusters), q.AT_REFCOUNT_TABLE)
        file.flush()  # before anything reuses the old table
        header.refcount_table_offset, header.refcount_table_clusters = offset, clusters
        self.table = table
        for number, block in new:
            self._keep(number, block)
        old = old_offset >> header.cluster_bits
        self.metadata.difference_update(range(old, old + old_clusters))
        self.metadata.update(range(start, start + blocks + clusters))
        self.decrement(old, old_clusters)

    # -- writing back ------------------------------------------------------------------------------------------------

    @property
    def dirty(self) -> bool:
        """True when a block differs from the file."""
        return bool(self.blocks.pending)

    def write_back(self) -> None:
        """Write every dirty block. The caller sees to the barriers."""
        for block in sorted(self.blocks.pending, key=lambda block: block.offset):
            block.write_back(self._file)
