"""The active L1 table, the L2 cache, and the order in which metadata reaches the disk.

The image on stable storage is valid at every instant because of one rule: what is referred to is stable before what
refers to it, and what is freed was first no longer referred to. `write_back` is where it is kept:

    1. refcount blocks (new L2 tables and guest data were written when they came)
    2. barrier
    3. L2 slices and L1 sectors
    4. barrier (the flush that asked for it, or the next one's step 2)
    5. only now are clusters that step 3 let go of counted as free, punched, and given out again

A power cut between any two of these leaks clusters at worst.
"""

from __future__ import annotations

import threading
from array import array

from tcmu_qcow import layout as q
from tcmu_qcow.bitmaps import invalidate_bitmaps
from tcmu_qcow.errors import CorruptImage
from tcmu_qcow.files import HostFile
from tcmu_qcow.header import Header
from tcmu_qcow.journal import LARGEST, Journal
from tcmu_qcow.refcounts import Refcounts
from tcmu_qcow.tables import Table, TableCache, decode, load_l1

L1_SLICE = 64  # entries in 512 bytes
MOST_UNLINKED = 65536  # runs of clusters that wait to be freed before a write-back is forced


class Metadata:
    """All tables of one image. Every method is called under the image's lock."""

    def __init__(
        self, file: HostFile, data_file: HostFile, header: Header, *, read_only: bool, cache_bytes: int, journal: bool
    ) -> None:
        self.file = file
        self.data_file = data_file
        self.header = header
        self.read_only = read_only
        self.l1_offset = header.l1_table_offset
        self.l1 = load_l1(file, header.l1_table_offset, header.l1_size)
        self.l2 = TableCache(cache_bytes // header.cluster_size)
        self.stride = 2 if header.extended_l2 else 1
        self.refcounts = Refcounts(file, header, max(cache_bytes // 4, 1 << 20), self.begin)
        if not read_only:
            metadata = self.refcounts.metadata
            metadata.add(0)
            first = self.l1_offset >> header.cluster_bits
            metadata.update(range(first, first - (-len(self.l1) * 8 >> header.cluster_bits)))
            metadata.update((entry & q.OFFSET_MASK) >> header.cluster_bits for entry in self.l1 if entry)
        self._l1_dirty: set[int] = set()  # slices
        self._unlinked: list[tuple[int, int]] = []  # no longer referred to, in memory
        self._awaiting: list[tuple[int, int]] = []  # no longer referred to in the file, before a barrier
        self.began = read_only
        self._journal: Journal | None = None
        self._keep_journal = journal
        self._io = threading.Condition()
        self._in_flight = 0  # reads and writes of guest data that run without the lock

    # -- guest I/O outside the lock ----------------------------------------------------------------------------------

    def enter_io(self) -> None:
        """A read or write starts on clusters that were looked up under the lock."""
        with self._io:
            self._in_flight += 1

    def leave_io(self) -> None:
        """It has ended; needs no lock."""
        with self._io:
            self._in_flight -= 1
            if not self._in_flight:
                self._io.notify_all()

    # -- L2 tables ---------------------------------------------------------------------------------------------------

    def table(self, l1_index: int) -> Table | None:
        """The L2 table, from the cache or the file; None if there is none."""
        table = self.l2.get(l1_index)
        if table is not None:
            table.used = True
            return table
        offset = self.l1[l1_index] & q.OFFSET_MASK
        if not offset:
            return None
        header = self.header
        if offset % header.cluster_size or offset >= self.file.size:
            raise CorruptImage(f"{self.file.path}: L1 entry {l1_index} points to {offset:#x}, where no L2 table can be")
        raw = self.file.pread(header.cluster_size, offset).ljust(header.cluster_size, b"\0")
        table = Table(offset, decode(raw, 64), 64, self.l2.pending)
        self._keep(l1_index, table)
        return table

    def _keep(self, l1_index: int, table: Table) -> None:
        victim = self.l2.victim()
        if victim is not None:
            if self.l2[victim].dirty:
                self.write_back()
            del self.l2[victim]
        self.l2[l1_index] = table

    def writable_table(self, l1_index: int) -> Table:
        """The L2 table, ours alone: made if there is none, copied if a snapshot shares it."""
        entry = self.l1[l1_index]
        if entry & q.COPIED:
            table = self.table(l1_index)
            if table is None:
                raise CorruptImage(f"{self.file.path}: L1 entry {l1_index} is {entry:#x}")
            if table.offset >> self.header.cluster_bits == 0:
                raise CorruptImage(f"{self.file.path}: L1 entry {l1_index} points to the header")
            return table
        self.begin()
        header = self.header
        old = self.table(l1_index)
        cluster, _ = self.refcounts.allocate(1)
        try:
            entries = array("Q", bytes(header.cluster_size)) if old is None else old.entries[:]
            table = Table(cluster << header.cluster_bits, entries, 64, self.l2.pending)
            table.write_whole(self.file)  # stable by the barrier that comes before L1 names it
        except BaseException:
            self.refcounts.decrement(cluster, 1)
            raise
        self.refcounts.metadata.add(cluster)
        self.l2.pop(l1_index, None)
        self._keep(l1_index, table)
        before = self.l1[l1_index : l1_index + 1]
        self.l1[l1_index] = table.offset | q.COPIED
        if self._journal is not None:
            self._journal.add(self.l1_offset + 8 * l1_index, before, self.l1[l1_index : l1_index + 1])
        self._l1_dirty.add(l1_index // L1_SLICE)
        if old is not None:
            self.unlink(old.offset >> header.cluster_bits, 1)
        return table

    def changed(self, table: Table, first: int, before: array[int]) -> None:
        """The words of an L2 table from `first` on were these before."""
        table.touch(first, len(before))
        if self._journal is not None:
            self._journal.add(table.offset + 8 * first, before, table.entries[first : first + len(before)])

    # -- clusters ----------------------------------------------------------------------------------------------------

    def unlink(self, cluster: int, count: int) -> None:
        """No table in memory refers to these clusters any more. They are freed when none on disk does."""
        last = self._unlinked
        if last and sum(last[-1]) == cluster:
            last[-1] = (last[-1][0], last[-1][1] + count)
        else:
            last.append((cluster, count))

    def bound(self) -> None:
        """Write back before what waits for it takes too much memory. Between two commands, never within one."""
        journal = self._journal
        if len(self._unlinked) > MOST_UNLINKED or (journal is not None and (journal.full or journal.size > LARGEST)):
            self.write_back()

    def reserve_journal(self) -> None:
        """Before a command: have room for its records. Where there is none, `bound` writes the tables at its end."""
        journal = self._journal
        if journal is None or journal.reserve():
            return
        self.write_back()
        if not journal.reserve():
            journal.give_up()

    def release_unused(self, cluster: int, count: int) -> None:
        """Give back clusters that were allocated and never linked."""
        self.refcounts.decrement(cluster, count)

    # -- reaching the disk -------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Before the first change of the file: what makes older knowledge about it invalid is taken back."""
        if not self.began:
            header, file = self.header, self.file
            changed = invalidate_bitmaps(file, header)
            if header.version == 3 and header.autoclear_features & ~q.AUTOCLEAR_KNOWN:
                header.autoclear_features &= q.AUTOCLEAR_KNOWN
                file.pwrite(q.U64.pack(header.autoclear_features), q.AT_AUTOCLEAR)
                changed = True
            if header.lazy_refcounts:
                self.set_dirty(True)
            elif changed:
                file.flush()
            if self._journal is None and self._keep_journal:
                self._journal = Journal(file, file.logger)
            self.began = True

    def set_dirty(self, dirty: bool) -> None:
        """Set or clear the dirty bit, and wait until it is stable."""
        header = self.header
        bits = header.incompatible_features & ~int(q.Incompatible.DIRTY) | int(q.Incompatible.DIRTY) * dirty
        self.file.pwrite(q.U64.pack(bits), q.AT_INCOMPATIBLE)
        self.file.flush()
        header.incompatible_features = bits

    def barrier(self) -> None:
        """Wait until everything that was written is stable, then free what waited for that."""
        ready, self._awaiting = self._awaiting, []
        try:
            self.sync()
        except BaseException:
            self._awaiting = ready + self._awaiting
            raise
        self.free(ready)

    def sync(self) -> None:
        """fdatasync what can hold our writes. Needs no lock."""
        if self.data_file is not self.file:
            self.data_file.flush()
        self.file.flush()

    def write_back(self) -> None:
        """Steps 1 to 3 of the order above."""
        if not self.header.lazy_refcounts:
            self.refcounts.write_back()
        if self.l2.pending or self._l1_dirty:
            self.barrier()
            for table in sorted(self.l2.pending, key=lambda table: table.offset):
                table.write_back(self.file)
            self._write_l1()
        if self._journal is not None:
            self._journal.clear()
        self._awaiting += self._unlinked
        self._unlinked = []

    def _write_l1(self) -> None:
        for index in sorted(self._l1_dirty):
            part = self.l1[index * L1_SLICE : (index + 1) * L1_SLICE]
            self.file.pwrite(b"".join(map(q.U64.pack, part)), self.l1_offset + index * L1_SLICE * 8)
            self._l1_dirty.discard(index)

    def take_awaiting(self) -> list[tuple[int, int]]:
        """What the next sync will make free; the caller syncs and then calls `free`."""
        ready, self._awaiting = self._awaiting, []
        return ready

    def put_awaiting(self, ready: list[tuple[int, int]]) -> None:
        """The sync failed."""
        self._awaiting += ready

    def free(self, ready: list[tuple[int, int]]) -> None:
        """Step 5. Waits for guest I/O that may still be under way on these clusters."""
        if not ready:
            return
        with self._io:
            self._io.wait_for(lambda: not self._in_flight)
        bits = self.header.cluster_bits
        free: list[tuple[int, int]] = []
        for cluster, count in ready:
            free += self.refcounts.decrement(cluster, count)
        for cluster, count in free:
            self.refcounts.metadata.difference_update(range(cluster, cluster + count))
        for cluster, count in self._shrink(free):
            self.file.punch(cluster << bits, count << bits)

    def _shrink(self, free: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """Cut free clusters off the end of the file; the runs that are left are returned."""
        if not free or not self.file.can_grow:
            return free
        bits = self.header.cluster_bits
        end = was = -(-self.file.size >> bits)
        free.sort()
        while free and sum(free[-1]) >= end:
            end = min(end, free.pop()[0])
        if end == was:
            return free
        for _ in range(1024):  # what was freed earlier may lie before it
            if end <= 1 or self.refcounts.get(end - 1):
                break
            end -= 1
        self.file.truncate(end << bits)
        return [(cluster, count) for cluster, count in free if cluster < end]

    def end_journal(self, *, remove: bool) -> None:
        """No more changes come. What wasn't written stays in the journal unless it is removed."""
        if self._journal is not None:
            self._journal.close(remove=remove)
            self._journal = None

    def settle(self) -> None:
        """Everything to the disk, refcounts of freed clusters and the dirty bit included: what close needs."""
        self.write_back()
        self.barrier()
        if self.refcounts.dirty:
            self.refcounts.write_back()
            self.sync()
        if self.header.dirty and not self.read_only:
            self.set_dirty(False)
        self.end_journal(remove=True)
        self.began = self.read_only or (not self.header.lazy_refcounts and self.began)
