"""A qcow2 image: its cluster mapping, reads, and what ties the parts together. Writing is in write.py."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from tcmu_qcow import layout as q
from tcmu_qcow.chain import BACKING, COMPRESSED, DATA, ZERO, Node, Run, read_chain, read_chain_nowait
from tcmu_qcow.compression import ClusterCache, decompress, locate
from tcmu_qcow.errors import CorruptImage
from tcmu_qcow.files import HostFile
from tcmu_qcow.header import Header
from tcmu_qcow.layout import OFFSET_MASK
from tcmu_qcow.metadata import Metadata
from tcmu_qcow.snapshots import Snapshot
from tcmu_qcow.tables import load_l1

DEFAULT_CACHE = 32 << 20  # bytes of L2 tables; 64 KiB clusters: maps 256 GiB


class Qcow2Image(Node):
    """One open qcow2 file. `snapshot` shows an internal snapshot instead of the active disk, read-only."""

    def __init__(
        self,
        file: HostFile,
        header: Header,
        data_file: HostFile | None = None,
        *,
        read_only: bool,
        cache_bytes: int = DEFAULT_CACHE,
        snapshot: Snapshot | None = None,
        journal: bool = True,
    ) -> None:
        super().__init__(file, header.size)
        self.data_file = data_file or file
        self.header = header
        self.read_only = read_only or snapshot is not None
        self.meta = Metadata(
            file, self.data_file, header, read_only=self.read_only, cache_bytes=cache_bytes, journal=journal
        )
        if snapshot is not None:
            self.meta.l1 = load_l1(file, snapshot.l1_table_offset, snapshot.l1_size)
            self.size = snapshot.disk_size
        self.broken: CorruptImage | None = None  # why nothing may be written any more
        self.lost: str | None = None  # what a killed process before us had not flushed, if that could not be recovered
        self._clusters = ClusterCache(header.cluster_size)
        self._bits = header.cluster_bits
        self._mask = header.cluster_size - 1
        self._l1_shift = header.cluster_bits + header.l2_bits
        self._l2_mask = (1 << header.l2_bits) - 1
        # An entry with none of these bits is a plain data cluster, or unallocated if it has no offset. Reserved bits
        # (1 to 8 and 56 to 61) are ignored, as QEMU does (Standard Cluster Descriptor).
        self._odd = q.OFFSET_MASK & self._mask | q.COMPRESSED | q.ZERO
        self._l2 = self.meta.l2
        self._plain = not header.extended_l2
        self._one_file = self.data_file is file
        self._simple = self._plain and self._one_file

    @property
    def cluster_size(self) -> int:
        """Bytes in a cluster."""
        return self.header.cluster_size

    @property
    def granule(self) -> int:
        """The bytes that are allocated at once: a cluster, or a subcluster."""
        return self.cluster_size // q.SUBCLUSTERS if self.header.extended_l2 else self.cluster_size

    # -- mapping -----------------------------------------------------------------------------------------------------

    def map_range(self, offset: int, length: int, load: bool = True) -> list[Run] | None:
        """Map a range of this layer; see Node.map_range."""
        runs: list[Run] = []
        unallocated = BACKING if self.backing is not None else ZERO
        while length:
            l1_index = offset >> self._l1_shift
            span = min(length, ((l1_index + 1) << self._l1_shift) - offset)
            table = self._l2.get(l1_index)
            if table is None:
                if not load and self.meta.l1[l1_index] & q.OFFSET_MASK:
                    return None
                table = self.meta.table(l1_index)
            if table is None:
                if runs and runs[-1][0] == unallocated:
                    runs[-1] = (unallocated, 0, runs[-1][2] + span)
                else:
                    runs.append((unallocated, 0, span))
            else:
                table.used = True
                if self._plain:
                    self._map_clusters(table.entries, offset, span, unallocated, runs)
                else:
                    self._map_subclusters(table.entries, offset, span, unallocated, runs)
            offset += span
            length -= span
        return runs

    def _map_clusters(self, entries: array[int], offset: int, length: int, unallocated: int, runs: list[Run]) -> None:
        size, mask = self._mask + 1, self._mask
        odd, has_data_file = self._odd, self.data_file is not self.file
        index = (offset >> self._bits) & self._l2_mask
        at = offset & mask
        last_kind, last_host, last_length = runs.pop() if runs else (-1, 0, 0)
        while length:
            n = min(length, size - at)
            entry = entries[index]
            if not entry & odd and (entry & q.OFFSET_MASK or (has_data_file and entry & q.COPIED)):
                kind, host = DATA, (entry & q.OFFSET_MASK) + at
                if has_data_file and host != offset:
                    raise self._bad_entry(offset, entry)
            elif not entry & odd:
                kind, host = unallocated, 0
            elif entry & q.COMPRESSED:
                kind, host = COMPRESSED, entry
            elif entry & q.ZERO and self.header.version > 2:
                kind, host = ZERO, 0
            else:
                raise self._bad_entry(offset, entry)
            if kind == last_kind and ((kind == DATA and host == last_host + last_length) or kind in (ZERO, BACKING)):
                last_length += n
            else:
                if last_length:
                    runs.append((last_kind, last_host, last_length))
                last_kind, last_host, last_length = kind, host, n
            offset += n
            length -= n
            index += 1
            at = 0
        runs.append((last_kind, last_host, last_length))

    def _map_subclusters(
        self, entries: array[int], offset: int, length: int, unallocated: int, runs: list[Run]
    ) -> None:
        size, mask = self._mask + 1, self._mask
        granule = size // q.SUBCLUSTERS
        has_data_file = self.data_file is not self.file
        index = (offset >> self._bits) & self._l2_mask
        at = offset & mask
        last_kind, last_host, last_length = runs.pop() if runs else (-1, 0, 0)
        while length:
            entry, bitmap = entries[2 * index], entries[2 * index + 1]
            cluster_host = entry & q.OFFSET_MASK
            if not entry & q.COMPRESSED:
                allocated = cluster_host or (has_data_file and entry & q.COPIED)
                if (
                    cluster_host & mask
                    or bitmap & bitmap >> 32 & 0xFFFF_FFFF
                    or (bitmap & 0xFFFF_FFFF and not allocated)
                ):
                    raise self._bad_entry(offset, entry)
                if has_data_file and allocated and cluster_host != offset - at:
                    raise self._bad_entry(offset, entry)
            while at < size and length:
                if entry & q.COMPRESSED:
                    kind, host, n = COMPRESSED, entry, min(length, size - at)
                else:
                    n = min(length, granule - at % granule)
                    bit = at // granule
                    if bitmap >> bit & 1:
                        kind, host = DATA, cluster_host + at
                    elif bitmap >> (bit + 32) & 1:
                        kind, host = ZERO, 0
                    else:
                        kind, host = unallocated, 0
                if kind == last_kind and (
                    (kind == DATA and host == last_host + last_length) or kind in (ZERO, BACKING)
                ):
                    last_length += n
                else:
                    if last_length:
                        runs.append((last_kind, last_host, last_length))
                    last_kind, last_host, last_length = kind, host, n
                offset += n
                length -= n
                at += n
            index += 1
            at = 0
        runs.append((last_kind, last_host, last_length))

    def _bad_entry(self, offset: int, entry: int) -> CorruptImage:
        return CorruptImage(f"{self.file.path}: the L2 entry of guest offset {offset:#x} is {entry:#x}")

    # -- reading -----------------------------------------------------------------------------------------------------

    def read(self, offset: int, buffers: Sequence[memoryview]) -> None:
        """Fill the buffers; what lies past the end of the disk reads as zeros."""
        length = sum(map(len, buffers))
        if offset + length > self.size:
            read_chain(self, offset, buffers)
            return
        with self.lock:
            runs = self.map_range(offset, length)
            self.meta.enter_io()
        try:
            read_chain(self, offset, buffers, runs)
        finally:
            self.meta.leave_io()

    def read_nowait(self, offset: int, buffers: Sequence[memoryview], length: int) -> bool:
        """The same if it takes no wait, else False. The range lies within the disk."""
        lock = self.lock
        if not lock.acquire(False):
            return False
        try:
            table = self._l2.get(offset >> self._l1_shift) if self._simple else None
            if table is not None:
                mask = self._mask
                at = offset & mask
                entries = table.entries
                index = (offset >> self._bits) & self._l2_mask
                entry = entries[index]
                host = entry & OFFSET_MASK
                if (
                    host
                    and not entry & self._odd
                    and (at + length <= mask + 1 or self._adjoin(entries, index, entry, at + length))
                ):
                    table.used = True
                    return self.file.preadv_nowait(buffers, host + at, length)
            runs = self.map_range(offset, length, load=False)
            return runs is not None and read_chain_nowait(self, offset, buffers, runs)
        finally:
            lock.release()

    def place_to_read(self, offset: int, length: int) -> tuple[HostFile, int] | None:
        """Where all of the range lies in one piece, if that can be told without a wait: the file and the offset.

        The clusters stay as they are until `release_place`.
        """
        if not self.lock.acquire(False):
            return None
        try:
            runs = self.map_range(offset, length, load=False)
            if runs is None or len(runs) != 1 or runs[0][0] != DATA:
                return None
            self.meta.enter_io()
            return self.data_file, runs[0][1]
        finally:
            self.lock.release()

    def release_place(self) -> None:
        """What was read or written at a place has ended."""
        self.meta.leave_io()

    def _adjoin(self, entries: array[int], index: int, entry: int, length: int) -> bool:
        """Whether `length` bytes lie in one piece, from the cluster of `entry` on, which stands at `index`."""
        size = self._mask + 1
        last = index + (length - 1 >> self._bits)
        if last > self._l2_mask:
            return False
        for following in entries[index + 1 : last + 1]:
            entry += size
            if following != entry:  # flags, too, are the same
                return False
        return True

    def read_compressed(self, descriptor: int) -> bytes:
        """Decompress a cluster, or take it from the latest ones."""
        cluster = self._clusters.get(descriptor)
        if cluster is None:
            offset, length = locate(descriptor, self._bits)
            cluster = decompress(self.file.pread(length, offset), self.cluster_size, self.header.compression)
            self._clusters.put(descriptor, cluster)
        return cluster

    def cached_compressed(self, descriptor: int) -> bytes | None:
        """Return a cluster that was decompressed lately."""
        return self._clusters.get(descriptor)

    # -- life --------------------------------------------------------------------------------------------------------

    def flush(self) -> None:
        """Everything written before is on stable storage when this returns."""
        if self.read_only:
            return
        meta = self.meta
        with self.lock, self._corruption_noted():
            self.check_usable()
            meta.write_back()
            ready = meta.take_awaiting()
        try:
            meta.sync()
        except BaseException:
            with self.lock:
                meta.put_awaiting(ready)
            raise
        if ready:
            with self.lock, self._corruption_noted():
                meta.free(ready)

    @contextmanager
    def _corruption_noted(self) -> Iterator[None]:
        """An image that turns out corrupt is not written to again."""
        try:
            yield
        except CorruptImage as error:
            self.broken = error
            raise

    def check_usable(self) -> None:
        """Raise what was found wrong with the image earlier."""
        if self.broken is not None:
            raise CorruptImage(str(self.broken))

    def close(self) -> None:
        """Settle what was written and close the files. Nothing is written to an image that was found corrupt."""
        try:
            with self.lock:
                if not self.read_only and self.broken is None and self.file.fd >= 0:
                    self.meta.settle()
        finally:
            self.meta.end_journal(remove=self.broken is not None)
            if self.data_file is not self.file:
                self.data_file.close()
            self.file.close()
