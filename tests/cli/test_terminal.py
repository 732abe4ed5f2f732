"""`tcmu serve` at a terminal: colours, and Ctrl-C as a person types it."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

CTRL_C = b"\x03"


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


def read_until(process: subprocess.Popen[bytes], what: bytes) -> bytes:
    assert process.stdout is not None
    text = b""
    while what not in text:
        line = process.stdout.readline()
        assert line, text
        text += line
    return text


def press(process: subprocess.Popen[bytes], key: bytes) -> int:
    """Type a key; returns the exit status."""
    assert process.stdin is not None
    process.stdin.write(key)
    process.stdin.flush()
    return process.wait()


def test_ctrl_c_stops_it(terminal: Callable[..., subprocess.Popen[bytes]]) -> None:
    process = terminal("ram", "--size", "1M", "--portal", "127.0.0.1:0")
    read_until(process, b"Ctrl-C stops it.")
    assert press(process, CTRL_C) == 0


def test_ctrl_c_ends_the_command_of_run_too(terminal: Callable[..., subprocess.Popen[bytes]]) -> None:
    process = terminal("ram", "--size", "1M", "--run", "echo $$; exec sleep 1000")
    assert process.stdout is not None
    pid = int(process.stdout.readline())
    assert press(process, CTRL_C) == 128 + 2
    assert not Path(f"/proc/{pid}").exists()


def test_the_command_of_run_can_read_what_is_typed(terminal: Callable[..., subprocess.Popen[bytes]]) -> None:
    process = terminal("ram", "--size", "1M", "--run", "echo ready; read answer; exit $answer")
    read_until(process, b"ready")
    assert press(process, b"7\n") == 7


def test_a_terminal_gets_colours(
    terminal: Callable[..., subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    process = terminal("ram", "--size", "1M", "--portal", "127.0.0.1:0")
    assert b"\x1b[1mdisk\x1b[0m: 1 MiB" in read_until(process, b"Ctrl-C")
    assert press(process, CTRL_C) == 0


def test_no_color_is_honoured(terminal: Callable[..., subprocess.Popen[bytes]]) -> None:
    process = terminal("ram", "--size", "1M", "--portal", "127.0.0.1:0", NO_COLOR="1")
    assert b"\x1b" not in read_until(process, b"Ctrl-C")
    assert press(process, CTRL_C) == 0
