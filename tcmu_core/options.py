"""Typed options: what the cfgstring of a handler or a filter may hold, declared once for its parser and its help."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tcmu_core.cfgstring import CfgString, boolean, parse_cfgstring, size
from tcmu_core.errors import ConfigError

MANY = 8  # options that one line has room for


def path(text: str) -> str:
    """Return a path as it is; one that is empty or holds a NUL byte can't be meant."""
    if not text:
        raise ConfigError("no path: write one")
    if "\0" in text:
        raise ConfigError("a path can't hold a NUL byte")
    return text


_PLACEHOLDERS: Mapping[Callable[[str], Any], str] = {
    boolean: "yes|no",
    int: "N",
    path: "PATH",
    size: "SIZE",
    str: "TEXT",
}


@dataclass(frozen=True, slots=True)
class Option:
    """One option: `;name=value`.

    `kind` converts its value: `str`, `int`, `size`, `boolean`, `path`, or a function of one's own that raises
    `ConfigError`. `least` and `most` bound a number, `choices` are all the texts that there are; `default` is the
    value (of the converted type) when nobody gives one. `names_storage`: it says which storage is meant, as a body
    does.
    """

    name: str
    kind: Callable[[str], Any] = str
    help: str = ""
    default: Any = None
    least: int | None = None
    most: int | None = None
    choices: tuple[str, ...] = ()
    names_storage: bool = False

    @property
    def placeholder(self) -> str:
        """Return what stands for its value in a help text."""
        return "|".join(self.choices) or _PLACEHOLDERS.get(self.kind, self.name.upper())

    @property
    def bounds(self) -> str:
        """Return what a person must know of its values: the least, the most, and what it is if not given."""
        parts = [f"at least {self.least}"] if self.least is not None else []
        parts += [f"at most {self.most}"] if self.most is not None else []
        if self.default is not None:
            default = _short(self.default) if self.kind is size else shown(self.default)
            parts.append(f"{default} if not given")
        return "; ".join(parts)

    def value(self, text: str) -> Any:
        """Return what `text` means; raises `ConfigError`."""
        if self.choices and text not in self.choices:
            raise ConfigError(f"{text!r} is none of {', '.join(self.choices)}")
        try:
            value = self.kind(text)
        except ValueError:
            if self.kind not in (int, float):
                raise
            whole = "whole " if self.kind is int else ""
            raise ConfigError(f"{text!r} is not valid: no {whole}number") from None
        if self.least is not None and value < self.least:
            raise ConfigError(f"{text!r} is too small: at least {self.least}")
        if self.most is not None and value > self.most:
            raise ConfigError(f"{text!r} is too large: at most {self.most}")
        return value


@dataclass(frozen=True, slots=True)
class Body:
    """What stands before the first semicolon, and names the storage: the same body, the same data.

    `is_path`: it is the path of a file, which may be relative when a person types it in a shell. `prefixes` are words
    that may stand before a path that is absolute, each with a slash behind it, as the C runner's fbo has them.
    """

    placeholder: str = "PATH"
    help: str = ""
    required: bool = True
    is_path: bool = True
    prefixes: tuple[str, ...] = ()

    def split(self, text: str) -> tuple[str, str]:
        """Return the prefixes that `text` begins with, slashes included, and the rest."""
        rest = text
        while rest.partition("/")[0] in self.prefixes and "/" in rest:
            rest = rest.partition("/")[2]
        return text[: len(text) - len(rest)], rest


class Options:
    """All options of a handler or a filter, and its body if it takes one; a class or module has it as `options`."""

    def __init__(self, *options: Option, body: Body | None = None, summary: str = "") -> None:
        self.body = body
        self.summary = summary
        self.options = {option.name: option for option in options}
        if len(self.options) != len(options):
            raise ValueError("an option is declared twice")
        self._known = {name: option.value for name, option in self.options.items()}

    def parse(self, text: str, defaults: Mapping[str, str] | None = None) -> CfgString:
        """Return the body and every option, with `defaults` (`device.options`) and the declared ones filled in.

        Raises:
            ConfigError: as `parse_cfgstring`; or the body is missing, or there is one where none is taken.
        """
        parsed = parse_cfgstring(text, self._known, defaults)
        if self.body is None and parsed.body:
            raise ConfigError(f"{parsed.body!r} means nothing here: what is known is {self.syntax or 'nothing'}")
        if self.body is not None:
            if self.body.required and not parsed.body:
                raise ConfigError(f"no {self.body.placeholder.lower()}: write {self.body.help or self.syntax}")
            if self.body.is_path and parsed.body:
                path(parsed.body)
        filled = {name: option.default for name, option in self.options.items()}
        return CfgString(parsed.body, {**filled, **parsed.options}, parsed.given)

    def names_storage(self, text: str) -> bool:
        """Whether the cfgstring says which storage is meant, so that the same one means the same data."""
        body, *parts = text.split(";")
        given = {part.partition("=")[0].strip() for part in parts}
        return (self.body is not None and bool(body)) or any(
            option.names_storage for name, option in self.options.items() if name in given
        )

    def absolute(self, text: str, directory: Path) -> str:
        """Return the cfgstring with its paths, which are relative to `directory`, made absolute."""
        body, *parts = text.split(";")
        if self.body is not None and self.body.is_path:
            prefix, rest = self.body.split(body)
            # Behind a prefix a path is absolute already; a directory may be called like one.
            if not (prefix and rest.startswith("/")):
                body = _absolute(body, directory)
        for number, part in enumerate(parts):
            name, sep, value = part.partition("=")
            option = self.options.get(name.strip())
            if option is not None and option.kind is path:
                parts[number] = f"{name}{sep}{_absolute(value.strip(), directory)}"
        return ";".join((body, *parts))

    # -- for people ---------------------------------------------------------------------------------------------------

    @property
    def syntax(self) -> str:
        """Return the whole cfgstring in one line: `PATH[;size=SIZE][;ro=yes|no]`."""
        options = "".join(f"[;{option.name}={option.placeholder}]" for option in self.options.values())
        if len(self.options) > MANY:
            options = "[;OPTION=VALUE]…"
        if self.body is None:
            return options
        return (self.body.placeholder if self.body.required else f"[{self.body.placeholder}]") + options

    @property
    def description(self) -> str:
        """Return the help text that `tcmu handlers` and targetcli show: the syntax, then each part."""
        lines = [self.summary] if self.summary else []
        lines.append(self.syntax or "It takes nothing.")
        if self.body is not None and self.body.help:
            lines.append(f"{self.body.placeholder}: {self.body.help}")
        lines += [f"{option.name}: {_explained(option)}" for option in self.options.values()]
        return "\n".join(lines)


def declared(owner: object) -> Options | None:
    """Return the options that a handler or filter (a class, a module, or an instance) declares."""
    found = getattr(owner, "options", None)
    return found if isinstance(found, Options) else None


def _absolute(text: str, directory: Path) -> str:
    """Return a path made absolute, `.` and `..` taken out; an empty one stays."""
    # Not Path.expanduser: a file may be called like the home of nobody, `~old.img`.
    return os.path.abspath(directory / os.path.expanduser(text)) if text else text


def _explained(option: Option) -> str:
    text = option.help or option.placeholder
    return f"{text} ({option.bounds})" if option.bounds else text


def _short(number: int) -> str:
    """Return a size in bytes as `size` takes it: 32M."""
    for power, unit in ((40, "T"), (30, "G"), (20, "M"), (10, "K")):
        if number and not number % (1 << power):
            return f"{number >> power}{unit}"
    return str(number)


def shown(value: Any) -> str | None:
    """Return a value as a person would write it; None for none."""
    if value is None or isinstance(value, str):
        return value
    return ("no", "yes")[value] if isinstance(value, bool) else str(value)
