"""Which way the data of a unit's commands goes, as far as the operation code alone tells: a glance for the hot path."""

from __future__ import annotations

from tcmu_core.scsi.opcodes import Direction, Table


def directions(table: Table) -> bytes:
    """Return a direction for each operation code; ANY says to ask the engine what it expects of the whole CDB."""
    found: dict[int, set[Direction]] = {}
    for (code, _action), row in table.items():
        found.setdefault(code, set()).add(row.direction)
    return bytes(next(iter(found[code])) if len(found.get(code, ())) == 1 else Direction.ANY for code in range(256))
