"""Making a new image."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from tcmu_core import posix
from tcmu_qcow import layout as q
from tcmu_qcow.chain import Node
from tcmu_qcow.errors import ImageError
from tcmu_qcow.files import HostFile
from tcmu_qcow.formats import Format
from tcmu_qcow.header import Header, encode_header, parse_header
from tcmu_qcow.opening import OpenOptions, open_image, resolve
from tcmu_qcow.repair import rebuild_refcounts
from tcmu_qcow.scope import HERE, Allowed
from tcmu_qcow.write import WritableQcow2

PIECE = 64 << 20  # bytes from one report of the progress to the next

Tell = Callable[[int, int, str], object]  # how many bytes are done, of how many, and of what


class Preallocation(StrEnum):
    """QEMU's names for how much is allocated from the start."""

    OFF = "off"
    METADATA = "metadata"
    FALLOC = "falloc"
    FULL = "full"


@dataclass(frozen=True, slots=True)
class CreateOptions:
    """What a new image is to be. Sizes in bytes; a size of None is the backing file's."""

    size: int | None = None
    cluster_size: int = 65536
    backing: str | None = None
    backing_format: Format | None = None
    version: int = 3
    extended_l2: bool = False
    lazy_refcounts: bool = False
    refcount_bits: int = 16
    preallocation: Preallocation = Preallocation.OFF
    allowed: Allowed = HERE  # what the images below the new one may name


def create_image(path: str, options: CreateOptions, tell: Tell = lambda done, total, what: None) -> None:
    """Create `path`, which may not exist yet, telling how far the preallocation is. On failure nothing is left."""
    _check(options)
    size, kind = options.size, options.backing_format
    if options.backing is not None:
        below = _open_below(path, options)
        size = below.size if size is None else size
        kind = kind or _format_of(below)
        for layer in list(below.layers()):
            layer.close()
    if size is None or size <= 0:
        raise ImageError(f"{path}: a new image needs a size")
    header = Header(
        version=options.version,
        cluster_bits=options.cluster_size.bit_length() - 1,
        size=size,
        l1_size=0,
        l1_table_offset=options.cluster_size,
        refcount_table_offset=0,
        refcount_table_clusters=0,
        incompatible_features=int(q.Incompatible.EXTENDED_L2) if options.extended_l2 else 0,
        compatible_features=int(q.Compatible.LAZY_REFCOUNTS) if options.lazy_refcounts else 0,
        refcount_order=options.refcount_bits.bit_length() - 1,
        backing_name=options.backing,
        backing_format=kind.value if kind is not None else None,
    )
    header.l1_size = max(1, header.l1_entries_for(size))
    if header.l1_size * 8 > q.MAX_L1_BYTES:
        raise ImageError(f"{path}: {size} bytes are too many for clusters of {options.cluster_size}")
    cluster = encode_header(header)
    file = HostFile.open(path, read_only=False, create=True)
    try:
        file.pwrite(cluster, 0)
        file.truncate(header.l1_table_offset + -(-header.l1_size * 8 // header.cluster_size) * header.cluster_size)
        rebuild_refcounts(file, header)
        parse_header(file)
        file.close()
        if options.preallocation is not Preallocation.OFF:
            _preallocate(path, options.preallocation, tell)
    except BaseException:
        file.close()
        os.unlink(path)
        raise


def _check(options: CreateOptions) -> None:
    size = options.cluster_size
    if size & (size - 1) or not 1 << q.MIN_CLUSTER_BITS <= size <= 1 << q.MAX_CLUSTER_BITS:
        raise ImageError(f"cluster_size {size} is no power of two from 512 to 2M")
    bits = options.refcount_bits
    if bits not in (1, 2, 4, 8, 16, 32, 64):
        raise ImageError(f"refcount_bits {bits} is no power of two from 1 to 64")
    if options.version == 2 and (options.extended_l2 or options.lazy_refcounts or bits != 16):
        raise ImageError("extended_l2, lazy_refcounts and refcount_bits need compat=1.1")
    if options.extended_l2 and size < 1 << q.MIN_EXTENDED_CLUSTER_BITS:
        raise ImageError(f"extended_l2 needs a cluster_size of 16384 or more, not {size}")
    if options.backing is not None and options.preallocation is not Preallocation.OFF:
        raise ImageError("preallocation would hide the backing file")


def _open_below(path: str, options: CreateOptions) -> Node:
    assert options.backing is not None
    below = OpenOptions(options.backing_format, read_only=True, allowed=options.allowed)
    try:
        return open_image(resolve(options.backing, path), below)
    except FileNotFoundError as error:
        raise ImageError(f"{path}: its backing file {options.backing} does not exist") from error


def _format_of(node: Node) -> Format:
    if isinstance(node, WritableQcow2):
        return Format.QCOW2
    return Format.RAW if node.file is node.data_file and node.cluster_size == 1 else Format.QCOW


def _preallocate(path: str, how: Preallocation, tell: Tell) -> None:
    image = open_image(path, OpenOptions(Format.QCOW2))
    assert isinstance(image, WritableQcow2)
    start = image.file.size
    try:
        image.preallocate(lambda done: tell(done, image.size, "allocating clusters"))
        image.flush()
        end = image.meta.refcounts.end_of_use() << image.header.cluster_bits
        image.file.truncate(end)
        if how is Preallocation.FALLOC:
            for at in range(start, end, PIECE):
                tell(at - start, end - start, "reserving space")
                image.file.reserve(at, min(PIECE, end - at))
        elif how is Preallocation.FULL:
            _write_holes(image.file, start, end, tell)
    finally:
        image.close()


def _write_holes(file: HostFile, offset: int, end: int, tell: Tell) -> None:
    """Write zeros where the file has nothing yet."""
    for start, length, mapped in posix.extents(file.fd, offset, end - offset):
        for at in () if mapped else range(start, start + length, PIECE):
            tell(at - offset, end - offset, "writing zeros")
            posix.write_zeroes(file.fd, at, min(PIECE, start + length - at))
