"""Filters: what stands between the engine and a handler, one upon another, chosen for each disk."""

from tcmu_core.filters.base import Filter, after
from tcmu_core.filters.registry import ENTRY_POINT_GROUP, FilterRegistry, FoundFilter, make

__all__ = ["ENTRY_POINT_GROUP", "Filter", "FilterRegistry", "FoundFilter", "after", "make"]
