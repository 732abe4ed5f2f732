"""What runs beside what: tests in virtual machines in one process, all others in the other."""

from __future__ import annotations

import pytest


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tell pytest-xdist, where it is used, that each kind stays together: its tests share ports, memory and files."""
    if config.pluginmanager.hasplugin("xdist"):
        for item in items:
            item.add_marker(pytest.mark.xdist_group("machines" if item.get_closest_marker("vm") else "host"))
