"""What a cfgstring says: `volume@host/path`, as the C runner has it, and options."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tcmu_core import ConfigError, boolean, parse_cfgstring

OPTIONS: Mapping[str, Callable[[str], Any]] = {"log": str, "ro": boolean}
_BODY = re.compile(r"(?P<volume>[^@/]+)@(?P<host>\[[^]]+\]|[^/]+)(?P<path>/.+)")


@dataclass(frozen=True, slots=True)
class Config:
    """A cfgstring, parsed. `path` begins at the root of the volume; `log` is where libgfapi writes, empty: nowhere."""

    volume: str
    host: str
    path: str
    log: str = ""
    ro: bool = False

    @property
    def name(self) -> str:
        """What messages call the file."""
        return f"{self.volume}@{self.host}{self.path}"


def parse(cfgstring: str, defaults: Mapping[str, str] | None = None) -> Config:
    """Return the configuration that `cfgstring` means, `defaults` being its options from tcmu.conf.

    Raises:
        ConfigError: it can't be right.
    """
    parsed = parse_cfgstring(cfgstring, OPTIONS)
    common = parse_cfgstring("".join(f";{name}={value}" for name, value in (defaults or {}).items()), OPTIONS)
    match = _BODY.fullmatch(parsed.body)
    if match is None or "\0" in parsed.body:
        raise ConfigError(f"{parsed.body!r} is no file on a volume: write VOLUME@HOST/PATH")
    host = match["host"]
    if not host.startswith("[") and ":" in host:
        raise ConfigError(f"{host!r} is no host: the port is always 24007, leave it out; an IPv6 address is in []")
    if match["path"].endswith("/"):
        raise ConfigError(f"{match['path']!r} is a directory: a disk needs a file")
    return Config(match["volume"], host.strip("[]"), match["path"], **{**common.options, **parsed.options})
