"""Persistent dirty bitmaps: not kept up to date here, so marked as such before the disk changes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tcmu_qcow import layout as q
from tcmu_qcow.errors import CorruptImage
from tcmu_qcow.files import HostFile
from tcmu_qcow.header import Header, check_region


@dataclass(frozen=True, slots=True)
class Bitmap:
    """An entry of the bitmap directory."""

    entry_offset: int  # in the file
    table_offset: int
    table_size: int  # entries
    flags: int
    name: str


def read_bitmaps(file: HostFile, header: Header) -> Iterator[Bitmap]:
    """The entries of the bitmap directory (Bitmap directory)."""
    extension = header.bitmaps
    if extension is None:
        return
    check_region(header, file, "bitmap directory", extension.directory_offset, extension.directory_size)
    directory = file.pread(extension.directory_size, extension.directory_offset)
    at = 0
    for _ in range(extension.count):
        if at + q.BITMAP_ENTRY.size > len(directory):
            raise CorruptImage(f"{file.path}: the bitmap directory is cut short")
        table, entries, flags, _, _, name_size, extra = q.BITMAP_ENTRY.unpack_from(directory, at)
        name = directory[at + q.BITMAP_ENTRY.size + extra :][:name_size].decode("utf-8", "replace")
        yield Bitmap(extension.directory_offset + at, table, entries, flags, name)
        at += -(-(q.BITMAP_ENTRY.size + extra + name_size) // 8) * 8


def invalidate_bitmaps(file: HostFile, header: Header) -> bool:
    """Set in_use in every bitmap that promises to reflect all writes. True if the file was changed.

    QEMU then calls these bitmaps inconsistent and lets the user remove them; the image stays valid, nothing leaks.
    A bitmap without the auto flag is a frozen one, which writes don't concern.
    """
    stale = [
        bitmap
        for bitmap in read_bitmaps(file, header)
        if bitmap.flags & q.BitmapFlag.AUTO and not bitmap.flags & q.BitmapFlag.IN_USE
    ]
    for bitmap in stale:
        file.pwrite(q.U32.pack(bitmap.flags | q.BitmapFlag.IN_USE), bitmap.entry_offset + q.AT_BITMAP_FLAGS)
    return bool(stale)
