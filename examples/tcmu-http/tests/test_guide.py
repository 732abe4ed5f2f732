"""The guide shows what is: its listings are compared with the source, and its first handler is a disk."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

from tcmu_core.testing import check_handler, open_device

PROJECT = Path(__file__).parents[1]
ROOT = PROJECT.parents[1]
GUIDE = (ROOT / "docs" / "network-handler.md").read_text()
LISTING = re.compile(r"`([\w/.-]+\.(?:py|toml))`[^`\n]*:\n\n```\w+\n(.*?)```\n", re.DOTALL)
LISTINGS = LISTING.findall(GUIDE)


def differing(listing: str, source: str) -> str:
    """Return the first part of a listing that is not in the source, in its place; empty where all are."""
    at = 0
    for part in re.split(r"^ *…\n", listing, flags=re.MULTILINE):
        found = source.find(part, at)
        if found < 0 or (found and source[found - 1] != "\n"):
            return part
        at = found + len(part)
    return ""


@pytest.mark.parametrize(("name", "listing"), LISTINGS, ids=[name for name, _ in LISTINGS])
def test_a_listing_is_what_the_file_has(name, listing):
    (file,) = [
        path / name
        for path in (ROOT, PROJECT)
        if name != "pyproject.toml" or path == PROJECT
        if (path / name).is_file()
    ]
    assert not differing(listing, file.read_text())


def test_every_listing_says_where_it_is_from():
    assert len(LISTINGS) == GUIDE.count("```") // 2 > 10


@pytest.mark.parametrize(
    ("listing", "what"),
    [("a\n…\nc\n", ""), ("a\nc\n", "a\nc\n"), ("c\n…\na\n", "a\n"), ("b\n", ""), ("  b\n", "  b\n"), ("bb\n", "bb\n")],
)
def test_a_listing_that_is_not_so_is_noticed(listing, what):
    assert differing(listing, "a\nb\nc\nxbb\n") == what


def test_the_twenty_lines_are_a_disk(web):
    kind = runpy.run_path(str(ROOT / "docs" / "examples" / "handler_web.py"))["Web"]
    check_handler(lambda: open_device(kind, web.url), examples=4, claims=["own size"], ways=["engine"])
