"""The cfgstring: `[ro/]/path/to/image[;ro=1][;profile=NAME]`; an empty one is a drive without a disc."""

from __future__ import annotations

from dataclasses import dataclass

from tcmu_core import ConfigError, boolean, parse_cfgstring
from tcmu_fbo.profiles import BY_NAME, Profile

PREFIX_OPTIONS = ("ro",)


@dataclass(frozen=True, slots=True)
class Disc:
    """A disc to put into the drive: the image, whether it is write-protected, and its kind if that was given."""

    path: str
    read_only: bool = False
    profile: Profile | None = None


def parse(cfgstring: str) -> Disc | None:
    """Return the disc that `cfgstring` names; None for an empty tray.

    Raises:
        ConfigError: with what to write instead.
    """
    parsed = parse_cfgstring(cfgstring, {"ro": boolean, "profile": profile_named})
    read_only = parsed.options.get("ro", False)
    path = parsed.body
    # The C runner's form: options as path components in front of the one that begins with a slash.
    while not path.startswith("/") and "//" in path:
        option, _, path = path.partition("/")
        if option not in PREFIX_OPTIONS:
            raise ConfigError(f"unknown option {option!r} in front of the path: known are {', '.join(PREFIX_OPTIONS)}")
        read_only = True
    if not path:
        if parsed.options or read_only:
            raise ConfigError("options without an image: write the path of an image, or nothing for an empty drive")
        return None
    return Disc(path, read_only, parsed.options.get("profile"))


def profile_named(name: str) -> Profile:
    """Return the profile called `name`; raises `ConfigError`."""
    profile = BY_NAME.get(name.lower())
    if profile is None:
        raise ConfigError(f"{name!r} is no profile: known are {', '.join(sorted(BY_NAME))}")
    return profile
