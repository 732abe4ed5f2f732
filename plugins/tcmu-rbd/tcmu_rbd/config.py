"""What a cfgstring says: `pool/image` and options, the C runner's and some more."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tcmu_core import ConfigError, parse_cfgstring

LOCK_POLICIES = ("refuse", "break")


def seconds(text: str) -> int:
    """Return the whole seconds that `text` means."""
    value = int(text)
    if value <= 0:
        raise ConfigError(f"{text} is no time: write seconds, such as 60")
    return value


def lock_policy(text: str) -> str:
    """Return what to do about a lock that another client holds."""
    if text not in LOCK_POLICIES:
        raise ConfigError(f"{text!r}: write {' or '.join(LOCK_POLICIES)}")
    return text


OPTIONS: Mapping[str, Callable[[str], Any]] = {
    "conf": str,
    "id": str,
    "lock": lock_policy,
    "namespace": str,
    "osd_op_timeout": seconds,
    "snapshot": str,
}


@dataclass(frozen=True, slots=True)
class Config:
    """A cfgstring, parsed. Empty where something was not given; `osd_op_timeout` is in seconds, 0 for Ceph's."""

    pool: str
    image: str
    conf: str = ""
    id: str = ""
    lock: str = "refuse"
    namespace: str = ""
    osd_op_timeout: int = 0
    snapshot: str = ""

    @property
    def name(self) -> str:
        """What `rbd` calls the image: pool/namespace/image@snapshot."""
        parts = [self.pool, self.namespace, self.image] if self.namespace else [self.pool, self.image]
        return "/".join(parts) + (f"@{self.snapshot}" if self.snapshot else "")


def parse(cfgstring: str, defaults: Mapping[str, str] | None = None) -> Config:
    """Return the configuration that `cfgstring` means, `defaults` being its options from tcmu.conf.

    Raises:
        ConfigError: it can't be right.
    """
    parsed = parse_cfgstring(cfgstring, OPTIONS)
    common = parse_cfgstring("".join(f";{name}={value}" for name, value in (defaults or {}).items()), OPTIONS)
    pool, slash, image = parsed.body.partition("/")
    if not pool or not slash or not image:
        raise ConfigError(f"{parsed.body!r} is no image: write POOL/IMAGE")
    if "/" in image:
        namespace, _, image = image.partition("/")
        raise ConfigError(f"{parsed.body!r} is no image: write {pool}/{image};namespace={namespace}")
    if "@" in image:
        image, _, snapshot = image.partition("@")
        raise ConfigError(f"{parsed.body!r} is no image: write {pool}/{image};snapshot={snapshot}")
    return Config(pool, image, **{**common.options, **parsed.options})
