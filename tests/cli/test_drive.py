"""`tcmu eject` and `tcmu insert` on a drive that another process serves."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tcmu_core.host import control
from tcmu_core.host.control import ControlError
from tcmu_core.kernel import configfs
from tests.cli.conftest import Call, Serving, run

Serve = Callable[..., Serving]
BLOCK = 2048


@pytest.fixture
def state(tmp_path: Path) -> list[str]:
    """Arguments that name the state directory which `serve` keeps."""
    return ["--state-dir", str(tmp_path / "state")]


@pytest.fixture
def discs(tmp_path: Path) -> list[Path]:
    made = [tmp_path / "one.iso", tmp_path / "two.iso"]
    for number, path in enumerate(made):
        path.write_bytes(bytes([number + 1]) * BLOCK * 10 * (number + 1))
    return made


def blocks(disk: Serving) -> str:
    """Return what READ CAPACITY says to a new initiator; what it complains of when there is no disc."""
    done = run("iscsi-readcapacity16", "-s", disk.uri)
    return done.stdout.strip() or done.stderr.strip()


def test_a_disc_is_taken_out_and_another_put_in(serve: Serve, call: Call, discs: list[Path], state: list[str]) -> None:
    disk = serve("fbo", f"ro/{discs[0]}", "--name", "cd")
    assert blocks(disk) == str(10 * BLOCK)
    assert call("eject", "cd", *state).out == "cd: the disc is out\n"
    assert not blocks(disk).isdigit()
    assert call("insert", "cd", f"ro/{discs[1]}", *state).out == "cd: the disc is in\n"
    assert blocks(disk) == str(20 * BLOCK)


def test_a_disc_that_cannot_be_used_leaves_the_old_one(
    serve: Serve, call: Call, discs: list[Path], state: list[str]
) -> None:
    disk = serve("fbo", f"ro/{discs[0]}", "--name", "cd")
    missing = call("insert", "cd", "ro//nowhere/none.iso", *state)
    assert missing.status == 1
    assert "No such file" in missing.err
    wrong = call("insert", "cd", f"{discs[1]};profile=laserdisc", *state)
    assert wrong.status == 4
    assert "is no profile" in wrong.err
    assert blocks(disk) == str(10 * BLOCK)


def test_a_relative_path_is_the_callers(
    serve: Serve, call: Call, discs: list[Path], state: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = serve("fbo", "--name", "cd")
    monkeypatch.chdir(discs[1].parent)
    assert call("insert", "cd", "two.iso;ro=1", *state).status == 0
    assert blocks(disk) == str(20 * BLOCK)


def test_a_drive_that_there_is_not_is_named_with_those_that_there_are(
    serve: Serve, call: Call, discs: list[Path], state: list[str]
) -> None:
    nothing = call("eject", "cd", *state)
    assert nothing.status == 1
    assert "no process of yours has a drive" in nothing.err
    serve("fbo", f"ro/{discs[0]}", "--name", "cd")
    serve("ram", "--size", "1M", "--name", "ram")
    other = call("eject", "dvd", *state)
    assert "there is no drive 'dvd': served here: cd\n" in other.err


@pytest.fixture
def core(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What configfs shows of one device of the kernel."""
    attributes = tmp_path / "core" / "user_3" / "dvd" / "attrib"
    attributes.mkdir(parents=True)
    (attributes.parent / "enable").touch()
    (attributes / "dev_config").write_text("fbo/ro//srv/one.iso\n")
    monkeypatch.setattr(configfs, "CORE", tmp_path / "core")
    return attributes / "dev_config"


def test_the_disc_of_a_device_of_the_kernel_is_changed_by_its_configuration(
    call: Call, core: Path, state: list[str]
) -> None:
    core.write_text("fbo/x")
    assert call("insert", "dvd", "ro//srv/two.iso", *state).status == 0
    assert core.read_text() == "fbo/ro//srv/two.iso"


def test_a_device_of_the_kernel_that_is_held_says_so(
    call: Call, core: Path, state: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def busy(path: Path, value: str) -> None:
        assert (path, value) == (core, "fbo/")
        raise configfs.ConfigfsError("writing", OSError(errno.EBUSY, "busy"))

    monkeypatch.setattr(configfs, "write", busy)
    said = call("eject", "dvd", *state)
    assert said.status == 1
    assert "dvd: an initiator holds the disc" in said.err


def test_two_drives_of_one_name_are_not_guessed_at(
    serve: Serve, call: Call, discs: list[Path], state: list[str]
) -> None:
    for _ in range(2):
        serve("fbo", f"ro/{discs[0]}", "--name", "cd")
    assert "2 processes serve a disk called 'cd'" in call("eject", "cd", *state).err


def test_two_disks_of_one_process_and_a_disk_that_is_no_drive_are_said_to_be_that(
    serve: Serve, call: Call, state: list[str]
) -> None:
    serve("ram", "--size", "1M", "--name", "one", "--lun", "ram --size 1M --name two")
    assert "'one' is no drive: its handler has no medium" in call("eject", "one", *state).err
    found = control.disks(Path(state[1]))
    with pytest.raises(ControlError, match="2 disks of one process are called 'one'"):
        control.the_one("one", [found[0], found[0]])


def test_a_stopped_process_leaves_no_socket_and_a_killed_one_leaves_one_that_does_no_harm(
    serve: Serve, call: Call, discs: list[Path], tmp_path: Path, state: list[str]
) -> None:
    serve("fbo", f"ro/{discs[0]}", "--name", "cd").stop()
    assert not list((tmp_path / "state").glob("*.sock"))
    serve("fbo", f"ro/{discs[0]}", "--name", "cd").stop(signal.SIGKILL)
    assert len(list((tmp_path / "state").glob("*.sock"))) == 1
    serve("fbo", f"ro/{discs[0]}", "--name", "cd")
    assert call("eject", "cd", *state).status == 0
    assert len(list((tmp_path / "state").glob("*.sock"))) == 1


def test_only_the_user_and_root_may_use_the_socket(serve: Serve, discs: list[Path], tmp_path: Path) -> None:
    serve("fbo", f"ro/{discs[0]}", "--name", "cd")
    (path,) = (tmp_path / "state").glob("*.sock")
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o077 == 0
    assert path.stat().st_uid == os.geteuid()


@pytest.mark.parametrize(("asked", "size"), [("2M", 2 << 20), ("1536K", 3 << 19)])
def test_a_disk_that_is_served_gets_a_new_size(
    serve: Serve, call: Call, state: list[str], asked: str, size: int
) -> None:
    disk = serve("file", "disk.img", "--size", "1M", "--name", "grows", *state)
    assert call("resize", "grows", asked, *state).status == 0
    assert blocks(disk) == str(size)


def test_a_size_that_can_not_be_leaves_the_old_one(serve: Serve, call: Call, state: list[str]) -> None:
    disk = serve("file", "disk.img", "--size", "1M", "--name", "grows", *state)
    said = call("resize", "grows", "1000", *state)
    assert (said.status, "not whole blocks" in said.err) == (4, True)
    assert blocks(disk) == str(1 << 20)
