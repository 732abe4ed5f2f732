from __future__ import annotations

import pytest

from tests.scsi.harness import Rig, make_rig


@pytest.fixture
def rig() -> Rig:
    """One memory-backed disk of 1 MiB."""
    return make_rig()
