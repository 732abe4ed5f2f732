"""Converters of command-line arguments, shared by the subcommands: a bad one is a usage error with a reason."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from tcmu_core import cfgstring, files
from tcmu_core.errors import ConfigError
from tcmu_core.iscsi.settings import parse_address, parse_advertised
from tcmu_core.state import default_directory

MAX_CREDENTIALS = 256 << 10  # bytes of a file of passwords

T = TypeVar("T")


class Parser(argparse.ArgumentParser):
    """A subcommand's parser: its arguments may stand before, between and after its options."""

    _inside = False

    # argparse alone takes `check file --json PATH` for a HANDLER without its optional CFGSTRING and a stray word.
    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Parse as `parse_known_intermixed_args` does, unless there are subcommands below, which that can't do."""
        below = any(action.nargs in {argparse.PARSER, argparse.REMAINDER} for action in self._actions)
        if self._inside or below:
            return super().parse_known_args(args, namespace)
        self._inside = True
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self._inside = False


def converter(convert: Callable[[str], T]) -> Callable[[str], T]:
    """Return `convert` as a `type=` of argparse, which shows the message of a `ConfigError`."""

    def converted(text: str) -> T:
        try:
            return convert(text)
        except ConfigError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return converted


size = converter(cfgstring.size)
address = converter(parse_address)
advertised = converter(parse_advertised)


@converter
def block_size(text: str) -> int:
    """Return a block size in bytes."""
    number = cfgstring.size(text)
    if number < 512 or number > 65536 or number & (number - 1):
        raise ConfigError(f"{text!r} is no block size: a power of two from 512 to 65536")
    return number


@converter
def credentials(text: str) -> tuple[str, str]:
    """Return user and password of `USER:PASSWORD`."""
    user, sep, password = text.partition(":")
    if not (user and sep and password):
        raise ConfigError("write USER:PASSWORD")
    return user, password


def directory(text: str) -> Path:
    """Return the path of a directory, which need not be there yet."""
    if os.path.exists(text) and not os.path.isdir(text):
        raise argparse.ArgumentTypeError(f"{text} is not a directory")
    return Path(text)


def state_dir(parser: argparse.ArgumentParser, whose: str = "`tcmu serve`") -> None:
    """Add `--state-dir`: the directory in which running processes are found."""
    parser.add_argument(
        "--state-dir",
        metavar="DIR",
        type=directory,
        default=default_directory(),
        help=f"where {whose} keeps its state (%(default)s)",
    )


def credentials_file(path: Path) -> dict[str, str]:
    """Return the users and passwords of a file with a `USER:PASSWORD` a line; nobody else may be able to read it.

    Raises:
        ConfigError: a line is something else, or the file is readable by others, or no text file.
    """
    text, mode = files.text(path, MAX_CREDENTIALS, "file of passwords, a USER:PASSWORD a line")
    if mode & 0o077:
        raise ConfigError(f"{path}: others can read the passwords in it: chmod 600 {path}")
    users: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        user, _sep, password = line.partition(":")
        if not user or not password:
            raise ConfigError(f"{path}:{number}: write USER:PASSWORD")
        users[user] = password
    if not users:
        raise ConfigError(f"{path}: no USER:PASSWORD in it")
    return users
