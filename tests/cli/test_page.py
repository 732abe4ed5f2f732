"""The page of `tcmu metrics`: what it is told, and who may ask."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from tcmu_core.cli import snapshot
from tcmu_core.cli.logtail import tails
from tcmu_core.cli.snapshot import Snapshots
from tcmu_core.cli.web import Server, names_loopback
from tcmu_core.host.observer import Observer
from tcmu_core.scsi.sampling import INTERVAL
from tcmu_core.testing.client import Client
from tests.cli.conftest import Call, Serving, Site
from tests.cli.test_runner import IQN, Running
from tests.iscsi.initiator import Initiator
from tests.iscsi.served import Client as Session
from tests.waiting import wait_for

Serve = Callable[..., Serving]
NAME = "iqn.2026-01.test:one"


@pytest.fixture
def state(tmp_path: Path) -> list[str]:
    return ["--state-dir", str(tmp_path / "state")]


def read(client: Client, times: int) -> None:
    for _ in range(times):
        client.command(b"\x28" + bytes(7) + b"\x08\0", read=4096)


def test_it_is_told_what_status_and_sessions_say_and_what_happens_in_between(
    serve: Serve, call: Call, site: Callable[..., Site], state: list[str]
) -> None:
    disk = serve("ram", "--size", "1M", "--name", "one")
    page = site()
    with Client(disk.uri, name=NAME) as client:
        read(client, 5)
        first = page.told()
        time.sleep(2 * INTERVAL / 1e9)  # however fast they are, some of them are timed
        read(client, 100)
        then = wait_for(lambda: (told := page.told())["at"] != first["at"] and told)
        assert isinstance(then, dict)
        assert then["hosts"] == json.loads(call("status", "--json", *state).out)
        listed = json.loads(call("sessions", "--json", *state).out)
    assert then["sessions"] == [{"pid": disk.process.pid, **one} for one in listed]
    assert len(listed) == 1
    assert (first["rows"], first["seconds"]) == ([], None)
    (row,) = then["rows"]
    assert (row["pid"], row["lun"], row["disk"], row["initiator"]) == (disk.process.pid, 0, "one", NAME)
    assert round(row["iops"] * then["seconds"]) == 100
    assert round(row["bytes"] * then["seconds"]) == 100 * 4096
    assert sum(row["storage"]["counts"]) == row["storage"]["samples"] > 0
    assert then["bottleneck"].startswith("one: ")
    assert then["left_out"] == {}
    assert then["silent"] == []


def test_the_hosts_are_not_asked_more_often_for_many_pages(serve: Serve, tmp_path: Path) -> None:
    serve("ram", "--size", "1M", "--name", "one")
    observer = Observer(tmp_path / "state")
    snapshots = Snapshots(observer, log=False)
    seen: set[bytes] = set()

    def look() -> None:
        while len(seen) < 3:
            seen.add(snapshots.latest())

    threads = [threading.Thread(target=look) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    observer.close()
    times = sorted(json.loads(one)["at"] for one in seen)
    assert all(after - before >= 0.9 * snapshot.FRESH for before, after in itertools.pairwise(times))


def test_what_has_no_room_is_left_out_and_counted(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = serve("ram", "--size", "1M", "--name", "one")
    monkeypatch.setattr(snapshot, "ROOM", 1000)
    with ExitStack() as stack:
        for number in range(5):
            initiator = Initiator(f"{NAME}-{number}", disk.said["target"])
            stack.enter_context(Session(disk.said["portal"], initiator)).login({})
        observer = stack.enter_context(closing(Observer(tmp_path / "state")))
        told = json.loads(Snapshots(observer, log=False).latest())
    assert 0 < len(told["sessions"]) < 5
    assert told["left_out"] == {"sessions": 5 - len(told["sessions"])}
    assert len(told["hosts"][0]["disks"][0]["initiators"]) == 5


@pytest.fixture(scope="module")
def one_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Yield a `tcmu metrics` beside nothing that is served, for tests that only ask who may ask."""
    directory = tmp_path_factory.mktemp("state")
    words = [sys.executable, "-m", "tcmu_core.cli.tcmu", "metrics", "--listen", "127.0.0.1:0", "--json"]
    words += ["--state-dir", str(directory)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            yield Site.of(process)
        finally:
            process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "TRACE", "get"])
@pytest.mark.parametrize("path", ["/", "/status.json", "/metrics"])
def test_nothing_but_reading_is_allowed(one_site: Site, method: str, path: str) -> None:
    answer = one_site.ask(path, method)
    assert (answer.status, answer.headers["Allow"]) == (405, "GET, HEAD")


@pytest.mark.parametrize("path", ["/x", "/index.html", "/status.json/", "/../etc/passwd", "/metrics/x"])
def test_other_paths_are_not_there_and_it_says_what_is(one_site: Site, path: str) -> None:
    answer = one_site.ask(path)
    assert (answer.status, b"/status.json" in answer.body) == (404, True)


@pytest.mark.parametrize("path", ["/", "/status.json", "/metrics"])
def test_the_head_of_an_answer_is_that_of_the_whole(one_site: Site, path: str) -> None:
    whole, head = one_site.ask(path), one_site.ask(path, "HEAD")
    assert (head.status, head.body) == (200, b"")
    assert whole.headers["X-Content-Type-Options"] == head.headers["X-Content-Type-Options"] == "nosniff"
    assert int(head.headers["Content-Length"]) > 0
    assert int(whole.headers["Content-Length"]) == len(whole.body)


@pytest.mark.parametrize(
    "host", ["localhost", "localhost:80", "127.0.0.1:9287", "127.1.2.3", "[::1]:9287", "LOCALHOST"]
)
def test_by_the_names_of_loopback_it_answers(one_site: Site, host: str) -> None:
    assert one_site.ask("/status.json", Host=host).status == 200


@pytest.mark.parametrize(
    "host", ["rebound.example", "localhost.example:9287", "127.0.0.1.example", "10.0.0.1", "[::2]", "[", "", ":80"]
)
@pytest.mark.parametrize("path", ["/", "/status.json", "/metrics"])
def test_a_name_that_somebody_else_made_for_it_gets_nothing(one_site: Site, path: str, host: str) -> None:
    answer = one_site.ask(path, Host=host)
    assert (answer.status, b"loopback" in answer.body) == (421, True)
    assert not names_loopback(host)


def test_beyond_loopback_any_name_will_do() -> None:
    with Server("0.0.0.0", 0) as everywhere, Server("localhost", 0) as here:
        assert (everywhere.loopback, here.loopback) == (False, True)


def test_a_log_in_a_file_is_shown_if_that_was_said(serve: Serve, site: Callable[..., Site], tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as log:
        disk = serve("ram", "--size", "1M", "--name", "one", "-v", stderr=log)
    with Client(disk.uri, name=NAME):
        pass
    (tail,) = site("--log").told()["log"]["tails"]
    assert tail["path"] == str(tmp_path / "log")
    assert any(NAME in line and "logged in" in line for line in tail["lines"])
    hidden = site().told()["log"]
    assert hidden["tails"] == []
    assert "`tcmu metrics --log`" in hidden["reasons"][0]


def test_of_a_log_that_can_not_be_read_it_says_why(serve: Serve) -> None:
    found, (reason,) = tails([serve("ram", "--size", "1M", "--name", "one").process.pid])
    assert found == []
    assert reason.endswith("its log can't be read here: a pipe takes it")


def test_a_target_of_tcmu_runner_is_shown_with_its_log_and_what_is_missing(tmp_path: Path) -> None:
    running = Running(tmp_path, "--state-dir", str(tmp_path / "own"), "-l", str(tmp_path / "logs"))
    missing = f"[[[lun 1]]]\nhandler = file\ncfgstring = {tmp_path}/nowhere/disk\n"
    running.config.write_text(running.config.read_text() + missing)
    running.start()
    try:
        log = tmp_path / "logs" / "tcmu-runner.log"
        running.wait(lambda: f"{IQN} is served, LUN 0" in log.read_text())
        with closing(Observer(tmp_path / "own")) as observer:
            told = json.loads(Snapshots(observer, log=True).latest())
        (host,) = [host for host in told["hosts"] if host["title"] == IQN]
        assert [disk["lun"] for disk in host["disks"]] == [0]
        (gone,) = host["missing"]
        assert (gone["lun"], "nowhere does not exist" in gone["reason"]) == (1, True)
        (tail,) = told["log"]["tails"]
        assert tail["path"] == str(log)
        assert any(f"{IQN} is served, LUN 0" in line for line in tail["lines"]), tail["lines"]
        assert told["log"]["reasons"] == []
    finally:
        assert running.end() == 0
