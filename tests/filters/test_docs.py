"""docs/filters.md names what there is, and its listings run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tcmu_core.filters.base import EVERY_HOOK, Filter
from tcmu_core.filters.faults import ACTIONS, NAMED
from tcmu_core.filters.registry import FilterRegistry, check
from tcmu_core.filters.rules import parse_rule
from tests.filters.conftest import given, upon

TEXT = (Path(__file__).parents[2] / "docs" / "filters.md").read_text()
LISTINGS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


@pytest.mark.parametrize("found", list(FilterRegistry()), ids=lambda found: found.name)
def test_each_filter_is_there_with_its_options(found: Any) -> None:
    if not found.source.startswith("tcmu-core "):
        return
    (row,) = re.findall(rf"^\| `{found.name}` \|(.*?)\|", TEXT, re.MULTILINE)
    assert set(re.findall(r"(\w+)=", row)) == set(found.kind.options.options)


def test_each_action_and_hook_is_there() -> None:
    for name in ACTIONS.keys() - NAMED.keys():
        assert re.search(rf"^\| `{name}[`=]", TEXT, re.MULTILINE), name
    for hook in EVERY_HOOK:
        assert f"`{hook}" in TEXT or hook in TEXT


def test_its_rules_are_rules() -> None:
    rules = re.findall(r"'([^'\n]* -> [^']*)'", TEXT)
    assert len(rules) >= 4
    for rule in rules:
        parse_rule(rule)


def test_the_filter_that_it_shows_works() -> None:
    space: dict[str, Any] = {}
    exec(LISTINGS[0], space)
    kind: type[Filter] = space["Shout"]
    assert not check("shout", "here", kind).error
    with upon(given(kind(), least=512)) as disk:
        disk.write(0, b"quiet!!!" * 64)
        assert disk.read(0, 512) == b"QUIET!!!" * 64
        assert disk.disk.operations.discard is None


def test_the_test_that_it_shows_passes() -> None:
    space: dict[str, Any] = {}
    exec(LISTINGS[1], space)
    space["test_it_keeps_the_promises"]()
