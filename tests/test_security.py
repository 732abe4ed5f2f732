"""SECURITY.md: each promise names a test that there is."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NAMED = re.findall(r"`((?:tests|plugins)/[^`]+)`", (ROOT / "SECURITY.md").read_text())


def test_promises_name_their_tests() -> None:
    rows = [line for line in (ROOT / "SECURITY.md").read_text().splitlines() if line.startswith("| ")]
    promises = [row for row in rows if row != "| promise | test |"]
    assert promises
    for row in promises:
        assert re.search(r"`(tests|plugins)/", row), row


@pytest.mark.parametrize("named", NAMED)
def test_a_test_that_is_named_is_there(named: str) -> None:
    path, _, function = named.partition("::")
    assert (ROOT / path).exists()
    if function:
        assert f"def {function}(" in (ROOT / path).read_text()
