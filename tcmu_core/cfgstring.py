"""The cfgstring grammar: `[;runner_option=value;]body[;option=value…]`, and sizes like 1G."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

from tcmu_core.errors import ConfigError

MAX_LENGTH = 255  # target_core_user: TCMU_CONFIG_LEN less its end
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgtpe]?)(?:i?b)?", re.IGNORECASE | re.ASCII)
_UNITS = {"": 0, "k": 10, "m": 20, "g": 30, "t": 40, "p": 50, "e": 60}
_TRUE = ("1", "yes", "true", "on")
_FALSE = ("0", "no", "false", "off")
RUNNER_PREFIX = "tcmur_"
FILTER_OPTION = "tcmur_filter"


@dataclass(frozen=True, slots=True)
class CfgString:
    """A parsed cfgstring: the `body` (a path, an image name …) and its options, converted."""

    body: str
    options: dict[str, Any] = field(default_factory=dict)


def size(text: str) -> int:
    """Return the bytes that `text` means: `4096`, `64K`, `1.5G`, `10GiB`; units are powers of 1024."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ConfigError(f"{text!r} is no size: write a number with K, M, G or T, such as 64M")
    unit = 1 << _UNITS[match[2].lower()]
    return int(float(match[1]) * unit) if "." in match[1] else int(match[1]) * unit


def boolean(text: str) -> bool:
    """Return the truth of `1 yes true on` and `0 no false off`; an option without a value is true."""
    if text.lower() in _TRUE or not text:
        return True
    if text.lower() in _FALSE:
        return False
    raise ConfigError(f"{text!r} is neither yes nor no")


def parse_cfgstring(text: str, known: Mapping[str, Callable[[str], Any]]) -> CfgString:
    """Split a handler's cfgstring into its body and options.

    `known` maps an option's name to what converts its value (`str`, `int`, `size`, `boolean`).

    Raises:
        ConfigError: an unknown option (with the nearest known one), a bad value, or one given twice.
    """
    body, *parts = text.split(";")
    options: dict[str, Any] = {}
    for part in parts:
        if not part:
            continue
        name, _, value = part.partition("=")
        name = name.strip()
        convert = known.get(name)
        if convert is None:
            close = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(sorted(known)) or 'none'}"
            raise ConfigError(f"unknown option {name!r}: {hint}")
        if name in options:
            raise ConfigError(f"option {name!r} is given twice")
        try:
            options[name] = convert(value.strip())
        except ValueError as error:
            raise ConfigError(f"option {name!r}: {value!r} is not valid: {error}") from None
        except ConfigError as error:
            raise ConfigError(f"option {name!r}: {error}") from None
    return CfgString(body, options)


def split_runner_options(text: str) -> tuple[dict[str, Any], str]:
    """Take the leading `;tcmur_option=value;` parts, which are the runner's, off a cfgstring.

    `tcmur_filter` may be there more than once; its value is a tuple of the filters' texts.

    A handler whose body may be empty has its own options there: `;size=64M` is not touched.
    """
    if not text.startswith(f";{RUNNER_PREFIX}"):
        return {}, text
    head, sep, rest = text[1:].partition(";")
    if not sep:
        raise ConfigError(f"the runner option {head!r} must end with ';'")
    if rest.startswith(RUNNER_PREFIX):
        rest = ";" + rest
    more, body = split_runner_options(rest) if rest.startswith(";") else ({}, rest)
    own = parse_cfgstring(";" + head, RUNNER_OPTIONS).options
    if FILTER_OPTION in own:  # each is one filter, the lowest first
        more = {**more, FILTER_OPTION: own[FILTER_OPTION] + more.get(FILTER_OPTION, ())}
    elif twice := own.keys() & more.keys():
        raise ConfigError(f"option {twice.pop()!r} is given twice")
    return {**own, **more}, body


def _filter(text: str) -> tuple[str, ...]:
    """Return the filter that `name&option=value` names, as `name;option=value`; %XX stands for any character."""
    return (";".join(unquote(part) for part in text.split("&")),)


RUNNER_OPTIONS: Mapping[str, Callable[[str], Any]] = {"tcmur_cmd_time_out": int, FILTER_OPTION: _filter}
