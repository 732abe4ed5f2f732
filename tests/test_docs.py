"""The documents say what is so: their commands parse, their links lead somewhere, their examples run."""

from __future__ import annotations

import re
import runpy
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tcmu_core.cli.tcmu import parser
from tcmu_core.hookspecs import HOOKS, HandlerHooks

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
READMES = sorted([*ROOT.glob("plugins/*/README.md"), *ROOT.glob("examples/*/README.md")])
EXAMPLE = ROOT / "docs" / "examples" / "handler_mine.py"

DOCUMENT = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)


def commands(document: Path) -> list[list[str]]:
    """Return the words of the `tcmu` command lines in a document's indented blocks."""
    lines = re.findall(r"^ {4}(tcmu .*)$", document.read_text(), re.MULTILINE)
    return [shlex.split(line, comments=True)[1:] for line in lines]


@pytest.mark.parametrize("document", [*DOCUMENTS, *READMES], ids=lambda path: f"{path.parent.name}/{path.name}")
def test_its_commands_are_understood(document: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in commands(document):
        try:
            parser().parse_args(command)
        except SystemExit:
            pytest.fail(f"{document.name}: tcmu {shlex.join(command)}\n{capsys.readouterr().err}")


@pytest.mark.parametrize("document", [*DOCUMENTS, *READMES], ids=lambda path: f"{path.parent.name}/{path.name}")
def test_its_links_lead_somewhere(document: Path) -> None:
    for goal in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", document.read_text()):
        assert goal.startswith("https://") or (document.parent / goal).exists(), goal


@DOCUMENT
def test_its_make_targets_are_there(document: Path) -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    text = document.read_text()
    assert set(re.findall(r"`make ([a-z]+)`", text) + re.findall(r"^ {4}make ([a-z]+)", text, re.MULTILINE)) <= targets


def test_the_guides_handler_is_the_tested_one() -> None:
    assert EXAMPLE.read_text() in (ROOT / "docs" / "handlers.md").read_text()


def test_the_readme_installs_what_there_is() -> None:
    lines = re.findall(r"^ {4}pip install (.*)$", (ROOT / "README.md").read_text(), re.MULTILINE)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for word in shlex.split(" ".join(lines)):
        path, _, wanted = word.partition("[")
        assert (ROOT / path / "pyproject.toml").exists(), word
        assert set(wanted.rstrip("]").split(",")) - {""} <= extras.keys(), word


def test_the_readmes_command_for_scripts_works(tmp_path: Path) -> None:
    (line,) = re.findall(r"^ {4}(tcmu serve .* --run .*)$", (ROOT / "README.md").read_text(), re.MULTILINE)
    words = [*shlex.split(line)[1:], "--state-dir", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-m", "tcmu_core.cli.tcmu", *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "virtual size: 64 MiB" in done.stdout


def test_every_hook_is_in_the_guide() -> None:
    hooks = [name for name, hook in vars(HandlerHooks).items() if hasattr(hook, "tcmu_spec")]
    assert "open" in hooks
    guide = (ROOT / "docs" / "handlers.md").read_text()
    for name in hooks:
        assert f"| `{name}(" in guide, name


def test_the_reference_of_the_hooks_is_what_their_docstrings_say() -> None:
    made: str = runpy.run_path(str(ROOT / "tools" / "hook-reference"))["reference"]()
    assert (ROOT / "docs" / "hooks.md").read_text() == made, "run tools/hook-reference"
    for name in HOOKS:
        assert f"\n## {name}\n" in made


def test_the_guides_python_is_python() -> None:
    for block in re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "handlers.md").read_text(), re.DOTALL):
        compile(block, "docs/handlers.md", "exec")


def test_the_plugins_of_the_readme_are_there() -> None:
    text = (ROOT / "README.md").read_text()
    for plugin in sorted(ROOT.glob("plugins/*/README.md")):
        name = tomllib.loads((plugin.parent / "pyproject.toml").read_text())["project"]["name"]
        assert f"](plugins/{name}/README.md)" in text, name


def test_the_readme_is_a_screen() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 60
