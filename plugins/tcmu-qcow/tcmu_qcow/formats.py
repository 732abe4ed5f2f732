"""Disk image formats by their magic: ours, and those that are refused, since as raw they would be no disk."""

from __future__ import annotations

from enum import StrEnum

from tcmu_qcow import layout as q
from tcmu_qcow.errors import UnsupportedImage

PROBED = 512  # bytes of the beginning that tell the format: the first block of any disk

# Where the magic is, the magic, and what the format is called. QEMU's own block drivers probe for the same.
FOREIGN = (
    (0, b"KDMV", "VMDK"),  # VMware Virtual Disk Format 1.1: SparseExtentHeader
    (0, b"COWD", "VMDK"),  # the same, ESX: COWDisk_Header
    (0, b"# Disk DescriptorFile", "VMDK"),  # the same: The Descriptor
    (0, b"vhdxfile", "VHDX"),  # MS-VHDX 2.2.1
    (0, b"conectix", "VHD"),  # Virtual Hard Disk Image Format Specification: a dynamic disk begins with its footer
    (64, b"\x7f\x10\xda\xbe", "VDI"),  # VirtualBox VDICore.h: VDI_IMAGE_SIGNATURE
    (0, b"QED\0", "QED"),  # QEMU docs/interop/qed_spec
    (0, b"WithoutFreeSpace", "Parallels"),  # QEMU docs/interop/parallels
    (0, b"WithouFreSpacExt", "Parallels"),
    (0, b"Bochs Virtual HD Image", "Bochs"),  # Bochs hdimage.h
    (0, b"LUKS\xba\xbe", "LUKS"),  # LUKS On-Disk Format Specification 1.2.3, 2.1
    (0, b"#!/bin/sh\n#V2.0 Format\nmodprobe cloop", "cloop"),  # QEMU block/cloop.c: what Knoppix' images begin with
)
# The same of the last 512 bytes, for formats whose header is a trailer.
TRAILERS = (
    (0, b"conectix", "VHD"),  # a fixed disk ends with its footer
    (0, b"koly", "DMG"),  # Apple's UDIF resource file
)


class Format(StrEnum):
    """The formats by QEMU's names."""

    RAW = "raw"
    QCOW = "qcow"
    QCOW2 = "qcow2"


def foreign_format(start: bytes, end: bytes = b"") -> str | None:
    """Return what a file that begins and ends like this is in, if that is none of ours; both have 512 bytes."""
    for part, table in ((start, FOREIGN), (end, TRAILERS)):
        for at, magic, name in table:
            if part.startswith(magic, at):
                return name
    return None


def format_of(start: bytes, end: bytes, path: str) -> Format:
    """Return the format by magic and version; a file without a magic is raw. `start` and `end` have 512 bytes.

    Raises:
        UnsupportedImage: it is in a format that is not served here.
    """
    if start.startswith(q.MAGIC) and len(start) >= q.PREFIX.size:
        return Format.QCOW if q.PREFIX.unpack_from(start)[1] == 1 else Format.QCOW2
    foreign = foreign_format(start, end)
    if foreign is not None:
        raise UnsupportedImage(
            f"{path} is a {foreign} image, which is not supported: convert it with qemu-img convert -O qcow2, "
            "or say format=raw to serve the bytes of the file itself"
        )
    return Format.RAW
