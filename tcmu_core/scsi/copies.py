"""CopyResults: what RECEIVE COPY RESULTS tells of the last copies (SPC-4 6.18)."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from tcmu_core.scsi.command import Nexus

_KEPT = 16
UNDER_WAY, WELL, WITH_ERRORS = 0x00, 0x01, 0x02  # COPY MANAGER STATUS (SPC-4 6.18)


@dataclass(frozen=True, slots=True)
class CopyResult:
    """How one copy ended, or how far it is: its status, whole segments, and bytes."""

    status: int
    segments: int
    transferred: int


class CopyResults:
    """The results of the last copies by nexus and list identifier."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[Nexus, int], CopyResult] = OrderedDict()

    def keep(self, nexus: Nexus, identifier: int, result: CopyResult) -> None:
        """Keep a result until it is fetched, or newer ones push it out; it takes the place of one before."""
        self._kept.pop((nexus, identifier), None)
        self._kept[nexus, identifier] = result
        while len(self._kept) > _KEPT:
            self._kept.popitem(last=False)

    def take(self, nexus: Nexus, identifier: int) -> CopyResult | None:
        """Return a result, and forget it if it is of a copy that has ended."""
        result = self._kept.get((nexus, identifier))
        if result is not None and result.status != UNDER_WAY:
            del self._kept[nexus, identifier]
        return result
