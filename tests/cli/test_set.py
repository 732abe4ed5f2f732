"""`tcmu set` on a disk that another process serves."""

from __future__ import annotations

import dataclasses
import errno
import json
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from tcmu_core.cli import steer
from tcmu_core.codec import Message
from tcmu_core.host.messages import Status
from tcmu_core.kernel import configfs
from tcmu_core.state import Places
from tcmu_core.testing.client import Client
from tests.cli.conftest import Call, Serving

Serve = Callable[..., Serving]
SENSE_CACHING = bytes([0x1A, 0x08, 0x08, 0, 64, 0])  # MODE SENSE(6) of page 08h, without block descriptors


@pytest.fixture
def state(tmp_path: Path) -> list[str]:
    """Arguments that name the state directory which `serve` keeps."""
    return ["--state-dir", str(tmp_path / "state")]


def test_what_is_set_is_in_force_at_once(serve: Serve, call: Call, state: list[str]) -> None:
    disk = serve("file", "disk.img", "--size", "1M", "--name", "d", "--filter", "rate;iops=5000")
    with Client(disk.uri) as initiator:
        said = call("set", "d", "write_cache=off", "log_level=debug", "rate.iops=7000", *state)
        assert (said.status, said.out) == (0, "d: write_cache=off\nd: log_level=debug\nd: rate.iops=7000\n")
        assert initiator.command(bytes(6)).error == (0x6, 0x2A, 0x01)  # MODE PARAMETERS CHANGED
        assert not initiator.command(SENSE_CACHING, read=64).data[6] & 0x04
    shown = json.loads(call("set", "d", *state, "--json").out)
    assert shown == {
        "write_cache": False, "log_level": "debug", "rate.burst": 1.0, "rate.bytes": 0, "rate.initiator_bytes": 0,
        "rate.initiator_iops": 0, "rate.iops": 7000.0,
    }  # fmt: skip
    (seen,) = json.loads(call("status", "d", *state, "--json").out)[0]["disks"]
    assert seen["write_cache"] is False
    assert json.loads(call("set", "d", "write_cache=on", *state, "--json").out) == {"write_cache": True}
    assert "logging at level DEBUG now" in disk.stop().err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["write_cache"], "'write_cache' sets nothing: write KEY=VALUE"),
        (["write_cache=maybe"], "'maybe' is neither on nor off"),
        (["log_level=²"], "'²' is no level"),
        (["log_level=6"], "'6' is no level"),
        (["log_level=lots"], "'lots' is no level: 0 crit, 1 error"),
        (["log_level=3", "log_level=4"], "log_level is given twice"),
        (["wite_cache=on"], "did you mean 'write_cache'?"),
        (["size=2M"], "`tcmu resize d SIZE` sets the size"),
        (
            ["block_size=4096"],
            "what is needed: the disk opened anew: stop `tcmu serve` and start it with another --block",
        ),
        (["delay.read=9ms"], "delay.read can't be set while the disk is in use; what is needed: take it off"),
        (["log_level=debug", "rate.iops=5"], "has no filter 'rate'"),
    ],
)
def test_what_can_not_be_set_says_what_is_needed(
    serve: Serve, call: Call, state: list[str], words: list[str], says: str
) -> None:
    serve("ram", "--size", "1M", "--name", "d", "--filter", "delay;read=1ms")
    said = call("set", "d", *words, *state)
    assert (said.status, says in said.err) == (4, True), said.err


def test_a_handler_that_takes_no_change_says_so(serve: Serve, call: Call, state: list[str], tmp_path: Path) -> None:
    (tmp_path / "handler_stiff.py").write_text(
        "from tcmu_core import hookimpl\n\n\nclass Stiff:\n"
        "    @hookimpl\n    def open(self, device): ...\n\n"
        "    @hookimpl\n    def read(self, offset, buffers): ...\n\n"
        "    @hookimpl\n    def write(self, offset, buffers): ...\n\n"
        "    @hookimpl\n    def flush(self): ...\n"
    )
    serve("stiff", "--size", "1M", "--name", "d", "--handler-path", tmp_path)
    said = call("set", "d", "write_cache=off", *state)
    assert (said.status, "handler 'stiff' can't change a device that is open" in said.err) == (1, True), said.err


def test_what_has_no_write_cache_is_given_none(serve: Serve, call: Call, state: list[str], tmp_path: Path) -> None:
    (tmp_path / "handler_stable.py").write_text(
        "from tcmu_core import hookimpl\n\n\nclass Stable:\n"
        "    @hookimpl\n    def open(self, device): ...\n\n"
        "    @hookimpl\n    def read(self, offset, buffers): ...\n\n"
        "    @hookimpl\n    def write(self, offset, buffers): ...\n\n"
        "    @hookimpl\n    def reconfigure(self, change): ...\n"
    )
    serve("stable", "--size", "1M", "--name", "d", "--handler-path", tmp_path)
    said = call("set", "d", "write_cache=on", *state)
    assert (said.status, "there is no write cache to be switched on" in said.err) == (4, True), said.err
    assert call("set", "d", "write_cache=off", *state).out == "d: write_cache=off\n"


def test_what_was_set_before_something_failed_stays_and_is_said(serve: Serve, call: Call, state: list[str]) -> None:
    serve("ram", "--size", "1M", "--name", "d", "--filter", "rate")
    said = call("set", "d", "rate.bytes=1048577", "rate.burst=0", *state)
    assert (said.status, said.out) == (4, "d: rate.bytes=1048577\n")
    assert "a burst is a number of seconds above 0" in said.err
    said = call("set", "d", "rate.bytes=1M", "rate.iops=-1", *state, "--json")
    assert (said.status, json.loads(said.out)) == (4, {"rate.bytes": 1 << 20})
    assert "d: rate.bytes=1048576\n" in call("set", "d", *state).out


def test_a_disk_or_a_daemon_that_there_is_not_is_said(
    serve: Serve, call: Call, state: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "there is no disk 'd'" in call("set", "d", "write_cache=on", *state).err
    assert "tcmu-runner is not running" in call("set", "--runner", "log_level=debug", *state).err
    places = Places.of(Path(state[1]))
    places.runner.parent.mkdir(parents=True, exist_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as killed:
        killed.bind(str(places.runner))
    assert "tcmu-runner is not running" in call("set", "--runner", *state).err
    assert "no disk: " in call("set", *state).err
    assert "'write_cache' is nothing of tcmu-runner's" in call("set", "--runner", "write_cache=on", *state).err
    (tmp_path / "core" / "user_3" / "d").mkdir(parents=True)
    (tmp_path / "core" / "user_3" / "d" / "enable").touch()
    monkeypatch.setattr(configfs, "CORE", tmp_path / "core")
    said = call("set", "d", "write_cache=on", *state)
    assert (said.status, "nobody serves the kernel's device 'd'" in said.err) == (1, True), said.err
    serve("ram", "--size", "1M", "--name", "disk1")
    assert "there is no disk 'disk2': did you mean 'disk1'?" in call("set", "disk2", *state).err


@pytest.fixture
def core(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What configfs shows of a device of the kernel called `d`, whose host is a `tcmu serve` here."""
    attributes = tmp_path / "core" / "user_3" / "d" / "attrib"
    attributes.mkdir(parents=True)
    (attributes.parent / "enable").touch()
    (attributes / "emulate_write_cache").write_text("1")
    monkeypatch.setattr(configfs, "CORE", tmp_path / "core")
    ask = steer.control.ask

    def asked(path: Path, message: Message, *more: float) -> Message:
        answer = ask(path, message, *more)
        return dataclasses.replace(answer, addresses=("/dev/uio0",)) if isinstance(answer, Status) else answer

    monkeypatch.setattr(steer.control, "ask", asked)
    return attributes / "emulate_write_cache"


def test_the_kernel_is_told_of_the_write_cache_of_its_device(
    serve: Serve, call: Call, core: Path, state: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    serve("ram", "--size", "1M", "--name", "d")
    assert call("set", "d", "write_cache=off", *state).out == "d: write_cache=off\n"
    assert core.read_text() == "0"
    assert call("set", "d", *state).out.startswith("d: write_cache=off\n")  # though no kernel has asked for it
    assert "delete the device and create it again" in call("set", "d", "read_only=yes", *state).err

    def refused(_path: Path, _value: str) -> None:
        raise configfs.ConfigfsError("writing", OSError(errno.EOPNOTSUPP, "no"))

    monkeypatch.setattr(configfs, "write", refused)
    said = call("set", "d", "write_cache=on", *state)
    assert (said.status, "the handler does not support it" in said.err) == (1, True)
