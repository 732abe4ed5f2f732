"""The command line as a whole: help that a newcomer needs nothing beside, exit statuses, colours."""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import tcmu_core
from tcmu_core.cli.output import Exit, Output, explain, human
from tcmu_core.cli.tcmu import parser
from tcmu_core.errors import ConfigError
from tests.cli.conftest import Call


def commands() -> list[str]:
    """Return the names of all commands, those of other modules too."""
    (subparsers,) = [action for action in parser()._actions if isinstance(action, argparse._SubParsersAction)]
    return list(subparsers.choices)


COMMAND = pytest.mark.parametrize("command", commands())


@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help_names_every_command(call: Call, option: str) -> None:
    said = call(option)
    assert said.status == 0
    assert {"serve", "handlers", "check", "new"} <= set(commands())
    for command in commands():
        assert re.search(rf"^ {{4}}{command}(  +|\n {{20,}})[a-z]", said.out, re.MULTILINE), command


@COMMAND
def test_each_command_explains_itself(call: Call, command: str) -> None:
    """Its help has a usage line, and then says what it does."""
    said = call(command, "--help")
    assert said.status == 0
    assert said.out.startswith(f"usage: tcmu {command} ")
    description = said.out.split("\n\n")[1]
    assert len(description) > 40
    assert description.split()[0] != "positional"


@COMMAND
def test_each_argument_is_explained(call: Call, command: str) -> None:
    """No argument stands in the help without words."""
    lines = call(command, "--help").out.splitlines()
    for at, line in enumerate(lines):
        if re.match(r"  (-|[A-Z])", line):
            assert len(line.strip().split("  ", 1)) == 2 or lines[at + 1].startswith(" " * 20), line


def test_version_is_the_distributions(call: Call) -> None:
    said = call("--version")
    assert (said.status, said.out) == (0, f"tcmu {tcmu_core.__version__}\n")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ((), "the following arguments are required: COMMAND"),
        (("sreve",), "invalid choice: 'sreve'"),
        (("check",), "the following arguments are required: HANDLER"),
        (("check", "file", "a", "b"), "unrecognized arguments: b"),
        (("serve", "ram", "--size", "big"), "'big' is no size: write a number with K, M, G or T, such as 64M"),
        (("serve", "ram", "--name", "a\nb"), "'a\\nb' can't be a disk's name: write printable characters"),
        (("serve", "ram", "--block-size", "500"), "'500' is no block size: a power of two from 512 to 65536"),
        (("serve", "ram", "--portal", "nowhere"), "write it like 127.0.0.1:3260 or [::1]:3260"),
        (("serve", "ram", "--chap", "me"), "write USER:PASSWORD"),
        (("serve", "ram", "--state-dir", __file__), f"{__file__} is not a directory"),
        (("status", "--state-dir", __file__), f"{__file__} is not a directory"),
        (("doctor", "--state-dir", __file__), f"{__file__} is not a directory"),
        (("serve", "ram", "--chap", "a:b", "--chap-file", "x"), "not allowed with argument --chap"),
        (("serve", "ram", "--chap", "a:\udcff"), "argument --chap: a user and a password are UTF-8 text"),
        (("serve", "ram", "--size", "1M", "--size", "2M"), "argument --size: given twice"),
        (("serve", "ram", "--lun", "ram --name a --name b"), "argument --lun: argument --name: given twice"),
        (("serve", "ram", "--run", ""), "argument --run: no command: write one"),
        (("status", "--state-dir", "/a", "--state-dir", "/b"), "argument --state-dir: given twice"),
        (("create", "a", "1M", "ram", "--block-size", "513"), "'513' is no block size"),
        (("create", "a", "1M", "ram", "--data-area", "0"), "'0': write a whole number, 1 or more"),
        (("crash", "f", "--check", "true", "--timeout", "nan"), "'nan': write seconds, more than 0"),
        (("crash", "f", "--check", "true", "--limit", "-1"), "--limit"),
        (("crash", "f", "--check", "true", "--from", "1_0"), "--from: '1_0': write a whole number, 0 or more"),
        (("trace", "disk", "--slower", "-1"), "--slower: '-1': write milliseconds, 0 or more"),
        (("trace", "disk", "--slower", "nan"), "'nan': write milliseconds"),
        (("trace", "disk", "--slower", "soon"), "'soon': write milliseconds"),
        (("trace", "disk", "--count", "-1"), "--count: '-1': write a whole number, 1 or more"),
        (("logout", "*", "--within", "0"), "--within: '0': write whole seconds, from 1 to 65535"),
        (("logout", "*", "--within", "1.5"), "--within: '1.5': write whole seconds"),
        (("top", "--interval", "often"), "--interval: 'often': from 0.1 to 3600 seconds"),
        (("serve", "ram", "--portal", "127.0.0.1:3_260"), "portal address '127.0.0.1:3_260': write it like"),
        (("metrics", "--listen", "a..b:9287"), "'a..b:9287' is no HOST:PORT"),
        (("metrics", "--listen", "\udcff:9287"), "is no HOST:PORT"),
        (("metrics", "--listen", "127.0.0.1:\u0663"), "is no HOST:PORT"),
        (("metrics", "--listen", "[::1:9287"), "is no HOST:PORT"),
        (("record", "disk", "f", "--seconds", "1e300"), "'1e300': write seconds, more than 0"),
    ],
)
def test_wrong_usage_is_status_2_and_says_why(call: Call, argv: tuple[str, ...], message: str) -> None:
    said = call(*argv)
    assert said.status == 2
    assert message in said.err


def test_an_output_that_is_full_is_what_is_said_to_be_full() -> None:
    with open("/dev/full", "w") as full:
        words = [sys.executable, "-m", "tcmu_core.cli.tcmu", "handlers"]
        done = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (1, "tcmu: the output: No space left on device\n")


def test_an_option_may_say_the_same_twice(call: Call, tmp_path: Path) -> None:
    state = ("--state-dir", str(tmp_path))
    assert call("status", *state, *state).status == 0


def failing(message: str, cause: Exception) -> ConfigError:
    error = ConfigError(message)
    error.__cause__ = cause
    return error


def test_causes_are_told_in_turn() -> None:
    cause = FileNotFoundError(2, "No such file or directory", "/no/such/file")
    assert list(explain(failing("the image can't be used", cause))) == [
        "the image can't be used",
        "because: /no/such/file: No such file or directory",
    ]


def test_a_cause_that_says_nothing_new_is_left_out() -> None:
    assert list(explain(failing("disk: no size", ConfigError("no size")))) == ["disk: no size"]


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0 bytes"), (512, "512 bytes"), (1 << 30, "1 GiB"), (3 << 29, "1.5 GiB"), (1 << 60, "1 EiB")],
)
def test_sizes_are_written_as_people_do(number: int, text: str) -> None:
    assert human(number) == text


def test_tables_are_as_wide_as_they_must_be(capsys: pytest.CaptureFixture[str]) -> None:
    Output().table(("NAME", "SIZE"), [("a", "1"), ("longer", "2")])
    assert capsys.readouterr().out == "NAME    SIZE\na       1\nlonger  2\n"


def test_output_without_a_terminal_has_no_colours(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    said = call("handlers")
    assert "\x1b" not in said.out + said.err


def test_a_reader_that_goes_away_is_no_traceback(command: Callable[..., subprocess.Popen[str]]) -> None:
    process = command("handlers", stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.close()
    _out, err = process.communicate()
    assert process.returncode == Exit.FAILED
    assert not err


def test_the_module_can_be_run(call: Call) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tcmu_core.cli.tcmu", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == call("--version").out


def test_what_a_stranger_has_called_a_file_does_nothing_to_a_terminal() -> None:
    told = list(explain(ConfigError("the image names a\x1b[31m\r\x9b2J\nb\té")))
    assert told == ["the image names a\\x1b[31m\\x0d\\x9b2J", "b\té"]
