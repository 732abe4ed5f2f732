"""Handler paths with what a test puts there; what importing them left behind is undone."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def clean_imports() -> Iterator[None]:
    path, modules = list(sys.path), set(sys.modules)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if name.startswith(("tcmu_dropin_", "tcmu_test_")):
            del sys.modules[name]
    sys.path_importer_cache.clear()


Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path) -> Install:
    """Put a distribution into the handler path as pip would: its module and its metadata."""

    def put(project: str, entry_points: dict[str, str], version: str = "1.0", **modules: str) -> None:
        info = tmp_path / f"{project.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project}\nVersion: {version}\n")
        lines = "".join(f"{name} = {value}\n" for name, value in entry_points.items())
        (info / "entry_points.txt").write_text(f"[tcmu.handlers]\n{lines}")
        for name, source in modules.items():
            (tmp_path / f"{name}.py").write_text(source)

    return put
