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
        keys = ["name", "usable", "error", "source", "version", "capabilities", "config_help", "options"]
        assert list(handler) == keys


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
        ("fbo", "ro/a.iso", "{cwd}/ro/a.iso"),
        ("ram", "x;load=y;size=1M", "{cwd}/x;load={cwd}/y;size=1M"),
        ("ram", ";load=/y", ";load=/y"),
        ("file", ";tcmur_cmd_time_out=3;a", ";tcmur_cmd_time_out=3;{cwd}/a"),
        ("no-such-handler", "a", "a"),
    ],
)
def test_only_what_is_a_relative_path_is_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, handler: str, cfgstring: str, result: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute(handler, cfgstring) == result.format(cwd=tmp_path)


@pytest.mark.parametrize(
    ("cfgstring", "why"),
    [
        ("/a:b", "it holds a colon"),
        ("/a,b", "it holds a comma"),
        ("/srv/a b", "it holds a space"),
        ("/" + "a" * 250, "it is longer than the 255 bytes"),
    ],
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


def test_one_handler_is_shown_in_full(call: Call) -> None:
    said = call("handlers", "ram")
    assert said.status == 0
    assert "cfgstring: [IMAGE][;size=SIZE][;load=PATH][;save=PATH]" in said.out
    assert "size=SIZE" in said.out
    assert "an image to begin with, which has to be there" in said.out
    assert "[handlers] [[ram]]" in said.out
    assert "file  " not in said.out


def test_one_handler_that_declares_nothing_is_shown_as_far_as_it_goes(call: Call, path: Path) -> None:
    said = call("handlers", "mine", "--handler-path", path)
    assert "Nothing: the disk is in memory" in said.out
    assert "can: read, write" in said.out


@pytest.mark.parametrize(("name", "reason"), [("typo", "raed"), ("fiel", "did you mean 'file'?")])
def test_one_that_can_not_be_shown_says_why(call: Call, path: Path, name: str, reason: str) -> None:
    said = call("handlers", name, "--handler-path", path)
    assert said.status == 3
    assert reason in said.err


def test_json_tells_the_options_that_are_declared(call: Call, path: Path) -> None:
    said = json.loads(call("handlers", "ram", "--json").out)
    assert said["options"]["body"] == {
        "placeholder": "IMAGE",
        "help": "an image that is loaded if it is there, and saved",
        "required": False,
        "path": True,
    }
    assert [one["name"] for one in said["options"]["options"]] == ["size", "load", "save"]
    assert json.loads(call("handlers", "mine", "--json", "--handler-path", path).out)["options"] is None


def test_the_place_of_a_mistake_is_shown(call: Call) -> None:
    said = call("check", "file", "/x;dircet=1;ro")
    assert said.err.splitlines()[1:] == ["  /x;dircet=1;ro", "     ^^^^^^^^"]


def test_any_handler_may_have_a_path_that_is_relative(
    call: Call, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = DROP_IN.replace("import hookimpl", "import Body, Options, hookimpl")
    text = text.replace(
        "    @hookimpl\n    def open", "    options = Options(body=Body())\n\n    @hookimpl\n    def open", 1
    )
    (path / "handler_paths.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    assert call("check", "paths", "x", "--handler-path", path).out == f"valid: paths/{tmp_path}/x\n"
    assert call("check", "mine", "x", "--handler-path", path).out == "valid: mine/x\n"
