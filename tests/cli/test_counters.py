"""Counters: what `tcmu status` says of the commands of an initiator is what that has sent, to the command."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tcmu_core.testing.client import Client
from tests.cli.conftest import Call, Serving, run
from tests.cli.tap import tapped

Serve = Callable[..., Serving]
NAME = "iqn.2026-01.test:one"
QEMU_IO = {
    "write_10": (11, 11 * 4096),
    "read_10": (12, 11 * 4096 + 65536),
    "synchronize_cache_10": (2, 0),  # one more when it ends
    "unmap": (1, 24),
}


@pytest.fixture
def state(tmp_path: Path) -> list[str]:
    return ["--state-dir", str(tmp_path / "state")]


def counters(call: Call, state: list[str]) -> dict[str, dict[str, dict[str, Any]]]:
    (host,) = json.loads(call("status", "--json", *state).out)
    (disk,) = host["disks"]
    return {one["initiator"]: {each["name"]: each for each in one["operations"]} for one in disk["counters"]}


def samples(operation: dict[str, Any], stage: str) -> int:
    return sum(operation[stage]["counts"])


def test_they_are_what_a_client_has_sent(serve: Serve, call: Call, state: list[str]) -> None:
    disk = serve("ram", "--size", "1M", "--name", "one")
    with Client(disk.uri, name=NAME) as client:
        for lba in range(7):
            assert not client.command(b"\x2a\0" + lba.to_bytes(4, "big") + b"\0\0\x02\0", write=bytes(1024)).status
        for _ in range(5):
            assert not client.command(b"\x28" + bytes(7) + b"\x08\0", read=4096).status
        assert not client.command(b"\x35" + bytes(9)).status
        assert client.command(b"\x28\0\x7f\0\0\0\0\0\1\0", read=512).error[0] == 0x5
        assert client.command(b"\xff" + bytes(15)).error[0] == 0x5
    found = counters(call, state)[NAME]
    assert {name: one["commands"] for name, one in found.items() if name != "test_unit_ready"} == {
        "write_10": 7,
        "read_10": 6,
        "synchronize_cache_10": 1,
        "other": 1,
    }
    assert (found["write_10"]["bytes"], found["read_10"]["bytes"]) == (7 * 1024, 5 * 4096)
    assert found["read_10"]["errors"] == [{"kind": "illegal_request", "count": 1}]
    assert found["test_unit_ready"]["errors"] == [{"kind": "unit_attention", "count": 1}]
    assert found["write_10"]["errors"] == []
    assert not any(one["in_flight"] for one in found.values())


def test_they_agree_with_another_client(serve: Serve, call: Call, state: list[str]) -> None:
    """Writes of 4 KiB by QEMU, so many that they are taken in batches."""
    disk = serve("ram", "--size", "16M", "--name", "one")
    done = run("qemu-img", "bench", "-f", "raw", "-w", "-t", "none", "-c", "4000", "-d", "32", "-s", "4096", disk.uri)
    assert done.returncode == 0, done.stderr
    (found,) = counters(call, state).values()
    writes = [one for name, one in found.items() if name.startswith("write_")]
    assert sum(one["commands"] for one in writes) == 4000
    assert sum(one["bytes"] for one in writes) == 4000 * 4096
    (one,) = writes
    assert 0 < samples(one, "queue") == samples(one, "storage") == samples(one, "send") <= 4000


def test_they_agree_with_qemu_io(serve: Serve, call: Call, state: list[str]) -> None:
    disk = serve("ram", "--size", "16M", "--name", "one")
    script = [f"write -P 7 {number * 12288} 4k" for number in range(11)]
    script += [f"read -P 7 {number * 12288} 4k" for number in range(11)]
    script += ["flush", "read 0 64k", "discard 1M 1M"]
    done = run("qemu-io", "-f", "raw", "-t", "none", *(word for line in script for word in ("-c", line)), disk.uri)
    assert (done.returncode, "verification failed" in done.stdout) == (0, False), done.stdout + done.stderr
    (found,) = counters(call, state).values()
    assert {name: (one["commands"], one["bytes"]) for name, one in found.items() if name in QEMU_IO} == QEMU_IO
    kinds = {error["kind"] for one in found.values() for error in one["errors"]}
    assert kinds <= {"unit_attention", "illegal_request"}  # it asks for pages that there are not


def test_they_agree_with_iscsi_perf_on_its_wire(serve: Serve, call: Call, state: list[str]) -> None:
    """Reads of 4 KiB, 32 at a time, so many that they are taken in batches and timed by samples."""
    disk = serve("ram", "--size", "16M", "--name", "one")
    portal = disk.said["portal"]
    with tapped(portal) as tap:
        uri = disk.uri.replace(portal, tap.address)
        done = run("iscsi-perf", "-i", NAME, "-m", "32", "-b", "8", "-t", "1", "-r", uri)
        assert done.returncode == 0, done.stderr
    found = counters(call, state)[NAME]
    assert tap.sent.total() == tap.ended > 1000
    assert {one["opcode"]: one["commands"] for one in found.values()} == tap.sent
    assert sum(one["bytes"] for one in found.values()) == tap.read
    reads = max(found.values(), key=lambda one: int(one["commands"]))
    assert reads["errors"] == []
    average = int(re.findall(r"iops average (\d+)", done.stdout)[-1])
    assert average <= reads["commands"]  # of one second, and what its last ones took


def test_the_time_of_slow_storage_is_the_storages(serve: Serve, call: Call, state: list[str]) -> None:
    disk = serve("ram", "--size", "1M", "--name", "one", "--filter", "delay;read=20ms")
    with Client(disk.uri, name=NAME) as client:
        for _ in range(3):
            client.command(b"\x28" + bytes(7) + b"\1\0", read=512)
    read = counters(call, state)[NAME]["read_10"]
    assert 2 <= samples(read, "storage") <= 3  # the first may come too soon after the login
    assert read["storage"]["total"] >= 20_000_000 * samples(read, "storage")
    assert not any(read["storage"]["counts"][:24])  # none below 2**23 ns


def test_they_outlive_the_session(serve: Serve, call: Call, state: list[str]) -> None:
    disk = serve("ram", "--size", "1M", "--name", "one")
    for _ in range(3):
        with Client(disk.uri, name=NAME) as client:
            client.command(b"\x28" + bytes(7) + b"\1\0", read=512)
    assert counters(call, state)[NAME]["read_10"]["commands"] == 3


def test_many_initiators_are_told_apart_up_to_a_bound(serve: Serve, call: Call, state: list[str]) -> None:
    disk = serve("ram", "--size", "1M", "--name", "one")
    for number in range(20):
        with Client(disk.uri, name=f"{NAME}-{number}") as client:
            client.command(b"\x28" + bytes(7) + b"\1\0", read=512)
    found = counters(call, state)
    assert len(found) == 17
    assert f"{NAME}-19" in found
    assert found["other"]["read_10"]["commands"] == 4
    assert sum(one["read_10"]["commands"] for one in found.values()) == 20


def test_the_text_of_one_disk_has_them_in_short(serve: Serve, call: Call, state: list[str]) -> None:
    disk = serve("ram", "--size", "1M", "--name", "one")
    with Client(disk.uri, name=NAME) as client:
        client.command(b"\x28" + bytes(7) + b"\x08\0", read=4096)
    said = call("status", "one", *state).out
    assert f"{NAME}: 3 commands, 4 KiB, 1 unit attention, since 2" in said
    assert "    read_10                  1, 4 KiB\n" in said
    assert "commands" not in call("status", *state).out
