"""The table of transports: a way in takes its folder, and a row here."""

from __future__ import annotations

import importlib
from collections.abc import Mapping

from tcmu_core.errors import TcmuError
from tcmu_core.host.messages import WayIn
from tcmu_core.host.transport import Served, Transport

# The kind that a job's `way` has, and the module and class that serve it. Modules are imported when such a job comes:
# what only one of them needs never stops the others.
TRANSPORTS: Mapping[str, tuple[str, str]] = {
    "kernel": ("tcmu_core.kernel.transport", "KernelTransport"),
    "target": ("tcmu_core.iscsi.transport", "TargetTransport"),
    "redirector": ("tcmu_core.iscsi.transport", "RedirectorTransport"),
}


def make(way: WayIn, served: Served) -> Transport:
    """Return the transport that serves `way` for a host."""
    try:
        module, name = TRANSPORTS[way.KIND]
    except KeyError:
        raise TcmuError(f"there is no transport {way.KIND!r}; there are: {', '.join(TRANSPORTS)}") from None
    made: Transport = getattr(importlib.import_module(module), name)(way, served)
    return made
