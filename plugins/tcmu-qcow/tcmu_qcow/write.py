"""Writing a qcow2 image: in place where a cluster is ours alone, else to a new one with the rest of the old copied.

Under the lock, except for guest data that goes to clusters that are in place already. New data is written before any
table in memory refers to it; metadata.py carries that order to the disk.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from tcmu_core.posix import ZEROS, Buffer, Cursor
from tcmu_qcow import layout as q
from tcmu_qcow.chain import ZERO, read_chain
from tcmu_qcow.compression import locate
from tcmu_qcow.errors import CorruptImage, ReadOnlyImage
from tcmu_qcow.files import HostFile
from tcmu_qcow.layout import COPIED, OFFSET_MASK
from tcmu_qcow.qcow2 import Qcow2Image
from tcmu_qcow.tables import Table


class WritableQcow2(Qcow2Image):
    """A qcow2 image that can also be written, unless it was opened read-only."""

    @contextmanager
    def changing(self) -> Iterator[None]:
        """The lock, for a change: refused if the image can't be written, and the last one if it turns out corrupt."""
        with self.lock:
            if self.read_only:
                raise ReadOnlyImage(f"{self.file.path}: the image is open read-only")
            self.check_usable()
            with self._corruption_noted():
                self.meta.begin()
                self.meta.reserve_journal()
                yield
                self.meta.bound()

    # -- write -------------------------------------------------------------------------------------------------------

    def write(self, offset: int, buffers: Sequence[memoryview]) -> None:
        """Write every buffer. The range lies within the disk."""
        length = sum(map(len, buffers))
        with self.changing():
            host, n = self._in_place(offset, length)
            if n < length:
                self._write(offset, buffers, length)
                return
            self.meta.enter_io()
        try:
            self.data_file.pwritev(buffers, host)
        finally:
            self.meta.leave_io()

    def write_nowait(self, offset: int, buffers: Sequence[memoryview], length: int) -> bool:
        """The same if all clusters are in place and their tables in memory, else False."""
        meta, lock = self.meta, self.lock
        if self.read_only or not meta.began or not lock.acquire(False):
            return False
        try:
            if self.broken is not None:
                return False
            l1_index, mask = offset >> self._l1_shift, self._mask
            table = self._l2.get(l1_index)
            if table is None:
                return False
            at = offset & mask
            if at + length <= mask + 1 and self._plain:
                entry = table.entries[(offset >> self._bits) & self._l2_mask]
                if entry & self._odd or not entry & meta.l1[l1_index] & COPIED:
                    return False
                host, n = (entry & OFFSET_MASK) + at, length
                cluster = host >> self._bits
                if cluster >= self._known_end or cluster in meta.refcounts.metadata or not self._one_file:
                    self._check_owned(offset - at, entry)
                table.used = True
            elif (offset + length - 1) >> self._l1_shift in self._l2:
                host, n = self._in_place(offset, length)
            else:
                return False
            file = self.data_file
            if n < length or not (file.in_memory or file.takes_at_once(host, length)):
                return False
            file.pwritev(buffers, host)
            return True
        except CorruptImage as error:
            self.broken = error
            raise
        finally:
            lock.release()

    def place_to_write(self, offset: int, length: int) -> tuple[HostFile, int] | None:
        """Where all of the range can be written in one piece, with the tables as they are in memory.

        The clusters stay as they are until `release_place`.
        """
        meta, lock = self.meta, self.lock
        if self.read_only or not meta.began or not lock.acquire(False):
            return None
        try:
            first, last = offset >> self._l1_shift, (offset + length - 1) >> self._l1_shift
            if self.broken is not None or first not in self._l2 or last not in self._l2:
                return None
            host, n = self._in_place(offset, length)
            if n < length:
                return None
            meta.enter_io()
            return self.data_file, host
        except CorruptImage as error:
            self.broken = error
            raise
        finally:
            lock.release()

    def _in_place(self, offset: int, length: int) -> tuple[int, int]:
        """Host offset and length of the first part of the range that can be written where it is, in one go."""
        bits, mask, stride = self._bits, self._mask, self.meta.stride
        first = done = 0
        while done < length:
            position = offset + done
            l1_index = position >> self._l1_shift
            table = self._l2.get(l1_index) or self.meta.table(l1_index)
            if table is None or not self.meta.l1[l1_index] & q.COPIED:
                break
            table.used = True
            index = (position >> bits) & self._l2_mask
            at = position & mask
            n = min(length - done, mask + 1 - at)
            entry = table.entries[index * stride]
            if not entry & q.COPIED or entry & (q.COMPRESSED | q.ZERO):
                break
            host = (entry & q.OFFSET_MASK) + at
            if done and host != first + done:
                break
            if stride == 2:
                covered = self._subclusters(at, n)
                if table.entries[index * 2 + 1] & covered != covered:
                    break
            self._check_owned(position - at, entry)
            if not done:
                first = host
            done += n
        return first, done

    def _subclusters(self, at: int, n: int) -> int:
        """The allocation bits of all subclusters that a range within a cluster touches."""
        granule = self.granule
        first, stop = at // granule, -(-(at + n) // granule)
        return (1 << stop) - (1 << first)

    def _check_owned(self, guest: int, entry: int) -> None:
        """CorruptImage if the cluster of a COPIED entry is none that guest data may be written to."""
        host = entry & q.OFFSET_MASK
        if self.data_file is not self.file:
            if host != guest:
                raise self._bad_entry(guest, entry)
            return
        cluster = host >> self._bits
        if entry & self._odd & ~q.ZERO or cluster in self.meta.refcounts.metadata:
            raise self._bad_entry(guest, entry)
        if cluster >= self._known_end:
            self._known_end = -(-self.file.size >> self._bits)
            if cluster >= self._known_end and not self.meta.refcounts.get(cluster):
                raise self._bad_entry(guest, entry)

    _known_end = 0  # clusters before it lie within the file

    def _write(self, offset: int, buffers: Sequence[memoryview], length: int) -> None:
        cursor = Cursor(buffers)
        while length:
            host, n = self._in_place(offset, length)
            if n:
                self.data_file.pwritev(cursor.take(n), host)
            else:
                n = self._write_new(offset, cursor, length)
            offset += n
            length -= n

    def _write_new(self, offset: int, cursor: Cursor, length: int) -> int:
        """Write the first part of the range to clusters that aren't in use yet. Returns its length."""
        bits, mask = self._bits, self._mask
        table = self.meta.writable_table(offset >> self._l1_shift)
        index = (offset >> bits) & self._l2_mask
        at = offset & mask
        length = min(length, ((self._l2_mask + 1 - index) << bits) - at)
        entry = table.entries[index * self.meta.stride]
        granule = self.granule
        full = False
        placed = not self._wants_cluster(entry)
        if placed:  # preallocated, or some of its subclusters are
            self._check_owned(offset - at, entry)
            cluster, count, fresh = (entry & q.OFFSET_MASK) >> bits, 1, False
        else:
            wanted = 1
            full = not self._plain and bool(entry & (q.OFFSET_MASK | q.COMPRESSED))
            if full:  # a shared or compressed cluster is copied whole: subclusters can't be in two places
                granule = mask + 1
            else:
                wanted = self._count_wanting(table.entries, index, index - (-(at + length) >> bits))
            cluster, count, fresh = self._allocate(offset >> bits, wanted)
        n = min(length, (count << bits) - at)
        try:
            self._fill_and_write(offset, cursor.take(n), n, (cluster << bits) + at, granule, fresh)
        except BaseException:
            if not placed and self.data_file is self.file:
                self.meta.release_unused(cluster, count)
            raise
        self._link(table, index, at, n, cluster, full)
        return n

    def _wants_cluster(self, entry: int) -> bool:
        """True if data can't go to the cluster that the entry names."""
        if self.data_file is not self.file:
            return not entry & (q.COPIED | q.OFFSET_MASK)
        return not entry & q.COPIED or bool(entry & q.COMPRESSED) or not entry & q.OFFSET_MASK

    def _count_wanting(self, entries: array[int], index: int, stop: int) -> int:
        """How many entries from `index` on, before `stop`, want clusters that can be written together."""
        stride = self.meta.stride
        count = 1
        while index + count < stop:
            entry = entries[(index + count) * stride]
            if not self._wants_cluster(entry) or (stride == 2 and entry & (q.OFFSET_MASK | q.COMPRESSED)):
                break
            count += 1
        return count

    def _allocate(self, guest_cluster: int, wanted: int) -> tuple[int, int, bool]:
        """(first cluster, count, whether what was never written there reads as zeros)."""
        if self.data_file is not self.file:
            return guest_cluster, wanted, guest_cluster << self._bits >= self.data_file.size
        cluster, count = self.meta.refcounts.allocate(wanted)
        return cluster, count, cluster << self._bits >= self.file.size

    def _fill_and_write(
        self, offset: int, pieces: list[memoryview], n: int, host: int, granule: int, fresh: bool
    ) -> None:
        """Write guest bytes at their new place, with the old bytes around them up to whole granules."""
        data: list[Buffer] = list(pieces)
        before = offset % granule
        after = -(offset + n) % granule
        if before:
            head = self._old_bytes(offset - before, before)
            if head is not None or not fresh:
                data.insert(0, head if head is not None else bytes(before))
                host -= before
        if after:
            tail = self._old_bytes(offset + n, after)
            if tail is not None or not fresh:
                data.append(tail if tail is not None else bytes(after))
        self.data_file.pwritev(data, host)

    def _old_bytes(self, offset: int, length: int) -> bytearray | None:
        """What the disk holds there; None for zeros."""
        inside = min(length, self.size - offset)
        if inside <= 0:
            return None
        runs = self.map_range(offset, inside)
        assert runs is not None
        if all(kind == ZERO for kind, _, _ in runs):
            return None
        old = bytearray(length)
        read_chain(self, offset, [memoryview(old)[:inside]], runs)
        return old

    def _link(self, table: Table, index: int, at: int, n: int, cluster: int, full: bool) -> None:
        """Name the clusters that hold `n` bytes from `at` on in the entries from `index` on; let the old ones go."""
        bits, stride, entries = self._bits, self.meta.stride, table.entries
        old: list[int] = []
        first = index
        before = entries[index * stride : (index - (-(at + n) >> bits)) * stride]
        while n:
            part = min(n, self._mask + 1 - at)
            slot = index * stride
            entry = (cluster << bits) | q.COPIED
            if (entries[slot] ^ entry) & (q.OFFSET_MASK | q.COMPRESSED):
                old.append(entries[slot])
            entries[slot] = entry
            if stride == 2:
                covered = self._subclusters(at, part)
                bitmap = (entries[slot + 1] | covered) & ~(covered << 32)
                entries[slot + 1] = q.SUBCLUSTERS_ALL_ALLOCATED if full else bitmap
            n -= part
            at = 0
            index += 1
            cluster += 1
        self.meta.changed(table, first * stride, before)
        self._unlink(old)

    def _unlink(self, entries: list[int]) -> None:
        """The clusters that these former entries named are no longer referred to."""
        bits = self._bits
        for entry in entries:
            if entry & q.COMPRESSED:
                host, length = locate(entry, bits)
                first = host >> bits
                self.meta.unlink(first, ((host + length - 1) >> bits) - first + 1)
            elif entry & q.OFFSET_MASK and self.data_file is self.file:
                cluster = (entry & q.OFFSET_MASK) >> bits
                if entry & self._odd & ~q.ZERO or cluster in self.meta.refcounts.metadata:
                    raise CorruptImage(f"{self.file.path}: an L2 entry was {entry:#x}")
                self.meta.unlink(cluster, 1)

    def preallocate(self, tell: Callable[[int], object] = lambda done: None) -> None:
        """Give every cluster of the disk a place. Only for a new image without backing: nothing is written there.

        `tell` learns how many bytes of the disk have theirs.
        """
        clusters = -(-self.size // self.cluster_size)
        number = 0
        while number < clusters:
            tell(number << self._bits)
            with self.changing():
                offset = number << self._bits
                table = self.meta.writable_table(offset >> self._l1_shift)
                index = number & self._l2_mask
                wanted = min(clusters - number, self._l2_mask + 1 - index)
                wanted = self._count_wanting(table.entries, index, index + wanted)
                cluster, count, _ = self._allocate(number, wanted)
                self._link(table, index, 0, count << self._bits, cluster, full=False)
                number += count

    # -- zeroes and discard ------------------------------------------------------------------------------------------

    def write_zeroes(self, offset: int, length: int) -> None:
        """The range reads as zeros; clusters that are in place stay allocated."""
        self._zero_range(offset, length, free=False)

    def discard(self, offset: int, length: int) -> None:
        """The range reads as zeros; whole clusters are freed."""
        self._zero_range(offset, length, free=True)

    def _zero_range(self, offset: int, length: int, *, free: bool) -> None:
        end = offset + length
        granule = self.granule
        while offset < end:
            span = min(end, ((offset >> self._l1_shift) + 1) << self._l1_shift)
            stop = span
            if span == self.size:  # the rest of the last cluster is nobody's
                stop = -(-span // granule) * granule
            with self.changing():
                if self.header.data_file_raw and self.data_file.punch(offset, span - offset):
                    offset = span
                    continue
                first, last = -(-offset // granule) * granule, stop // granule * granule
                if first >= last:
                    self._write_zero_bytes(offset, span - offset)
                else:
                    self._write_zero_bytes(offset, first - offset)
                    if self.header.data_file_raw or (self.header.version == 2 and self.backing is not None):
                        self._write_zero_bytes(first, min(last, span) - first)
                    else:
                        self._zero_granules(first, last - first, free)
                    self._write_zero_bytes(last, span - last)
            offset = span

    def _write_zero_bytes(self, offset: int, length: int) -> None:
        """Write zeros, unless there are zeros."""
        while length > 0:
            n = min(length, len(ZEROS))
            runs = self.map_range(offset, n)
            assert runs is not None
            if any(kind != ZERO for kind, _, _ in runs):
                self._write(offset, [ZEROS[:n]], n)
            offset += n
            length -= n

    def _zero_granules(self, offset: int, length: int, free: bool) -> None:
        """Zero whole granules under one L2 table, by their entries."""
        l1_index = offset >> self._l1_shift
        if not self.meta.l1[l1_index] & q.OFFSET_MASK and self.backing is None:
            return
        table = self.meta.writable_table(l1_index)
        size = self._mask + 1
        while length:
            at = offset & self._mask
            n = min(length, size - at)
            index = (offset >> self._bits) & self._l2_mask
            if self._plain:
                self._zero_cluster(table, index, offset, free)
            else:
                self._zero_subclusters(table, index, offset, n, free)
            offset += n
            length -= n

    def _zero_cluster(self, table: Table, index: int, offset: int, free: bool) -> None:
        entry = table.entries[index]
        has_host = bool(entry & (q.OFFSET_MASK | q.COMPRESSED | q.COPIED))
        empty = q.ZERO if self.backing is not None else 0
        if not has_host:
            new = empty if not entry & q.ZERO else entry
        elif free or not entry & q.COPIED or self.header.version == 2:
            new = empty
        else:
            new = entry | q.ZERO
        if new == entry:
            return
        before = table.entries[index : index + 1]
        table.entries[index] = new
        self.meta.changed(table, index, before)
        if has_host and not new & q.COPIED:
            self._let_go(entry, offset)

    def _zero_subclusters(self, table: Table, index: int, offset: int, n: int, free: bool) -> None:
        entry, bitmap = table.entries[2 * index], table.entries[2 * index + 1]
        covered = self._subclusters(offset & self._mask, n)
        has_host = bool(entry & (q.OFFSET_MASK | q.COMPRESSED | q.COPIED))
        new, zeroed = entry, bitmap & ~covered | covered << 32
        if n <= self._mask:
            if entry & q.COMPRESSED:
                self._write_zero_bytes(offset, n)
                return
            if self.backing is None and not bitmap & covered:
                return
        elif has_host and (free or not entry & q.COPIED):
            new, zeroed = 0, q.SUBCLUSTERS_ALL_ZERO if self.backing is not None else 0
        elif not has_host and self.backing is None:
            return
        if (new, zeroed) == (entry, bitmap):
            return
        before = table.entries[2 * index : 2 * index + 2]
        table.entries[2 * index], table.entries[2 * index + 1] = new, zeroed
        self.meta.changed(table, 2 * index, before)
        if has_host and not new:
            self._let_go(entry, offset)

    def _let_go(self, entry: int, offset: int) -> None:
        """A cluster of the guest has no place any more."""
        if self.data_file is self.file:
            self._unlink([entry])
        else:
            self.data_file.punch(offset, self._mask + 1)
