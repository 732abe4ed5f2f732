"""The cfgstring: the C runner's, and what it says about mistakes."""

from __future__ import annotations

import pytest

from tcmu_core import ConfigError
from tcmu_rbd.config import Config, parse


@pytest.mark.parametrize(
    ("cfgstring", "config"),
    [
        ("rbd/disk", Config("rbd", "disk")),
        (
            "rbd/disk;osd_op_timeout=30;conf=/a b.conf;id=me",
            Config("rbd", "disk", "/a b.conf", "me", osd_op_timeout=30),
        ),
        ("p/i;namespace=n;snapshot=s", Config("p", "i", namespace="n", snapshot="s")),
        ("p/i;lock=break", Config("p", "i", lock="break")),
    ],
)
def test_what_a_cfgstring_says(cfgstring: str, config: Config) -> None:
    assert parse(cfgstring) == config


def test_an_image_is_called_as_rbd_calls_it() -> None:
    assert parse("p/i;namespace=n;snapshot=s").name == "p/n/i@s"
    assert parse("p/i").name == "p/i"


def test_tcmu_conf_gives_what_the_cfgstring_leaves_out() -> None:
    assert parse("p/i;id=me", {"id": "other", "conf": "/c"}) == Config("p", "i", "/c", "me")


@pytest.mark.parametrize(
    ("cfgstring", "says"),
    [
        ("", "write POOL/IMAGE"),
        ("disk", "write POOL/IMAGE"),
        ("/disk", "write POOL/IMAGE"),
        ("p/", "write POOL/IMAGE"),
        ("p/n/i", "write p/i;namespace=n"),
        ("p/i@s", "write p/i;snapshot=s"),
        ("p/i;snap=s", "did you mean 'snapshot'"),
        ("p/i;lock=steal", "none of refuse, break"),
        ("p/i;osd_op_timeout=0", "at least 1"),
        ("p/i;osd_op_timeout=soon", "not valid"),
    ],
)
def test_a_mistake_is_told_with_what_to_write(cfgstring: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        parse(cfgstring)
