"""`tcmu new`: what it writes is a handler that works, is found, and whose tests pass."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.cli.conftest import Call


@pytest.fixture
def made(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    assert call("new", "two_words").status == 0
    return tmp_path / "tcmu-two_words"


@pytest.fixture
def made_filter(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    assert call("new", "--filter", "seen_reads").status == 0
    return tmp_path / "tcmu-seen_reads"


@pytest.mark.parametrize(("kind", "tests"), [("made", 4), ("made_filter", 3)])
def test_its_own_tests_pass(kind: str, tests: int, request: pytest.FixtureRequest) -> None:
    made = request.getfixturevalue(kind)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error"],
        cwd=made,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(made), *sys.path]), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{tests} passed" in done.stdout


def test_it_is_found_when_it_is_installed(made: Path, call: Call, tmp_path: Path) -> None:
    """As `pip install --target DIR` leaves it: the package and its metadata; no index is asked."""
    goal = tmp_path / "installed"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index"]
    subprocess.run([*pip, "--no-deps", "--no-build-isolation", "--target", str(goal), str(made)], check=True)
    found = {handler["name"]: handler for handler in json.loads(call("handlers", "--json", "--handler-path", goal).out)}
    assert found["two_words"]["usable"], found["two_words"]["error"]
    assert found["two_words"]["source"] == "tcmu-two_words 0.1.0"
    assert found["two_words"]["options"]["syntax"] == "PATH"
    assert "the file that holds the disk" in found["two_words"]["config_help"]


def test_a_filter_is_found_when_it_is_installed_and_serves(made_filter: Path, tmp_path: Path) -> None:
    goal = tmp_path / "installed"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index"]
    subprocess.run([*pip, "--no-deps", "--no-build-isolation", "--target", str(goal), str(made_filter)], check=True)
    tcmu = [sys.executable, "-m", "tcmu_core.cli.tcmu"]
    serve = ["serve", "ram", "--size", "8M", "--filter", "seen_reads;least=512", "--state-dir", str(tmp_path)]
    shell = "qemu-io -f raw -r -c 'read 0 64k' $uri"
    for words, said in ((["filters"], "seen_reads"), ([*serve, "--run", shell], "read 65536/65536 bytes at offset 0")):
        done = subprocess.run(
            [*tcmu, *words],
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(goal), *sys.path])},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert said in done.stdout


def test_every_name_of_a_filter_is_filled_in(made_filter: Path) -> None:
    assert not [file for file in made_filter.rglob("*") if file.is_file() and "$" in file.read_text()]
    project = tomllib.loads((made_filter / "pyproject.toml").read_text())
    assert project["project"]["entry-points"] == {"tcmu.filters": {"seen_reads": "tcmu_seen_reads:SeenReadsFilter"}}


def test_every_name_is_filled_in(made: Path) -> None:
    for file in made.rglob("*"):
        if file.is_file() and file.suffix != ".pyc":
            assert "$" not in file.read_text(), file
    project = tomllib.loads((made / "pyproject.toml").read_text())
    assert project["project"]["entry-points"]["tcmu.handlers"] == {"two_words": "tcmu_two_words:TwoWordsHandler"}


@pytest.mark.parametrize("name", ["", "A", "a-b", "1a", "a/b", "../x", "class", "é", "x_"])
def test_a_name_that_python_can_t_take_is_refused(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    said = call("new", name)
    assert said.status == 4
    assert "can't be a handler's name" in said.err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "arguments", [["core"], ["tcmu-core"], ["file"], ["rbd"], ["--filter", "file"], ["--filter", "rate"]], ids=" ".join
)
def test_a_name_that_would_take_the_place_of_one_of_ours_is_refused(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    said = call("new", *arguments)
    assert said.status == 4
    assert "is taken: there is a" in said.err
    assert not list(tmp_path.iterdir())


def test_a_prefix_is_not_doubled(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    call("new", "tcmu-shout")
    assert [path.name for path in tmp_path.iterdir()] == ["tcmu-shout"]


def test_nothing_is_overwritten(made: Path, call: Call) -> None:
    (made / "README.md").write_text("mine")
    said = call("new", "two_words")
    assert said.status == 4
    assert "is there already" in said.err
    assert (made / "README.md").read_text() == "mine"


def test_it_can_be_written_elsewhere(call: Call, tmp_path: Path) -> None:
    assert call("new", "a", "--directory", tmp_path / "x" / "y").status == 0
    assert (tmp_path / "x" / "y" / "tcmu_a" / "__init__.py").exists()
