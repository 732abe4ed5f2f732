"""What a cfgstring means: `/path/to/image[;option=value…]`."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, TypeVar

from tcmu_core import ConfigError, boolean, parse_cfgstring, size
from tcmu_qcow.create import CreateOptions, Preallocation
from tcmu_qcow.formats import Format
from tcmu_qcow.opening import OpenOptions, resolve
from tcmu_qcow.qcow2 import DEFAULT_CACHE
from tcmu_qcow.scope import HERE, Allowed, parse_allowed

E = TypeVar("E", bound=StrEnum)

COMPAT = {"0.10": 2, "v2": 2, "1.1": 3, "v3": 3}  # QEMU's names for the versions


def _one_of(kind: type[E]) -> Callable[[str], E]:
    def convert(text: str) -> E:
        try:
            return kind(text)
        except ValueError:
            raise ConfigError(f"{text!r} is none of {', '.join(kind)}") from None

    return convert


def _compat(text: str) -> int:
    if text not in COMPAT:
        raise ConfigError(f"{text!r} is neither 0.10 nor 1.1")
    return COMPAT[text]


OPEN_OPTIONS: dict[str, Callable[[str], Any]] = {
    "format": _one_of(Format),
    "ro": boolean,
    "snapshot": str,
    "l2_cache": size,
    "lock": boolean,
    "repair": boolean,
    "block_size": size,
    "create": boolean,
    "size": size,
    "allow": parse_allowed,
    "backing_format": _one_of(Format),
}
CREATE_OPTIONS: dict[str, Callable[[str], Any]] = {
    "cluster_size": size,
    "backing": str,
    "compat": _compat,
    "extended_l2": boolean,
    "lazy_refcounts": boolean,
    "refcount_bits": int,
    "preallocation": _one_of(Preallocation),
}
OPTIONS = OPEN_OPTIONS | CREATE_OPTIONS


@dataclass(frozen=True, slots=True)
class Config:
    """A cfgstring, parsed."""

    path: str
    opening: OpenOptions
    creation: CreateOptions | None  # None: the image has to be there
    size: int | None
    block_size: int | None


def parse(cfgstring: str, defaults: Mapping[str, str] | None = None) -> Config:
    """Return the configuration that `cfgstring` means, `defaults` being its options from tcmu.conf.

    Raises:
        ConfigError: an option that does not exist, does not go with another, or has no such value.
    """
    parsed = parse_cfgstring(cfgstring, OPTIONS)
    if not parsed.body:
        raise ConfigError("no path: write /path/to/image.qcow2")
    if "\0" in parsed.body:
        raise ConfigError("a path can't hold a NUL byte")
    common = parse_cfgstring("".join(f";{name}={value}" for name, value in (defaults or {}).items()), OPTIONS)
    given = {**common.options, **parsed.options}
    block_size = given.get("block_size")
    if block_size is not None and (block_size < 512 or block_size > 4096 or block_size & (block_size - 1)):
        raise ConfigError(f"block_size={block_size}: it may be 512, 1024, 2048 or 4096")
    creating = given.get("create", False)
    stray = sorted(CREATE_OPTIONS.keys() & parsed.options.keys())
    if stray and not creating:
        raise ConfigError(f"option {stray[0]!r} is for a new image: it needs create=1")
    kind = given.get("format")
    if creating and kind not in (None, Format.QCOW2):
        raise ConfigError(f"only qcow2 images are created, not {kind}")
    if creating and (given.get("ro") or "snapshot" in given):
        raise ConfigError("a new image is neither read-only nor has it snapshots: leave out create=1")
    allowed = _allowed(parsed.body, given)
    return Config(
        path=parsed.body,
        opening=OpenOptions(
            format=Format.QCOW2 if creating else kind,
            read_only=given.get("ro", False),
            snapshot=given.get("snapshot"),
            cache_bytes=given.get("l2_cache", DEFAULT_CACHE),
            lock=given.get("lock", True),
            repair=given.get("repair", False),
            allowed=allowed,
            backing_format=given.get("backing_format"),
        ),
        creation=_creation(given, allowed) if creating else None,
        size=given.get("size"),
        block_size=block_size,
    )


def _allowed(path: str, given: Mapping[str, Any]) -> Allowed:
    """What images may name: what `allow` says, and the backing file that the cfgstring itself has for a new image."""
    allowed: Allowed = given.get("allow", HERE)
    if not given.get("create") or "backing" not in given:
        return allowed
    base = os.path.realpath(resolve(given["backing"], path))
    return replace(allowed, directories=(*allowed.directories, os.path.dirname(base)))


def _creation(given: Mapping[str, Any], allowed: Allowed) -> CreateOptions:
    defaults = CreateOptions()
    return CreateOptions(
        size=given.get("size"),
        cluster_size=given.get("cluster_size", defaults.cluster_size),
        backing=given.get("backing"),
        backing_format=given.get("backing_format"),
        version=given.get("compat", defaults.version),
        extended_l2=given.get("extended_l2", False),
        lazy_refcounts=given.get("lazy_refcounts", False),
        refcount_bits=given.get("refcount_bits", defaults.refcount_bits),
        preallocation=given.get("preallocation", Preallocation.OFF),
        allowed=allowed,
    )
