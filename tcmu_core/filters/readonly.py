"""The filter `readonly`: nothing is written, whatever the handler could."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tcmu_core.disk.device import Device
from tcmu_core.disk.layers import Operations
from tcmu_core.filters.base import Filter


class ReadOnly(Filter):
    """Make the disk read-only: initiators see its write protection, and each write is refused (27h/00h)."""

    passes = frozenset({"read", "extents", "handle_cmd"})
    live = False  # an initiator that has mounted it for writing would not be told

    def open(self, device: Device, below: Operations, options: Mapping[str, Any]) -> None:
        """Say what it is now."""
        device.read_only = True
