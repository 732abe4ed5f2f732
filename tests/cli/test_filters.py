"""`tcmu filters`, `filter`, `fault`, `record`, `replay`: the filters of a disk that another process serves."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import Call, Serving, Start, run

Serve = Callable[..., Serving]


@pytest.fixture
def state(tmp_path: Path) -> list[str]:
    """Arguments that name the state directory which `serve` keeps."""
    return ["--state-dir", str(tmp_path / "state")]


def qemu_io(disk: Serving, *commands: str) -> str:
    done = run("qemu-io", "-f", "raw", *[word for command in commands for word in ("-c", command)], disk.uri)
    return done.stdout + done.stderr


def test_filters_are_listed_for_people_and_programs(call: Call) -> None:
    said = call("filters").out
    assert "delay" in said
    assert "normal/5ms/1ms" in said
    found = {each["name"]: each for each in json.loads(call("filters", "--json").out)}
    assert found["fault"]["usable"]
    assert found["fault"]["options"] == ["file", "rule", "seed"]


def test_a_disk_is_served_with_the_filters_that_are_named(serve: Serve, call: Call, state: list[str]) -> None:
    disk = serve("ram", "--size", "8M", "--filter", "truncate;size=1M", "--filter", "stats", "--name", "d")
    assert disk.said["size"] == 1 << 20
    assert call("filter", "d", "list", *state).out == "truncate\nstats\n"
    qemu_io(disk, "write 0 64k")
    told = json.loads(call("filter", "d", "tell", "stats", "--json", *state).out)
    assert told["write"]["bytes"] == 65536


def test_a_filter_of_the_cfgstring_is_there_too(serve: Serve, call: Call, state: list[str]) -> None:
    disk = serve("ram", ";tcmur_filter=truncate&size=2M;;tcmur_filter=rate&iops=5000;;size=8M", "--name", "d")
    assert disk.said["size"] == 2 << 20
    assert call("filter", "d", "list", *state).out == "truncate\nrate\n"


def test_a_wrong_filter_is_a_wrong_configuration(call: Call, tmp_path: Path) -> None:
    said = call("serve", "ram", "--size", "8M", "--filter", "delay;raed=5ms", "--state-dir", tmp_path)
    assert (said.status, "did you mean 'read'" in said.err) == (4, True)
    assert call("serve", "ram", "--size", "8M", "--filter", "dely", "--state-dir", tmp_path).status == 3


def test_the_command_that_a_disk_is_served_for_can_let_it_fail(command: Start, tmp_path: Path) -> None:
    tcmu = f"{sys.executable} -m tcmu_core.cli.tcmu"
    script = (
        f"{tcmu} fault d add 'write -> write-error' --state-dir {tmp_path}/state; qemu-io -c 'write 0 512' -f raw $uri"
    )
    process = command("serve", "ram", "--size", "8M", "--name", "d", "--run", script)
    out, err = process.communicate()
    assert "write -> write-error" in out
    assert "Input/output error" in out + err


def test_a_cfgstring_with_a_filter_is_checked_with_it(call: Call) -> None:
    assert call("check", "ram", ";tcmur_filter=delay&read=5ms;;size=8M").status == 0
    for filters, said in (("delay&raed=5ms", "did you mean 'read'"), ("dely", "no filter 'dely'")):
        wrong = call("check", "ram", f";tcmur_filter={filters};;size=8M")
        assert (wrong.status, said in wrong.err) == (4, True), wrong


def test_a_filter_is_put_on_told_something_and_taken_off(serve: Serve, call: Call, state: list[str]) -> None:
    serve("ram", "--size", "8M", "--name", "d")
    assert call("filter", "d", "push", "rate;iops=100", *state).out == "rate\n"
    assert "d, 8 MiB, ram/, rate\n" in call("status", *state).out
    assert "iops: 500.0" in call("filter", "d", "tell", "rate", "iops=500", *state).out
    assert call("filter", "d", "pop", "rate", *state).out == ""
    assert "has no filter 'rate'" in call("filter", "d", "pop", "rate", *state).err
    assert call("filter", "d", "push", *state).status == 4
    assert "there is no disk 'e': served here: d" in call("filter", "e", "list", *state).err


def test_rules_are_added_listed_and_cleared(serve: Serve, call: Call, state: list[str], tmp_path: Path) -> None:
    disk = serve("ram", "--size", "8M", "--name", "d")
    assert "wrote 512/512" in qemu_io(disk, "write 4k 512")
    rules = tmp_path / "rules"
    rules.write_text("# reads are slow\nread -> wait=1ms\n")
    assert call("fault", "d", "add", "write lba=8-15 -> write-error", "--file", rules, *state).status == 0
    assert "Input/output error" in qemu_io(disk, "write 4k 512")
    said = call("fault", "d", "list", *state).out
    assert "read -> wait=1ms   (matched" in said
    (rule,) = [
        each for each in json.loads(call("fault", "d", "list", "--json", *state).out)["rules"] if "lba" in each["rule"]
    ]
    assert rule["fired"] >= 1
    assert call("fault", "d", "clear", *state).out == ""
    assert "wrote 512/512" in qemu_io(disk, "write 4k 512")


def test_a_wrong_rule_is_named(serve: Serve, call: Call, state: list[str]) -> None:
    serve("ram", "--size", "8M", "--name", "d")
    said = call("fault", "d", "add", "write -> explode", *state)
    assert (said.status, "'explode' is no action" in said.err) == (4, True)
    assert call("fault", "d", "add", *state).status == 4
    assert call("fault", "d", "list", "x", *state).status == 4


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM, signal.SIGQUIT])
def test_a_recording_ends_with_its_terminal(
    serve: Serve, call: Call, command: Start, state: list[str], tmp_path: Path, number: signal.Signals
) -> None:
    serve("ram", "--size", "8M", "--name", "d")
    recorder = command("record", "d", tmp_path / "rec", *state)
    assert recorder.stdout is not None
    recorder.stdout.readline()
    recorder.send_signal(number)
    assert recorder.wait(30) == 0
    assert call("filter", "d", "list", *state).out == ""


def test_a_recording_that_nobody_can_be_told_of_is_none(
    serve: Serve, call: Call, state: list[str], tmp_path: Path
) -> None:
    serve("ram", "--size", "8M", "--name", "d")
    words = [sys.executable, "-m", "tcmu_core.cli.tcmu", "record", "d", tmp_path / "rec", *state]
    with open("/dev/full", "w") as full:
        assert subprocess.run(words, stdout=full, stderr=subprocess.DEVNULL, check=False, timeout=60).returncode == 1
    assert call("filter", "d", "list", *state).out == ""


def test_what_is_recorded_is_replayed(
    serve: Serve, call: Call, command: Start, state: list[str], tmp_path: Path
) -> None:
    disk = serve("ram", "--size", "8M", "--name", "d")
    recorder = command("record", "d", tmp_path / "rec", *state)
    assert recorder.stdout is not None
    assert "recording d into" in recorder.stdout.readline()
    qemu_io(disk, "write -P 7 0 64k", "flush", "read -P 7 0 64k", "discard 4k 8k", "read 0 64k")
    recorder.send_signal(signal.SIGINT)
    out, err = recorder.communicate()
    assert recorder.returncode == 0, err
    assert int(out.split()[0]) >= 4
    assert call("filter", "d", "list", *state).out == ""
    same = call("replay", tmp_path / "rec", "ram")
    assert (same.status, ", 0 differences" in same.out) == (0, True), same
    other = serve("ram", "--size", "8M", "--name", "e", "--filter", "fault;rule=write -> flip=0")
    told = json.loads(call("replay", tmp_path / "rec", other.uri, "--json").out)
    assert told["differences"][0]["data"] is True
    small = call("replay", tmp_path / "rec", serve("ram", "--size", "1M", "--name", "f").uri)
    assert (small.status, "the recording is of a disk of 8388608 bytes" in small.err) == (4, True)
