"""What a person who waits is shown, and what Ctrl-C leaves behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tcmu_core.testing import Client
from tests.cli.conftest import Call, Serving, Start
from tests.waiting import wait_for

MIB = 1 << 20
PORTAL = ("--portal", "127.0.0.1:0")
OVERWRITE_AT_ONCE = bytes([0x48, 0x81, 0, 0, 0, 0, 0, 0, 5, 0])  # SANITIZE with IMMED (SBC-4 5.30)
REQUEST_SENSE = bytes([0x03, 0, 0, 0, 18, 0])
HANDLER = '''
import itertools
import pathlib
import threading
import time

from tcmu_core import hookimpl


class Slow:
    """Makes a file, and is ready with it when `<file>.go` is there; the n-th write ends when `<file>.n` is."""

    @hookimpl
    def open(self, device):
        self.file, self.writes = pathlib.Path(device.cfgstring), itertools.count(1)
        device.threads = 1
        self.file.write_bytes(b"half")
        try:
            device.progress(0, 100, "making the storage")
            self.wait("go", lambda: device.progress(50, 100, "making the storage"))
        except BaseException:
            self.file.unlink()
            raise
        if self.file.name == "busy":
            threading.Thread(target=self.be_busy, args=[device], daemon=True).start()

    def wait(self, name, turn=lambda: None):
        while not self.file.with_suffix(f".{name}").exists():
            time.sleep(0.01)
            turn()


    def be_busy(self, device):
        begun = time.monotonic()
        while True:
            device.progress(50, 100, "rebuilding")
            if time.monotonic() > begun + 1:  # a bar would be there by now
                self.file.with_suffix(".told").touch()
            time.sleep(0.01)

    @hookimpl
    def read(self, buffers):
        pass

    @hookimpl
    def write(self, buffers):
        self.wait(next(self.writes))
'''


@pytest.fixture
def slow(tmp_path: Path) -> list[str]:
    """Return the arguments that serve the handler."""
    (tmp_path / "handler_slow.py").write_text(HANDLER)
    return ["slow", str(tmp_path / "disk"), "--handler-path", str(tmp_path), "--size", "4M"]


def read_until(process: subprocess.Popen[bytes], what: bytes) -> bytes:
    assert process.stdout is not None
    text = b""
    while what not in text:
        more = os.read(process.stdout.fileno(), 1 << 16)
        assert more, text
        text += more
    return text


def test_a_bar_is_drawn_while_a_disk_opens_and_is_gone_then(
    terminal: Callable[..., subprocess.Popen[bytes]], slow: list[str], tmp_path: Path
) -> None:
    process = terminal(*slow, *PORTAL, NO_COLOR="1")
    read_until(process, b"\rslow/disk: making the storage [############------------] 50 %")
    (tmp_path / "disk.go").touch()
    said = read_until(process, b"Ctrl-C stops it.")
    assert b" \rdisk: 4 MiB" in said  # in its place
    assert process.stdin is not None
    process.stdin.write(b"\x03")
    process.stdin.flush()
    assert process.wait() == 0


@pytest.mark.parametrize("run", [True, False])
def test_the_terminal_is_the_commands_while_it_runs(
    terminal: Callable[..., subprocess.Popen[bytes]], slow: list[str], tmp_path: Path, run: bool
) -> None:
    slow[1] = str(tmp_path / "busy")
    (tmp_path / "busy.go").touch()
    waits = f"until test -e {tmp_path}/busy.told; do sleep 0.05; done; echo told"
    process = terminal(*slow, *PORTAL, *(["--run", waits] if run else []))
    said = read_until(process, b"told" if run else b"rebuilding [")
    assert (b"rebuilding" in said) != run


def test_ctrl_c_while_a_disk_opens_undoes_it(
    terminal: Callable[..., subprocess.Popen[bytes]], slow: list[str], tmp_path: Path
) -> None:
    process = terminal(*slow, *PORTAL)
    read_until(process, b"making the storage [")
    assert process.stdin is not None
    process.stdin.write(b"\x03")
    process.stdin.flush()
    rest, _ = process.communicate()
    assert process.returncode == 128 + signal.SIGINT
    assert not (tmp_path / "disk").exists()
    assert b"broke" not in rest


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_while_a_disk_opens_undoes_it_without_a_word(
    command: Start, slow: list[str], tmp_path: Path, number: signal.Signals
) -> None:
    process = command("serve", *slow, "--json")
    wait_for((tmp_path / "disk").exists)
    process.send_signal(number)
    assert process.communicate() == ("", "")
    assert process.returncode == 128 + number
    assert not (tmp_path / "disk").exists()


def test_how_far_a_sanitize_is_is_told_to_people_and_initiators(
    serve: Callable[..., Serving], call: Call, slow: list[str], tmp_path: Path
) -> None:
    (tmp_path / "disk.go").touch()
    disk = serve(*slow)

    def progress() -> Any:
        (host,) = json.loads(call("status", "disk", "--json", "--state-dir", tmp_path / "state").out)
        return host["disks"][0]["progress"]

    with Client(disk.uri) as client:
        assert progress() is None
        assert client.command(OVERWRITE_AT_ONCE, write=b"\1\0\0\1x").status == 0
        for done in range(4):
            wanted = {"what": "sanitizing", "done": done * MIB, "total": 4 * MIB}
            wait_for(lambda wanted=wanted: progress() == wanted, why=progress)
            sense = client.command(REQUEST_SENSE, read=18).data
            assert (sense[2], sense[12], sense[13], sense[15]) == (2, 0x04, 0x1B, 0x80)
            assert int.from_bytes(sense[16:18], "big") == done * 65536 // 4
            assert f"sanitizing, {done * 25} %" in call("status", "--state-dir", tmp_path / "state").out
            (tmp_path / f"disk.{done + 1}").touch()
        wait_for(lambda: progress() is None)
        assert client.command(REQUEST_SENSE, read=18).data[2] == 0
