"""tcmu-runner's command line."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import run
from typing import Any

import pytest

import tcmu_core
from tcmu_core.cli import runner
from tcmu_core.cli.runner import Lock
from tcmu_core.errors import TcmuError
from tcmu_core.testing.client import Client
from tests.waiting import wait_for


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
    said = capsys.readouterr().err
    assert "usage: tcmu-runner" in said
    assert "invalid" not in said  # which says nothing of what is right


def test_a_bad_configuration_is_named_with_its_line(tmp_path: Any) -> None:
    config = tmp_path / "tcmu.conf"
    config.write_text("log_level = lots\n")
    said = start("--config", str(config))
    assert said.returncode == 1
    assert f"{config}:1" in said.stderr


def test_a_configuration_that_is_asked_for_must_be_there(tmp_path: Path) -> None:
    said = start("--config", str(tmp_path / "missing.conf"), "--state-dir", str(tmp_path))
    assert said.returncode == 1
    assert f"tcmu-runner: {tmp_path}/missing.conf: No such file or directory" in said.stderr


def test_a_fifo_is_no_configuration(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    said = start("--config", str(tmp_path / "fifo"), "--state-dir", str(tmp_path))
    assert (said.returncode, f"{tmp_path}/fifo: no regular file" in said.stderr) == (1, True)


def test_with_nothing_to_serve_it_ends_with_one_message(tmp_path: Path) -> None:
    (tmp_path / "tcmu.conf").write_text("log_level = warn\n")
    said = start("--config", str(tmp_path / "tcmu.conf"), "--state-dir", str(tmp_path / "state"))
    assert said.returncode == 1
    assert "no [targets] to serve instead" in said.stderr
    assert "Traceback" not in said.stderr


IQN = "iqn.2026-01.org.example:disk"
CONFIG = f"""\
[portal]
listen = 127.0.0.1:0
[targets]
[[{IQN}]]
[[[lun 0]]]
handler = file
cfgstring = {{disk}}
size = 1M
"""


class Running:
    """A tcmu-runner that serves a target, as an ordinary user where this process may be another one."""

    def __init__(self, directory: Path, *options: str, code: str = "") -> None:
        self.directory = directory
        self.code = code or AS_USER
        self.options = options
        self.config = directory / "tcmu.conf"
        self.config.write_text(CONFIG.format(disk=directory / "disk"))
        self.process: subprocess.Popen[str] | None = None
        self.log = directory / "stderr"

    def start(self) -> None:
        self.start_quietly()
        self.wait(lambda: "is ready" in self.said())

    def start_quietly(self) -> None:
        """Start it, and don't wait for what it says: its level may be one at which it says nothing."""
        with self.log.open("a") as log, (self.directory / "stdout").open("w") as said:
            self.process = subprocess.Popen(
                [sys.executable, "-c", self.code, "--config", str(self.config), *self.options],
                stdout=said, stderr=log, stdin=subprocess.DEVNULL, text=True, cwd=self.directory,
                env={**os.environ, "XDG_RUNTIME_DIR": str(self.directory / "run"), "HOME": str(self.directory),
                     "XDG_STATE_HOME": str(self.directory / "state"), "DBUS_SYSTEM_BUS_ADDRESS": "unix:path=/nowhere"},
            )  # fmt: skip

    def said(self) -> str:
        return self.log.read_text()

    def wait(self, condition: Callable[[], object]) -> None:
        def over() -> object:
            assert self.process is None or self.process.poll() is None, self.said()
            return condition()

        wait_for(over, why=self.said)

    def hang_up(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGHUP)

    def uri(self, lun: int) -> str:
        """Return where a LUN of the target is, when that is known."""
        self.wait(lambda: "the portal listens at" in self.said())
        address = re.findall(r"the portal listens at (\S+)", self.said())[-1]
        return f"iscsi://{address}/{IQN}/{lun}"

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        status = self.process.wait(30)
        self.process = None
        return status

    def reads(self) -> bool:
        """Return whether the disk can be read."""
        command = ["iscsi-readcapacity16", "-s", self.uri(0)]
        return run(command, capture_output=True, text=True, check=False).stdout.strip() == str(1 << 20)


# What it is told of who it is. Files of root's interpreter can't be read by somebody else on every machine.
AS_USER = "import os, sys; os.geteuid = lambda: 1000; from tcmu_core.cli.runner import main; sys.exit(main())"


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    made = Running(tmp_path)
    yield made
    if made.process is not None:
        made.end()


def test_an_ordinary_user_serves_targets_without_the_kernels_side(running: Running) -> None:
    running.start()
    running.wait(lambda: f"{IQN} is served, LUN 0" in running.said())
    assert "kernel devices are not served" in running.said()
    assert running.reads()
    places = {path.name for path in (running.directory / "run/tcmu").iterdir()}
    assert places == {"tcmu.lock", "tcmu.sock", "hosts"}
    second = run(
        [sys.executable, "-c", AS_USER, "--config", str(running.config)], capture_output=True, text=True, check=False,
        env={**os.environ, "XDG_RUNTIME_DIR": str(running.directory / "run")},
    )  # fmt: skip
    assert "already running" in second.stderr
    assert running.end() == 0
    assert not list((running.directory / "run/tcmu/hosts").iterdir())


def test_who_removes_its_directory_neither_hides_it_nor_lets_another_in(running: Running) -> None:
    """As logind does with /run/user/UID when a user's last session ends."""
    running.code = f"import tcmu_core.channel; tcmu_core.channel.LOOK_SECONDS = 0.2; {AS_USER}"
    running.start()
    running.wait(lambda: f"{IQN} is served, LUN 0" in running.said())
    running.wait(lambda: "the portal listens at" in running.said())
    before = {path.name for path in (running.directory / "run/tcmu/hosts").iterdir()}
    shutil.rmtree(running.directory / "run")
    running.wait(lambda: running.said().count("was removed: it is there again") == 2 + len(before))
    assert {path.name for path in (running.directory / "run/tcmu").iterdir()} == {"tcmu.lock", "tcmu.sock", "hosts"}
    assert {path.name for path in (running.directory / "run/tcmu/hosts").iterdir()} == before
    with pytest.raises(TcmuError, match="already running"):
        Lock(running.directory / "run/tcmu/tcmu.lock")
    assert running.end(signal.SIGKILL) == -signal.SIGKILL
    running.start()
    running.wait(lambda: f"{IQN} is served on by process" in running.said())


def test_a_lock_that_another_has_taken_meanwhile_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "tcmu.lock"
    lock = Lock(path)
    path.unlink()
    code = (
        f"from tcmu_core.cli.runner import Lock; from pathlib import Path; Lock(Path({str(path)!r})); print(); input()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        for _ in range(3):
            lock.keep()
        other.communicate(b"\n")
    assert [record.getMessage() for record in caplog.records] == [
        f"{path} was removed, and another tcmu-runner holds it now: end one of them"
    ]
    lock.keep()
    lock.close()
    assert f"{path} was removed: it is there again" in caplog.text


def test_a_log_file_that_could_not_be_opened_is_opened_at_a_hangup(running: Running) -> None:
    logs = running.directory / "full"
    logs.touch()
    running.config.write_text(f"log_dir = {logs}\n{running.config.read_text()}")
    running.start()
    assert "no log file: " in running.said()
    logs.unlink()
    running.hang_up()
    running.wait((logs / "tcmu-runner.log").exists)
    running.end()
    assert "tcmu-runner has stopped" in (logs / "tcmu-runner.log").read_text()


def test_a_disk_of_a_target_is_changed_by_its_name(running: Running) -> None:
    running.options = ("--state-dir", str(running.directory / "own"))
    running.config.write_text(running.config.read_text() + "name = grows\n")
    running.start()
    running.wait(lambda: f"{IQN} is served, LUN 0" in running.said())
    command = [sys.executable, "-m", "tcmu_core.cli.tcmu", "resize", "grows", "2M", "--state-dir", running.options[1]]
    said = run(command, capture_output=True, text=True, check=False)
    assert (said.returncode, said.stdout) == (0, "grows: 2 MiB\n"), said.stderr
    assert not running.reads()  # as a disk of 1M
    assert (running.directory / "disk").stat().st_size == 2 << 20


def test_the_level_at_which_it_logs_is_set_until_its_configuration_says_otherwise(running: Running) -> None:
    running.options = ("--state-dir", str(running.directory / "own"))
    running.config.write_text("log_level = warn\n" + running.config.read_text() + "name = d\n")
    running.start_quietly()

    def said(*words: str) -> str:
        command = [sys.executable, "-m", "tcmu_core.cli.tcmu", "set", *words, "--state-dir", running.options[1]]
        return run(command, capture_output=True, text=True, check=False).stdout

    running.wait(lambda: said("d") == "d: write_cache=on\nd: log_level=warn\n")
    assert said("d", "log_level=error") == "d: log_level=error\n"
    running.hang_up()  # as logrotate does
    assert said("--runner") == "tcmu-runner: log_level=warn\n"
    assert said("d") == "d: write_cache=on\nd: log_level=error\n"
    assert said("--runner", "log_level=debug") == "tcmu-runner: log_level=debug\n"
    running.wait(lambda: said("d").endswith("log_level=debug\n"))
    running.config.write_text(running.config.read_text().replace("= warn", "= info"))
    running.wait(lambda: said("--runner") == "tcmu-runner: log_level=info\n")
    running.wait(lambda: said("d").endswith("log_level=info\n"))


def test_nothing_of_the_kernels_side_is_imported_for_targets() -> None:
    code = "import sys, tcmu_core.cli.runner; print([name for name in sys.modules if 'tcmu_core.kernel' in name])"
    said = run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout == "[]\n"


def test_a_runner_that_is_killed_leaves_its_workers_to_the_next(running: Running) -> None:
    running.options = ("--state-dir", str(running.directory / "own"))
    running.start()
    running.wait(lambda: f"{IQN} is served, LUN 0" in running.said())
    running.wait(running.reads)  # the portal knows it, too
    running.end(signal.SIGKILL)
    assert running.reads()
    running.log.write_text("")
    running.start()
    running.wait(lambda: f"{IQN} is served on by process" in running.said())
    running.wait(lambda: "the portal is served on by process" in running.said())
    assert running.reads()
    assert running.end() == 0


def test_a_target_that_nobody_asks_for_any_more_ends_with_the_next_runner(running: Running) -> None:
    running.start()
    running.wait(lambda: f"{IQN} is served, LUN 0" in running.said())
    running.wait(running.reads)  # the portal knows it, too
    running.end(signal.SIGKILL)
    running.config.write_text(running.config.read_text().replace(":disk]", ":other]").replace("/disk", "/another"))
    running.start()
    running.wait(lambda: "serves what nobody asks for any more" in running.said())
    running.wait(lambda: len(list((running.directory / "run/tcmu/hosts").iterdir())) == 2)
    assert running.end() == 0


def test_an_emptied_configuration_changes_nothing_and_a_new_one_does(running: Running) -> None:
    running.start()
    text = running.config.read_text()
    running.wait(lambda: f"{IQN} is served, LUN 0" in running.said())
    running.config.write_text("")
    running.wait(lambda: "is empty: the settings stay as they were" in running.said())
    assert running.reads()
    running.config.write_text(text.replace("1M", "2M"))
    running.wait(lambda: running.said().count(f"{IQN} is served, LUN 0") == 2)


OTHER = "iqn.2026-01.org.example:other"  # an initiator: one of the first's name would end its session
LATE = """\
from tcmu_core import hookimpl


class Late:
    @hookimpl
    def open(self, device):
        device.size = 1 << 20

    @hookimpl
    def read(self, offset, buffers): ...
"""


def install(directory: Path, name: str, *, version: str = "1.0", code: str = LATE) -> None:
    """Put there what pip would for a distribution with a handler, in place of another version of it."""
    (directory / f"tcmu_{name}.py").write_text(code)
    uninstall(directory, name)
    told = directory / f"tcmu_{name}-{version}.dist-info"
    told.mkdir()
    (told / "METADATA").write_text(f"Metadata-Version: 2.1\nName: tcmu-{name}\nVersion: {version}\n")
    (told / "entry_points.txt").write_text(f"[tcmu.handlers]\n{name} = tcmu_{name}:Late\n")


def uninstall(directory: Path, name: str) -> None:
    """Take away what Python finds a distribution by; what of it is loaded goes on."""
    for told in directory.glob(f"tcmu_{name}-*.dist-info"):
        shutil.rmtree(told)


def goes_on(session: Client) -> bool:
    """Return whether a session is the one that it was: a client does not log in again."""
    while session.command(bytes(6)).status:
        pass  # it hears what there is to hear
    return session.capacity() == ((1 << 20) // 512, 512)


@pytest.mark.parametrize("by", ["pip", "pip --target", "a file"])
def test_handlers_come_and_go_at_a_hangup_and_disturb_no_session(
    by: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site, drop_ins = tmp_path / "site", tmp_path / "drop-ins"
    for directory in (site, drop_ins):
        directory.mkdir()
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([*sys.path, str(site)]))
    running = Running(tmp_path, "--handler-path", str(drop_ins))
    running.start()
    try:
        running.wait(running.reads)
        text = running.config.read_text()
        with Client(running.uri(0)) as session:
            if by == "a file":
                (drop_ins / "handler_late.py").write_text(LATE)
            else:
                install(site if by == "pip" else drop_ins, "late")
            running.config.write_text(f"{text}[[[lun 1]]]\nhandler = late\n")  # a LUN more of a process that has begun
            running.wait(lambda: "no handler 'late'" in running.said())
            running.hang_up()
            running.wait(lambda: "handler 'late' of " in running.said())
            running.wait(lambda: "LUN 1 is there" in running.said())
            with Client(running.uri(1), name=OTHER) as other:
                (drop_ins / "handler_late.py").unlink(missing_ok=True)
                for directory in (site, drop_ins):
                    uninstall(directory, "late")
                running.hang_up()
                running.wait(lambda: "handler 'late' is gone" in running.said())
                running.config.write_text(f"{text}\n[[[lun 2]]]\nhandler = late\n")
                line = len(text.splitlines()) + 2
                running.wait(lambda: re.search(rf"tcmu.conf:{line}\b.*no handler 'late'", running.said()))
                assert goes_on(other)  # what is refused changes nothing
            assert goes_on(session)
    finally:
        running.end()


def test_a_handler_that_breaks_while_it_runs_or_is_upgraded_is_said_and_disturbs_no_session(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / "site"
    site.mkdir()
    install(site, "late")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([*sys.path, str(site)]))
    running = Running(tmp_path)
    running.config.write_text(running.config.read_text() + "[[[lun 1]]]\nhandler = late\n")
    running.start()
    try:
        running.wait(lambda: f"{IQN} is served, LUN 0, 1" in running.said())
        running.wait(running.reads)
        with Client(running.uri(0)) as session, Client(running.uri(1), name=OTHER) as other:
            install(site, "broken", code="raise SystemExit('not today')\n")
            install(site, "late", version="2.0", code="raise RuntimeError('of the future')\n")
            running.hang_up()
            running.wait(lambda: "handler 'broken' of tcmu-broken 1.0 is broken: " in running.said())
            assert "not today" in running.said()
            upgraded = "handler 'late': tcmu-late 2.0 is installed, the code of tcmu-late 1.0 runs until"
            running.wait(lambda: upgraded in running.said())
            install(site, "broken", version="1.1")
            running.hang_up()
            running.wait(lambda: "handler 'broken' of tcmu-broken 1.1 is there now" in running.said())
            assert running.said().count(upgraded) == 1
            assert goes_on(session)
            assert goes_on(other)
        assert "Traceback" not in running.said()
    finally:
        running.end()


def test_a_directory_of_handlers_that_is_gone_leaves_them_as_they_were(tmp_path: Path) -> None:
    drop_ins = tmp_path / "drop-ins"
    drop_ins.mkdir()
    running = Running(tmp_path, "--handler-path", str(drop_ins))
    running.start()
    try:
        running.wait(running.reads)
        with Client(running.uri(0)) as session:
            drop_ins.rmdir()
            running.hang_up()
            running.wait(lambda: "the handlers stay as they were: handler path " in running.said())
            assert goes_on(session)
    finally:
        running.end()


NOISY = """\
import os
from tcmu_core import hookimpl

print("at import", flush=True)


class Noisy:
    @hookimpl
    def open(self, device):
        print("in open", flush=True)
        os.system("echo from a child")

    @hookimpl
    def read(self, offset, buffers): ...
"""


def test_what_handlers_print_never_comes_on_its_stdout(tmp_path: Path) -> None:
    (tmp_path / "handler_noisy.py").write_text(NOISY)
    running = Running(tmp_path, "--handler-path", str(tmp_path))
    running.config.write_text(running.config.read_text().replace("handler = file", "handler = noisy"))
    running.start()
    try:
        running.wait(lambda: f"{IQN} is served, LUN 0" in running.said())
    finally:
        running.end()
    assert (tmp_path / "stdout").read_text() == ""
    for noise in ("at import", "in open", "from a child"):
        assert f"{noise}\n" in running.said()
