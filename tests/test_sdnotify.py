from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tcmu_core import sdnotify


@pytest.fixture(params=["path", "abstract"])
def systemd(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    name = f"@tcmu-test-{os.getpid()}" if request.param == "abstract" else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(name.replace("@", "\0", 1))
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        yield sock


def test_ready_says_what_it_serves_and_who_it_is(systemd: socket.socket) -> None:
    assert sdnotify.ready("serving\n2 devices")
    assert systemd.recv(4096).decode() == f"READY=1\nSTATUS=serving 2 devices\nMAINPID={os.getpid()}"


def test_each_state_is_one_datagram(systemd: socket.socket) -> None:
    for send, expected in (
        (lambda: sdnotify.status("idle"), "STATUS=idle"),
        (sdnotify.stopping, "STOPPING=1"),
    ):
        assert send()
        assert systemd.recv(4096).decode() == expected


def test_reloading_carries_the_monotonic_clock(systemd: socket.socket) -> None:
    assert sdnotify.reloading()
    first, second = systemd.recv(4096).decode().split("\n")
    assert first == "RELOADING=1"
    assert second.removeprefix("MONOTONIC_USEC=").isdigit()


@pytest.mark.parametrize("where", [None, "", "relative", "/no/such/socket", "vsock:2:1"])
def test_without_systemd_nothing_happens(where: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if where is None:
        monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    else:
        monkeypatch.setenv("NOTIFY_SOCKET", where)
    assert not sdnotify.ready()
