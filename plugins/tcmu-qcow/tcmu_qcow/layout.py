"""The qcow and qcow2 on-disk formats: structures, offsets and flags, nothing that acts.

Sections named beside the constants are those of QEMU's specification, docs/interop/qcow2.rst ("Qcow2 Image File
Format"). Version 1 never had a specification; its layout is that of QEMU's qcow driver. All numbers are big-endian.
"""

from __future__ import annotations

import struct
from enum import IntEnum, IntFlag

MAGIC = b"QFI\xfb"  # Header, bytes 0-3
PREFIX = struct.Struct(">4sI")  # magic, version: the same place in every version

# -- version 2 and 3 -------------------------------------------------------------------------------------------------

HEADER_V2 = struct.Struct(">4sIQIIQIIQQIIQ")  # Header, bytes 0-71
HEADER_V2_FIELDS = (
    "magic",
    "version",
    "backing_file_offset",
    "backing_file_size",
    "cluster_bits",
    "size",
    "crypt_method",
    "l1_size",
    "l1_table_offset",
    "refcount_table_offset",
    "refcount_table_clusters",
    "nb_snapshots",
    "snapshots_offset",
)
HEADER_V3 = struct.Struct(">QQQII")  # Header, bytes 72-103
HEADER_V3_FIELDS = (
    "incompatible_features",
    "compatible_features",
    "autoclear_features",
    "refcount_order",
    "header_length",
)
HEADER_V2_LENGTH = 72  # Header: "exactly 72 bytes"
HEADER_V3_LENGTH = 104  # Header: "at least 104 bytes"
HEADER_LENGTH_WRITTEN = 112  # with compression_type and its padding

AT_SIZE = 24  # Header, size (8)
AT_L1 = 36  # Header, l1_size (4), l1_table_offset (8)
AT_REFCOUNT_TABLE = 48  # Header, refcount_table_offset (8), refcount_table_clusters (4)
AT_INCOMPATIBLE = 72  # Header, incompatible_features (8)
AT_AUTOCLEAR = 88  # Header, autoclear_features (8)
AT_COMPRESSION_TYPE = 104  # Additional fields, compression_type (1)

L1_FIELDS = struct.Struct(">IQ")
REFCOUNT_TABLE_FIELDS = struct.Struct(">QI")
U64 = struct.Struct(">Q")
U32 = struct.Struct(">I")

MIN_CLUSTER_BITS = 9  # Header, cluster_bits
MAX_CLUSTER_BITS = 21  # Header, cluster_bits: QEMU's limit of 2 MiB
MIN_EXTENDED_CLUSTER_BITS = 14  # Header, cluster_bits with Extended L2 Entries
MAX_REFCOUNT_ORDER = 6  # Header, refcount_order
DEFAULT_REFCOUNT_ORDER = 4  # Header, refcount_order of version 2
MAX_BACKING_NAME = 1023  # Header, backing_file_size
MAX_L1_BYTES = 32 << 20  # Header, size: QEMU's limit
MAX_REFCOUNT_TABLE_BYTES = 8 << 20  # Host cluster management: QEMU's limit
MAX_SNAPSHOTS = 65536  # QEMU's limit
MAX_SNAPSHOT_TABLE_BYTES = 64 << 20  # QEMU's limit (1 KiB for each)
MAX_BITMAPS = 65535  # Bitmaps extension: QEMU's limit
MAX_BITMAP_DIRECTORY_BYTES = 64 << 20  # QEMU's limit (1 KiB for each)


class Crypt(IntEnum):
    """Header, crypt_method."""

    NONE = 0
    AES = 1
    LUKS = 2


class Incompatible(IntFlag):
    """Header, incompatible_features."""

    DIRTY = 1 << 0
    CORRUPT = 1 << 1
    DATA_FILE = 1 << 2
    COMPRESSION = 1 << 3
    EXTENDED_L2 = 1 << 4


class Compatible(IntFlag):
    """Header, compatible_features."""

    LAZY_REFCOUNTS = 1 << 0


class Autoclear(IntFlag):
    """Header, autoclear_features."""

    BITMAPS = 1 << 0
    DATA_FILE_RAW = 1 << 1


INCOMPATIBLE_KNOWN = int(
    Incompatible.DIRTY | Incompatible.DATA_FILE | Incompatible.COMPRESSION | Incompatible.EXTENDED_L2
)
AUTOCLEAR_KNOWN = int(Autoclear.BITMAPS | Autoclear.DATA_FILE_RAW)


class Compression(IntEnum):
    """Additional fields, compression_type."""

    ZLIB = 0
    ZSTD = 1


class Extension(IntEnum):
    """Header extensions, type."""

    END = 0
    BACKING_FORMAT = 0xE2792ACA
    FEATURE_NAMES = 0x6803F857
    BITMAPS = 0x23852875
    CRYPTO = 0x0537BE77
    DATA_FILE = 0x44415441


EXTENSION = struct.Struct(">II")  # Header extensions: type, length
FEATURE_NAME = struct.Struct(">BB46s")  # Feature name table: bitmap, bit, name

# Feature name table: the names that QEMU writes, for the bits of each bitmap.
FEATURE_NAMES: dict[tuple[int, int], str] = {
    (0, 0): "dirty bit",
    (0, 1): "corrupt bit",
    (0, 2): "external data file",
    (0, 3): "compression type",
    (0, 4): "extended L2 entries",
    (1, 0): "lazy refcounts",
    (2, 0): "bitmaps",
    (2, 1): "raw external data",
}

# -- tables ----------------------------------------------------------------------------------------------------------

OFFSET_MASK = 0x00FF_FFFF_FFFF_FE00  # Cluster mapping, L1 and L2 table entry, bits 9-55
REFCOUNT_OFFSET_MASK = 0xFFFF_FFFF_FFFF_FE00  # Host cluster management, refcount table entry, bits 9-63
COPIED = 1 << 63  # Cluster mapping: refcount is exactly one
COMPRESSED = 1 << 62  # L2 table entry, bit 62
ZERO = 1 << 0  # Standard Cluster Descriptor, bit 0
MAX_HOST_OFFSET = 1 << 56  # Header, size: "no more than 64 PB (56 bits)"

SUBCLUSTERS = 32  # Extended L2 Entries
SUBCLUSTERS_ALL_ALLOCATED = 0x0000_0000_FFFF_FFFF  # Subcluster Allocation Bitmap, bits 0-31
SUBCLUSTERS_ALL_ZERO = 0xFFFF_FFFF_0000_0000  # Subcluster Allocation Bitmap, bits 32-63

SECTOR = 512  # Compressed Clusters Descriptor counts these

SNAPSHOT = struct.Struct(">QIHHIIQII")  # Snapshots, bytes 0-39
SNAPSHOT_EXTRA = struct.Struct(">QQ")  # Snapshots, bytes 40-55: VM state size, disk size

BITMAPS_EXTENSION = struct.Struct(">IIQQ")  # Bitmaps extension
BITMAP_ENTRY = struct.Struct(">QIIBBHI")  # Bitmap directory, bytes 0-23
AT_BITMAP_FLAGS = 12  # Bitmap directory, bytes 12-15


class BitmapFlag(IntFlag):
    """Bitmap directory, flags."""

    IN_USE = 1 << 0
    AUTO = 1 << 1


# -- version 1 -------------------------------------------------------------------------------------------------------

HEADER_V1 = struct.Struct(">4sIQIIQBBHIQ")
V1_COMPRESSED = 1 << 63
V1_MAX_CLUSTER_BITS = 16
V1_MIN_L2_BITS = 6
V1_MAX_L2_BITS = 13
