"""`tcmu top`: what happens between two looks, and what holds it up."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pty
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.console import Console

from tcmu_core.cli import rates
from tcmu_core.cli.top import picture
from tcmu_core.host.messages import InitiatorCounters, OperationCounters, TimesTaken
from tcmu_core.testing.client import Client
from tests.cli.conftest import Call, Serving, Start
from tests.waiting import suspend

Serve = Callable[..., Serving]
NAME = "iqn.2026-01.test:one"


@pytest.fixture
def state(tmp_path: Path) -> list[str]:
    return ["--state-dir", str(tmp_path / "state")]


@contextlib.contextmanager
def reading(uri: str) -> Iterator[None]:
    """Read blocks as long as the context lasts."""
    over = threading.Event()

    def read() -> None:
        with Client(uri, name=NAME) as client:
            while not over.is_set():
                client.command(b"\x28" + bytes(7) + b"\x08\0", read=4096)

    thread = threading.Thread(target=read)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def test_one_look_names_disk_initiator_and_the_slow_storage(serve: Serve, call: Call, state: list[str]) -> None:
    disk = serve("ram", "--size", "1M", "--name", "one", "--filter", "delay;read=5ms")
    with reading(disk.uri):
        said = call("top", "--once", "--interval", "0.5", *state)
        told = call("top", "one", "--once", "--interval", "0.5", "--json", "--sort", "storage", *state)
    assert said.status == 0
    assert "one " in said.out
    assert NAME in said.out
    assert "bottleneck: one: the storage: " in said.out
    (row,) = json.loads(told.out)["rows"]
    assert (row["disk"], row["initiator"]) == ("one", NAME)
    assert 0 < row["iops"] <= 200
    assert row["bytes"] == pytest.approx(4096 * row["iops"])
    assert row["storage"]["p50"] >= 0.004


def test_one_that_does_not_answer_is_named(serve: Serve, call: Call, state: list[str]) -> None:
    serve("ram", "--size", "1M", "--name", "one")
    hung = serve("ram", "--size", "1M", "--name", "two")
    suspend(hung.process.pid)
    said = call("top", "--once", "--interval", "0.1", *state)
    told = call("top", "--once", "--interval", "0.1", "--json", *state)
    os.kill(hung.process.pid, signal.SIGCONT)
    assert f"process {hung.process.pid} (python" in said.out
    assert "does not answer: a handler holds it up, or it hangs" in said.out
    assert json.loads(told.out)["silent"] == [hung.process.pid]


def test_a_disk_that_is_not_there_is_an_error(serve: Serve, call: Call, state: list[str]) -> None:
    serve("ram", "--size", "1M", "--name", "one")
    said = call("top", "oen", "--once", "--interval", "0.1", *state)
    assert (said.status, said.out) == (1, "")
    assert "there is no disk 'oen': did you mean 'one'?" in said.err


def test_on_a_terminal_it_is_there_until_q(serve: Serve, command: Start, state: list[str]) -> None:
    disk = serve("ram", "--size", "1M", "--name", "one")
    main, terminal = pty.openpty()
    try:
        with reading(disk.uri):
            environment = {**os.environ, "TERM": "xterm", "COLUMNS": "160", "LINES": "20"}
            process = command(
                "top", "--interval", "0.2", *state, stdin=terminal, stdout=terminal, stderr=terminal, env=environment
            )
            seen = b""
            while b"bottleneck" not in seen:
                seen += os.read(main, 65536)
            os.write(main, b"q")
            drain = threading.Thread(target=_drain, args=(main,))
            drain.start()
            assert process.wait(60) == 0
            assert NAME[:8].encode() in seen
    finally:
        os.close(terminal)
        drain.join()
        os.close(main)


def _drain(fd: int) -> None:
    with contextlib.suppress(OSError):
        while os.read(fd, 65536):
            pass


def test_without_rich_it_says_how_to_get_it(call: Call, state: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rich.console", None)
    said = call("top", "--once", *state)
    assert said.status == 1
    assert "pip install 'tcmu-core[monitor]'" in said.err


def look(at: float, commands: int, in_flight: int = 0, since: float = 0.0, **taken: TimesTaken) -> rates.Look:
    operation = OperationCounters(0x28, "read_10", commands, commands * 512, in_flight, **taken)  # type: ignore[arg-type]
    return rates.Look(at, {(1, 0, "disk", "i"): InitiatorCounters("i", (operation,), since)})


def times(bucket: int, count: int, each: int) -> TimesTaken:
    return TimesTaken((0,) * bucket + (count,), count * each)


SHORT, LONG = times(10, 100, 700), times(24, 100, 12_000_000)


@pytest.mark.parametrize(
    ("after", "line"),
    [
        (look(1, 0), "no command has come"),
        (look(1, 0, in_flight=3), "3 in flight, and none has ended"),
        (look(1, 10, queue=SHORT, storage=SHORT, send=SHORT), "the initiator asks for little"),
        (look(1, 1000, queue=SHORT, storage=LONG, send=SHORT), "the storage: 100% of a command's time"),
        (look(1, 1000, queue=LONG, storage=SHORT, send=SHORT), "commands wait for their turn in this process"),
        (look(1, 1000, queue=SHORT, storage=SHORT, send=LONG), "the initiator that takes the answers"),
    ],
)
def test_the_line_names_what_holds_it_up(after: rates.Look, line: str) -> None:
    assert line in rates.bottleneck(rates.rows(look(0, 0), after))


@pytest.mark.parametrize("width", [60, 80, 100, 160])
def test_the_picture_fits_the_terminal_and_says_what_has_no_room(width: int) -> None:
    stage = rates.Stage(1e-5, 2e-4, 2e-5, 100, (0,) * 20 + (100,))
    names = [f"disk{number}\x1b[2J" for number in range(9)] + ["円" * 40]
    rows = [rates.Row(name, NAME * 3, 1234.5, 5e6, 1.0, 1, 0.0, stage, stage, stage) for name in names]
    console = Console(file=io.StringIO(), width=width, height=10, force_terminal=False)
    for height, more in ((10, True), (None, False)):
        console.print(picture(rows, width, height))
        lines = console.file.getvalue().rstrip().split("\n")  # type: ignore[attr-defined]
        console.file = io.StringIO()
        assert all(cell_len(line) <= width for line in lines)
        assert "\x1b" not in "".join(lines)
        assert ("5 more" in lines) == more
        assert len(lines) <= 10 if more else len(lines) >= len(rows) + 3
        assert any("bottleneck: disk0" in line for line in lines)
        assert "1,234" in lines[1]


def test_counters_that_began_anew_count_from_nothing() -> None:
    (row,) = rates.rows(look(0, 50), look(2, 100, since=1.0))
    assert row.iops == 50


def test_percentiles_lie_within_their_power_of_two() -> None:
    counts = [0] * 20 + [90] + [0] * 4 + [10]
    assert 2**19 / 1e9 <= rates.percentile(counts, 0.5) <= 2**20 / 1e9
    assert 2**24 / 1e9 <= rates.percentile(counts, 0.99) <= 2**25 / 1e9
