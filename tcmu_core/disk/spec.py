"""DiskSpec: what is to be opened, as the command line, tcmu.conf and the kernel all say it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from tcmu_core.cfgstring import FILTER_OPTION, split_runner_options
from tcmu_core.errors import ConfigError


def disk_name(text: str) -> str:
    """Return what a person calls a disk; raises `ConfigError` where lines of logs and of tables could not show it."""
    if not text.isprintable():
        raise ConfigError(f"{text!r} can't be a disk's name: write printable characters")
    return text


def _nothing() -> Mapping[str, str]:
    return MappingProxyType({})


@dataclass(frozen=True, slots=True)
class DiskSpec:
    """A disk to open. Sizes are bytes; None leaves the size to the handler, 0 a limit to it.

    `cfgstring` is the handler's own part; `options` are its defaults from tcmu.conf. `serial` is the unit serial number
    that a person gave; without one it is made of `place`, what tells this disk from all others of this host, and where
    that says nothing the disk gets a new one each time it is opened: two disks that share nothing must not look like
    one. `read_only` is what a person said, and no handler overrules it. `filters` stand upon the handler, the last on
    top.
    """

    handler: str
    cfgstring: str = ""
    name: str = "disk"
    size: int | None = None
    block_size: int = 512
    read_only: bool = False
    serial: str = ""
    place: tuple[str, ...] = ()
    options: Mapping[str, str] = field(default_factory=_nothing)
    filters: tuple[str, ...] = ()
    max_transfer: int = 0
    patience: int = 0  # seconds after which a command that has not ended is reported; 0: never

    @property
    def title(self) -> str:
        """Return `subtype/name`, as log lines have it."""
        return f"{self.handler}/{self.name}"

    def configured(self, cfgstring: str) -> DiskSpec:
        """Return the spec with a whole cfgstring, `[;runner_option=value;]handler-specific`, taken apart.

        Raises:
            ConfigError: the runner's part of it is wrong.
        """
        options, body = split_runner_options(cfgstring)
        return dataclasses.replace(
            self,
            cfgstring=body,
            patience=options.get("tcmur_cmd_time_out", 0),
            filters=options.get(FILTER_OPTION, ()) + self.filters,
        )
