"""The first handler of the guide, the twenty lines, is a disk."""

from __future__ import annotations

import runpy
from pathlib import Path

from tcmu_core.testing import check_handler, open_device

EXAMPLE = Path(__file__).parents[3] / "docs" / "examples" / "handler_web.py"


def test_the_twenty_lines_are_a_disk(web):
    kind = runpy.run_path(str(EXAMPLE))["Web"]
    check_handler(lambda: open_device(kind, web.url), examples=4, claims=["own size"], ways=["engine"])
