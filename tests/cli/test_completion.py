"""What a shell completes after `tcmu completion`: the shells themselves are asked."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tcmu_core.cli.completion import SHELLS
from tcmu_core.cli.tcmu import SUBCOMMANDS, main

# What bash does at TAB: the registered function, told of the words, leaves its answers in COMPREPLY.
BASH = """
source {script}
[ "$(complete -p {command})" ] || exit 3
COMP_WORDS=({words})
COMP_CWORD=$(({count} - 1))
function=$(complete -p {command} | sed 's/.*-F \\([^ ]*\\).*/\\1/')
$function {command} {last} {before}
printf '%s\\n' "${{COMPREPLY[@]}}"
"""

# zsh completes in a terminal alone: a second one, in a pseudo-terminal, is sent the keys and lists what it offers.
ZSH = """
zmodload zsh/zpty
zpty z 'TERM=dumb zsh -f -i'
zpty -w z 'PS1= fpath=({directory} $fpath); autoload -U compinit; compinit -D -u; bindkey "^I" list-choices; echo o""k'
zpty -r -m z line '*ok*'
zpty -n -w z '{line}'$'\\t'
zpty -r -m z line '{wanted}' && print found
zpty -d z
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a script for each shell, and one of each for the daemon."""
    directory = tmp_path_factory.mktemp("completion")
    for shell in SHELLS:
        for command in ("tcmu", "tcmu-runner"):
            words = [sys.executable, "-m", "tcmu_core.cli.tcmu", "completion", shell, "--for", command]
            (directory / f"{command}.{shell}").write_bytes(
                subprocess.run(words, capture_output=True, check=True).stdout
            )
    (directory / "tcmu.zsh").rename(directory / "_tcmu")  # zsh loads a command's completion from a file of this name
    (directory / "bin").mkdir()
    tool = directory / "bin" / "tcmu"  # what the scripts ask for names
    tool.write_text(f'#!/bin/sh\nexec {sys.executable} -m tcmu_core.cli.tcmu "$@" --state-dir {directory}\n')
    tool.chmod(0o755)
    (directory / "some-image").touch()
    (directory / "some-folder").mkdir()
    return directory


def ask(shell: list[str], program: str, place: Path) -> set[str]:
    done = subprocess.run(
        [*shell, program], capture_output=True, text=True, check=False, cwd=place, timeout=60,
        env={**os.environ, "PATH": f"{place / 'bin'}:{os.environ['PATH']}"},
    )  # fmt: skip
    assert not done.stderr, done.stderr
    return {line.split("\t")[0].strip() for line in done.stdout.splitlines()}


def bash(place: Path, line: str) -> set[str]:
    """Return what bash offers at the end of `line`."""
    words = [*line.split(" ")]
    program = BASH.format(
        script=place / f"{words[0]}.bash", command=words[0], words=" ".join(map(shlex.quote, words)), count=len(words),
        last=shlex.quote(words[-1]), before=shlex.quote(words[-2]),
    )  # fmt: skip
    return ask(["bash", "--norc", "-c"], program, place)


def fish(place: Path, line: str) -> set[str]:
    """Return what fish offers at the end of `line`."""
    script = place / f"{line.partition(' ')[0]}.fish"
    return ask(["fish", "--no-config", "-c"], f"source {script}; complete -C {shlex.quote(line)}", place)


ASKED = pytest.mark.parametrize("shell", [bash, fish], ids=lambda function: function.__name__)


@ASKED
def test_every_command_is_offered(shell, place):
    assert shell(place, "tcmu ") >= {command.name for command in SUBCOMMANDS} | {"create", "install-service"}


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("tcmu se", {"serve"}),
        ("tcmu serve --read", {"--read-only"}),
        ("tcmu serve ", {"file", "ram", "qcow", "fbo"}),
        ("tcmu serve qc", {"qcow"}),
        ("tcmu serve file some-i", {"some-image"}),
        ("tcmu serve ram --filter de", {"delay"}),
        ("tcmu completion z", {"zsh"}),
        ("tcmu-runner --han", {"--handler-path"}),
        ("tcmu-runner --config some-i", {"some-image"}),
    ],
)
@ASKED
def test_what_fits_is_offered(shell, line, wanted, place):
    assert shell(place, line) >= wanted


@ASKED
def test_what_does_not_fit_is_not_offered(shell, place):
    assert not {"file", "ram"} & shell(place, "tcmu serve qc")
    assert "some-image" not in shell(place, "tcmu serve ram --state-dir some-")
    assert {name.rstrip("/") for name in shell(place, "tcmu serve ram --state-dir some-")} == {"some-folder"}


def test_zsh_offers_commands_and_handlers(place):
    for line, wanted in (("tcmu in", "*insert*install-service*"), ("tcmu serve q", "*qcow*")):
        program = ZSH.format(directory=place, line=line, wanted=wanted)
        assert "found" in ask(["zsh", "-f", "-c"], program, place)


@ASKED
def test_a_disk_that_is_served_is_offered_by_its_name(shell, place):
    words = [sys.executable, "-m", "tcmu_core.cli.tcmu", "serve", "ram", "--size", "1M", "--name", "precious"]
    words += ["--portal", "127.0.0.1:0", "--state-dir", str(place), "--json"]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as server:
        try:
            assert server.stdout is not None
            assert server.stdout.readline()
            for line in ("tcmu status pre", "tcmu eject pre"):
                assert "precious" in shell(place, line)
        finally:
            server.terminate()


def test_what_is_missing_is_said_with_the_command_that_brings_it(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["completion", "bash"]) == 1
    assert "`pip install 'tcmu-core[completion]'` brings it" in capsys.readouterr().err
