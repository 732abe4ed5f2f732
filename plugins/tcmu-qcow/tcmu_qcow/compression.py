"""Compressed clusters: where their bytes are, and how they become a cluster again."""

from __future__ import annotations

import importlib.util
import threading
import zlib
from collections import OrderedDict

from tcmu_qcow import layout as q
from tcmu_qcow.errors import CorruptImage, UnsupportedImage

CACHE_BYTES = 4 << 20


def locate(descriptor: int, cluster_bits: int) -> tuple[int, int]:
    """Host offset and most bytes of a compressed cluster (Compressed Clusters Descriptor)."""
    shift = 62 - (cluster_bits - 8)
    offset = descriptor & ((1 << shift) - 1)
    sectors = ((descriptor & ~(q.COPIED | q.COMPRESSED)) >> shift) + 1
    return offset, sectors * q.SECTOR - offset % q.SECTOR


def locate_v1(descriptor: int, cluster_bits: int) -> tuple[int, int]:
    """The same for version 1: the size is in bytes."""
    shift = 63 - cluster_bits
    return descriptor & ((1 << shift) - 1), (descriptor >> shift) & ((1 << cluster_bits) - 1)


def require_zstd(path: str) -> None:
    """UnsupportedImage unless zstd clusters can be read."""
    if importlib.util.find_spec("zstandard") is None:
        raise UnsupportedImage(f"{path}: its “compression type” is zstd: pip install zstandard")


def decompress(data: bytes, cluster_size: int, kind: q.Compression) -> bytes:
    """Exactly a cluster; never more memory than that, whatever the data claims. CorruptImage if it isn't one."""
    try:
        if kind is q.Compression.ZLIB:
            out = zlib.decompressobj(-15).decompress(data, cluster_size)  # raw deflate; QEMU's window is 12 bits
        else:
            import zstandard

            try:
                with zstandard.ZstdDecompressor(max_window_size=1 << 27).stream_reader(data) as reader:
                    out = reader.read(cluster_size)
            except zstandard.ZstdError as error:
                raise CorruptImage(f"a compressed cluster can't be decompressed: {error}") from error
    except zlib.error as error:
        raise CorruptImage(f"a compressed cluster can't be decompressed: {error}") from error
    if len(out) != cluster_size:
        raise CorruptImage(f"a compressed cluster gives {len(out)} bytes instead of {cluster_size}")
    return out


class ClusterCache:
    """The latest decompressed clusters, by descriptor. Safe to share between threads."""

    def __init__(self, cluster_size: int) -> None:
        self._room = max(1, CACHE_BYTES // cluster_size)
        self._clusters: OrderedDict[int, bytes] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, descriptor: int) -> bytes | None:
        """The cluster, if it is still here."""
        with self._lock:
            cluster = self._clusters.get(descriptor)
            if cluster is not None:
                self._clusters.move_to_end(descriptor)
            return cluster

    def put(self, descriptor: int, cluster: bytes) -> None:
        """Keep a cluster, in the place of the one that was not asked for longest."""
        with self._lock:
            self._clusters[descriptor] = cluster
            if len(self._clusters) > self._room:
                self._clusters.popitem(last=False)
