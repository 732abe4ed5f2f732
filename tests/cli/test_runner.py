"""tcmu-runner's command line."""

from __future__ import annotations

import sys
from subprocess import run
from typing import Any

import pytest

import tcmu_core
from tcmu_core.cli import runner


def start(*arguments: str) -> Any:
    return run([sys.executable, "-m", "tcmu_core.cli.runner", *arguments], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help_names_every_option_and_succeeds(option: str) -> None:
    said = start(option)
    assert said.returncode == 0
    for name in ("-h", "-V", "-d", "--handler-path", "-l", "--tcmu-log-dir", "-f", "--nofile", "--config"):
        assert name in said.stdout


@pytest.mark.parametrize("option", ["-V", "--version"])
def test_version_succeeds(option: str) -> None:
    said = start(option)
    assert (said.returncode, said.stdout) == (0, f"tcmu-runner {tcmu_core.__version__}\n")


@pytest.mark.parametrize("arguments", [["-f", "1024"], ["-f", "2000000"], ["-f", "many"], ["--nonsense"], ["stray"]])
def test_wrong_usage_is_a_usage_error(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        runner.parser().parse_args(arguments)
    assert caught.value.code == 2
    assert "usage: tcmu-runner" in capsys.readouterr().err


def test_a_bad_configuration_is_named_with_its_line(tmp_path: Any) -> None:
    config = tmp_path / "tcmu.conf"
    config.write_text("log_level = lots\n")
    said = start("--config", str(config))
    assert said.returncode == 1
    assert f"{config}:1" in said.stderr
