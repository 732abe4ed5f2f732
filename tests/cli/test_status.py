"""`tcmu status`: what is served on this host, by every process that can be found."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tcmu_core.host import control
from tcmu_core.host.messages import Ping, Pong
from tests.cli.conftest import Call, Serving, Start
from tests.cli.test_runner import IQN, Running
from tests.waiting import suspend, wait_for

Serve = Callable[..., Serving]
MIB = 1 << 20


@pytest.fixture
def state(tmp_path: Path) -> list[str]:
    return ["--state-dir", str(tmp_path / "state")]


def test_a_disk_is_shown_with_what_is_behind_it(serve: Serve, call: Call, state: list[str]) -> None:
    disk = serve("ram", "--size", "1M", "--name", "one", "--filter", "readonly")
    (host,) = json.loads(call("status", "--json", *state).out)
    (found,) = host["disks"]
    assert (found["name"], found["handler"], found["size"], found["filters"]) == ("one", "ram", MIB, ["readonly"])
    assert host["addresses"] == [disk.uri.split("/")[2]]
    text = call("status", *state).out
    assert "iqn.2025-01.local.tcmu:one" in text
    assert "one, 1 MiB, ram/, readonly, read-only" in text


def test_who_is_logged_in_is_shown(serve: Serve, call: Call, state: list[str]) -> None:
    disk = serve("ram", "--size", "1M", "--name", "one")
    command = ["qemu-io", "-f", "raw", disk.uri.replace("iscsi://", "iscsi://", 1)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as client:
        assert client.stdin is not None
        assert client.stdout is not None
        client.stdin.write("read 0 512\n")
        client.stdin.flush()
        while "read 512/512" not in client.stdout.readline():
            pass
        (host,) = json.loads(call("status", "one", "--json", *state).out)
        assert len(host["disks"][0]["initiators"]) == 1
        client.stdin.write("quit\n")


def test_a_disk_that_nobody_serves_is_a_failure(serve: Serve, call: Call, state: list[str]) -> None:
    serve("ram", "--size", "1M", "--name", "one")
    assert call("status", "one", *state).status == 0
    other = call("status", "two", *state)
    assert other.status == 1
    assert "serves a disk 'two'" in other.err


# Its `open` holds the thread up that calls it, until a file is there.
SLOW = """
import os, time
from tcmu_core import hookimpl


class Slow:
    @hookimpl
    def open(self, device):
        while not os.path.exists(device.cfgstring):
            time.sleep(0.01)
        device.size = 1 << 20

    @hookimpl
    def read(self, offset, buffers): ...
"""


@pytest.fixture
def slow(tmp_path: Path) -> Path:
    (tmp_path / "handler_slow.py").write_text(SLOW)
    return tmp_path / "there"


def test_a_disk_whose_handler_takes_long_is_being_opened(
    command: Start, call: Call, state: list[str], slow: Path
) -> None:
    serving = command(
        "serve", "slow", slow, "--name", "one", "--handler-path", slow.parent, "--portal", "127.0.0.1:0", "--json"
    )
    assert wait_for(lambda: "one" in (said := call("status", *state)).out and said).status == 1
    said = call("status", *state)
    assert "  LUN 0  one is being opened\n" in said.out
    (host,) = json.loads(call("status", "one", "--json", *state).out)
    assert (host["disks"], host["pid"]) == ([], serving.pid)
    assert [(one["title"], one["reason"]) for one in host["missing"]] == [("slow/one", "it is being opened")]
    assert call("sessions", *state).status == 0
    for words in (("resize", "one", "2M"), ("eject", "one"), ("trace", "one"), ("set", "one"), ("sessions", "one")):
        refused = call(*words, *state)
        assert (refused.status, refused.out) == (1, "")
        assert refused.err == "tcmu: the disk 'one' is not served: it is being opened\n"
    (place,) = control.places(Path(state[1]))
    with ThreadPoolExecutor() as pool:
        asking = pool.submit(control.ask, place, Ping())  # that is for the loop to answer
        with pytest.raises(TimeoutError):
            asking.result(0.5)
        slow.touch()
        assert serving.stdout is not None
        assert json.loads(serving.stdout.readline())["device"] == "one"
        assert isinstance(asking.result(60), Pong)
    assert call("status", *state).status == 0


def test_others_of_a_target_are_shown_while_one_is_being_opened(call: Call, tmp_path: Path, slow: Path) -> None:
    running = Running(tmp_path, "--state-dir", str(tmp_path / "own"), "--handler-path", str(tmp_path))
    running.start()
    try:
        running.wait(lambda: f"{IQN} is served, LUN 0" in running.said())
        lun = f"[[[lun 1]]]\nhandler = slow\ncfgstring = {slow}\nname = late\n"
        running.config.write_text(running.config.read_text() + lun)
        directory = ("--state-dir", tmp_path / "own")
        said = wait_for(lambda: "late" in (now := call("status", *directory)).out and now)
        assert "LUN 0  disk-0, 1 MiB" in said.out
        assert f"  passes logins on to {IQN}\n" in said.out
        assert "LUN 1  late is being opened" in said.out
        slow.touch()
        wait_for(lambda: "LUN 1  late, 1 MiB" in call("status", *directory).out)
    finally:
        running.end()


def test_a_portal_that_can_not_listen_is_missing(call: Call, tmp_path: Path) -> None:
    running = Running(tmp_path, "--state-dir", str(tmp_path / "own"))
    directory = ("--state-dir", tmp_path / "own")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        running.config.write_text(running.config.read_text().replace("127.0.0.1:0", address))
        running.start()
        try:
            why = f"  {address} is missing: portal {address}: Address already in use\n"
            said = wait_for(
                lambda: "disk-0, 1 MiB" in (now := call("status", *directory)).out and why in now.out and now
            )
            assert said.status == 1
            hosts = json.loads(call("status", "--json", *directory).out)
            assert [part["lun"] for one in hosts if not one["disks"] for part in one["missing"]] == [-1]
            taken.close()
            running.hang_up()
            wait_for(lambda: call("status", *directory).status == 0)
        finally:
            running.end()


def test_a_process_that_does_not_answer_is_named(
    serve: Serve, call: Call, state: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "FIND_SECONDS", 0.3)
    hung = serve("ram", "--size", "1M", "--name", "hung")
    serve("ram", "--size", "1M", "--name", "fine")
    suspend(hung.process.pid)
    for _ in range(12):  # who has given up stays in the queue of its socket
        said = call("status", *state)
        assert (said.status, "fine, 1 MiB" in said.out) == (1, True)
        assert f"process {hung.process.pid} (" in said.err
        assert "does not answer" in said.err
    nobody = f"process {hung.process.pid} does not answer"
    assert call("set", "hung", *state).err == f"tcmu: there is no disk 'hung': served here: fine; {nobody}\n"
    assert nobody in call("status", "hung", *state).err
    assert nobody in call("fault", "hung", "list", *state).err
    assert nobody in call("eject", "hung", *state).err
    assert nobody in call("logout", "iqn.nobody", *state).err
    assert call("sessions", *state).out == f"Nobody is logged in; {nobody}.\n"
    hung.process.send_signal(signal.SIGCONT)
    wait_for(lambda: call("status", *state).status == 0)


def test_where_nothing_is_served_it_says_so(call: Call, state: list[str]) -> None:
    assert call("status", *state).out == "No process of yours serves a disk.\n"


def test_a_health_check_fails_where_nothing_is_served(serve: Serve, call: Call, state: list[str]) -> None:
    assert [call("status", *state).status, call("status", "--check", *state).status] == [0, 1]
    serve("ram", "--size", "1M")
    assert call("status", "--check", *state).status == 0
