"""The cfgstring: the C runner's, and what it says about mistakes."""

from __future__ import annotations

import pytest

from tcmu_core import ConfigError
from tcmu_glfs import gfapi
from tcmu_glfs.config import Config, parse


@pytest.mark.parametrize(
    ("cfgstring", "config"),
    [
        ("vol0@host/disk.img", Config("vol0", "host", "/disk.img")),
        ("v@10.0.0.1/a/b@c.img", Config("v", "10.0.0.1", "/a/b@c.img")),
        ("v@[::1]/a;ro=1;log=/l", Config("v", "::1", "/a", "/l", True)),
    ],
)
def test_what_a_cfgstring_says(cfgstring: str, config: Config) -> None:
    assert parse(cfgstring) == config


def test_tcmu_conf_gives_what_the_cfgstring_leaves_out() -> None:
    assert parse("v@h/a;ro=0", {"ro": "1", "log": "/l"}) == Config("v", "h", "/a", "/l", False)


@pytest.mark.parametrize(
    ("cfgstring", "says"),
    [
        ("", "write VOLUME@HOST/PATH"),
        ("/disk.img", "write VOLUME@HOST/PATH"),
        ("vol0@host", "write VOLUME@HOST/PATH"),
        ("@host/disk", "write VOLUME@HOST/PATH"),
        ("vol0@/disk", "write VOLUME@HOST/PATH"),
        ("vol0@host:24007/disk", "the port is always 24007"),
        ("vol0@host/dir/", "is a directory"),
        ("vol0@host/disk;rw=1", "unknown option 'rw'"),
    ],
)
def test_a_mistake_is_told_with_what_to_write(cfgstring: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        parse(cfgstring)


def test_without_the_library_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gfapi, "LIBRARIES", ("libgfapi-of-another-world.so.0",))
    with pytest.raises(ConfigError, match="apt-get install glusterfs-common"):
        gfapi.Gfapi()
