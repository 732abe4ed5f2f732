"""The workflow for a forge is well-formed, and what it has make do is there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import yaml

from tests.release.interpreters import supported

ROOT = Path(__file__).parents[1]
WORKFLOW: dict[str, Any] = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
JOBS: dict[str, Any] = WORKFLOW["jobs"]
MAKEFILE = (ROOT / "Makefile").read_text()


def steps() -> list[tuple[str, dict[str, Any]]]:
    return [(name, step) for name, job in JOBS.items() for step in job["steps"]]


def made() -> dict[str, list[list[str]]]:
    """Return the words of each job's `make` commands."""
    found: dict[str, list[list[str]]] = {name: [] for name in JOBS}
    for name, step in steps():
        if (words := shlex.split(step.get("run", ""))) and words[0] == "make":
            found[name].append(words[1:])
    return found


def test_it_starts_by_itself_and_may_write_nothing():
    assert {"push", "pull_request", "schedule"} <= WORKFLOW[True].keys()  # YAML 1.1 takes `on` for a boolean
    assert WORKFLOW["permissions"] == {"contents": "read"}


def test_each_step_runs_something_or_uses_an_action_of_a_known_version():
    for name, step in steps():
        assert ("run" in step) != ("uses" in step), (name, step)
        if "uses" in step:
            assert re.fullmatch(r"[\w-]+/[\w-]+@v\d+", step["uses"]), step


def test_a_job_has_the_sources_before_it_makes_anything():
    for name, job in JOBS.items():
        assert job["runs-on"]
        kinds = [step.get("uses", step.get("run", "")).split("@")[0].split(" ")[0] for step in job["steps"]]
        assert kinds.index("actions/checkout") < kinds.index("make"), name


def test_each_target_and_variable_is_the_makefiles():
    targets = set(re.findall(r"^([a-z]+):", MAKEFILE, re.MULTILINE))
    variables = set(re.findall(r"^([A-Z]+) *\?=", MAKEFILE, re.MULTILINE))
    for commands in made().values():
        for command in commands:
            assert {word for word in command if "=" not in word} <= targets, command
            assert {word.partition("=")[0] for word in command if "=" in word} <= variables, command


def test_lint_tests_of_both_kinds_and_distributions_are_made():
    targets = {word for commands in made().values() for command in commands for word in command if "=" not in word}
    assert {"lint", "unit", "test", "dist", "docs", "soak"} <= targets
    # Together they are what `make test` runs when nothing is chosen.
    assert JOBS["test"]["strategy"]["matrix"]["markers"] == ["not soak and not vm", "vm and not soak"]
    assert re.search(r"^MARKERS \?= not soak$", MAKEFILE, re.MULTILINE)


def test_every_supported_python_is_tried():
    assert JOBS["pythons"]["strategy"]["matrix"]["python"] == supported()


def test_what_is_kept_is_what_was_made():
    kept = {step["with"]["path"] for _, step in steps() if step.get("uses", "").startswith("actions/upload-artifact")}
    assert kept == set(re.findall(r"^(?:DIST|SITE) *\?= (.*)$", MAKEFILE, re.MULTILINE))
