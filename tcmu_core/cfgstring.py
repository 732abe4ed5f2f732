"""The cfgstring: its grammar `[;runner_option=value;]body[;option=value…]`, sizes like 1G, what configfs can hold."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any
from urllib.parse import unquote

from tcmu_core.errors import ConfigError

MAX_LENGTH = 255  # target_core_user: TCMU_CONFIG_LEN less its end
_SIZE = re.compile(r"(\d{1,30}(?:\.\d{1,30})?)\s*([kmgtpe]?)(?:i?b)?", re.IGNORECASE | re.ASCII)
_UNITS = {"": 0, "k": 10, "m": 20, "g": 30, "t": 40, "p": 50, "e": 60}
_TRUE = ("1", "yes", "true", "on")
_FALSE = ("0", "no", "false", "off")
# What can't come back from configfs whole: target_core_user ends a value at a comma or line end, and rtslib reads
# `Config:` back up to the next space or colon, so that a restored device would stand on other storage.
_UNSAFE = re.compile(r"[,:\s\x00-\x1f\x7f]")
_UNSAFE_NAMES = {",": "a comma", ":": "a colon", " ": "a space", "\n": "a newline"}


@dataclass(frozen=True, slots=True)
class CfgString:
    """A parsed cfgstring: the `body` (a path, an image name …) and its options, converted.

    `given` are the names of the options that the cfgstring itself has, the others being defaults.
    """

    body: str
    options: dict[str, Any] = field(default_factory=dict)
    given: frozenset[str] = field(default=frozenset(), compare=False)


class Default(str):
    """The value of an option as a configuration file has it; `where` says in which one, and the line."""

    __slots__ = ("where",)

    where: str

    def __new__(cls, text: str, where: str) -> Default:
        """Return `text`, which knows where it is from."""
        default = super().__new__(cls, text)
        default.where = where
        return default


def size(text: str) -> int:
    """Return the bytes that `text` means: `4096`, `64K`, `1.5G`, `10GiB`; units are powers of 1024."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ConfigError(f"{text!r} is no size: write a number with K, M, G or T, such as 64M")
    unit = 1 << _UNITS[match[2].lower()]
    return int(Fraction(match[1]) * unit)


def boolean(text: str) -> bool:
    """Return the truth of `1 yes true on` and `0 no false off`; an option without a value is true."""
    if text.lower() in _TRUE or not text:
        return True
    if text.lower() in _FALSE:
        return False
    raise ConfigError(f"{text!r} is neither yes nor no")


def parse_cfgstring(
    text: str, known: Mapping[str, Callable[[str], Any]], defaults: Mapping[str, str] | None = None
) -> CfgString:
    """Split a handler's cfgstring into its body and options.

    `known` maps an option's name to what converts its value (`str`, `int`, `size`, `boolean`). `defaults` are the
    options that tcmu.conf has for the handler (`device.options`): for what the cfgstring does not say.

    Raises:
        ConfigError: an unknown option (with the nearest known one), a bad value, or one given twice. Where a default
            is wrong, the message says where that stands.
    """
    options: dict[str, Any] = {}
    for name, value in (defaults or {}).items():
        where = getattr(value, "where", "the handler's defaults in tcmu.conf")
        try:
            options[name] = _convert(name, value, known)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from None
    body, *parts = text.split(";")
    given: dict[str, Any] = {}
    at = len(body)
    for part in parts:
        start, at = at + 1, at + 1 + len(part)
        if not part:
            continue
        name, _, value = part.partition("=")
        name = name.strip()
        try:
            if name in given:
                raise ConfigError(f"option {name!r} is given twice")
            given[name] = _convert(name, value.strip(), known)
        except ConfigError as error:
            raise ConfigError(*error.args, text=text, span=(start, at)) from None
    return CfgString(body, {**options, **given}, frozenset(given))


def _convert(name: str, value: str, known: Mapping[str, Callable[[str], Any]]) -> Any:
    convert = known.get(name)
    if convert is None:
        raise ConfigError(f"unknown option {name!r}: {_meant(name, known)}")
    try:
        return convert(str(value))
    except ValueError as error:
        raise ConfigError(f"option {name!r}: {value!r} is not valid: {error}") from None
    except ConfigError as error:
        raise ConfigError(f"option {name!r}: {error}") from None


def _meant(name: str, known: Mapping[str, Any]) -> str:
    """Say which option may have been meant."""
    if name in RUNNER_OPTIONS:
        return f"the runner's own stand in front: ;{name}=…;"
    close = difflib.get_close_matches(name, known, 1)
    return f"did you mean {close[0]!r}?" if close else f"known are {', '.join(sorted(known)) or 'none'}"


def configfs_problem(config: str) -> str:
    """Return why `subtype/cfgstring` can't be the configuration of a kernel device, empty where it can."""
    if len(config.encode(errors="surrogatepass")) > MAX_LENGTH:
        return f"it is longer than the {MAX_LENGTH} bytes that the kernel keeps"
    unsafe = _UNSAFE.search(config)
    if unsafe is None:
        return ""
    name = _UNSAFE_NAMES.get(unsafe[0], repr(unsafe[0]))
    return f"it holds {name}: configfs or rtslib would cut it there"


def _seconds(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise ConfigError(f"{text!r} is no number of seconds")
    return int(text)


RUNNER_PREFIX = "tcmur_"
FILTER_OPTION = "tcmur_filter"
RUNNER_OPTIONS: Mapping[str, Callable[[str], Any]] = {"tcmur_cmd_time_out": _seconds, FILTER_OPTION: str}


def split_runner_options(text: str) -> tuple[dict[str, Any], str]:
    """Take the leading `;tcmur_option=value;` parts, which are the runner's, off a cfgstring.

    `tcmur_filter` may be there more than once; its value is a tuple of the filters' texts.

    A handler whose body may be empty has its own options there: `;size=64M` is not touched.

    Raises:
        ConfigError: an option of the runner is unknown, has a bad value, is given twice, or does not end.
    """
    parts: list[str] = []
    filters: tuple[str, ...] = ()
    rest = text
    while rest.startswith(f";{RUNNER_PREFIX}") or _misspelt(rest) or (rest != text and rest.startswith(RUNNER_PREFIX)):
        head, sep, rest = rest.removeprefix(";").partition(";")
        if not sep:
            raise ConfigError(f"the runner option {head!r} must end with ';'")
        name, _, value = head.partition("=")
        if name == FILTER_OPTION:
            filters += (_filter(value),)
        else:
            parts.append(head)
    options = parse_cfgstring("".join(f";{part}" for part in parts), RUNNER_OPTIONS).options
    return {**options, FILTER_OPTION: filters} if filters else options, rest


def _filter(text: str) -> str:
    """Return the filter that `name&option=value` names, as `name;option=value`; %XX stands for any character."""
    return ";".join(unquote(part) for part in text.split("&"))


def _misspelt(text: str) -> bool:
    """Whether a cfgstring begins with what can only be meant for the runner: `;tcmu_cmd_time_out=30;`."""
    name = text[1:].partition(";")[0].partition("=")[0].strip() if text.startswith(";") else ""
    return bool(difflib.get_close_matches(name, RUNNER_OPTIONS, 1, 0.9))
