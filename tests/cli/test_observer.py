"""Looking at all hosts again and again: by connections that stay, whoever comes and goes meanwhile."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from tcmu_core.host import control
from tcmu_core.host.observer import Observer, Seen
from tcmu_core.scsi.tally import MOST
from tcmu_core.testing.client import Client
from tests.cli.conftest import Serving
from tests.waiting import suspend

Serve = Callable[..., Serving]
NAME = "iqn.2026-01.test:one"
READ = b"\x28" + bytes(7) + b"\1\0"


@pytest.fixture
def observer(tmp_path: Path) -> Iterator[Observer]:
    with closing(Observer(tmp_path / "state")) as made:
        yield made


def names(observer: Observer) -> list[str]:
    return [disk.name for seen in observer.look().hosts for disk in seen.status.disks]


def seen_anew(directory: Path) -> Seen:
    with closing(Observer(directory / "state")) as other:
        (seen,) = other.look().hosts
        return seen


def connections(pid: int) -> int:
    return sum(os.readlink(fd).startswith("socket:") for fd in Path(f"/proc/{pid}/fd").iterdir())


def test_hosts_that_come_and_go_are_seen_as_they_are(serve: Serve, observer: Observer) -> None:
    assert names(observer) == []
    first = serve("ram", "--size", "1M", "--name", "first")
    assert names(observer) == ["first"]
    second = serve("ram", "--size", "1M", "--name", "second")
    assert sorted(names(observer)) == ["first", "second"]
    first.stop(signal.SIGKILL)
    assert names(observer) == ["second"]
    second.stop()
    assert names(observer) == []


def test_another_process_in_the_place_of_one_is_seen(serve: Serve, observer: Observer, tmp_path: Path) -> None:
    first = serve("ram", "--size", "1M", "--name", "first")
    second = serve("ram", "--size", "1M", "--name", "second")
    places = {path.name: path for path in control.places(tmp_path / "state")}
    assert sorted(names(observer)) == ["first", "second"]
    first.stop(signal.SIGKILL)
    old, new = (places[f"serve-{one.process.pid}.sock"] for one in (first, second))
    new.rename(old)
    assert names(observer) == ["second"]


def test_of_many_initiators_all_are_told(serve: Serve, observer: Observer) -> None:
    disk = serve("ram", "--size", "1M", "--name", "one")
    for number in range(11):
        with Client(disk.uri, name=f"{NAME}-{number}") as client:
            client.command(READ, read=512)
    (seen,) = observer.look().hosts
    assert [one.initiator for one in seen.counters[0]] == [f"{NAME}-{number}" for number in range(11)]
    assert isinstance(seen, Seen)
    assert seen.status.commands == sum(operation.commands for one in seen.counters[0] for operation in one.operations)


def test_who_goes_on_looking_sees_what_one_who_comes_new_sees(serve: Serve, observer: Observer, tmp_path: Path) -> None:
    disk = serve("ram", "--size", "1M", "--name", "one")
    for number in range(2 * MOST):  # those that came first become `other` meanwhile
        with Client(disk.uri, name=f"{NAME}-{number % (MOST + 3)}") as client:
            for _ in range(number % 3):
                client.command(READ, read=512)
        assert observer.look().hosts[0].counters == seen_anew(tmp_path).counters
    for number in range(2 * MOST):  # each of them has become `other`, and has come again, and did not read
        with Client(disk.uri, name=f"{NAME}-{number % (MOST + 3)}"):
            pass
    assert observer.look().hosts[0].counters == seen_anew(tmp_path).counters


def test_sessions_are_told_too(serve: Serve, observer: Observer) -> None:
    disk = serve("ram", "--size", "1M", "--name", "one")
    with ExitStack() as stack:
        for number in range(3):
            stack.enter_context(Client(disk.uri, name=f"{NAME}-{number}"))
        (seen,) = observer.look().hosts
    assert {one.initiator for one in seen.sessions} == {f"{NAME}-{number}" for number in range(3)}


def test_to_look_again_takes_no_more_connections(serve: Serve, observer: Observer) -> None:
    disk = serve("ram", "--size", "1M", "--name", "one")
    observer.look()
    before = connections(disk.process.pid)
    for _ in range(20):
        assert len(observer.look().hosts) == 1
    assert connections(disk.process.pid) == before


def test_one_that_does_not_answer_keeps_nobody_from_being_seen(
    serve: Serve, observer: Observer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tcmu_core.host.observer.FIND_SECONDS", 0.2)
    first = serve("ram", "--size", "1M", "--name", "first")
    serve("ram", "--size", "1M", "--name", "second")
    assert sorted(names(observer)) == ["first", "second"]
    suspend(first.process.pid)
    for _ in range(12):
        assert names(observer) == ["second"]
        assert observer.look(3600.0).silent == (first.process.pid,)
    os.kill(first.process.pid, signal.SIGCONT)
    monkeypatch.undo()
    assert sorted(names(observer)) == ["first", "second"]
    assert not observer.look(3600.0).silent


def test_what_was_seen_a_moment_ago_is_enough_for_who_says_so(serve: Serve, observer: Observer) -> None:
    serve("ram", "--size", "1M", "--name", "one")
    sight = observer.look()
    assert observer.look(3600.0) is sight
    assert observer.look() is not sight
