"""What the supervisor tells hosts of iSCSI, and the redirector a target's host. It needs no portal to be said."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from tcmu_core.codec import Message
from tcmu_core.host.messages import WayIn
from tcmu_core.iscsi.settings import PortalSettings
from tcmu_core.scsi.alua import Arrangement

PORTAL_TITLE = "the portal of tcmu.conf"


@dataclass(frozen=True, slots=True)
class TargetWay(WayIn):
    """A target. Where its settings have no address, its sessions come from a redirector.

    `state` is the directory of persistent reservations, None for the usual one. `arrangements` are the target port
    groups by LUN, for a target that has some.
    """

    KIND: ClassVar[str] = "target"

    name: str
    settings: PortalSettings
    state: Path | None = None
    arrangements: Mapping[int, Arrangement] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RedirectorWay(WayIn):
    """The addresses of `settings`, at which logins to `targets` arrive."""

    KIND: ClassVar[str] = "redirector"

    targets: tuple[str, ...]
    settings: PortalSettings


@dataclass(frozen=True, slots=True)
class Link(Message):
    """To the redirector: its end of a channel to this target's host comes along."""

    target: str


@dataclass(frozen=True, slots=True)
class Feed(Message):
    """To a target's host: its end of a channel to the redirector comes along."""


@dataclass(frozen=True, slots=True)
class Visitor(Message):
    """From the redirector to a target's host: a connection comes along.

    `heard` was received from it, and the first `told` bytes of the answer to that were sent.
    """

    heard: bytes
    told: int
