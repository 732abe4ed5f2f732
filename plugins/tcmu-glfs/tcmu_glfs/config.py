"""What a cfgstring says: `volume@host/path`, as the C runner has it, and options."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from tcmu_core import Body, ConfigError, Option, Options, boolean, path

OPTIONS = Options(
    Option("log", path, "where libgfapi writes its warnings; nowhere if not given"),
    Option("ro", boolean, "a read-only disk", default=False),
    body=Body("VOLUME@HOST/PATH", "VOLUME@HOST/PATH, such as vol0@server1/disk.img", is_path=False),
    summary="The file on a GlusterFS volume to use as a backstore.",
)
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
    parsed = OPTIONS.parse(cfgstring, defaults)
    match = _BODY.fullmatch(parsed.body)
    if match is None or "\0" in parsed.body:
        raise ConfigError(f"{parsed.body!r} is no file on a volume: write VOLUME@HOST/PATH")
    host = match["host"]
    if not host.startswith("[") and ":" in host:
        raise ConfigError(f"{host!r} is no host: the port is always 24007, leave it out; an IPv6 address is in []")
    if match["path"].endswith("/"):
        raise ConfigError(f"{match['path']!r} is a directory: a disk needs a file")
    return Config(match["volume"], host.strip("[]"), match["path"], parsed.options["log"] or "", parsed.options["ro"])
