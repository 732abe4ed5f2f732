"""The cfgstring."""

from __future__ import annotations

import pytest

from tcmu_core import ConfigError
from tcmu_fbo.config import Disc, parse
from tcmu_fbo.profiles import BD_ROM, CD_ROM, DVD_RAM, DVD_ROM, by_size


@pytest.mark.parametrize(
    ("text", "disc"),
    [
        ("", None),
        ("/img.iso", Disc("/img.iso")),
        ("ro//img.iso", Disc("/img.iso", read_only=True)),
        ("ro//a//b.iso", Disc("/a//b.iso", read_only=True)),
        ("/ro//img.iso", Disc("/ro//img.iso")),
        ("img.iso", Disc("img.iso")),
        ("sub/img.iso", Disc("sub/img.iso")),
        ("/img.iso;ro=1", Disc("/img.iso", read_only=True)),
        ("/img.iso;ro=no", Disc("/img.iso")),
        ("/img.iso;lock=no", Disc("/img.iso", lock=False)),
        ("/img.iso;profile=dvd-rom", Disc("/img.iso", profile=DVD_ROM)),
        ("ro//img.iso;profile=DVD-RAM", Disc("/img.iso", read_only=True, profile=DVD_RAM)),
    ],
)
def test_a_cfgstring_names_a_disc(text: str, disc: Disc | None) -> None:
    assert parse(text) == disc


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rw//img.iso", "unknown option 'rw' in front of the path"),
        ("/img.iso;profil=cd-rom", "did you mean 'profile'"),
        ("/img.iso;profile=laserdisc", "known are bd-rom, cd-rom, dvd-ram, dvd-rom"),
        ("/img.iso;ro=perhaps", "neither yes nor no"),
        (";ro=1", "options without an image"),
    ],
)
def test_a_wrong_cfgstring_says_what_to_write(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(text)


def test_tcmu_conf_has_defaults_for_what_the_cfgstring_does_not_say() -> None:
    defaults = {"ro": "yes", "profile": "dvd-rom"}
    assert parse("/img.iso", defaults) == Disc("/img.iso", read_only=True, profile=DVD_ROM)
    assert parse("/img.iso;ro=no;profile=dvd-ram", defaults) == Disc("/img.iso", profile=DVD_RAM)
    assert parse("", defaults) is None
    with pytest.raises(ConfigError, match="unknown option 'speed'"):
        parse("/img.iso", {"speed": "8"})


@pytest.mark.parametrize(
    ("blocks", "profile"),
    [
        (1, CD_ROM),
        (360_000, CD_ROM),
        (360_001, DVD_ROM),
        (4_173_824, DVD_ROM),
        (4_173_825, BD_ROM),
        (100_000_000, BD_ROM),
    ],
)
def test_a_read_only_image_is_the_smallest_disc_that_holds_it(blocks: int, profile: object) -> None:
    assert by_size(blocks) is profile
