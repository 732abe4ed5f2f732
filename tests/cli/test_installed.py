"""A handler that pip installed into a fresh virtual environment serves a disk there."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from tcmu_core.cli.new import write

ROOT = Path(__file__).parents[2]
PIP = ("--quiet", "--disable-pip-version-check", "--no-index", "--no-deps")


def dependencies(project: str) -> set[str]:
    """Return the distributions that `project` needs, and those that they need."""
    found: set[str] = set()
    waiting = [project]
    while waiting:
        for requirement in importlib.metadata.requires(waiting.pop()) or []:
            name = re.split(r"[^\w.-]", requirement)[0]
            if "extra ==" not in requirement and name not in found:
                try:
                    importlib.metadata.distribution(name)
                except importlib.metadata.PackageNotFoundError:
                    continue  # for another Python version
                found.add(name)
                waiting.append(name)
    return found


def copy(name: str, goal: Path) -> None:
    """Copy an installed distribution, so that no index has to be asked for it."""
    for file in importlib.metadata.files(name) or []:
        if ".." not in file.parts:
            (goal / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(str(file.locate()), goal / file)


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with tcmu-core, and the handler that `tcmu new` writes, both installed by pip."""
    tmp_path = tmp_path_factory.mktemp("fresh")
    sources = tmp_path / "core"
    shutil.copytree(ROOT / "tcmu_core", sources / "tcmu_core", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, sources / name)
    write("shout", tmp_path / "shout")
    wheels = tmp_path / "wheels"
    wheel = [sys.executable, "-m", "pip", "wheel", *PIP, "--no-build-isolation", "--wheel-dir", str(wheels)]
    subprocess.run([*wheel, str(sources), str(tmp_path / "shout")], check=True)
    environment = tmp_path / "venv"
    venv.create(environment, with_pip=True, symlinks=True)
    (site,) = (environment / "lib").glob("python3*/site-packages")
    for name in dependencies("tcmu-core"):
        copy(name, site)
    install = [str(environment / "bin" / "python"), "-m", "pip", "install", *PIP]
    subprocess.run([*install, *map(str, wheels.glob("*.whl"))], check=True, env=clean())
    return environment / "bin"


def clean() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}


def test_it_serves_a_disk(fresh: Path, tmp_path: Path) -> None:
    shell = "qemu-io -f raw -c 'write -P 0x31 0 64k' -c flush $uri"
    words = ["serve", "shout", str(tmp_path / "a.img"), "--size", "8M", "--state-dir", str(tmp_path), "--run", shell]
    done = subprocess.run(
        [str(fresh / "tcmu"), *words], env=clean(), cwd="/", capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "a.img").read_bytes()[:65536] == b"\x31" * 65536


def test_what_is_not_installed_is_not_found(fresh: Path) -> None:
    words = [str(fresh / "tcmu"), "check", "file", "/x"]
    done = subprocess.run(words, env=clean(), cwd="/", capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert "no handler 'file': installed are shout; `pip install tcmu-file` brings it" in done.stderr


def test_what_it_needs_beside_its_code_is_installed_too(fresh: Path, tmp_path: Path) -> None:
    (tmp_path / "tcmu.conf").write_text("log_levl = 3\n")
    for words, status in ((["new", "other"], 0), (["serve", "shout", "x", "--config", "tcmu.conf"], 4)):
        done = subprocess.run(
            [str(fresh / "tcmu"), *words], env=clean(), cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == status, done.stderr
    assert "tcmu.conf:1: unknown key 'log_levl': did you mean 'log_level'?" in done.stderr
    assert (tmp_path / "tcmu-other" / "pyproject.toml").exists()
