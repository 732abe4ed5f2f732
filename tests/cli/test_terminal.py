"""`tcmu serve` at a terminal: colours, and Ctrl-C as a person types it."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

CTRL_C = b"\x03"


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
