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
from collections.abc import Mapping
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
        value = _unpack(Message, json.loads(data))
    except (ValueError, TypeError, KeyError, TcmuError) as error:
        raise CodecError(f"no message of ours: {error}") from None
    assert isinstance(value, Message)
    return value


def _pack(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        packed = {field.name: _pack(getattr(value, field.name)) for field in dataclasses.fields(value)}
        if isinstance(value, Message):
            kind = type(value)
            packed[_TAG] = f"{kind.__module__.removeprefix(PACKAGE)}:{kind.__qualname__}"
        return packed
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Default):
        return [str(value), value.where]
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): _pack(own) for key, own in value.items()}
    if isinstance(value, tuple | list):
        return [_pack(own) for own in value]
    return value


def _unpack(hint: Any, value: Any) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        (only,) = (one for one in arguments if one is not type(None))
        return _unpack(only, value)
    if origin is tuple:
        kinds = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else arguments
        return tuple(_unpack(kind, own) for kind, own in zip(kinds, value, strict=True))
    if origin is not None and issubclass(origin, Mapping):
        own = _expect(dict, value)
        return types.MappingProxyType({_key(arguments[0], key): _unpack(arguments[1], one) for key, one in own.items()})
    if issubclass(hint, Message):
        return _fields(_class(hint, _expect(dict, value)), value)
    if dataclasses.is_dataclass(hint):
        return _fields(hint, _expect(dict, value))
    return _plain(hint, value)


def _plain(hint: Any, value: Any) -> Any:
    if issubclass(hint, Enum):
        return hint(value)
    if hint is bytes:
        try:
            return base64.b64decode(_expect(str, value), validate=True)
        except binascii.Error as error:
            raise ValueError(f"no bytes: {error}") from None
    if hint is str and type(value) is list:  # it knows where it is from
        text, where = value
        return Default(_expect(str, text), _expect(str, where))
    if hint is Path:
        return Path(_expect(str, value))
    if hint is float and type(value) is int:
        return float(value)
    return _expect(hint, value)


def _expect(kind: type, value: Any) -> Any:
    if type(value) is not kind:
        raise TypeError(f"{value!r:.80} is no {kind.__name__}")
    return value


def _key(kind: Any, text: str) -> Any:
    return kind(text)


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
    hints = _hints(kind)
    given = {name: _unpack(hints[name], own) for name, own in value.items() if name != _TAG}
    return kind(**given)


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)
