"""The conformance kit's promises, kept by a writable disc."""

from __future__ import annotations

import functools
from pathlib import Path

from tcmu_core.testing import check_handler, open_device
from tcmu_fbo import Optical


def test_a_dvd_ram_keeps_the_promises_of_a_handler(tmp_path: Path) -> None:
    make = functools.partial(open_device, Optical, f"{tmp_path}/disc.img", size=4 << 20)
    check_handler(make, persistent=True, examples=15, claims=["own block size"])
