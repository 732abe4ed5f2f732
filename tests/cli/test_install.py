from __future__ import annotations

import argparse
import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tcmu_core.cli import install, tcmu
from tcmu_core.errors import ConfigError

PREFIX = "usr/local"
UNIT = f"{PREFIX}/lib/systemd/system/tcmu-runner.service"
ACTIVATION = f"{PREFIX}/share/dbus-1/system-services/org.kernel.TCMUService1.service"
POLICY = "etc/dbus-1/system.d/tcmu-runner.conf"
LOGROTATE = "etc/logrotate.d/tcmu-runner"
CONF = "etc/tcmu/tcmu.conf"
MAN = {
    f"{PREFIX}/share/man/man8/tcmu-runner.8",
    f"{PREFIX}/share/man/man8/tcmu.8",
    f"{PREFIX}/share/man/man5/tcmu.conf.5",
}
ALL = {UNIT, ACTIVATION, POLICY, LOGROTATE, CONF, *MAN}


def run(command: str, root: Path, *arguments: str) -> int:
    parser = argparse.ArgumentParser()
    install.add_commands(parser.add_subparsers())
    args = parser.parse_args([f"{command}-service", "--root", str(root), *arguments])
    return int(args.func(args))


def tree(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_install_writes_every_file_readable_for_all(tmp_path: Path) -> None:
    assert run("install", tmp_path) == 0
    assert set(tree(tmp_path)) == ALL
    assert {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ALL} == {0o644}


def test_a_dry_run_says_what_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("install", tmp_path, "--dry-run") == 0
    assert tree(tmp_path) == {}
    assert set(capsys.readouterr().out.split()) == {"write", *(str(tmp_path / name) for name in ALL)}


def test_a_second_install_changes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("install", tmp_path)
    before = tree(tmp_path)
    capsys.readouterr()
    assert run("install", tmp_path) == 0
    assert tree(tmp_path) == before
    assert {line.split()[0] for line in capsys.readouterr().out.splitlines()} == {"unchanged"}


def test_uninstall_takes_all_away(tmp_path: Path) -> None:
    run("install", tmp_path, "--exec", "/opt/tcmu/bin/tcmu-runner")
    assert run("uninstall", tmp_path) == 0
    assert tree(tmp_path) == {}
    assert not (tmp_path / "etc/tcmu").exists()


def test_uninstall_without_an_install_does_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("uninstall", tmp_path) == 0
    assert capsys.readouterr().out == ""


def test_a_dry_uninstall_removes_nothing(tmp_path: Path) -> None:
    run("install", tmp_path)
    assert run("uninstall", tmp_path, "--dry-run") == 0
    assert set(tree(tmp_path)) == ALL


def test_the_administrators_configuration_stays(tmp_path: Path) -> None:
    (tmp_path / CONF).parent.mkdir(parents=True)
    (tmp_path / CONF).write_text("log_level = 5\n")
    run("install", tmp_path, "--force")
    run("uninstall", tmp_path)
    assert tree(tmp_path) == {CONF: b"log_level = 5\n"}


def test_a_file_of_another_package_stops_the_install_before_it_writes(tmp_path: Path) -> None:
    (tmp_path / POLICY).parent.mkdir(parents=True)
    (tmp_path / POLICY).write_text("<busconfig/>")
    with pytest.raises(ConfigError, match=r"tcmu-runner\.conf; purge the package that brought them"):
        run("install", tmp_path)
    assert tree(tmp_path) == {POLICY: b"<busconfig/>"}
    assert run("install", tmp_path, "--dry-run") == 1


def test_force_moves_it_aside_and_uninstall_brings_it_back(tmp_path: Path) -> None:
    (tmp_path / POLICY).parent.mkdir(parents=True)
    (tmp_path / POLICY).write_text("<busconfig/>")
    assert run("install", tmp_path, "--force") == 0
    assert set(tree(tmp_path)) == {*ALL, f"{POLICY}.bak"}
    run("uninstall", tmp_path)
    assert tree(tmp_path) == {POLICY: b"<busconfig/>"}


def test_an_older_file_of_ours_is_replaced(tmp_path: Path) -> None:
    run("install", tmp_path)
    fresh = (tmp_path / UNIT).read_bytes()
    (tmp_path / UNIT).write_bytes(b"# Written by `tcmu install-service`, an older one\n")
    assert run("install", tmp_path) == 0
    assert (tmp_path / UNIT).read_bytes() == fresh


def test_unit_and_activation_start_what_exec_names(tmp_path: Path) -> None:
    run("install", tmp_path, "--exec", "/opt/tcmu/bin/tcmu-runner")
    assert "\nExecStart=/opt/tcmu/bin/tcmu-runner\n" in (tmp_path / UNIT).read_text()
    assert "\nExecStopPost=/opt/tcmu/bin/tcmu-runner --release\n" in (tmp_path / UNIT).read_text()
    assert "\nExec=/opt/tcmu/bin/tcmu-runner\n" in (tmp_path / ACTIVATION).read_text()


def test_below_another_root_the_prefix_holds_the_program(tmp_path: Path) -> None:
    run("install", tmp_path, "--prefix", "/usr")
    assert "\nExecStart=/usr/bin/tcmu-runner\n" in (tmp_path / "usr/lib/systemd/system/tcmu-runner.service").read_text()


def test_on_the_running_system_it_is_the_program_of_this_installation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(install.sysconfig, "get_path", lambda _name: str(tmp_path))
    with pytest.raises(ConfigError, match="name the tcmu-runner to start with --exec"):
        list(install.targets(Path("/"), Path("/usr/local"), None))
    program = tmp_path / "tcmu-runner"
    program.touch(0o755)
    unit = next(iter(install.targets(Path("/"), Path("/usr/local"), None)))
    assert f"\nExecStart={program}\n".encode() in unit.content


@pytest.mark.parametrize("path", ["tcmu-runner", "/opt/my dir/tcmu-runner", "/opt/100%/tcmu-runner", "/a'b", "/$x"])
def test_a_program_that_systemd_would_read_otherwise_is_refused(path: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="absolute path without spaces"):
        run("install", tmp_path, "--exec", path)


def test_a_relative_prefix_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="absolute path"):
        run("install", tmp_path, "--prefix", "usr")


@pytest.fixture
def systemctl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A systemctl that writes down its arguments, on a system that looks as if systemd ran it."""
    calls = tmp_path / "calls"
    program = tmp_path / "systemctl"
    program.write_text(f'#!/bin/sh\necho "$*" >> {calls}\ncase $1 in reload) echo "no dbus" >&2; exit 5;; esac\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(install, "_live", lambda _root: True)
    return calls


def test_a_running_systemd_and_bus_read_the_files_again(
    systemctl: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("install", tmp_path / "root") == 0
    assert systemctl.read_text() == "daemon-reload\nreload dbus.service\n"
    out = capsys.readouterr().out
    assert "no dbus" in out
    assert "systemctl enable --now tcmu-runner" in out


def test_uninstall_stops_the_service_first(systemctl: Path, tmp_path: Path) -> None:
    run("install", tmp_path / "root")
    systemctl.unlink()
    run("uninstall", tmp_path / "root")
    assert systemctl.read_text().splitlines()[0] == "disable --now tcmu-runner.service"


def test_a_dry_run_runs_nothing(systemctl: Path, tmp_path: Path) -> None:
    run("install", tmp_path / "root", "--dry-run")
    assert not systemctl.exists()


def test_systemd_finds_no_fault_in_the_unit(tmp_path: Path) -> None:
    run("install", tmp_path, "--exec", sys.executable)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", str(tmp_path / UNIT)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_logrotate_finds_no_fault_in_its_file(tmp_path: Path) -> None:
    run("install", tmp_path)
    done = subprocess.run(
        ["logrotate", "--debug", "--state", str(tmp_path / "state"), str(tmp_path / LOGROTATE)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0
    assert "error" not in done.stderr
    assert "rotating pattern: /var/log/tcmu-runner*.log  10485760 bytes (7 rotations)" in done.stderr


@pytest.mark.parametrize("page", sorted(MAN))
@pytest.mark.parametrize(
    "renderer", [["groff", "-mandoc", "-ww", "-z", "-Tutf8"], ["mandoc", "-T", "lint", "-W", "warning"]], ids=" ".join
)
def test_the_man_pages_render_without_a_warning(renderer: list[str], page: str, tmp_path: Path) -> None:
    run("install", tmp_path)
    done = subprocess.run([*renderer, str(tmp_path / page)], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_the_man_page_names_every_command_of_the_tool() -> None:
    source = (install.files("tcmu_core") / "data/man/tcmu.8").read_text()
    (commands,) = [
        action.choices for action in tcmu.parser()._actions if isinstance(action, argparse._SubParsersAction)
    ]
    named = set(re.findall(r"[a-z-]+", " ".join(re.findall(r"^\.It Cm (.*)", source, re.MULTILINE))))
    assert set(commands) <= named


def test_the_man_page_names_every_key_of_the_configuration() -> None:
    source = (install.files("tcmu_core") / "data/man/tcmu.conf.5").read_text()
    keys = set(
        re.findall(r"^([a-z]\w*) = ", (install.files("tcmu_core.config") / "tcmu.spec").read_text(), re.MULTILINE)
    )
    assert keys <= set(re.findall(r"[a-z_]+", " ".join(re.findall(r"^\.(?:It )?Li (.*)", source, re.MULTILINE))))
