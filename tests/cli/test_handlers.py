"""`tcmu handlers` and `tcmu check`: what is there, what is broken and why, what is wrong with a cfgstring."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tcmu_core.cli.handlers import absolute
from tests.cli.conftest import DROP_IN, Call


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A handler path with one good handler and one of each broken kind."""
    directory = tmp_path / "handlers"
    directory.mkdir()
    files = {
        "mine": DROP_IN,
        "typo": "from tcmu_core import hookimpl\n\n\nclass T:\n    @hookimpl\n    def raed(self, offset): ...\n",
        "needs": "import no_such_module\n",
        "none": "x = 1\n",
        "two": DROP_IN + DROP_IN.replace("class Mine", "class Other").partition("\n")[2],
        "exits": "raise SystemExit('bye')\n",
        "file": DROP_IN,
    }
    for name, text in files.items():
        (directory / f"handler_{name}.py").write_text(text)
    return directory


BROKEN = [
    ("typo", "raed"),
    ("needs", "ModuleNotFoundError: No module named 'no_such_module' (handler_needs.py:1)"),
    ("none", "handler 'none' has no open and no read hook: mark its functions with @tcmu_core.hookimpl"),
    ("two", "more than one class has hooks: Mine, Other; keep one in the file"),
    ("exits", "SystemExit: bye (handler_exits.py:1)"),
    ("file", "two handlers have this name: "),
]


@pytest.mark.parametrize(("name", "reason"), BROKEN)
def test_a_broken_handler_is_listed_with_its_reason(call: Call, path: Path, name: str, reason: str) -> None:
    said = call("handlers", "--json", "--handler-path", path)
    found = {handler["name"]: handler for handler in json.loads(said.out)}
    assert said.status == 0
    assert not found[name]["usable"]
    assert reason in found[name]["error"]


def test_a_broken_handler_does_no_harm_to_others(call: Call, path: Path) -> None:
    found = {handler["name"]: handler for handler in json.loads(call("handlers", "--json", "--handler-path", path).out)}
    assert found["mine"]["usable"]
    assert found["ram"]["usable"]


@pytest.mark.parametrize(("name", "reason"), BROKEN)
def test_a_broken_handler_is_refused_with_its_reason(call: Call, path: Path, name: str, reason: str) -> None:
    said = call("check", name, "--handler-path", path)
    assert said.status == 3
    assert reason in said.err


def test_a_list_for_people_says_what_each_handler_takes(call: Call, path: Path) -> None:
    said = call("handlers", "--handler-path", path)
    assert "mine  " in said.out
    assert "  Nothing: the disk is in memory, as large as --size says.\n  can: read, write\n" in said.out
    assert f"needs  broken  {path / 'handler_needs.py'}\n  ModuleNotFoundError" in said.out


def test_json_has_the_same_keys_for_every_handler(call: Call, path: Path) -> None:
    for handler in json.loads(call("handlers", "--json", "--handler-path", path).out):
        assert list(handler) == ["name", "usable", "error", "source", "version", "capabilities", "config_help"]


def test_an_installed_handler_shows_its_distribution(call: Call) -> None:
    (found,) = [handler for handler in json.loads(call("handlers", "--json").out) if handler["name"] == "ram"]
    assert found["source"] == f"tcmu-ram {found['version']}"
    assert {"write", "flush", "discard"} <= set(found["capabilities"])


@pytest.mark.parametrize(
    ("argv", "status", "message"),
    [
        (("fiel", "/x"), 3, "no handler 'fiel': did you mean 'file'?"),
        (("zzz",), 3, "no handler 'zzz': installed are "),
        (("file",), 4, "no path: write /path/of/the/disk.img"),
        (("file", "/x;dircet=1"), 4, "unknown option 'dircet': did you mean 'direct'?"),
        (("file", "/x;block_size=1000"), 4, "block_size=1000: it may be 512, 1024, 2048 or 4096"),
        (("file", ";tcmur_cmd_timeout=3;/x"), 4, "did you mean 'tcmur_cmd_time_out'?"),
        (("ram", ";tcmur_cmd_time_out=3"), 4, "the runner option 'tcmur_cmd_time_out=3' must end with ';'"),
        (("file", "/x", "--handler-path", "/no/such"), 4, "handler path '/no/such' is no directory"),
    ],
)
def test_a_mistake_is_explained(call: Call, argv: tuple[str, ...], status: int, message: str) -> None:
    said = call("check", *argv)
    assert said.status == status
    assert message in said.err
    assert "Traceback" not in said.err


def test_debug_shows_the_traceback_too(call: Call) -> None:
    said = call("check", "file", "-d")
    assert "Traceback" in said.err
    assert said.err.splitlines()[-1].startswith("tcmu: no path")


def test_a_good_cfgstring_is_called_valid(call: Call) -> None:
    said = call("check", "file", "/x;direct=1")
    assert (said.status, said.out) == (0, "valid: file//x;direct=1\n")


def test_a_relative_path_is_made_absolute(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert call("check", "file", "a/../b.img;ro=1").out == f"valid: file/{tmp_path}/b.img;ro=1\n"
    assert call("check", "file", ";tcmur_cmd_time_out=3;b").out == f"valid: file/;tcmur_cmd_time_out=3;{tmp_path}/b\n"


@pytest.mark.parametrize(
    ("handler", "cfgstring", "result"),
    [
        ("file", "a//b", "{cwd}/a/b"),
        ("file", "", ""),
        ("fbo", "a.iso", "{cwd}/a.iso"),
        ("fbo", "ro//srv/a.iso", "ro//srv/a.iso"),
        ("ram", "x", "x"),
    ],
)
def test_only_what_is_a_relative_path_is_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, handler: str, cfgstring: str, result: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute(handler, cfgstring) == result.format(cwd=tmp_path)


@pytest.mark.parametrize(
    ("cfgstring", "why"),
    [("/a:b", "it holds a colon"), ("/a,b", "it holds a comma"), ("/" + "a" * 250, "it is longer than 255 bytes")],
)
def test_what_the_kernel_could_not_take_is_said(call: Call, cfgstring: str, why: str) -> None:
    said = call("check", "file", cfgstring)
    assert said.status == 0
    assert f"but not for a device of the kernel: {why}" in said.out


def test_check_opens_nothing(call: Call, tmp_path: Path) -> None:
    assert call("check", "file", tmp_path / "disk.img").status == 0
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("cfgstring", "status"), [("/x", 0), ("/x;y", 4)])
def test_check_answers_in_json(call: Call, cfgstring: str, status: int) -> None:
    said = call("check", "--json", "file", cfgstring)
    answer = json.loads(said.out)
    assert said.status == status
    assert answer["valid"] is (status == 0)
    assert answer["cfgstring"] == cfgstring
    assert bool(answer["error"]) is (status != 0)


def test_arguments_may_stand_after_options(call: Call) -> None:
    assert json.loads(call("check", "file", "--json", "/x").out)["cfgstring"] == "/x"
