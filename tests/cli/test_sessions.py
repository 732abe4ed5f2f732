"""`tcmu sessions` and `tcmu logout`: who is logged in, and sending one of them away."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tcmu_core.iscsi import pdu as p
from tcmu_core.iscsi.constants import AsyncEvent
from tests.cli.conftest import Call, Serving, Start
from tests.iscsi.initiator import Initiator
from tests.iscsi.served import Client

Serve = Callable[..., Serving]
LogIn = Callable[..., Client]


@pytest.fixture
def state(tmp_path: Path) -> list[str]:
    return ["--state-dir", str(tmp_path / "state")]


@pytest.fixture
def log_in() -> Iterator[LogIn]:
    """Log in to what is served."""
    with ExitStack() as stack:

        def start(disk: Serving, name: str, **changes: str) -> Client:
            initiator = Initiator(name, disk.said["target"])
            return stack.enter_context(Client(disk.said["portal"], initiator)).login(changes)

        yield start


RESERVE_6 = bytes([0x16, 0, 0, 0, 0, 0])
READY = bytes(6)


def send(client: Client, cdb: bytes) -> None:
    """Send a command without data until it is GOOD: the first one hears of a unit attention."""
    for _ in range(2):
        answer = client.ask(client.initiator.command(cdb))
        assert isinstance(answer, p.ScsiResponse)
    assert answer.status == 0


def test_who_is_logged_in_is_shown_with_what_it_holds(
    serve: Serve, call: Call, log_in: LogIn, state: list[str]
) -> None:
    before = time.time()
    disk = serve("ram", "--size", "1M", "--name", "d")
    one = log_in(disk, "iqn.2026-01.org.example:one", DataDigest="CRC32C")
    log_in(disk, "iqn.2026-01.org.example:two")
    send(one, RESERVE_6)
    first, second = json.loads(call("sessions", "--json", *state).out)
    assert first["initiator"] == "iqn.2026-01.org.example:one"
    assert first["address"].startswith("127.0.0.1:")
    assert before - 1 <= first["since"] <= time.time() + 1
    assert (first["target"], first["luns"], first["user"]) == (disk.said["target"], [0], None)
    assert (first["header_digest"], first["data_digest"]) == (False, True)
    assert (first["reservations"], second["reservations"]) == (["LUN 0: RESERVE(6)"], [])
    text = call("sessions", "d", *state).out
    assert "without a login, data digest\n" in text
    assert f"  {disk.said['target']}: LUN 0 d\n  holds LUN 0: RESERVE(6)\n" in text


def test_sessions_of_one_disk_alone_are_shown(serve: Serve, call: Call, log_in: LogIn, state: list[str]) -> None:
    log_in(serve("ram", "--size", "1M", "--name", "d"), "iqn.2026-01.org.example:one")
    serve("ram", "--size", "1M", "--name", "e")
    assert len(json.loads(call("sessions", "d", "--json", *state).out)) == 1
    assert call("sessions", "e", *state).out == "Nobody is logged in.\n"
    assert call("sessions", "f", *state).status == 1


def test_a_user_is_shown_who_has_logged_in_by_a_password(serve: Serve, call: Call, state: list[str]) -> None:
    disk = serve("ram", "--size", "1M", "--name", "d", "--chap", "somebody:a-long-password")
    login = {"LIBISCSI_CHAP_USERNAME": "somebody", "LIBISCSI_CHAP_PASSWORD": "a-long-password"}
    command, pipe = ["qemu-io", "-f", "raw", disk.uri], subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env={**os.environ, **login}) as client:
        assert client.stdin is not None
        assert client.stdout is not None
        client.stdin.write("read 0 4k\n")
        client.stdin.flush()
        assert any("bytes at offset" in line for line in client.stdout)
        (one,) = json.loads(call("sessions", "--json", *state).out)
        assert one["user"] == "somebody"
        assert "as somebody, no digest" in call("sessions", *state).out
        client.kill()


def test_an_initiator_that_is_asked_to_log_out_and_does_is_gone(
    serve: Serve, command: Start, log_in: LogIn, state: list[str]
) -> None:
    disk = serve("ram", "--size", "1M", "--name", "d")
    one, other = log_in(disk, "iqn.2026-01.org.example:one"), log_in(disk, "iqn.2026-01.org.example:two")
    leaving = command("logout", "iqn.2026-01.ORG.example:one", "--within", "60", *state)
    message = one.receive()
    assert isinstance(message, p.AsyncMessage)
    assert (message.event, message.parameter3) == (AsyncEvent.LOGOUT_REQUEST, 60)
    assert leaving.poll() is None
    assert isinstance(one.ask(p.LogoutRequest(reason=0x80, itt=1)), p.LogoutResponsePdu)
    assert one.receive() is None
    assert leaving.communicate()[0] == "1 session ended\n"
    send(other, READY)


def test_one_that_does_not_log_out_in_time_is_put_out(
    serve: Serve, call: Call, log_in: LogIn, state: list[str]
) -> None:
    disk = serve("ram", "--size", "1M", "--name", "d")
    ones = [log_in(disk, f"iqn.2026-01.org.example:{name}") for name in ("one", "two")]
    said = call("logout", "iqn.2026-01.org.example:*", "--within", "1", "--target", disk.said["target"], *state)
    assert (said.status, said.out) == (0, "2 sessions ended\n")
    for one in ones:
        assert isinstance(one.receive(), p.AsyncMessage)
        assert one.receive() is None


def test_who_is_not_there_can_not_be_sent_away(serve: Serve, call: Call, log_in: LogIn, state: list[str]) -> None:
    one = log_in(serve("ram", "--size", "1M", "--name", "d"), "iqn.2026-01.org.example:one")
    for words in (["iqn.2026-01.org.example:three"], ["*", "--target", "iqn.2026-01.org.example:elsewhere"]):
        said = call("logout", *words, *state)
        assert (said.status, "is logged in" in said.err) == (1, True)
    send(one, READY)
