"""`tcmu trace`: the commands of a disk that another process serves, seen by name as they end."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tcmu_core.cli.trace import chosen
from tcmu_core.errors import ConfigError
from tests.cli.conftest import Call, Serving, Start, run
from tests.waiting import suspend

Serve = Callable[..., Serving]
Trace = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def trace(command: Start, tmp_path: Path) -> Trace:
    """Start `tcmu trace d` with more arguments; from its return on, nothing is missed."""

    def start(*argv: object) -> subprocess.Popen[str]:
        process = command("trace", "d", *argv, "--state-dir", tmp_path / "state")
        assert process.stderr is not None
        assert "tracing d" in process.stderr.readline()
        return process

    return start


def qemu_io(disk: Serving, *commands: str) -> str:
    done = run("qemu-io", "-f", "raw", *[word for command in commands for word in ("-c", command)], disk.uri)
    return done.stdout + done.stderr


def ended(process: subprocess.Popen[str], number: int = signal.SIGINT) -> tuple[list[str], str]:
    """End a trace as Ctrl-C does; returns the lines that it showed and what it said."""
    process.send_signal(number)
    out, err = process.communicate()
    assert process.returncode == 0, err
    return out.splitlines(), err


def test_what_a_client_does_is_shown_for_programs(serve: Serve, trace: Trace) -> None:
    disk = serve("ram", "--size", "1M", "--name", "d")
    looking = trace("--json", "--opcode", "read", "--opcode", "write", "--count", "2")
    qemu_io(disk, "write 4k 8k", "read 8k 4k")
    out, _ = looking.communicate()
    assert looking.returncode == 0
    found: list[dict[str, Any]] = [json.loads(line) for line in out.splitlines()]
    assert [(one["name"].partition("(")[0], one["lba"], one["blocks"], one["moved"]) for one in found] == [
        ("WRITE", 8, 16, 8192),
        ("READ", 16, 8, 4096),
    ]
    for one in found:
        assert (one["status"], one["good"], one["sense"]) == ("GOOD", True, "")
        assert one["initiator"].startswith("iqn.")
        assert one["ran"] > 0
        assert one["queued"] >= 0
        assert 0 <= one["sent"] < 60
        assert bytes.fromhex(one["cdb"])


def test_what_fails_is_shown_for_people_with_the_reason(serve: Serve, trace: Trace) -> None:
    disk = serve("ram", "--size", "1M", "--name", "d", "--filter", "fault;rule=write -> write-error")
    looking = trace("--errors", "--opcode", "write*")
    qemu_io(disk, "read 0 4k", "write 0 4k")
    assert looking.stdout is not None
    line = looking.stdout.readline()
    assert "lba 0 blocks 8  CHECK CONDITION  MEDIUM ERROR: WRITE ERROR (0C/00)  queue " in line
    assert re.search(r"queue \d+\.\d{3} ms, run \d+\.\d{3} ms, send \d+\.\d{3} ms  ", line)
    more, said = ended(looking)
    assert not [line for line in more if "GOOD" in line]
    assert " commands shown, 0 missed" in said


def test_those_alone_that_took_long_are_shown(serve: Serve, trace: Trace) -> None:
    disk = serve("ram", "--size", "1M", "--name", "d", "--filter", "delay;write=40ms")
    looking = trace("--slower", "30", "--json")
    qemu_io(disk, "read 0 4k", "write 0 4k", "read 0 4k", "write 4k 4k")
    assert looking.stdout is not None
    slow = [json.loads(looking.stdout.readline()) for _ in range(2)]
    assert all(one["ran"] + one["queued"] >= 0.03 for one in slow)
    assert {0, 8} <= {one["lba"] for one in slow if one["name"].startswith("WRITE")}


def test_a_reader_that_stands_still_holds_nobody_up_and_is_told_what_it_has_missed(serve: Serve, trace: Trace) -> None:
    disk = serve("ram", "--size", "1M", "--name", "d")
    looking = trace("--json", "--count", "3000")
    suspend(looking.pid)
    said = run("qemu-img", "bench", "-c", "12000", "-d", "32", "-s", "512", "-f", "raw", disk.uri)
    assert said.returncode == 0, said.stderr
    looking.send_signal(signal.SIGCONT)
    out, err = looking.communicate()
    assert "commands are missing here: they came faster than they could be shown" in err
    assert len(out.splitlines()) == 3000


def test_a_disk_serves_on_when_who_looks_is_killed(serve: Serve, trace: Trace) -> None:
    disk = serve("ram", "--size", "1M", "--name", "d")
    looking = trace()
    os.kill(looking.pid, signal.SIGKILL)
    looking.wait()
    assert "wrote 4096/4096" in qemu_io(disk, "write 0 4k")
    assert disk.stop().status == 0


def test_who_looks_hears_when_the_process_that_serves_it_ends(serve: Serve, trace: Trace) -> None:
    disk = serve("ram", "--size", "1M", "--name", "d")
    looking = trace()
    disk.stop()
    assert "d: the process that serves it has ended" in looking.communicate()[1]
    assert looking.returncode == 1


def test_a_disk_that_nobody_serves_and_a_command_that_is_none_are_said(
    serve: Serve, call: Call, tmp_path: Path
) -> None:
    serve("ram", "--size", "1M", "--name", "d")
    other = call("trace", "e", "--state-dir", tmp_path / "state")
    assert (other.status, "there is no disk 'e': served here: d" in other.err) == (1, True)
    wrong = call("trace", "d", "--opcode", "reed", "--state-dir", tmp_path / "state")
    assert (wrong.status, "'reed' is no SCSI command" in wrong.err) == (4, True)


def test_commands_are_named_as_people_write_them() -> None:
    for words, names in {
        ("read(10)",): ("READ(10)",),
        ("READ 16",): ("READ(16)",),
        ("read capacity",): ("READ CAPACITY(10)", "READ CAPACITY(16)"),
        ("compare and write",): ("COMPARE AND WRITE",),
        ("persistentreserve*",): ("PERSISTENT RESERVE IN READ KEYS", "PERSISTENT RESERVE OUT RESERVE"),
    }.items():
        assert set(chosen(list(words))[0]) >= set(names)
    assert set(chosen(["write"])[0]) >= {"WRITE(10)", "WRITE(16)"}
    assert not any("SAME" in name for name in chosen(["write"])[0])
    assert chosen(["0x28", "0xa"])[1] == (0x28, 0x0A)
    with pytest.raises(ConfigError):
        chosen(["0x"])
