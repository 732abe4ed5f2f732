"""What a cfgstring means: `/path/to/image[;option=value…]`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from tcmu_core import Body, ConfigError, Option, Options, boolean, size
from tcmu_qcow.create import CreateOptions, Preallocation
from tcmu_qcow.formats import Format
from tcmu_qcow.opening import OpenOptions, resolve
from tcmu_qcow.qcow2 import DEFAULT_CACHE
from tcmu_qcow.scope import HERE, Allowed, parse_allowed

COMPAT = {"0.10": 2, "v2": 2, "1.1": 3, "v3": 3}  # QEMU's names for the versions


def _compat(text: str) -> int:
    if text not in COMPAT:
        raise ConfigError(f"{text!r} is neither 0.10 nor 1.1")
    return COMPAT[text]


OPEN_OPTIONS = (
    Option("format", Format, "of the image: what it looks like, if not given", choices=tuple(Format)),
    Option("ro", boolean, "refuse writes", default=False),
    Option("snapshot", str, "show this internal snapshot, read-only"),
    Option("l2_cache", size, "memory for the image's tables", default=DEFAULT_CACHE),
    Option("lock", boolean, "keep other processes from the image", default=True),
    Option("repair", boolean, "count all references first, and set the reference counts right", default=False),
    Option("block_size", size, "bytes of a block: 512, 1024, 2048 or 4096"),
    Option("create", boolean, "make a new image", default=False),
    Option("size", size, "the size of the disk, where nothing else says it"),
    Option("allow", parse_allowed, "what the image may name: here (if not given), none, any, or directories"),
    Option("backing_format", Format, "of the backing file", choices=tuple(Format)),
)
CREATE_OPTIONS = (
    Option("cluster_size", size, "of a new image: bytes of a cluster"),
    Option("backing", str, "of a new image: the file that it stands on, relative to the image"),
    Option("compat", _compat, "of a new image: its version, 0.10 or 1.1"),
    Option("extended_l2", boolean, "of a new image: subclusters", default=False),
    Option("lazy_refcounts", boolean, "of a new image: reference counts are written late", default=False),
    Option("refcount_bits", int, "of a new image: the width of a reference count"),
    Option("preallocation", Preallocation, "of a new image", choices=tuple(Preallocation)),
)
OPTIONS = Options(
    *OPEN_OPTIONS,
    *CREATE_OPTIONS,
    body=Body("PATH", "/path/to/image.qcow2"),
    summary="A QEMU image, qcow, qcow2 or raw, as a disk.",
)


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
    parsed = OPTIONS.parse(cfgstring, defaults)
    given = parsed.options
    block_size = given["block_size"]
    if block_size is not None and (block_size < 512 or block_size > 4096 or block_size & (block_size - 1)):
        raise ConfigError(f"block_size={block_size}: it may be 512, 1024, 2048 or 4096")
    creating = given["create"]
    stray = sorted({option.name for option in CREATE_OPTIONS} & parsed.given)
    if stray and not creating:
        raise ConfigError(f"option {stray[0]!r} is for a new image: it needs create=1")
    kind = given["format"]
    if creating and kind not in (None, Format.QCOW2):
        raise ConfigError(f"only qcow2 images are created, not {kind}")
    if creating and (given["ro"] or given["snapshot"] is not None):
        raise ConfigError("a new image is neither read-only nor has it snapshots: leave out create=1")
    allowed = _allowed(parsed.body, given)
    return Config(
        path=parsed.body,
        opening=OpenOptions(
            format=Format.QCOW2 if creating else kind,
            read_only=given["ro"],
            snapshot=given["snapshot"],
            cache_bytes=given["l2_cache"],
            lock=given["lock"],
            repair=given["repair"],
            allowed=allowed,
            backing_format=given["backing_format"],
        ),
        creation=_creation(given, allowed) if creating else None,
        size=given["size"],
        block_size=block_size,
    )


def _allowed(path: str, given: Mapping[str, Any]) -> Allowed:
    """What images may name: what `allow` says, and the backing file that the cfgstring itself has for a new image."""
    allowed: Allowed = given["allow"] or HERE
    if not given["create"] or given["backing"] is None:
        return allowed
    base = os.path.realpath(resolve(given["backing"], path))
    return replace(allowed, directories=(*allowed.directories, os.path.dirname(base)))


def _creation(given: Mapping[str, Any], allowed: Allowed) -> CreateOptions:
    defaults = CreateOptions()
    return CreateOptions(
        size=given["size"],
        cluster_size=given["cluster_size"] or defaults.cluster_size,
        backing=given["backing"],
        backing_format=given["backing_format"],
        version=given["compat"] or defaults.version,
        extended_l2=given["extended_l2"],
        lazy_refcounts=given["lazy_refcounts"],
        refcount_bits=defaults.refcount_bits if given["refcount_bits"] is None else given["refcount_bits"],
        preallocation=given["preallocation"] or Preallocation.OFF,
        allowed=allowed,
    )
