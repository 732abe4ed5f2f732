"""What `tcmu create` refuses before it asks the kernel."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import rtslib_fb

from tcmu_core.cli import lio
from tcmu_core.cli.tcmu import main
from tcmu_core.errors import TcmuError, text_of
from tests.cli.conftest import Call


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (["create", "x", "8M", "ram", "/tmp/a:b"], 4, "it holds a colon"),
        (["create", "x", "8M", "ram", "/tmp/a,b"], 4, "it holds a comma"),
        (["create", "x", "8M", "file", "/srv/a b"], 4, "it holds a space"),
        (["create", "x", "8M", "ram", "x" * 300], 4, "longer than the 255 bytes"),
        (["create", "x", "8M", "ram", ";tcmur_cmd_time_out=soon;"], 4, "'soon' is no number of seconds"),
        (["create", "x", "much", "ram"], 2, "'much' is no size"),
        (["create", "x"], 2, "required: SIZE, HANDLER"),
        (["export"], 2, "required: NAME"),
    ],
)
def test_what_can_not_be_is_said_at_once(
    arguments: list[str], status: int, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        ended = main(arguments)
    except SystemExit as usage:
        ended = int(usage.code or 0)
    assert says in capsys.readouterr().err
    assert ended == status


@pytest.mark.parametrize("command", ["create", "delete", "resize", "export", "unexport", "devices"])
def test_each_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    assert f"usage: tcmu {command}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("import no_such_module_here", ["this needs no_such_module_here: `pip install"]),
        ("raise ImportError('built for another kernel')", ["rtslib_fb can't be imported", "built for another kernel"]),
        ("1/0", ["rtslib_fb can't be imported", "division by zero"]),
    ],
)
def test_a_library_that_is_broken_is_told_with_its_own_words(
    source: str, says: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "rtslib_fb.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    for name in [name for name in sys.modules if name.partition(".")[0] == "rtslib_fb"]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(TcmuError) as caught:
        lio._rtslib()
    said = str(caught.value)
    assert all(part in said for part in says)


@pytest.mark.parametrize("chosen", ["/var/target", "/etc/rtslib-fb-target", "/srv/somewhere"])
def test_the_kernels_dbroot_is_left_as_it_is(chosen: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    (tmp_path / "dbroot").write_text(f"{chosen}\n")
    root = SimpleNamespace(path=str(tmp_path), _default_dbroot="/var/target")
    lio._rtslib().RTSRoot._set_dbroot(root)
    assert root._dbroot == chosen
    assert (tmp_path / "dbroot").read_text() == f"{chosen}\n"


@pytest.mark.parametrize(
    "reason", [rtslib_fb.RTSLibError("Cannot mount configfs"), FileNotFoundError(2, "nothing there")]
)
def test_where_lio_can_not_be_reached_that_is_said_and_what_there_is_no_disk_of_first(
    reason: Exception, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise reason

    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(rtslib_fb, "RTSRoot", fail)
    for words in (["devices"], ["delete", "one"], ["unexport", "one"]):
        said = call(*words)
        assert said.status == 1
        assert said.err.startswith(f"tcmu: LIO can't be reached ({text_of(reason)}): `tcmu doctor`")
    said = call("resize", "one", "1M", "--state-dir", tmp_path)
    assert said.status == 1
    assert said.err.startswith("tcmu: there is no disk 'one': no process of yours serves one")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert call("resize", "one", "1M", "--state-dir", tmp_path).err.startswith("tcmu: there is no disk 'one'")
