"""All distributions have one version, and what an index shows of them is right."""

from __future__ import annotations

import importlib.metadata
import re
import tomllib
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

import tcmu_core
from tests.release.interpreters import ROOT, supported

PROJECTS = [ROOT, *sorted(path.parent for path in ROOT.glob("p*/tcmu*/pyproject.toml"))]
PLUGINS = [path for path in PROJECTS if path.parent.name == "plugins"]
META = ROOT / "packages" / "tcmu-runner"
EVERY = pytest.mark.parametrize("project", PROJECTS, ids=lambda path: "core" if path == ROOT else path.name)


def read(project: Path) -> dict[str, Any]:
    return tomllib.loads((project / "pyproject.toml").read_text())


def requirements(project: Path) -> list[str]:
    """Return what a project needs of the other distributions, extras included."""
    table = read(project)["project"]
    wanted = [*table["dependencies"], *chain(*table.get("optional-dependencies", {}).values())]
    return [word for word in wanted if word.startswith("tcmu")]


def test_there_are_a_core_a_meta_distribution_and_plugins() -> None:
    assert META in PROJECTS
    assert {"tcmu-file", "tcmu-ram", "tcmu-qcow", "tcmu-fbo"} <= {path.name for path in PLUGINS}


@EVERY
def test_the_version_is_said_in_one_place(project: Path) -> None:
    content = read(project)
    assert "version" not in content["project"]
    assert "version" in content["project"]["dynamic"]
    module = content["tool"]["setuptools"]["dynamic"]["version"]["attr"].removesuffix(".__version__")
    file = project / f"{module.replace('.', '/')}.py"
    assert file.resolve() == ROOT / "tcmu_core" / "_version.py"


@pytest.mark.parametrize("name", ["tcmu-core", *(path.name for path in PLUGINS)])
def test_what_is_installed_has_that_version(name: str) -> None:
    assert importlib.metadata.version(name) == tcmu_core.__version__


@EVERY
def test_a_distribution_takes_the_core_and_plugins_of_its_own_minor_version(project: Path) -> None:
    found = requirements(project)
    assert found or project == ROOT
    major, minor, _patch = tcmu_core.__version__.split(".")
    for requirement in found:
        assert requirement.endswith(f"~={major}.{minor}.0"), requirement


def test_the_meta_distribution_brings_or_offers_every_plugin() -> None:
    names = {re.split(r"[^\w-]", requirement)[0] for requirement in requirements(META)}
    assert names == {"tcmu-core", *(path.name for path in PLUGINS)}
    brought = {requirement.partition("~")[0] for requirement in read(META)["project"]["dependencies"]}
    assert brought == {"tcmu-core", "tcmu-file", "tcmu-ram", "tcmu-qcow", "tcmu-fbo"}


@EVERY
def test_an_index_is_told_all_that_it_shows(project: Path) -> None:
    table = read(project)["project"]
    assert table["license"] == "Apache-2.0"  # an SPDX expression
    assert (project / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
    assert table["license-files"] == ["LICENSE"]
    assert not [line for line in table["classifiers"] if line.startswith("License ::")]  # PEP 639: the expression alone
    assert table["keywords"]
    assert (project / table["readme"]).read_text().startswith("# tcmu")
    assert all(len(label) <= 32 for label in table.get("urls", {}))  # an index refuses a longer one


@EVERY
def test_every_distribution_is_for_the_same_pythons(project: Path) -> None:
    table = read(project)["project"]
    versions = [line.rpartition(" ")[2] for line in table["classifiers"] if re.search(r":: 3\.\d+$", line)]
    assert versions == supported()
    assert table["requires-python"] == f">={versions[0]}"
