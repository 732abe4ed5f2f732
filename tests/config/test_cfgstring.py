"""The cfgstring grammar: what it means, and what a person is told about a mistake."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcmu_core import ConfigError, boolean, parse_cfgstring, size
from tcmu_core.config.cfgstring import split_runner_options

KNOWN = {"direct": boolean, "size": size, "queue": int, "label": str}


@pytest.mark.parametrize(
    ("text", "body", "options"),
    [
        ("", "", {}),
        ("/a/b", "/a/b", {}),
        ("/a;direct", "/a", {"direct": True}),
        ("/a;direct=0;size=1.5K", "/a", {"direct": False, "size": 1536}),
        ("/a;;size=64M;", "/a", {"size": 64 << 20}),
        ("/a; label = x=y ", "/a", {"label": "x=y"}),
        (";queue=7", "", {"queue": 7}),
    ],
)
def test_a_cfgstring_is_a_body_and_options(text: str, body: str, options: dict[str, Any]) -> None:
    parsed = parse_cfgstring(text, KNOWN)
    assert (parsed.body, parsed.options) == (body, options)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("/a;dircet=1", "unknown option 'dircet': did you mean 'direct'?"),
        ("/a;zzz", "unknown option 'zzz': known are direct, label, queue, size"),
        ("/a;direct;direct=0", "option 'direct' is given twice"),
        ("/a;direct=perhaps", "option 'direct': 'perhaps' is neither yes nor no"),
        ("/a;size=big", "option 'size': 'big' is no size: write a number with K, M, G or T, such as 64M"),
        ("/a;queue=x", "option 'queue': 'x' is not valid: invalid literal for int() with base 10: 'x'"),
    ],
)
def test_a_mistake_says_what_to_write(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        parse_cfgstring(text, KNOWN)


@pytest.mark.parametrize(
    ("text", "number"),
    [("0", 0), ("512", 512), ("4k", 4096), ("64M", 64 << 20), ("1GiB", 1 << 30), ("2 TB", 2 << 40), ("0.5M", 1 << 19)],
)
def test_sizes_take_units_of_1024(text: str, number: int) -> None:
    assert size(text) == number


@pytest.mark.parametrize("text", ["", "G", "-1", "1e3", "1X", "0x10", "1 2"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="is no size"):
        size(text)


@given(st.integers(0, 1 << 63))
def test_a_large_size_is_exact(number: int) -> None:
    assert size(str(number)) == number


@pytest.mark.parametrize(
    ("text", "options", "body"),
    [
        ("/a;direct=1", {}, "/a;direct=1"),
        (";tcmur_cmd_time_out=5;/a", {"tcmur_cmd_time_out": 5}, "/a"),
        (";tcmur_cmd_time_out=5;", {"tcmur_cmd_time_out": 5}, ""),
    ],
)
def test_the_runners_options_come_first(text: str, options: dict[str, Any], body: str) -> None:
    assert split_runner_options(text) == (options, body)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (";tcmur_cmd_timeout=5;/a", "unknown option 'tcmur_cmd_timeout': did you mean 'tcmur_cmd_time_out'?"),
        (";tcmur_cmd_time_out=5", "the runner option 'tcmur_cmd_time_out=5' must end with ';'"),
        (";tcmur_cmd_time_out=x;/a", "option 'tcmur_cmd_time_out': 'x' is not valid"),
    ],
)
def test_a_mistake_in_the_runners_options_says_what_to_write(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        split_runner_options(text)
