"""Converters of command-line arguments, shared by the subcommands: a bad one is a usage error with a reason."""

from __future__ import annotations

import argparse
import os
import shlex
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from tcmu_core import cfgstring, files
from tcmu_core.disk.spec import disk_name
from tcmu_core.errors import ConfigError
from tcmu_core.iscsi.settings import parse_address, parse_advertised
from tcmu_core.state import default_directory

MAX_CREDENTIALS = 256 << 10  # bytes of a file of passwords
MOST_DIGITS = 18  # of a number
YEAR = 365 * 86400.0  # seconds

T = TypeVar("T")


class Once(argparse.Action):
    """An option with one value: another one is a mistake, and would have the first dropped without a word."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        """Take the value."""
        before = getattr(namespace, self.dest, self.default)
        if self.option_strings and before is not self.default and before != values:
            parser.error(f"argument {option_string}: given twice")
        setattr(namespace, self.dest, values)


class Parser(argparse.ArgumentParser):
    """A command's parser: its arguments may stand before, between and after its options, each option once."""

    _inside = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for name in (None, "store"):
            self.register("action", name, Once)

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
name = converter(disk_name)


def digits(text: str) -> int:
    """Return the number that is written in decimal digits alone; -1 for anything else: int() takes `1_0`, too."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= MOST_DIGITS else -1


def _decimal(text: str) -> float:
    """Return the number that float() reads; -1 for anything else."""
    try:
        return float(text)
    except ValueError:
        return -1.0


@converter
def count(text: str) -> int:
    """Return a number of things, of which there is one at least."""
    if digits(text) < 1:
        raise ConfigError(f"{text!r}: write a whole number, 1 or more")
    return digits(text)


@converter
def ordinal(text: str) -> int:
    """Return a number from 0 on, such as that of one thing among others."""
    if digits(text) < 0:
        raise ConfigError(f"{text!r}: write a whole number, 0 or more")
    return digits(text)


@converter
def seconds(text: str) -> float:
    """Return a time in seconds, some of them and no more than a year."""
    number = _decimal(text)
    if not 0 < number <= YEAR:  # nor is it no number
        raise ConfigError(f"{text!r}: write seconds, more than 0")
    return number


@converter
def milliseconds(text: str) -> float:
    """Return a time in milliseconds, of which there may be none, and no more than a year."""
    number = _decimal(text)
    if not 0 <= number <= YEAR * 1000:
        raise ConfigError(f"{text!r}: write milliseconds, 0 or more")
    return number


def whole(least: int, most: int, what: str) -> Callable[[str], int]:
    """Return a converter of whole numbers from `least` to `most`, and of nothing else, that are `what`."""

    @converter
    def convert(text: str) -> int:
        if not least <= digits(text) <= most:
            raise ConfigError(f"{text!r}: write {what}, from {least} to {most}")
        return digits(text)

    return convert


@converter
def block_size(text: str) -> int:
    """Return a block size in bytes."""
    number = cfgstring.size(text)
    if number < 512 or number > 65536 or number & (number - 1):
        raise ConfigError(f"{text!r} is no block size: a power of two from 512 to 65536")
    return number


@converter
def command(text: str) -> str:
    """Return a shell command; one that is empty comes of a variable that is not set."""
    if not text.strip():
        raise ConfigError("no command: write one")
    return text


@converter
def credentials(text: str) -> tuple[str, str]:
    """Return user and password of `USER:PASSWORD`."""
    user, sep, password = text.partition(":")
    if not (user and sep and password):
        raise ConfigError("write USER:PASSWORD")
    _sendable(text)
    return user, password


def logins(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return passwords by user; raises ConfigError for a user that is there twice."""
    users: dict[str, str] = {}
    for user, password in pairs:
        if user in users:
            raise ConfigError(f"user {user!r} is there twice: one of the passwords would not work")
        users[user] = password
    return users


def _sendable(text: str) -> None:
    """Raise ConfigError for bytes that are no UTF-8: no client could send them as text (RFC 7143 6.1)."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ConfigError("a user and a password are UTF-8 text") from None


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
        raise ConfigError(f"{path}: others can read the passwords in it: chmod 600 {shlex.quote(str(path))}")
    users: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        user, _sep, password = line.partition(":")
        if not user or not password:
            raise ConfigError(f"{path}:{number}: write USER:PASSWORD")
        if user in users:
            raise ConfigError(f"{path}:{number}: user {user!r} is there twice: one of the passwords would not work")
        users[user] = password
    if not users:
        raise ConfigError(f"{path}: no USER:PASSWORD in it")
    return users
