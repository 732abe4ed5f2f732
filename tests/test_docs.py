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
from tests.release.lines import DOCUMENTS as COMMANDED
from tests.release.lines import commands, unknown
from tests.release.scripts import SCRIPTS

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
READMES = sorted([*ROOT.glob("plugins/*/README.md"), *ROOT.glob("examples/*/README.md")])
EXAMPLE = ROOT / "docs" / "examples" / "handler_mine.py"

# Each command line of the documents is typed by tests/release/test_lines.py as it stands, or run by one of these tests:
# how the line begins, and the test. A line that comes to the documents is typed, unless a row here says who does.
ELSEWHERE = {
    ".ci/run": {r"make (lint|test|soak)\b": ""},
    "tests/release/test_clone.py": {
        r"make run\b": "test_make_run_serves_a_disk",
        r"make unit\b": "test_make_unit_runs_what_needs_python_alone",
        r"make docs\b": "test_make_docs_builds_the_site",
        r"make bench\b": "test_make_bench_runs_benchmarks",
        r"pip install \./ ": "test_the_readme_installs_from_a_checkout",
        r"pip install '\./\[kernel,dbus\]'": "test_the_guide_installs_the_daemon_from_a_checkout",
    },
    "tests/release/test_dist.py": {
        r"make dist\b": "test_each_distribution_has_a_wheel_and_its_source",
        r"python3 -m venv /opt/tcmu|/opt/tcmu/bin/pip ": "test_the_guides_environment_serves_a_disk",
        r"pip install tcmu-": "test_a_distribution_alone_brings_what_it_needs",  # from dist/, not from an index
    },
    "tests/release/test_debian.py": {
        r"make deb\b": "test_there_are_a_core_handlers_and_the_daemon_of_one_version",
        r"apt install ": "test_two_commands_serve_a_disk",
        r"apt purge ": "test_purged_it_leaves_no_trace",
        r"apt-get install ": "test_the_libraries_of_clusters_come_by_the_commands_for_it",
    },
    "tests/release/test_debian_vm.py": {
        r"systemctl |lsblk": "test_what_the_guide_has_for_the_daemon_works",
        r"targetcli /(backstores/user:file create disk1|loopback)": "test_what_the_guide_has_for_the_daemon_works",
        r"targetcli /backstores/user:(file|qcow|fbo) ": "test_what_the_handlers_have_for_targetcli_works",
    },
    "tests/release/test_image.py": {r"make image\b": "test_it_is_not_roots_and_says_how_it_is"},
    "tests/release/test_podman.py": {
        r"podman ": "test_the_guides_command_serves_a_disk_at_the_mapped_port",
        r"podman-compose ": "test_the_compose_file_serves_a_disk_to_who_knows_the_password",
    },
    "tests/kernel/test_elsewhere.py": {
        r"targetcli /backstores/user:nbd ": "test_an_nbd_export",
        r"targetcli /backstores/user:http ": "test_a_file_of_a_web_server",
        r"targetcli /backstores/user:rbd ": "test_an_image_of_a_ceph_cluster",
        r"targetcli /backstores/user:glfs ": "test_a_file_of_a_gluster_volume",
    },
    "tests/iscsi/test_vm_open_iscsi.py": {
        r"iscsiadm |mkfs.ext4 |u?mount ": "test_the_guides_lines_work",
        r"sg_raw ": "test_the_guides_command_of_a_handlers_own_reaches_it",
    },
    "tests/iscsi/test_vm_alua.py": {
        r"sg_rtpg ": "test_sg_utils_read_the_groups",
        r"multipath ": "test_multipath_sees_both_paths",
    },
    "plugins/tcmu-glfs/tests/test_readme.py": {r"tcmu serve glfs ": "test_its_command_lines_work"},
    "plugins/tcmu-rbd/tests/test_readme.py": {r"rbd create |tcmu serve rbd ": "test_its_command_lines_work"},
}

RUN_BY = {row: (file, name) for file, rows in ELSEWHERE.items() for row, name in rows.items()}

DOCUMENT = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)


def elsewhere(line: str) -> str:
    """Return the row about a command line that is not typed with the others of its document."""
    return next((row for row in RUN_BY if re.match(row, line)), "")


def tcmu_commands(document: Path) -> list[list[str]]:
    """Return the words of the `tcmu` command lines in a document's indented blocks."""
    lines = re.findall(r"^ {4}(tcmu .*)$", document.read_text(), re.MULTILINE)
    return [shlex.split(line, comments=True)[1:] for line in lines]


@pytest.mark.parametrize("document", [*DOCUMENTS, *READMES], ids=lambda path: f"{path.parent.name}/{path.name}")
def test_its_commands_are_understood(document: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in tcmu_commands(document):
        try:
            parser().parse_args(command)
        except SystemExit:
            pytest.fail(f"{document.name}: tcmu {shlex.join(command)}\n{capsys.readouterr().err}")


@pytest.mark.parametrize("document", [*DOCUMENTS, *READMES], ids=lambda path: f"{path.parent.name}/{path.name}")
def test_its_links_lead_somewhere(document: Path) -> None:
    for goal in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", document.read_text()):
        assert goal.startswith("https://") or (document.parent / goal).exists(), goal


def test_every_command_line_is_run_by_a_test() -> None:
    used = set()
    for path in COMMANDED:
        name = str(path.relative_to(ROOT))
        assert not unknown(path), f"{name}: a command, or something else? tests/release/lines.py says what it is"
        rows = {line: elsewhere(line) for line in commands(path)}
        left = [line for line, row in rows.items() if not row]
        assert bool(left) == (name in SCRIPTS), f"{name}: typed by tests/release/test_lines.py are {left}"
        used |= set(rows.values()) - {""}
    assert used == RUN_BY.keys(), "a row is about no line"


@pytest.mark.parametrize(("file", "name"), sorted(set(RUN_BY.values())))
def test_what_is_said_to_run_a_command_line_is_there(file: str, name: str) -> None:
    assert re.search(rf"^ *def {name}\(" if name else "", (ROOT / file).read_text(), re.MULTILINE)


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
