"""Another size for an open image. What a disk gains reads as zeros, whatever a backing file has there."""

from __future__ import annotations

from tcmu_qcow import layout as q
from tcmu_qcow.chain import BACKING, ZERO
from tcmu_qcow.errors import ImageError, UnsupportedImage
from tcmu_qcow.snapshots import read_snapshots
from tcmu_qcow.tables import encode
from tcmu_qcow.write import WritableQcow2


def resize_image(image: WritableQcow2, size: int) -> None:
    """Grow or shrink the disk to `size` bytes."""
    header, path = image.header, image.file.path
    if size <= 0:
        raise ImageError(f"{path}: a disk can't have {size} bytes")
    if size == header.size:
        return
    if header.bitmaps is not None:
        raise UnsupportedImage(
            f"{path}: an image with persistent bitmaps can't be resized; remove them with qemu-img bitmap"
        )
    if header.nb_snapshots and not all(snapshot.has_own_size for snapshot in read_snapshots(image.file, header)[0]):
        raise UnsupportedImage(f"{path}: an image with snapshots that don't know their own size can't be resized")
    if size > header.size:
        _grow_l1(image, size)
        _hide_what_lies_behind(image, size)
        image.flush()
        if header.data_file_raw:
            image.data_file.truncate(max(size, image.data_file.size))
    else:
        first = -(-size // image.granule) * image.granule
        if first < header.size:
            image.discard(first, header.size - first)
        image.flush()
    with image.changing():
        image.file.pwrite(q.U64.pack(size), q.AT_SIZE)
        image.meta.sync()
        header.size = image.size = size


def _grow_l1(image: WritableQcow2, size: int) -> None:
    header, meta = image.header, image.meta
    entries = header.l1_entries_for(size)
    if entries <= len(meta.l1):
        return
    if entries * 8 > q.MAX_L1_BYTES:
        raise ImageError(f"{image.file.path}: {size} bytes are too many for clusters of {header.cluster_size}")
    with image.changing():
        meta.write_back()
        l1 = meta.l1[:]
        l1.extend([0] * (entries - len(l1)))
        clusters = -(-entries * 8 >> header.cluster_bits)
        cluster = meta.refcounts.allocate_contiguous(clusters)
        meta.refcounts.metadata.update(range(cluster, cluster + clusters))
        offset = cluster << header.cluster_bits
        image.file.pwrite(encode(l1, 64).ljust(clusters << header.cluster_bits, b"\0"), offset)
        meta.refcounts.write_back()
        meta.barrier()
        image.file.pwrite(q.L1_FIELDS.pack(entries, offset), q.AT_L1)
        meta.sync()
        old, count = meta.l1_offset >> header.cluster_bits, -(-len(meta.l1) * 8 >> header.cluster_bits)
        meta.l1, meta.l1_offset = l1, offset
        header.l1_size, header.l1_table_offset = entries, offset
        meta.free([(old, count)])


def _hide_what_lies_behind(image: WritableQcow2, size: int) -> None:
    """Zero what would come to light: the rest of the last cluster, and a backing file that is longer."""
    old = image.header.size
    below = image.backing.size if image.backing is not None else 0
    end = min(size, max(-(-old // image.cluster_size) * image.cluster_size, below))
    with image.lock:
        runs = image.map_range(old, end - old) if end > old else []
    assert runs is not None
    at = old
    for kind, _, length in runs:
        n = min(length, max(0, below - at)) if kind == BACKING else length
        if kind != ZERO and n:
            image.write_zeroes(at, n)
        at += length
