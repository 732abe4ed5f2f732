"""What tcmu.conf says, as values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tcmu_core.iscsi.settings import PortalSettings
from tcmu_core.log import Level
from tcmu_core.scsi.alua import Arrangement

DEFAULT_PATH = Path("/etc/tcmu/tcmu.conf")


def _nothing() -> Mapping[str, Any]:
    return MappingProxyType({})


class ForeignDevices(Enum):
    """What to tell the kernel about a device whose handler nobody has."""

    REJECT = "reject"
    IGNORE = "ignore"


@dataclass(frozen=True, slots=True)
class LunConfig:
    """A section `[[[lun N]]]`: the device behind one logical unit. `size` in bytes, None to ask the handler."""

    lun: int
    handler: str
    cfgstring: str = ""
    name: str = ""
    size: int | None = None
    block_size: int = 512
    read_only: bool = False
    filters: tuple[str, ...] = ()  # `name;option=value`, the lowest first
    place: str = field(default="", compare=False)  # file and line, for what is said of it


@dataclass(frozen=True, slots=True)
class TargetConfig:
    """A section `[[iqn…]]` of `[targets]`; who may log in to it, and where, is in the portal's settings.

    `arrangements` are its target port groups by LUN, if it has some.
    """

    name: str
    luns: tuple[LunConfig, ...]
    arrangements: Mapping[int, Arrangement] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True, slots=True)
class Config:
    """A whole tcmu.conf; `Config()` is one that says nothing.

    `log_levels` maps `subtype/name` to that device's level, `handlers` a handler's name to its defaults,
    `memory_limits` to the bytes that a worker of it may take. `warnings` are for the log.
    """

    log_level: Level = Level.INFO
    log_dir: Path = Path("/var/log")
    syslog: bool = False
    log_levels: Mapping[str, Level] = field(default_factory=_nothing)
    foreign_devices: ForeignDevices = ForeignDevices.REJECT
    handlers: Mapping[str, Mapping[str, str]] = field(default_factory=_nothing)
    memory_limits: Mapping[str, int] = field(default_factory=_nothing)
    portal: PortalSettings = field(default_factory=PortalSettings)
    targets: tuple[TargetConfig, ...] = ()
    given: frozenset[str] = frozenset()  # the top-level keys that the file has: they outrank the command line
    warnings: tuple[str, ...] = ()
