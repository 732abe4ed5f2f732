"""The actions of a fault disk: what may go wrong, and how each is written."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tcmu_core import errors
from tcmu_core.errors import CommandError, ConfigError
from tcmu_core.filters.latency import latency

_SENSE = re.compile(r"([0-9a-f]{1,2})/([0-9a-f]{2})/([0-9a-f]{2})", re.IGNORECASE)
_CODE = re.compile(r"([0-9a-f]{2})/([0-9a-f]{2})", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Action:
    """One action: its name, and its value as `ACTIONS` converts it."""

    name: str
    value: Any = None


def _named_errors() -> Mapping[str, type[CommandError]]:
    """Return what `tcmu_core.errors` can say to an initiator, by names such as `write-error` and `task-set-full`."""
    return {
        re.sub(r"(?<!^)(?=[A-Z])", "-", name).lower(): kind
        for name, kind in vars(errors).items()
        if inspect.isclass(kind) and issubclass(kind, CommandError) and kind is not CommandError
    }


NAMED = _named_errors()


def sense(text: str) -> tuple[int, int, int]:
    """Return sense key, ASC and ASCQ of `KEY/ASC/ASCQ`, in hexadecimal."""
    match = _SENSE.fullmatch(text)
    if match is None or int(match[1], 16) > 0xF:
        raise ConfigError(f"{text!r} is no sense: write KEY/ASC/ASCQ in hexadecimal, such as 3/11/00")
    return int(match[1], 16), int(match[2], 16), int(match[3], 16)


def code(text: str) -> tuple[int, int]:
    """Return ASC and ASCQ of `ASC/ASCQ`, in hexadecimal."""
    match = _CODE.fullmatch(text)
    if match is None:
        raise ConfigError(f"{text!r} is no additional sense code: write ASC/ASCQ in hexadecimal, such as 2a/09")
    return int(match[1], 16), int(match[2], 16)


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise ConfigError(f"{text!r} is no whole number")
    return int(text)


def _shift(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ConfigError(f"{text!r} is no number of blocks") from None


def _bit(text: str) -> int | None:
    return None if text == "random" else _count(text)


def _callable(text: str) -> Callable[[Any], Any]:
    """Return the function that `module:name` is; it is called with an `Event`."""
    module, _, name = text.partition(":")
    try:
        found = getattr(__import__(module, fromlist=[name]), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"{text!r}: {error}: write module:function") from None
    if not callable(found):
        raise ConfigError(f"{text!r} can't be called")
    return found  # type: ignore[no-any-return]  # anything that can be called


# By name: what converts the value; None for an action that has none.
ACTIONS: Mapping[str, Callable[[str], Any] | None] = {
    "sense": sense,  # CHECK CONDITION with this sense
    "wait": latency,  # the answer comes later
    "hang": None,  # nothing is done until `release`
    "torn": _count,  # of a write, only this many blocks reach the disk
    "misdirect": _shift,  # a write lands so many blocks away
    "lose": None,  # it is answered GOOD and not done: a lost write, a flush that lies
    "flip": _bit,  # this bit of the data, or a random one, is the other way round
    "attention": code,  # a unit attention for every initiator; the command goes on
    "drop": None,  # the connection that the command came by breaks
    "gone": None,  # the medium is out from now on, until `release`
    "call": _callable,  # a Python function is asked: it raises, or returns None or another action's text
    **dict.fromkeys(NAMED),
}


def parse_action(text: str) -> Action:
    """Return the action that `NAME` or `NAME=VALUE` describes; raises `ConfigError`."""
    name, sep, value = text.partition("=")
    if name not in ACTIONS:
        plain = [name for name in ACTIONS if name not in NAMED]
        raise ConfigError(f"{text!r} is no action: there are {' '.join(plain)}, and errors such as {_examples()}")
    convert = ACTIONS[name]
    if convert is None:
        if sep:
            raise ConfigError(f"{text!r}: {name} takes no value")
        return Action(name)
    if not sep:
        raise ConfigError(f"{text!r}: {name} needs a value: {name}=…")
    return Action(name, convert(value))


def error_of(action: Action) -> CommandError | None:
    """Return the error that an action raises; None for one that does something else."""
    kind = NAMED.get(action.name)
    if kind is not None:
        return kind("by a rule")
    if action.name != "sense":
        return None
    error = CommandError("by a rule")
    error.sense_key, error.asc, error.ascq = action.value
    return error


def _examples() -> str:
    return " ".join(("read-error", "write-error", "busy", "task-set-full", "not-ready", "hardware-error"))
