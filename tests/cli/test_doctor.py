"""`tcmu doctor` as a person calls it, and `tcmu-runner --check-config`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tcmu_core.cli.doctor import status
from tcmu_core.doctor.finding import Finding, Severity
from tests.cli.conftest import Call


@pytest.mark.parametrize(
    ("severity", "expected"), [(Severity.OK, 0), (Severity.NOTE, 0), (Severity.WARNING, 5), (Severity.ERROR, 1)]
)
def test_the_exit_status_is_that_of_the_worst(severity: Severity, expected: int) -> None:
    assert status([Finding("a", Severity.OK, "fine"), Finding("b", severity, "so")]) == expected


def test_a_fault_is_shown_with_its_cure(call: Call, tmp_path: Path) -> None:
    config = tmp_path / "tcmu.conf"
    config.write_text("log_levl = 3\n")
    said = call("doctor", "--config", config, "--state-dir", tmp_path)
    assert said.status == 1
    assert "error: tcmu.conf" in said.out
    assert "did you mean 'log_level'?" in said.out.replace("\n  ", " ")
    assert f"    edit {config}:1, then: tcmu-runner --check-config" in said.out
    assert "ok: " not in said.out
    assert "ok: handlers" in call("doctor", "--all", "--config", config, "--state-dir", tmp_path).out


def test_json_has_every_finding_and_nothing_is_left_behind(call: Call, tmp_path: Path) -> None:
    config = tmp_path / "tcmu.conf"
    config.write_text("log_level = 3\n")
    found = json.loads(call("doctor", "--json", "--config", config, "--state-dir", tmp_path / "state").out)
    assert {"looked_at": "tcmu.conf", "severity": "ok", "text": f"{config} is right.", "cure": ""} in found
    assert list(tmp_path.iterdir()) == [config]


def check_config(*arguments: object) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "tcmu_core.cli.runner", "--check-config", *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)


LUN = "[targets]\n[[iqn.2025-01.local.tcmu:a]]\n[[[lun 0]]]\nhandler = {handler}\nsize = 1M\n"


def test_a_configuration_that_is_right_passes(tmp_path: Path) -> None:
    config = tmp_path / "tcmu.conf"
    config.write_text(LUN.format(handler="ram"))
    said = check_config("--config", config)
    assert (said.returncode, said.stdout, said.stderr) == (0, f"{config}: in order\n", "")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("\nlog_levl = 3\n", ":2: unknown key 'log_levl': did you mean 'log_level'?"),
        (LUN.format(handler="rma"), ":4: no handler 'rma': did you mean 'ram'?"),
        ("[handlers]\n[[file]]\ndirecd = 1\n", ":3: handler 'file' has no option 'direcd': did you mean 'direct'?"),
    ],
)
def test_a_mistake_is_told_with_its_line(tmp_path: Path, text: str, told: str) -> None:
    config = tmp_path / "tcmu.conf"
    config.write_text(text)
    said = check_config("--config", config)
    assert (said.returncode, said.stdout) == (4, "")
    assert said.stderr.startswith(f"{config}{told}")


def test_a_configuration_that_is_named_and_not_there_is_a_mistake(tmp_path: Path) -> None:
    assert check_config("--config", tmp_path / "none.conf").returncode == 4


def test_what_a_handler_prints_is_no_part_of_the_answer(tmp_path: Path) -> None:
    (tmp_path / "handler_loud.py").write_text("print('noise')\n")
    config = tmp_path / "tcmu.conf"
    config.write_text("log_level = 3\n")
    said = check_config("--config", config, "--handler-path", tmp_path)
    assert said.stdout == f"{config}: in order\n"
