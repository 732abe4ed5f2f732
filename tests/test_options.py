"""Typed options: declared once, they parse, check, name mistakes, find paths and write their own help."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tcmu_core import Body, ConfigError, Option, Options, boolean, path, size
from tcmu_core.cfgstring import Default
from tcmu_core.options import declared

OPTIONS = Options(
    Option("ro", boolean, "no writes", default=False),
    Option("depth", int, "commands at a time", default=32, least=1, most=128),
    Option("cache", size, least=4096),
    Option("mode", help="how", choices=("fast", "safe"), default="safe"),
    Option("journal", path, "where the journal is"),
    body=Body("PATH", "/path/of/the/image"),
    summary="An image.",
)


def test_every_option_has_a_value_whether_it_is_given_or_not():
    parsed = OPTIONS.parse("/disk;ro;cache=1M")
    assert parsed.body == "/disk"
    assert parsed.options == {"ro": True, "depth": 32, "cache": 1 << 20, "mode": "safe", "journal": None}
    assert parsed.given == {"ro", "cache"}


def test_what_a_person_wrote_goes_before_tcmu_conf_and_that_before_what_is_declared():
    parsed = OPTIONS.parse("/disk;depth=4", {"depth": "8", "mode": "fast"})
    assert (parsed.options["depth"], parsed.options["mode"], parsed.options["ro"]) == (4, "fast", False)


BAD = {
    "/d;rro=1": ("unknown option 'rro': did you mean 'ro'?", "rro=1"),
    "/d;ro=1;depth=0": ("option 'depth': '0' is too small: at least 1", "depth=0"),
    "/d;depth=129": ("option 'depth': '129' is too large: at most 128", "depth=129"),
    "/d;depth=x": ("option 'depth': 'x' is not valid: no whole number", "depth=x"),
    "/d;mode=slow": ("option 'mode': 'slow' is none of fast, safe", "mode=slow"),
    "/d;cache=1": ("option 'cache': '1' is too small: at least 4096", "cache=1"),
    "/d;journal=": ("option 'journal': no path", "journal="),
    "/d;ro;ro": ("option 'ro' is given twice", "ro"),
    ";ro": ("no path: write /path/of/the/image", ""),
    "/\0": ("a path can't hold a NUL byte", ""),
}


@pytest.mark.parametrize("text", BAD)
def test_a_mistake_is_named_and_its_place_too(text):
    message, place = BAD[text]
    with pytest.raises(ConfigError, match=re.escape(message)) as told:
        OPTIONS.parse(text)
    assert told.value.text[slice(*told.value.span)] == place


def test_a_mistake_in_tcmu_conf_is_named_with_its_line():
    with pytest.raises(ConfigError, match=re.escape("tcmu.conf:4: option 'depth': '0' is too small: at least 1")):
        OPTIONS.parse("/d", {"depth": Default("0", "tcmu.conf:4")})


def test_a_handler_without_a_body_takes_none():
    options = Options(Option("size", size))
    assert options.parse(";size=1K").options == {"size": 1024}
    with pytest.raises(ConfigError, match=re.escape("'/disk' means nothing here: what is known is [;size=SIZE]")):
        options.parse("/disk")


def test_an_option_can_not_be_declared_twice():
    with pytest.raises(ValueError, match="twice"):
        Options(Option("a"), Option("a"))


@pytest.mark.parametrize(
    ("text", "absolute"),
    [
        ("disk;ro", "/here/disk;ro"),
        ("../disk", "/disk"),
        ("/there/disk", "/there/disk"),
        ("", ""),
        ("disk;journal=j;mode=safe", "/here/disk;journal=/here/j;mode=safe"),
        ("disk;journal=;x", "/here/disk;journal=;x"),
        ("~nobody.is.called.so/disk", "/here/~nobody.is.called.so/disk"),
    ],
)
def test_paths_are_made_absolute_wherever_they_stand(text, absolute):
    assert OPTIONS.absolute(text, Path("/here")) == absolute


def test_what_is_no_path_stays_as_it_is():
    options = Options(Option("conf", path), body=Body("POOL/IMAGE", is_path=False))
    assert options.absolute("pool/image;conf=ceph.conf", Path("/here")) == "pool/image;conf=/here/ceph.conf"


def test_a_body_names_the_storage():
    assert OPTIONS.names_storage("/disk;ro")
    assert not Options(Option("size", size)).names_storage(";size=1K")
    assert not Options(body=Body(required=False)).names_storage(";x")
    by_name = Options(Option("host", names_storage=True), Option("size", size))
    assert by_name.names_storage(";size=1K;host=a")
    assert not by_name.names_storage(";size=1K")


def test_help_is_written_from_the_declaration():
    assert OPTIONS.syntax == "PATH[;ro=yes|no][;depth=N][;cache=SIZE][;mode=fast|safe][;journal=PATH]"
    assert OPTIONS.description.splitlines() == [
        "An image.",
        OPTIONS.syntax,
        "PATH: /path/of/the/image",
        "ro: no writes (no if not given)",
        "depth: commands at a time (at least 1; at most 128; 32 if not given)",
        "cache: SIZE (at least 4096)",
        "mode: how (safe if not given)",
        "journal: where the journal is",
    ]
    assert Options().description == "It takes nothing."
    assert Option("cache", size, default=96 << 20).bounds == "96M if not given"
    assert Options(*(Option(name) for name in "abcdefghi"), body=Body()).syntax == "PATH[;OPTION=VALUE]…"


def test_an_attribute_that_is_called_options_and_is_something_else_declares_nothing():
    assert declared(type("Handler", (), {"options": {"a": 1}})) is None
    assert declared(type("Handler", (), {})()) is None
    assert declared(type("Handler", (), {"options": OPTIONS})()) is OPTIONS
