"""Opening images: format by magic or by word, locks, data file, backing chain, repair of a dirty one."""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from dataclasses import dataclass, field, replace

from tcmu_core import posix
from tcmu_qcow import layout as q
from tcmu_qcow.chain import Node
from tcmu_qcow.compression import require_zstd
from tcmu_qcow.errors import CorruptImage, ImageError, ImageInUse, UnsupportedImage
from tcmu_qcow.files import HostFile
from tcmu_qcow.formats import PROBED, Format, format_of
from tcmu_qcow.header import Header, parse_header
from tcmu_qcow.journal import recover
from tcmu_qcow.qcow1 import Qcow1Image
from tcmu_qcow.qcow2 import DEFAULT_CACHE
from tcmu_qcow.raw import RawImage
from tcmu_qcow.repair import rebuild_refcounts
from tcmu_qcow.scope import HERE, Allowed, Scope
from tcmu_qcow.snapshots import find_snapshot, read_snapshots
from tcmu_qcow.write import WritableQcow2

Image = WritableQcow2 | RawImage | Qcow1Image

MOST_LAYERS = 1000  # in one chain; each is an open file, and a read of what none of them has asks them all


@dataclass(frozen=True, slots=True)
class OpenOptions:
    """How to open the top of a chain."""

    format: Format | None = None  # None: by magic
    read_only: bool = False
    snapshot: str | None = None
    cache_bytes: int = DEFAULT_CACHE
    lock: bool = True
    repair: bool = False  # rebuild the refcounts even if they claim to be right
    allowed: Allowed = HERE  # what the images of the chain may name
    backing_format: Format | None = None  # of backing files whose format no image tells
    log: posix.Log = field(default=posix.log, compare=False)


def open_image(path: str, options: OpenOptions = OpenOptions()) -> Image:
    """Open `path` and all that it stands on."""
    scope = Scope(path, options.allowed)
    top = _open_node(path, options, scope)
    try:
        _open_backing(top, options, scope)
    except BaseException:
        for layer in list(top.layers()):
            _abandon(layer)
        raise
    return top


def _abandon(layer: Node) -> None:
    """Close the files of a layer without a last word to them."""
    layer.data_file.close()
    layer.file.close()


def _open_node(
    path: str, options: OpenOptions, scope: Scope, above: Collection[tuple[int, int]] = (), overlay: str = ""
) -> Image:
    """Open one layer; `overlay` is the image that names it, of the identities `above` none may come again."""
    writing = not options.read_only and options.snapshot is None
    if overlay:
        scope.check(path, overlay)
    file = HostFile.open(path, read_only=not writing)
    try:
        file.tell(options.log)
        if overlay:
            scope.check_opened(file, overlay)
        if file.identity in above:
            raise CorruptImage(f"{path}: the image is a backing file of itself")
        end = max(0, file.size - PROBED)
        kind = options.format or format_of(file.pread(PROBED, 0), file.pread(PROBED, end), path)
        if kind is Format.RAW and options.format is None and overlay:
            raise ImageError(
                f"{overlay} does not say in which format its backing file {path} is, and it looks like raw: "
                "say so with qemu-img rebase -u -F raw -b FILE IMAGE, or add backing_format=raw"
            )
        if options.lock:
            _lock(file, write=writing and kind is not Format.QCOW)
        if kind is Format.RAW:
            if options.snapshot is not None:
                raise ImageError(f"{path}: a raw image has no snapshots")
            return RawImage(file, read_only=not writing, probed=options.format is None)
        if kind is Format.QCOW:
            if options.snapshot is not None:
                raise ImageError(f"{path}: a version 1 image has no snapshots that can be read")
            return Qcow1Image(file)
        return _open_qcow2(file, options, scope, writing)
    except BaseException:
        file.close()
        raise


def _lock(file: HostFile, *, write: bool) -> None:
    """Take the locks that QEMU's format drivers take; a file system without them is used without, as QEMU does."""
    try:
        posix.lock(file.fd, write=write)
    except posix.InUse as error:
        who = posix.users(file.path, file.fd)
        raise ImageInUse(f"{file.path} is in use{who}: {error.strerror}") from error


def _open_qcow2(file: HostFile, options: OpenOptions, scope: Scope, writing: bool) -> WritableQcow2:
    header = parse_header(file)
    if header.corrupt:
        options.log.warning("%s is marked as corrupt: what can be read of it is there to be rescued", file.path)
    if header.nb_snapshots and not header.corrupt:
        read_snapshots(file, header)  # a table that can't be read is no image to write to
    if header.compression is q.Compression.ZSTD:
        require_zstd(file.path)
    data_file = _open_data_file(file, header, options, scope, writing) if header.has_data_file else None
    try:
        lost = recover(file, header) if writing and options.lock else None
        if writing and (header.dirty or options.repair):
            rebuild_refcounts(file, header)
        snapshot = find_snapshot(file, header, options.snapshot) if options.snapshot is not None else None
        image = WritableQcow2(
            file,
            header,
            data_file,
            read_only=not writing,
            cache_bytes=options.cache_bytes,
            snapshot=snapshot,
            journal=options.lock,
        )
        image.lost = lost
        return image
    except BaseException:
        if data_file is not None:
            data_file.close()
        raise


def _open_data_file(file: HostFile, header: Header, options: OpenOptions, scope: Scope, writing: bool) -> HostFile:
    if header.data_file_name is None:
        raise ImageError(f"{file.path}: the image does not name its external data file")
    if header.nb_snapshots:
        raise CorruptImage(f"{file.path}: internal snapshots together with an external data file")
    path = resolve(header.data_file_name, file.path)
    scope.check(path, file.path)
    try:
        data_file = HostFile.open(path, read_only=not writing)
    except OSError as error:
        raise ImageError(f"{file.path}: its data file {path} can't be opened: {error.strerror}") from error
    try:
        data_file.tell(options.log)
        scope.check_opened(data_file, file.path)
        if data_file.identity == file.identity:
            raise CorruptImage(f"{file.path}: the image is its own data file")
        if options.lock:
            _lock(data_file, write=writing)
    except BaseException:
        data_file.close()
        raise
    return data_file


def resolve(name: str, overlay: str) -> str:
    """The path of a file that an image names: relative names start where the image is."""
    if name.startswith("json:"):
        raise UnsupportedImage(f"{overlay}: a json: file name is not supported: {name}")
    if name.startswith("file:"):
        name = name.removeprefix("file:")
        name = name[2:] if name.startswith("///") else name
    elif re.match(r"[A-Za-z0-9+.-]+:", name):
        raise UnsupportedImage(f"{overlay}: only files can back an image, not {name}")
    return os.path.join(os.path.dirname(overlay), name)


def _open_backing(top: Node, options: OpenOptions, scope: Scope) -> None:
    """Open what the chain names, one below the other, all of it read-only."""
    seen = {top.file.identity}
    node: Node = top
    while True:
        name, kind = _backing_of(node)
        if name is None:
            return
        if isinstance(node, WritableQcow2) and node.header.data_file_raw:
            raise CorruptImage(f"{node.file.path}: a backing file together with “raw external data”")
        if len(seen) >= MOST_LAYERS:
            raise ImageError(
                f"{top.file.path}: its chain has more than {MOST_LAYERS} images: merge some with qemu-img rebase"
            )
        path = resolve(name, node.file.path)
        below_options = replace(
            options, format=kind or options.backing_format, read_only=True, snapshot=None, repair=False
        )
        try:
            below = _open_node(path, below_options, scope, seen, node.file.path)
        except OSError as error:
            if isinstance(error, ImageError):
                raise
            raise ImageError(f"{node.file.path}: its backing file {path} can't be opened: {error.strerror}") from error
        seen.add(below.file.identity)
        node.backing = below
        node = below


def _backing_of(node: Node) -> tuple[str | None, Format | None]:
    if isinstance(node, Qcow1Image):
        return node.backing_name, None
    if not isinstance(node, WritableQcow2) or node.header.backing_name is None:
        return None, None
    kind = node.header.backing_format
    if kind is None:
        return node.header.backing_name, None
    if kind in ("file", "host_device"):  # QEMU took these for raw
        return node.header.backing_name, Format.RAW
    if kind not in list(Format):
        raise UnsupportedImage(f"{node.file.path}: a backing file of format “{kind}” is not supported")
    return node.header.backing_name, Format(kind)
