"""Internal snapshots: the table, read whole and validated. Any of them can be shown as a read-only disk."""

from __future__ import annotations

from dataclasses import dataclass

from tcmu_qcow import layout as q
from tcmu_qcow.errors import CorruptImage, ImageError
from tcmu_qcow.files import HostFile
from tcmu_qcow.header import Header, check_region


@dataclass(frozen=True, slots=True)
class Snapshot:
    """An entry of the snapshot table."""

    id: str
    name: str
    l1_table_offset: int
    l1_size: int  # entries
    disk_size: int  # bytes
    has_own_size: bool  # disk_size is the entry's own, not today's


def read_snapshots(file: HostFile, header: Header) -> tuple[list[Snapshot], int]:
    """All snapshots, and the size of their table in bytes (Snapshots)."""
    snapshots: list[Snapshot] = []
    at = header.snapshots_offset
    for _ in range(header.nb_snapshots):
        fixed = file.pread(q.SNAPSHOT.size, at)
        if len(fixed) < q.SNAPSHOT.size:
            raise CorruptImage(f"{file.path}: the snapshot table is cut short")
        l1_offset, l1_size, id_size, name_size, _, _, _, _, extra_size = q.SNAPSHOT.unpack(fixed)
        if extra_size > 1024:  # QEMU's limit
            raise ImageError(f"{file.path}: a snapshot has {extra_size} bytes of extra data")
        rest = file.pread(extra_size + id_size + name_size, at + q.SNAPSHOT.size)
        if len(rest) < extra_size + id_size + name_size:
            raise CorruptImage(f"{file.path}: the snapshot table is cut short")
        disk_size, own = header.size, False
        if extra_size >= q.SNAPSHOT_EXTRA.size:
            (_, disk_size), own = q.SNAPSHOT_EXTRA.unpack_from(rest), True
        names = rest[extra_size:]
        snapshot = Snapshot(
            names[:id_size].decode("utf-8", "replace"),
            names[id_size:].decode("utf-8", "replace"),
            l1_offset,
            l1_size,
            disk_size,
            own,
        )
        if l1_size * 8 > q.MAX_L1_BYTES:
            raise ImageError(f"{file.path}: the L1 table of snapshot “{snapshot.name}” is larger than 32 MiB")
        check_region(header, file, f"L1 table of snapshot “{snapshot.name}”", l1_offset, l1_size * 8)
        if header.l1_entries_for(disk_size) > l1_size:
            raise CorruptImage(f"{file.path}: the L1 table of snapshot “{snapshot.name}” is too small for its disk")
        snapshots.append(snapshot)
        at += -(-(q.SNAPSHOT.size + len(rest)) // 8) * 8
        if at - header.snapshots_offset > q.MAX_SNAPSHOT_TABLE_BYTES:
            raise ImageError(f"{file.path}: the snapshot table is larger than 64 MiB")
    return snapshots, at - header.snapshots_offset


def find_snapshot(file: HostFile, header: Header, name: str) -> Snapshot:
    """The snapshot of that name, else of that id."""
    snapshots, _ = read_snapshots(file, header)
    for snapshot in snapshots:
        if snapshot.name == name:
            return snapshot
    for snapshot in snapshots:
        if snapshot.id == name:
            return snapshot
    known = ", ".join(f"“{snapshot.name}”" for snapshot in snapshots) or "none"
    raise ImageError(f"{file.path}: no snapshot “{name}”; there is: {known}")
