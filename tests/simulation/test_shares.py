"""One client's commands, as dear and as many as they may be, do not keep another one waiting."""

from __future__ import annotations

import sys
from math import inf

import pytest

from tests.simulation.schedule import CHOICES, Schedule
from tests.simulation.search import violation_of
from tests.simulation.shares import TINY, WEIGHTS

DEAR = sorted(set(WEIGHTS) - {"turn"})


def many(name: str, count: int, variant: int = 0) -> Schedule:
    """Return so many of one command, as large as it may be."""
    return Schedule("shares", ((name, bytes([0, count - 1]) + bytes(CHOICES - 2)),), variant)


@pytest.mark.parametrize("name", DEAR)
def test_a_read_of_one_block_does_not_wait_behind(name: str) -> None:
    assert violation_of(many(name, 24)) is None


@pytest.mark.parametrize("name", ["reads", "claims"])
def test_nor_behind_data_in_very_small_pieces(name: str) -> None:
    assert violation_of(many(name, 8, TINY)) is None


@pytest.mark.parametrize(("name", "count"), [("verify", 64), ("copy", 8), ("status", 8)])
def test_a_command_that_does_not_give_way_is_found(name: str, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [one for key, one in sys.modules.items() if key.startswith("tcmu_core.scsi.commands.")]:
        if hasattr(module, "PAUSE"):
            monkeypatch.setattr(module, "PAUSE", None)
    monkeypatch.setattr("tcmu_core.iscsi.pump.SLICE", inf)
    found = violation_of(many(name, count))
    assert found is not None
    assert found[0] == "unfair"
