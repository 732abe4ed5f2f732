"""The cfgstring: `[ro/]/path/to/image[;ro=1][;profile=NAME][;lock=no]`; an empty one is a drive without a disc."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from tcmu_core import Body, ConfigError, Option, Options, boolean
from tcmu_fbo.profiles import BY_NAME, Profile

PREFIX_OPTIONS = ("ro",)
NOTHING: Mapping[str, str] = MappingProxyType({})


def profile_named(name: str) -> Profile:
    """Return the profile called `name`; raises `ConfigError`."""
    profile = BY_NAME.get(name.lower())
    if profile is None:
        raise ConfigError(f"{name!r} is no profile: known are {', '.join(sorted(BY_NAME))}")
    return profile


OPTIONS = Options(
    Option("ro", boolean, "a write-protected disc", default=False),
    Option("profile", profile_named, f"the kind of disc: {', '.join(sorted(BY_NAME))}; by its size, if not given"),
    Option("lock", boolean, "keep other processes from the image", default=True),
    body=Body(
        "IMAGE",
        "the path of an image or block device, ro/ in front of it for a write-protected disc; none is an empty drive",
        required=False,
        prefixes=PREFIX_OPTIONS,
    ),
    summary="An optical drive.",
)


@dataclass(frozen=True, slots=True)
class Disc:
    """A disc to put into the drive: the image, whether it is write-protected, its kind, and if it is locked."""

    path: str
    read_only: bool = False
    profile: Profile | None = None
    lock: bool = True


def parse(cfgstring: str, defaults: Mapping[str, str] = NOTHING) -> Disc | None:
    """Return the disc that `cfgstring` names; None for an empty tray.

    `defaults` are the options that tcmu.conf has for the handler: for what the cfgstring does not say.

    Raises:
        ConfigError: with what to write instead.
    """
    parsed = OPTIONS.parse(cfgstring, defaults)
    options = parsed.options
    read_only: bool = options["ro"]
    path = parsed.body
    # The C runner's form: options as path components in front of the one that begins with a slash.
    while not path.startswith("/") and "//" in path:
        option, _, path = path.partition("/")
        if option not in PREFIX_OPTIONS:
            raise ConfigError(f"unknown option {option!r} in front of the path: known are {', '.join(PREFIX_OPTIONS)}")
        read_only = True
    if not path:
        if parsed.given or path != parsed.body:
            raise ConfigError("options without an image: write the path of an image, or nothing for an empty drive")
        return None
    return Disc(path, read_only, options["profile"], options["lock"])
