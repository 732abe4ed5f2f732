"""One client's commands, as dear and as many as they may be, do not keep another one waiting."""

from __future__ import annotations

import sys

import pytest

from tests.simulation.schedule import CHOICES, Schedule
from tests.simulation.search import violation_of
from tests.simulation.shares import WEIGHTS

DEAR = sorted(set(WEIGHTS) - {"turn"})


def many(name: str) -> Schedule:
    """Return 64 of one command."""
    return Schedule("shares", ((name, bytes([0, 63]) + bytes(CHOICES - 2)),))


@pytest.mark.parametrize("name", DEAR)
def test_a_read_of_one_block_does_not_wait_behind(name: str) -> None:
    assert violation_of(many(name)) is None


@pytest.mark.parametrize("name", ["verify", "copy", "status"])
def test_a_command_that_does_not_give_way_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [one for key, one in sys.modules.items() if key.startswith("tcmu_core.scsi.commands.")]:
        if hasattr(module, "PAUSE"):
            monkeypatch.setattr(module, "PAUSE", None)
    found = violation_of(many(name))
    assert found is not None
    assert found[0] == "unfair"
