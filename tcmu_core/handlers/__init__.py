"""Finding handlers: entry points, `--handler-path`, drop-in files; what is broken is listed with its reason."""

from tcmu_core.handlers.registry import ENTRY_POINT_GROUP, Handler, Registry

__all__ = ["ENTRY_POINT_GROUP", "Handler", "Registry"]
