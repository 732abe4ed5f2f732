"""The pytest plugin: the fixture `tcmu_disk` serves disks that can be made to fail, as an ordinary user."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tcmu_core.testing.served import ServedDisk

DEFAULT_HANDLER = "ram"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--tcmu-handler`."""
    group = parser.getgroup("tcmu", "disks of tcmu")
    group.addoption(
        "--tcmu-handler",
        action="append",
        metavar="NAME",
        help=f"what stands behind the disks of `tcmu_disk` ({DEFAULT_HANDLER}); given again, tests run with each",
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run each test that serves a disk with each of the handlers that were named."""
    handlers = metafunc.config.getoption("tcmu_handler")
    if handlers and len(handlers) > 1 and "tcmu_handler" in metafunc.fixturenames:
        metafunc.parametrize("tcmu_handler", handlers, indirect=True)


@pytest.fixture
def tcmu_handler(request: pytest.FixtureRequest) -> str:
    """The handler that `tcmu_disk` uses when a test names none."""
    if hasattr(request, "param"):
        return str(request.param)
    given = request.config.getoption("tcmu_handler")
    return str(given[0]) if given else DEFAULT_HANDLER


@pytest.fixture
def tcmu_disk(tcmu_handler: str, tmp_path: Path) -> Iterator[Callable[..., ServedDisk]]:
    """Serve disks: `tcmu_disk(handler=…, cfgstring=…, size=…, filters=[…])` returns a `ServedDisk`."""
    served: list[ServedDisk] = []

    def serve(handler: str = tcmu_handler, cfgstring: str | None = None, **options: Any) -> ServedDisk:
        name = f"disk{len(served)}"
        directory = tmp_path / "tcmu" / name
        directory.mkdir(parents=True)
        disk = ServedDisk(handler, cfgstring, name=name, directory=directory, **options)
        served.append(disk)
        return disk

    yield serve
    for disk in served:
        disk.close()
