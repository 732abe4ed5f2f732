"""An image and its backing files as one disk: which layer has the data, and how it is read."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

from tcmu_core.posix import Cursor, fill_zero
from tcmu_qcow.files import HostFile

# What a run of guest bytes is. Plain integers: they are compared once for every cluster of a command.
ZERO = 0  # reads as zeros, in this layer
DATA = 1  # at a host offset of data_file
BACKING = 2  # not in this layer
COMPRESSED = 3  # the host offset is the descriptor

Run = tuple[int, int, int]  # kind, host offset, bytes


class Node(ABC):
    """One layer: a file in some format."""

    def __init__(self, file: HostFile, size: int) -> None:
        self.file = file
        self.data_file = file
        self.size = size
        self.backing: Node | None = None
        self.lock = threading.Lock()

    @abstractmethod
    def map_range(self, offset: int, length: int, load: bool = True) -> list[Run] | None:
        """What the bytes are, in order, merged. Under `lock`. None if not `load` and a table is not in memory."""

    def read_compressed(self, descriptor: int) -> bytes:
        """The cluster that a COMPRESSED run stands for."""
        raise NotImplementedError(type(self).__name__)  # that of a raw file has no such runs

    def cached_compressed(self, descriptor: int) -> bytes | None:
        """The same if it takes no I/O, else None."""
        return None

    @property
    def cluster_size(self) -> int:
        """Bytes in a cluster; 1 where there are none."""
        return 1

    def close(self) -> None:
        """Close the files of this layer."""
        self.file.close()

    def layers(self) -> Iterator[Node]:
        """This layer and all below it, from the top."""
        node: Node | None = self
        while node is not None:
            yield node
            node = node.backing


def read_chain(node: Node, offset: int, buffers: Sequence[memoryview], runs: list[Run] | None = None) -> None:
    """Fill the buffers from `offset` of the disk that `node` is the top of. What lies past its size reads as zeros.

    `runs` is the top layer's map of just these bytes, where the caller has it. Iterative: a chain may be of any depth.
    """
    work: list[tuple[Node, int, Sequence[memoryview], list[Run] | None]] = [(node, offset, buffers, runs)]
    while work:
        node, offset, buffers, runs = work.pop()
        if runs is None:
            length = sum(map(len, buffers))
            inside = min(length, max(0, node.size - offset))
            if inside < length:
                cursor = Cursor(buffers)
                buffers = cursor.take(inside)
                fill_zero(cursor.take(length - inside))
            if not inside:
                continue
            with node.lock:
                runs = node.map_range(offset, inside)
            assert runs is not None
        whole = len(runs) == 1
        cursor = Cursor(buffers)
        for kind, host, length in runs:
            pieces = buffers if whole else cursor.take(length)
            if kind == DATA:
                node.data_file.preadv(pieces, host)
            elif kind == ZERO:
                fill_zero(pieces)
            elif kind == BACKING:
                assert node.backing is not None
                work.append((node.backing, offset, pieces, None))
            else:
                _copy_from_cluster(node.read_compressed(host), offset % node.cluster_size, pieces)
            offset += length


def read_chain_nowait(node: Node, offset: int, buffers: Sequence[memoryview], runs: list[Run]) -> bool:
    """read_chain where it takes no wait: tables and data in memory. False otherwise, with the buffers in any state."""
    work = [(node, offset, buffers, runs)]
    while work:
        node, offset, buffers, runs = work.pop()
        whole = len(runs) == 1
        cursor = Cursor(buffers)
        for kind, host, length in runs:
            pieces = buffers if whole else cursor.take(length)
            if kind == DATA:
                if not node.data_file.preadv_nowait(pieces, host, length):
                    return False
            elif kind == ZERO:
                fill_zero(pieces)
            elif kind == COMPRESSED:
                cluster = node.cached_compressed(host)
                if cluster is None:
                    return False
                _copy_from_cluster(cluster, offset % node.cluster_size, pieces)
            else:
                below = node.backing
                if below is None or offset + length > below.size or not below.lock.acquire(blocking=False):
                    return False
                try:
                    deeper = below.map_range(offset, length, load=False)
                finally:
                    below.lock.release()
                if deeper is None or (len(deeper) > 1 and below.backing is not None):
                    return False
                work.append((below, offset, pieces, deeper))
            offset += length
    return True


def _copy_from_cluster(cluster: bytes, at: int, buffers: Sequence[memoryview]) -> None:
    for buffer in buffers:
        n = len(buffer)
        buffer[:] = cluster[at : at + n]
        at += n


def chain_extents(node: Node, offset: int, length: int) -> Iterator[tuple[int, int, bool]]:
    """(offset, length, has data in some layer) for all of the range, in order, neighbours merged."""
    last: tuple[int, int, bool] | None = None
    work: list[tuple[Node | None, int, int, bool]] = [(node, offset, length, False)]
    while work:
        layer, offset, length, data = work.pop()
        if layer is not None:
            work.extend(reversed(_layer_extents(layer, offset, length)))
        elif last is not None and last[2] == data:
            last = (last[0], last[1] + length, data)
        else:
            if last is not None:
                yield last
            last = (offset, length, data)
    if last is not None:
        yield last


def _layer_extents(node: Node, offset: int, length: int) -> list[tuple[Node | None, int, int, bool]]:
    """One layer's answer: (the layer to ask instead or None, offset, length, has data)."""
    pieces: list[tuple[Node | None, int, int, bool]] = []
    inside = min(length, max(0, node.size - offset))
    if inside:
        with node.lock:
            runs = node.map_range(offset, inside)
        assert runs is not None
        at = offset
        for kind, _, n in runs:
            pieces.append((node.backing if kind == BACKING else None, at, n, kind in (DATA, COMPRESSED)))
            at += n
    if inside < length:
        pieces.append((None, offset + inside, length - inside, False))
    return pieces
