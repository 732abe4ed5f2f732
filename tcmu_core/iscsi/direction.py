"""Which way the data of a unit's commands goes, as far as the operation code alone tells: a glance for the hot path."""

from __future__ import annotations

from tcmu_core.scsi.opcodes import Direction, Table


def directions(table: Table) -> bytes:
    """Return a direction for each operation code; ANY says to ask the engine what it expects of the whole CDB."""
    found: dict[int, Direction] = {}
    for (code, _action), row in table.items():
        found[code] = row.direction if found.get(code, row.direction) == row.direction else Direction.ANY
    ways = bytearray([Direction.ANY]) * 256
    for code, direction in found.items():
        ways[code] = direction
    return bytes(ways)
