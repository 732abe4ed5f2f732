"""tcmu.conf edited while a verified load runs on every LUN: each row of the table in `edits.py`, and nothing beside it.

For each edit: it comes into force; the clients of the LUN, of the other LUNs of its target, and of other targets hear
what the row says and nothing else; every read is of what was written last; no session is another one than before, no
process is, and of no other disk does `tcmu status` say anything else.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.daemon.edited import World
from tests.daemon.edits import EDITS, ENDED, NO_LUN, ONE, POWER_ON, TWO, Edit, table

ADMIN = Path(__file__).parents[2] / "docs" / "admin.md"


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    """Yield a world whose images are in memory: how busy the machine's disk is makes no difference."""
    with TemporaryDirectory(prefix="tcmu-test-", dir="/dev/shm") as directory:
        made = World(Path(directory))
        try:
            made.start()
            yield made
        finally:
            made.stop()


def expected(edit: Edit, disk: str, target: str) -> tuple[str, ...]:
    """Return what the client of a disk is to hear."""
    if disk in edit.spared:
        return ()
    if target != ONE:
        return edit.elsewhere
    return edit.own if disk == "one-1" else edit.beside


@pytest.mark.parametrize("edit", EDITS, ids=[edit.what for edit in EDITS])
def test_an_edit_does_what_the_table_says_and_nothing_else(world: World, edit: Edit) -> None:
    before = world.scene()
    world.carry_out(edit)
    wanted = {disk: expected(edit, disk, ONE if disk.startswith("one") else TWO) for disk in world.loads}
    for disk, load in world.loads.items():
        load.hears(wanted[disk])
        if not {NO_LUN, ENDED} & set(wanted[disk]):
            load.round()
    heard = {disk: tuple(load.heard) for disk, load in world.loads.items()}
    assert heard == wanted
    assert not [disk for disk, load in world.loads.items() if load.busy and POWER_ON not in wanted[disk]]

    after = world.scene()
    disks = before.disks.keys() | after.disks.keys()
    assert {disk for disk in disks if before.disks.get(disk) != after.disks.get(disk)} == edit.disks
    gone = {target for target, pid in before.processes.items() if after.processes.get(target) != pid}
    assert gone == ({TWO} if ENDED in edit.elsewhere else set())
    lost = {who for who, session in before.sessions.items() if after.sessions.get(who) != session}
    assert lost == {f"iqn.2026-01.test:{disk}" for disk, events in wanted.items() if ENDED in events}
    errors = [line for line in world.said().splitlines() if "[ERROR]" in line or "[CRIT]" in line]
    assert bool(errors) == edit.complains, errors
    if edit.undo and not edit.command:
        world.undo(before)
    else:
        world.keep()


def test_the_guide_has_the_table() -> None:
    assert table() in ADMIN.read_text(), f"docs/admin.md has another table than:\n{table()}"
