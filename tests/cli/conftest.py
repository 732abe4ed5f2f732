"""What the tests of the command line share: calling it in this process and as a process of its own."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tcmu_core.cli.tcmu import main

# The guide's: a handler of twenty lines.
DROP_IN = (Path(__file__).parents[2] / "docs" / "examples" / "handler_mine.py").read_text()


@dataclass(frozen=True)
class Said:
    status: int
    out: str
    err: str


Call = Callable[..., Said]
Start = Callable[..., "subprocess.Popen[str]"]


def run(*argv: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a client, and return what came of it."""
    return subprocess.run(
        [str(word) for word in argv],
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


@dataclass(frozen=True)
class Serving:
    """A `tcmu serve --json` that has said what it serves."""

    process: subprocess.Popen[str]
    said: dict[str, Any]

    @property
    def uri(self) -> str:
        return str(self.said["uri"])

    def stop(self, number: int = signal.SIGTERM) -> Said:
        self.process.send_signal(number)
        out, err = self.process.communicate()
        return Said(self.process.returncode, out, err)


@dataclass(frozen=True)
class Answer:
    status: int
    headers: http.client.HTTPMessage
    body: bytes


@dataclass(frozen=True)
class Site:
    """A `tcmu metrics` that has said where it is."""

    process: subprocess.Popen[str]
    port: int

    @classmethod
    def of(cls, process: subprocess.Popen[str]) -> Site:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, process.communicate()[1]
        return cls(process, int(json.loads(line)["page"].rstrip("/").rpartition(":")[2]))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def ask(self, path: str, method: str = "GET", **headers: str) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        with contextlib.closing(connection):
            connection.request(method, path, headers=headers)
            answer = connection.getresponse()
            return Answer(answer.status, answer.headers, answer.read())

    def told(self) -> dict[str, Any]:
        answer = self.ask("/status.json")
        assert answer.status == 200
        told: dict[str, Any] = json.loads(answer.body)
        return told


@pytest.fixture(scope="session", autouse=True)
def hangups_arrive() -> Iterator[None]:
    """Undo what nohup did to the session of the tests: their children would ignore SIGHUP, as they should."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    """Run `tcmu` in this process."""

    def run(*argv: object) -> Said:
        try:
            status = main([str(word) for word in argv])
        except SystemExit as error:
            status = int(error.code or 0)
        said = capsys.readouterr()
        return Said(int(status), said.out, said.err)

    return run


@pytest.fixture
def command(tmp_path: Path) -> Iterator[Start]:
    """Start `tcmu` as a process of its own, whose state is in the test's directory; it is gone after the test."""
    started: list[subprocess.Popen[str]] = []

    def start(*argv: object, before: Sequence[str] = (), **more: Any) -> subprocess.Popen[str]:
        words = [*before, sys.executable, "-m", "tcmu_core.cli.tcmu", *(str(word) for word in argv)]
        if argv[0] == "serve":
            words += ["--state-dir", str(tmp_path / "state")]
        options: dict[str, Any] = {
            "stdin": subprocess.DEVNULL,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
            "text": True,
            "cwd": tmp_path,
            "env": {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        }
        process = subprocess.Popen(words, **{**options, **more})
        started.append(process)
        return process

    yield start
    for process in started:
        with process:
            process.kill()


@pytest.fixture
def serve(command: Start) -> Callable[..., Serving]:
    """Start `tcmu serve` on a free port; what it says comes when it can be reached."""

    def start(*argv: object, portal: str = "127.0.0.1:0", **more: Any) -> Serving:
        process = command("serve", *argv, "--json", "--portal", portal, **more)
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, process.communicate()[1]
        return Serving(process, json.loads(line))

    return start


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Start `tcmu serve` on a pseudo-terminal, which script(1) makes; what is written to stdin is typed there."""
    started: list[subprocess.Popen[bytes]] = []

    def start(*argv: str, **environment: str) -> subprocess.Popen[bytes]:
        words = [sys.executable, "-m", "tcmu_core.cli.tcmu", "serve", *argv, "--state-dir", str(tmp_path / "state")]
        # exec: script(1) runs a shell, and some shells stay behind their last command and answer Ctrl-C themselves.
        process = subprocess.Popen(
            ["script", "--quiet", "--return", "--command", f"exec {shlex.join(words)}", "/dev/null"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "TERM": "xterm", "PYTHONPATH": os.pathsep.join(sys.path), **environment},
            cwd=tmp_path,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        with process:
            process.kill()


@pytest.fixture
def site(command: Start, tmp_path: Path) -> Callable[..., Site]:
    """Start `tcmu metrics` on a free port."""

    def start(*argv: str, listen: str = "127.0.0.1:0") -> Site:
        return Site.of(command("metrics", "--listen", listen, "--json", *argv, "--state-dir", tmp_path / "state"))

    return start
