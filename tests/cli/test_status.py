"""`tcmu status`: what is served on this host, by every process that can be found."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import Call, Serving

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


def test_where_nothing_is_served_it_says_so(call: Call, state: list[str]) -> None:
    assert call("status", *state).out == "No process of yours serves a disk.\n"


def test_a_health_check_fails_where_nothing_is_served(serve: Serve, call: Call, state: list[str]) -> None:
    assert [call("status", *state).status, call("status", "--check", *state).status] == [0, 1]
    serve("ram", "--size", "1M")
    assert call("status", "--check", *state).status == 0
