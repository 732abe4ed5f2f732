"""Messages between processes: frozen dataclasses, and the one codec that turns them into bytes and back.

A message is JSON: its fields, and under `""` the class that it is of. Types are those that the fields' annotations say,
so what arrives is what was sent, or a `CodecError`: nothing half understood goes further.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import functools
import importlib
import json
import types
import typing
from collections.abc import Callable, Mapping
from enum import Enum
from pathlib import Path
from typing import Any

from tcmu_core.cfgstring import Default
from tcmu_core.errors import TcmuError

PACKAGE = "tcmu_core."
_TAG = ""


class CodecError(TcmuError):
    """These bytes are no message of ours."""


class Message:
    """What a message's class derives from; it is a frozen dataclass."""

    __slots__ = ()


def encode(message: Message) -> bytes:
    """Return a message as bytes."""
    return json.dumps(_pack(message), separators=(",", ":")).encode()


def decode(data: bytes) -> Message:
    """Return the message that `data` holds; the module of its class is imported if need be.

    Raises:
        CodecError: there is no such message, or a field is not of its type.
    """
    try:
        value = _reader(Message)(json.loads(data))
    except (ValueError, TypeError, KeyError, TcmuError) as error:
        raise CodecError(f"no message of ours: {error}") from None
    assert isinstance(value, Message)
    return value


def plain(value: Any) -> Any:
    """Return a dataclass as what JSON can hold: dicts by field, lists, and so on, without the names of classes."""
    return _pack(value, tagged=False)


# -- packing: what JSON can hold, by the value's type -----------------------------------------------------------------

_PLAIN = frozenset({int, str, float, bool, type(None)})


def _pack(value: Any, *, tagged: bool = True) -> Any:
    return (_TAGGED if tagged else _UNTAGGED)[type(value)](value)


class _Packers(dict[type, Callable[[Any], Any]]):
    """What packs a value, by its type; a class of ours is looked at once."""

    def __init__(self, *, tagged: bool) -> None:
        super().__init__()
        self._tagged = tagged

    def __missing__(self, kind: type) -> Callable[[Any], Any]:
        pack = self[kind] = _packer(kind, self, self._tagged)
        return pack


def _packer(kind: type, packers: _Packers, tagged: bool) -> Callable[[Any], Any]:
    if dataclasses.is_dataclass(kind):
        names = [field.name for field in dataclasses.fields(kind)]
        name_of = f"{kind.__module__.removeprefix(PACKAGE)}:{kind.__qualname__}"
        return functools.partial(_dataclass, packers, names, name_of if tagged and issubclass(kind, Message) else None)
    if issubclass(kind, Enum):
        return lambda value: value.value
    if issubclass(kind, Default):
        return lambda value: [str(value), value.where]
    if issubclass(kind, bytes):
        return lambda value: base64.b64encode(value).decode()
    if issubclass(kind, Path):
        return str
    if issubclass(kind, Mapping):
        return lambda value: {str(key): packers[type(own)](own) for key, own in value.items()}
    if issubclass(kind, tuple | list):
        return lambda value: (
            value if _PLAIN.issuperset(map(type, value)) else [packers[type(own)](own) for own in value]
        )
    return lambda value: value


def _dataclass(packers: _Packers, names: list[str], name_of: str | None, value: Any) -> dict[str, Any]:
    packed = {}
    for name in names:
        own = getattr(value, name)
        kind = type(own)
        packed[name] = own if kind in _PLAIN else packers[kind](own)
    if name_of is not None:
        packed[_TAG] = name_of
    return packed


_TAGGED, _UNTAGGED = _Packers(tagged=True), _Packers(tagged=False)


# -- unpacking: by the type that an annotation says -------------------------------------------------------------------


@functools.cache
def _reader(hint: Any) -> Callable[[Any], Any]:
    """Return what makes a value of this type of what JSON held; it raises `TypeError` or `ValueError`."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        (only,) = (one for one in arguments if one is not type(None))
        read = _reader(only)
        return lambda value: None if value is None else read(value)
    if origin is tuple and arguments[-1] is Ellipsis:
        return functools.partial(_tuple, arguments[0], _reader(arguments[0]))
    if origin is tuple:
        readers = [_reader(one) for one in arguments]
        return lambda value: tuple(read(own) for read, own in zip(readers, value, strict=True))
    if origin is not None and issubclass(origin, Mapping):
        key, one = arguments[0], _reader(arguments[1])
        return lambda value: types.MappingProxyType({key(name): one(own) for name, own in _expect(dict, value).items()})
    if issubclass(hint, Message):
        return lambda value: _fields(_class(hint, _expect(dict, value)), value)
    if dataclasses.is_dataclass(hint):
        return lambda value: _fields(hint, _expect(dict, value))
    return _plain(hint)


def _tuple(kind: Any, read: Callable[[Any], Any], value: Any) -> tuple[Any, ...]:
    # Counters are hundreds of numbers: one look at all of their types.
    return tuple(value) if kind is int and {int}.issuperset(map(type, value)) else tuple(map(read, value))


def _plain(hint: Any) -> Callable[[Any], Any]:
    if issubclass(hint, Enum):
        return hint  # type: ignore[no-any-return]  # an Enum reads its own values
    if hint is bytes:
        return _bytes
    if hint is str:
        return _text
    if hint is Path:
        return lambda value: Path(_expect(str, value))
    if hint is float:
        return lambda value: float(value) if type(value) is int else _expect(float, value)
    return functools.partial(_expect, hint)


def _bytes(value: Any) -> bytes:
    try:
        return base64.b64decode(_expect(str, value), validate=True)
    except binascii.Error as error:
        raise ValueError(f"no bytes: {error}") from None


def _text(value: Any) -> str:
    if type(value) is list:  # it knows where it is from
        text, where = value
        return Default(_expect(str, text), _expect(str, where))
    return str(_expect(str, value))


def _expect(kind: type, value: Any) -> Any:
    if type(value) is not kind:
        raise TypeError(f"{value!r:.80} is no {kind.__name__}")
    return value


def _class(base: type, value: dict[str, Any]) -> type:
    module, _, name = _expect(str, value[_TAG]).partition(":")
    try:
        kind = getattr(importlib.import_module(PACKAGE + module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"there is no message {value[_TAG]!r}: {error}") from None
    if not (isinstance(kind, type) and issubclass(kind, base) and dataclasses.is_dataclass(kind)):
        raise TypeError(f"{value[_TAG]!r} is no {base.__name__}")
    return kind


def _fields(kind: Any, value: dict[str, Any]) -> Any:
    readers = _readers(kind)
    read = {}
    for name, own in value.items():
        if name != _TAG:
            plain, reader = readers[name]
            read[name] = own if type(own) is plain else reader(own)
    return kind(**read)


@functools.cache
def _readers(kind: type) -> dict[str, tuple[Any, Callable[[Any], Any]]]:
    """Return, for each field, of which type it may be as it is, and what reads it otherwise."""
    hints = typing.get_type_hints(kind)
    found = {}
    for field in dataclasses.fields(kind):
        hint = hints[field.name]
        found[field.name] = (hint if hint in _PLAIN else None, _reader(hint))
    return found
