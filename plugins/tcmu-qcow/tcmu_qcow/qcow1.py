"""Version 1 images: read-only, two levels of tables, everything else absent."""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Sequence

from tcmu_qcow import layout as q
from tcmu_qcow.chain import BACKING, COMPRESSED, DATA, ZERO, Node, Run, read_chain, read_chain_nowait
from tcmu_qcow.compression import ClusterCache, decompress, locate_v1
from tcmu_qcow.errors import CorruptImage, ImageError, UnsupportedImage
from tcmu_qcow.files import HostFile
from tcmu_qcow.tables import decode

L2_TABLES_KEPT = 256
LARGEST_L1 = 32 << 20  # bytes; the format has no limit of its own


class Qcow1Image(Node):
    """One qcow version 1 file."""

    read_only = True

    def __init__(self, file: HostFile) -> None:
        raw = file.pread(q.HEADER_V1.size, 0)
        if len(raw) < q.HEADER_V1.size or raw[:4] != q.MAGIC:
            raise CorruptImage(f"{file.path}: not a qcow image")
        (
            _,
            version,
            backing_offset,
            backing_size,
            _,
            size,
            self._bits,
            self._l2_bits,
            _,
            crypt,
            l1_offset,
        ) = q.HEADER_V1.unpack(raw)
        if version != 1:
            raise UnsupportedImage(f"{file.path}: qcow version {version}")
        if not q.MIN_CLUSTER_BITS <= self._bits <= q.V1_MAX_CLUSTER_BITS:
            raise UnsupportedImage(f"{file.path}: cluster_bits {self._bits} is not in 9-16")
        if not q.V1_MIN_L2_BITS <= self._l2_bits <= q.V1_MAX_L2_BITS:
            raise UnsupportedImage(f"{file.path}: l2_bits {self._l2_bits} is not in 6-13")
        if crypt:
            name = q.Crypt(crypt).name if crypt in list(q.Crypt) else f"method {crypt}"
            raise UnsupportedImage(f"{file.path}: the image is encrypted ({name}), which is not supported")
        super().__init__(file, size)
        self._size: int = 1 << self._bits
        self._l1_shift = self._bits + self._l2_bits
        entries = -(-size >> self._l1_shift)
        if entries * 8 > LARGEST_L1:
            raise ImageError(f"{file.path}: an L1 table of {entries} entries is larger than 32 MiB")
        if l1_offset + entries * 8 > file.size:
            raise CorruptImage(f"{file.path}: the L1 table at {l1_offset:#x} reaches past the end of the file")
        self._l1 = decode(file.pread(entries * 8, l1_offset), 64)
        self.backing_name: str | None = None
        if backing_offset:
            name_bytes = file.pread(backing_size, backing_offset) if backing_size <= q.MAX_BACKING_NAME else b""
            if len(name_bytes) != backing_size:
                raise CorruptImage(f"{file.path}: the backing file name lies outside the file")
            self.backing_name = name_bytes.decode("utf-8", "surrogateescape") or None
        self._tables: OrderedDict[int, array[int]] = OrderedDict()
        self._clusters = ClusterCache(1 << self._bits)

    @property
    def cluster_size(self) -> int:
        """Bytes in a cluster."""
        return self._size

    def _table(self, index: int) -> array[int] | None:
        table = self._tables.get(index)
        if table is None and self._l1[index]:
            offset, length = self._l1[index], 8 << self._l2_bits
            if offset + length > -(-self.file.size // self.cluster_size) * self.cluster_size:
                raise CorruptImage(
                    f"{self.file.path}: L1 entry {index} points to {offset:#x}, where no L2 table can be"
                )
            table = decode(self.file.pread(length, offset).ljust(length, b"\0"), 64)
            self._tables[index] = table
            if len(self._tables) > L2_TABLES_KEPT:
                self._tables.popitem(last=False)
        return table

    def map_range(self, offset: int, length: int, load: bool = True) -> list[Run] | None:
        """Map a range of this layer; see Node.map_range."""
        runs: list[Run] = []
        unallocated = BACKING if self.backing is not None else ZERO
        size = self.cluster_size
        while length:
            at = offset % size
            n = min(length, size - at)
            l1_index = offset >> self._l1_shift
            if not load and self._l1[l1_index] and l1_index not in self._tables:
                return None
            table = self._table(l1_index)
            entry = table[(offset >> self._bits) & ((1 << self._l2_bits) - 1)] if table is not None else 0
            if not entry:
                kind, host = unallocated, 0
            elif entry & q.V1_COMPRESSED:
                kind, host = COMPRESSED, entry
            elif entry % q.SECTOR:
                raise CorruptImage(f"{self.file.path}: the L2 entry of guest offset {offset:#x} is {entry:#x}")
            else:
                kind, host = DATA, entry + at
            last = runs[-1] if runs else (-1, 0, 0)
            if kind == last[0] and kind != COMPRESSED and (kind != DATA or host == last[1] + last[2]):
                runs[-1] = (kind, last[1], last[2] + n)
            else:
                runs.append((kind, host, n))
            offset += n
            length -= n
        return runs

    def read(self, offset: int, buffers: Sequence[memoryview]) -> None:
        """Fill the buffers; what lies past the end of the disk reads as zeros."""
        read_chain(self, offset, buffers)

    def read_nowait(self, offset: int, buffers: Sequence[memoryview], length: int) -> bool:
        """The same if it takes no wait, else False. The range lies within the disk."""
        if not self.lock.acquire(blocking=False):
            return False
        try:
            runs = self.map_range(offset, length, load=False)
        finally:
            self.lock.release()
        return runs is not None and read_chain_nowait(self, offset, buffers, runs)

    def read_compressed(self, descriptor: int) -> bytes:
        """Decompress a cluster, or take it from the latest ones."""
        cluster = self._clusters.get(descriptor)
        if cluster is None:
            offset, length = locate_v1(descriptor, self._bits)
            cluster = decompress(self.file.pread(length, offset), self.cluster_size, q.Compression.ZLIB)
            self._clusters.put(descriptor, cluster)
        return cluster

    def cached_compressed(self, descriptor: int) -> bytes | None:
        """Return a cluster that was decompressed lately."""
        return self._clusters.get(descriptor)
