"""docs/promises.md names tests: each of them is there, by that name."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NAMED = re.findall(r"`([\w/.-]+\.py)::(\w+)`", (ROOT / "docs" / "promises.md").read_text())


def test_each_promise_names_its_test() -> None:
    assert len(NAMED) > 10


@pytest.mark.parametrize(("module", "name"), NAMED, ids=[name for _, name in NAMED])
def test_a_test_that_is_named_is_there(module: str, name: str) -> None:
    tree = ast.parse((ROOT / module).read_text())
    assert name in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
