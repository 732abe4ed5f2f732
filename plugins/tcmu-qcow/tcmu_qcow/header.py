"""The qcow2 header: read, judged and written. A header that passes here can be trusted by every other module."""

from __future__ import annotations

from dataclasses import dataclass, field

from tcmu_qcow import layout as q
from tcmu_qcow.errors import CorruptImage, ImageError, UnsupportedImage
from tcmu_qcow.files import HostFile


@dataclass(frozen=True, slots=True)
class BitmapsExtension:
    """Where the bitmap directory is (Bitmaps extension)."""

    count: int
    directory_offset: int
    directory_size: int


@dataclass(slots=True)
class Header:
    """The header fields under their own names, and what the extensions add. Offsets and sizes in bytes."""

    version: int
    cluster_bits: int
    size: int
    l1_size: int
    l1_table_offset: int
    refcount_table_offset: int
    refcount_table_clusters: int
    nb_snapshots: int = 0
    snapshots_offset: int = 0
    incompatible_features: int = 0
    compatible_features: int = 0
    autoclear_features: int = 0
    refcount_order: int = q.DEFAULT_REFCOUNT_ORDER
    compression: q.Compression = q.Compression.ZLIB
    backing_name: str | None = None
    backing_format: str | None = None
    data_file_name: str | None = None
    bitmaps: BitmapsExtension | None = None
    feature_names: dict[tuple[int, int], str] = field(default_factory=dict)

    @property
    def cluster_size(self) -> int:
        """Bytes in a cluster."""
        return 1 << self.cluster_bits

    @property
    def extended_l2(self) -> bool:
        """True when L2 entries carry a subcluster bitmap."""
        return bool(self.incompatible_features & q.Incompatible.EXTENDED_L2)

    @property
    def has_data_file(self) -> bool:
        """True when guest clusters live in another file."""
        return bool(self.incompatible_features & q.Incompatible.DATA_FILE)

    @property
    def data_file_raw(self) -> bool:
        """True when that other file must stay readable as a raw image."""
        return self.has_data_file and bool(self.autoclear_features & q.Autoclear.DATA_FILE_RAW)

    @property
    def lazy_refcounts(self) -> bool:
        """True when refcounts may lag behind while the dirty bit is set."""
        return bool(self.compatible_features & q.Compatible.LAZY_REFCOUNTS)

    @property
    def dirty(self) -> bool:
        """True when refcounts can't be believed."""
        return bool(self.incompatible_features & q.Incompatible.DIRTY)

    @property
    def corrupt(self) -> bool:
        """True when some program found the image inconsistent; it may be read to rescue what is there."""
        return bool(self.incompatible_features & q.Incompatible.CORRUPT)

    @property
    def l2_bits(self) -> int:
        """Log2 of the entries in an L2 table."""
        return self.cluster_bits - (4 if self.extended_l2 else 3)

    def l1_entries_for(self, size: int) -> int:
        """L1 entries that a virtual size needs."""
        return -(-size >> (self.cluster_bits + self.l2_bits))


def parse_header(file: HostFile) -> Header:
    """Read and validate the header of `file`. UnsupportedImage or CorruptImage when it can't be used."""
    path = file.path
    raw = file.pread(4096, 0)
    if len(raw) < q.HEADER_V2_LENGTH or raw[:4] != q.MAGIC:
        raise CorruptImage(f"{path}: not a qcow2 image")
    fields = dict(zip(q.HEADER_V2_FIELDS, q.HEADER_V2.unpack_from(raw), strict=True))
    version = fields["version"]
    if version not in (2, 3):
        raise UnsupportedImage(f"{path}: qcow version {version}")
    cluster_bits = fields["cluster_bits"]
    if not q.MIN_CLUSTER_BITS <= cluster_bits <= q.MAX_CLUSTER_BITS:
        raise UnsupportedImage(f"{path}: cluster_bits {cluster_bits} is not in 9-21")
    length = q.HEADER_V2_LENGTH
    if version == 3:
        if len(raw) < q.HEADER_V3_LENGTH:
            raise CorruptImage(f"{path}: the header is cut short")
        fields |= zip(q.HEADER_V3_FIELDS, q.HEADER_V3.unpack_from(raw, q.HEADER_V2_LENGTH), strict=True)
        length = fields["header_length"]
        if length < q.HEADER_V3_LENGTH or length % 8 or length > 1 << cluster_bits:
            raise CorruptImage(f"{path}: header_length {length}")
    end = fields["backing_file_offset"] + fields["backing_file_size"]
    whole = end <= len(raw) and _ends_within(raw, length)
    first_cluster = raw if whole or len(raw) < 4096 else file.pread(1 << cluster_bits, 0)
    header = Header(
        **{name: value for name, value in fields.items() if name in Header.__slots__},
    )
    _parse_extensions(header, first_cluster, length, path)
    _check_features(header, fields["crypt_method"], file)
    if version == 3 and length > q.AT_COMPRESSION_TYPE and len(first_cluster) > q.AT_COMPRESSION_TYPE:
        kind = first_cluster[q.AT_COMPRESSION_TYPE]
        if bool(kind) != bool(header.incompatible_features & q.Incompatible.COMPRESSION):
            raise CorruptImage(f"{path}: compression_type {kind} contradicts the “compression type” feature bit")
        if kind not in list(q.Compression):
            raise UnsupportedImage(f"{path}: compression type {kind}")
        header.compression = q.Compression(kind)
    elif header.incompatible_features & q.Incompatible.COMPRESSION:
        raise CorruptImage(f"{path}: the “compression type” feature is set, the field is missing")
    offset, size = fields["backing_file_offset"], fields["backing_file_size"]
    if offset:
        if size > q.MAX_BACKING_NAME or offset + size > len(first_cluster) or offset < length:
            raise CorruptImage(f"{path}: the backing file name lies outside the first cluster")
        if size:
            header.backing_name = first_cluster[offset : offset + size].decode("utf-8", "surrogateescape")
    _check_tables(header, file)
    return header


def feature_name(header: Header, bitmap: int, bit: int) -> str:
    """What a feature bit is called: by the image's own table, else by ours, else its number."""
    known = header.feature_names.get((bitmap, bit)) or q.FEATURE_NAMES.get((bitmap, bit))
    kind = ("incompatible", "compatible", "autoclear")[bitmap]
    return f"“{known}”" if known else f"{kind} feature bit {bit}"


def _check_features(header: Header, crypt_method: int, file: HostFile) -> None:
    path = file.path
    unknown = header.incompatible_features & ~(q.INCOMPATIBLE_KNOWN | int(q.Incompatible.CORRUPT))
    if unknown:
        names = ", ".join(feature_name(header, 0, bit) for bit in range(64) if unknown >> bit & 1)
        raise UnsupportedImage(f"{path}: the image needs features that are not supported: {names}")
    if header.corrupt and not file.read_only:
        raise CorruptImage(
            f"{path}: the {feature_name(header, 0, 1)} is set: the image was found inconsistent; "
            "repair it with qemu-img check -r all, or add ro=1 to rescue what can be read"
        )
    if crypt_method:
        name = q.Crypt(crypt_method).name if crypt_method in list(q.Crypt) else f"method {crypt_method}"
        raise UnsupportedImage(f"{path}: the image is encrypted ({name}), which is not supported")
    if header.refcount_order > q.MAX_REFCOUNT_ORDER:
        raise UnsupportedImage(f"{path}: refcount_order {header.refcount_order} is larger than 6")
    if header.extended_l2 and header.cluster_bits < q.MIN_EXTENDED_CLUSTER_BITS:
        raise CorruptImage(f"{path}: “extended L2 entries” need cluster_bits of 14 or more, not {header.cluster_bits}")
    if header.autoclear_features & q.Autoclear.DATA_FILE_RAW and not header.has_data_file:
        raise CorruptImage(f"{path}: “raw external data” without “external data file”")


def _ends_within(start: bytes, at: int) -> bool:
    """True if the last header extension ends within these bytes: a large cluster needs no reading then."""
    while at + q.EXTENSION.size <= len(start):
        kind, length = q.EXTENSION.unpack_from(start, at)
        if kind == q.Extension.END:
            return True
        at += q.EXTENSION.size + -(-length // 8) * 8
    return False


def _parse_extensions(header: Header, cluster: bytes, at: int, path: str) -> None:
    while at + q.EXTENSION.size <= len(cluster):
        kind, length = q.EXTENSION.unpack_from(cluster, at)
        at += q.EXTENSION.size
        if kind == q.Extension.END:
            break
        if length > len(cluster) - at:
            raise CorruptImage(f"{path}: header extension {kind:#x} of {length} bytes leaves the first cluster")
        data = cluster[at : at + length]
        at += -(-length // 8) * 8
        if kind == q.Extension.BACKING_FORMAT:
            header.backing_format = data.decode("utf-8", "replace")
        elif kind == q.Extension.DATA_FILE:
            header.data_file_name = data.decode("utf-8", "surrogateescape")
        elif kind == q.Extension.FEATURE_NAMES:
            for entry in range(0, len(data) - q.FEATURE_NAME.size + 1, q.FEATURE_NAME.size):
                bitmap, bit, name = q.FEATURE_NAME.unpack_from(data, entry)
                header.feature_names[bitmap, bit] = _printable(name)
        elif kind == q.Extension.BITMAPS:
            header.bitmaps = _parse_bitmaps(data, header, path)
    if header.autoclear_features & q.Autoclear.BITMAPS and header.bitmaps is None:
        raise CorruptImage(f"{path}: the “bitmaps” feature is set, the extension is missing")


def _printable(name: bytes) -> str:
    text = name.split(b"\0", 1)[0].decode("utf-8", "replace")
    return "".join(c if c.isprintable() else "?" for c in text)


def _parse_bitmaps(data: bytes, header: Header, path: str) -> BitmapsExtension | None:
    if not header.autoclear_features & q.Autoclear.BITMAPS:
        return None  # Bitmaps extension: without its bit "must be considered inconsistent"
    if len(data) != q.BITMAPS_EXTENSION.size:
        raise CorruptImage(f"{path}: the bitmaps extension has {len(data)} bytes")
    count, _, size, offset = q.BITMAPS_EXTENSION.unpack(data)
    if not 0 < count <= q.MAX_BITMAPS or size > q.MAX_BITMAP_DIRECTORY_BYTES or offset % header.cluster_size:
        raise CorruptImage(f"{path}: the bitmaps extension is invalid")
    return BitmapsExtension(count, offset, size)


def _check_tables(header: Header, file: HostFile) -> None:
    """Every table that the header points to is aligned, of a sane size and inside the file."""
    if header.l1_size * 8 > q.MAX_L1_BYTES:
        raise ImageError(f"{file.path}: an L1 table of {header.l1_size} entries is larger than 32 MiB")
    if header.l1_entries_for(header.size) > header.l1_size:
        raise CorruptImage(f"{file.path}: the L1 table is too small for a disk of {header.size} bytes")
    table_bytes = header.refcount_table_clusters << header.cluster_bits
    if table_bytes > q.MAX_REFCOUNT_TABLE_BYTES:
        raise ImageError(f"{file.path}: a refcount table of {table_bytes} bytes is larger than 8 MiB")
    if not header.refcount_table_clusters:
        raise CorruptImage(f"{file.path}: the image has no refcount table")
    if header.nb_snapshots > q.MAX_SNAPSHOTS:
        raise ImageError(f"{file.path}: {header.nb_snapshots} snapshots are more than 65536")
    check_region(header, file, "L1 table", header.l1_table_offset, header.l1_size * 8)
    check_region(header, file, "refcount table", header.refcount_table_offset, table_bytes)
    if header.nb_snapshots:
        check_region(header, file, "snapshot table", header.snapshots_offset, header.nb_snapshots * q.SNAPSHOT.size)


def check_region(header: Header, file: HostFile, what: str, offset: int, length: int) -> None:
    """CorruptImage unless the region starts on a cluster after the header and ends within the file's last cluster."""
    if not length:
        return
    if offset % header.cluster_size or offset < header.cluster_size:
        raise CorruptImage(f"{file.path}: the {what} is at {offset:#x}, which is not a cluster of its own")
    end = -(-file.size // header.cluster_size) * header.cluster_size
    if offset + length > end:
        raise CorruptImage(f"{file.path}: the {what} at {offset:#x} reaches past the end of the file")


def encode_header(header: Header) -> bytes:
    """The header cluster of a new image: header, extensions, feature names, backing file name."""
    extensions = bytearray()

    def extend(kind: int, data: bytes) -> None:
        extensions.extend(q.EXTENSION.pack(kind, len(data)) + data + bytes(-len(data) % 8))

    if header.backing_format:
        extend(q.Extension.BACKING_FORMAT, header.backing_format.encode())
    if header.version == 3:
        length = q.HEADER_LENGTH_WRITTEN
        names = b"".join(q.FEATURE_NAME.pack(kind, bit, name.encode()) for (kind, bit), name in q.FEATURE_NAMES.items())
        room = header.cluster_size - length - len(extensions) - 1100
        if room > len(names):  # clusters of 512 bytes have no place for it
            extend(q.Extension.FEATURE_NAMES, names)
    else:
        length = q.HEADER_V2_LENGTH
    extend(q.Extension.END, b"")
    name = (header.backing_name or "").encode("utf-8", "surrogateescape")
    fixed = q.HEADER_V2.pack(
        q.MAGIC,
        header.version,
        length + len(extensions) if name else 0,
        len(name),
        header.cluster_bits,
        header.size,
        q.Crypt.NONE,
        header.l1_size,
        header.l1_table_offset,
        header.refcount_table_offset,
        header.refcount_table_clusters,
        header.nb_snapshots,
        header.snapshots_offset,
    )
    if header.version == 3:
        fixed += q.HEADER_V3.pack(
            header.incompatible_features,
            header.compatible_features,
            header.autoclear_features,
            header.refcount_order,
            length,
        ) + bytes([header.compression]).ljust(length - q.HEADER_V3_LENGTH, b"\0")
    cluster = fixed + extensions + name
    if len(cluster) > header.cluster_size or len(name) > q.MAX_BACKING_NAME:
        raise ImageError("the backing file name is too long for the first cluster")
    return cluster.ljust(header.cluster_size, b"\0")
