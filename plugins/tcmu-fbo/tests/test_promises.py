"""The promises of every handler, kept by a drive as well."""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path

import pytest

from tcmu_core import ConfigError
from tcmu_core.loop import Loop
from tcmu_core.testing import check_handler, open_device
from tcmu_fbo import Optical


@pytest.mark.parametrize("waits", ["on threads", "on the loop"])
def test_the_promises_are_kept(tmp_path: Path, waits: str) -> None:
    with closing(Loop()) as loop:
        reactor = loop if waits == "on the loop" else None
        check_handler(
            lambda: open_device(Optical, f"{tmp_path}/disc.img", size=4 << 20, reactor=reactor),
            persistent=True,
            examples=15,
            claims=["own block size"],
        )


def test_a_drive_that_can_not_be_opened_leaves_nothing_on_the_loop(tmp_path: Path) -> None:
    with closing(Loop()) as loop:
        before = len(os.listdir("/proc/self/fd"))
        with (
            pytest.raises((ConfigError, OSError)),
            open_device(Optical, f"ro/{tmp_path}/missing.iso", reactor=loop),
        ):
            pass
        assert len(os.listdir("/proc/self/fd")) == before
