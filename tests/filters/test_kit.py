"""Each bundled filter keeps the promises of a handler: the conformance kit runs through it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tcmu_core.testing import WAYS, check_handler, open_device
from tests.testing.test_kit import Sound

SIZE = 2 << 20
THROUGH = {
    "nothing": [],
    "delay": ["delay;all=uniform/0/200us;seed=1"],
    "rate": ["rate;iops=100000;bytes=10G"],
    "log": ["log;level=debug"],
    "stats": ["stats"],
    "fault without rules": ["fault"],
    "fault with a rule that never fires": ["fault;rule=any nth=1000000 -> hang"],
    "cow": ["cow"],
    "cow in a file": ["cow;directory={0}"],
    "cache": ["cache;size=64K"],
    "cache in a file": ["cache;size=1M;directory={0}"],
    "offset": ["offset;start=64K;length=512K"],
    "truncate": ["truncate;size=400K"],
    "truncate to a multiple": ["truncate;multiple=1200K"],
    "three": ["cache;size=64K", "delay;write=50us", "stats"],
    "cow upon a window": ["offset;start=64K", "cow"],
}


WINDOWS = {"offset", "truncate", "truncate to a multiple", "cow upon a window"}


@pytest.mark.parametrize("name", THROUGH)
def test_the_kit_passes_through_it(tmp_path: Path, name: str) -> None:
    texts = tuple(text.format(tmp_path) for text in THROUGH[name])
    claims = ["own size", "fixed size"] if name in WINDOWS else ["fixed size"] if "cow" in name else []
    opened = lambda: open_device(Sound, size=SIZE, filters=texts)  # noqa: E731 - it is a maker
    check_handler(opened, examples=8, claims=claims, ways=WAYS if name in {"cow", "three"} else ["engine"])
    assert not list(tmp_path.iterdir()), "it has left files behind"
