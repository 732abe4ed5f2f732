"""The redirector on real sockets: a login through it is the login that the portal would have had without it."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from tcmu_core.iscsi import pdu as p
from tcmu_core.iscsi.admission import WAITING_ROOM
from tcmu_core.iscsi.constants import LoginStatus, Stage
from tcmu_core.iscsi.settings import Access, ChapUser, Limits, PortalSettings, parse_address
from tests.iscsi.initiator import OPERATIONAL, TARGET, Initiator
from tests.iscsi.served import SECOND, TIMEOUT, Client, Served, run, served

LOOPBACK = ("127.0.0.1:0",)
JOE = ChapUser("joe", b"secret of joe")
US = ChapUser("us", b"secret of us!")
CHAP = PortalSettings(addresses=LOOPBACK, access=Access(users=(JOE,), outgoing=US))


@pytest.fixture
def behind() -> Iterator[Served]:
    """A portal behind a redirector."""
    with served(redirector=True) as running:
        yield running


def limited(**limits: float) -> PortalSettings:
    return PortalSettings(addresses=LOOPBACK, limits=Limits(**limits))  # type: ignore[arg-type]


def split(pairs: dict[str, str], *sizes: int) -> list[p.LoginRequest]:
    """Return a login whose text comes in parts of these sizes, and one of the rest."""
    whole = Initiator().login(OPERATIONAL | pairs)
    parts, rest = [], bytes(whole.data)
    for size in sizes:
        parts.append(replace(whole, flags=Stage.OPERATIONAL << 2 | 0x40, data=rest[:size]))
        rest = rest[size:]
    return [*parts, replace(whole, data=rest)]


def login(change: Callable[[p.LoginRequest], p.Pdu] = lambda request: request, **names: str | None) -> bytes:
    initiator = Initiator(**names)  # type: ignore[arg-type]
    return initiator.encode(change(initiator.login(OPERATIONAL if initiator.target else {})))


def declaring(**text: str) -> bytes:
    data = b"".join(f"{key}={value}\0".encode() for key, value in text.items())
    return login(lambda request: replace(request, data=data))


FIRST_BYTES = {
    "a normal session": login(),
    "the other target": login(target=SECOND),
    "a discovery": login(target=None),
    "a discovery that names a target": declaring(InitiatorName="me", SessionType="Discovery", TargetName=TARGET),
    "an unknown target": login(target="iqn.2026-01.test:nowhere"),
    "no target": declaring(InitiatorName="me"),
    "no initiator": declaring(TargetName=TARGET),
    "an unknown session type": declaring(InitiatorName="me", SessionType="Strange", TargetName=TARGET),
    "a session that there is not": login(lambda request: replace(request, tsih=7)),
    "another version": login(lambda request: replace(request, version_min=1)),
    "no such stage": login(lambda request: replace(request, flags=0x80 | 2 << 2 | 3)),
    "text that is none": login(lambda request: replace(request, data=b"no equals sign\0")),
    "a key twice": login(lambda request: replace(request, data=bytes(request.data) * 2)),
    "no text": login(lambda request: replace(request, data=b"")),
    "a command": Initiator().encode(Initiator().read_10(0, 1)),
    "an unknown opcode": b"\x3e" + bytes(47),
    "a segment of 16 MiB": b"\x43\x87\0\0\0\xff\xff\xff" + bytes(40),
    "half a header": login()[:20],
    "half a text": login()[:60],
    "nothing": b"",
    "rubbish": bytes(range(256)) * 300,
    "text in parts": Initiator().encode(*split({}, 10, 0, 40)),
    "text in parts to a discovery": Initiator().encode(*split({"SessionType": "Discovery"}, 30)),
    "parts that are too much": Initiator().encode(*split({"X-Padding": "x" * 8000, "X-More": "x" * 8000}, *[7000] * 2)),
    "a login and more": login() + Initiator().encode(p.NopOut(itt=9)),
}


def exchange(running: Served, data: bytes, step: int | None = None) -> bytes:
    """Send all, and nothing after it; return all that comes until the portal closes the connection."""
    with socket.create_connection(parse_address(running.address), TIMEOUT) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with contextlib.suppress(OSError):  # it may be closed with data unread
            for at in range(0, len(data), step or len(data) or 1):
                sock.sendall(data[at : at + (step or len(data))])
            sock.shutdown(socket.SHUT_WR)
        answer = b""
        with contextlib.suppress(ConnectionError):
            while part := sock.recv(65536):
                answer += part
    return answer


@pytest.mark.parametrize("step", [None, 7], ids=["at once", "bit by bit"])
@pytest.mark.parametrize("data", FIRST_BYTES.values(), ids=FIRST_BYTES)
def test_the_answer_is_the_portals_own(data: bytes, step: int | None) -> None:
    answers = []
    for redirector in (False, True):
        with served(redirector=redirector) as running:
            answers.append(exchange(running, data, step))
    assert answers[0] == answers[1]


def test_an_answer_is_not_sent_twice_when_the_text_comes_in_parts(behind: Served) -> None:
    with behind.client() as client:
        *parts, last = split({}, 10, 40)
        for part in parts:
            answer = client.ask(part)
            assert isinstance(answer, p.LoginResponse)
            assert (answer.flags & 0x83, bytes(answer.data)) == (0, b"")
        answer = client.ask(last)
        assert isinstance(answer, p.LoginResponse)
        assert (answer.status, answer.flags & 3) == (0, Stage.FULL_FEATURE)
        assert client.read(0, 1) == bytes(512)


def test_a_session_is_the_targets_alone(behind: Served) -> None:
    assert behind.redirector is not None
    with behind.client() as client:
        client.login()
        assert client.read(0, 1) == bytes(512)
        assert behind.call(lambda: len(behind.portal.peers)) == 1
        assert behind.call(lambda: not behind.redirector.peers)  # type: ignore[union-attr]


def test_a_discovery_is_the_doors_even_if_it_names_a_target(behind: Served) -> None:
    with behind.client() as client:
        client.sock.sendall(FIRST_BYTES["a discovery that names a target"])
        assert isinstance(client.receive(), p.LoginResponse)
        assert behind.call(lambda: (len(behind.redirector.sessions()), len(behind.portal.peers))) == (1, 0)  # type: ignore[union-attr]


def test_a_target_whose_worker_is_away_is_unavailable(behind: Served) -> None:
    behind.away = True
    with behind.client() as client:
        answer = client.ask(client.initiator.login(OPERATIONAL))
        assert isinstance(answer, p.LoginResponse)
        assert LoginStatus(answer.status) is LoginStatus.SERVICE_UNAVAILABLE
        assert client.receive() is None
    behind.away = False
    with behind.client() as client:
        assert client.login().read(0, 1) == bytes(512)


def test_a_second_connection_of_a_session_is_refused(behind: Served) -> None:
    with behind.client() as one, behind.client(Initiator(isid=bytes(6))) as two:
        one.login()
        (session,) = behind.call(behind.portal.sessions)
        two.initiator.tsih = session.outcome.tsih
        answer = two.ask(two.initiator.login(OPERATIONAL))
        assert isinstance(answer, p.LoginResponse)
        assert LoginStatus(answer.status) is LoginStatus.TOO_MANY_CONNECTIONS


def test_the_same_initiator_port_logging_in_again_replaces_its_session(behind: Served) -> None:
    with behind.client() as old, behind.client() as new:
        old.login()
        new.login()
        assert old.receive() is None
        assert new.read(0, 1) == bytes(512)


@pytest.mark.parametrize(
    ("who", "options", "works"),
    [
        ("joe%secret of joe@", "", True),
        ("joe%wrong@", "", False),
        ("", "", False),
        ("joe%secret of joe@", "?target_user=us&target_password=secret of us!", True),
        ("joe%secret of joe@", "?target_user=us&target_password=wrong", False),
    ],
)
def test_chap_lets_in_who_proves_itself(who: str, options: str, works: bool) -> None:
    with served(CHAP, redirector=True) as running:
        done = run("iscsi-inq", running.uri(login=who, options=options))
        assert ("DIRECT_ACCESS" in done.stdout) == works, done.stderr


def test_discovery_wants_its_proof_at_the_door() -> None:
    with served(CHAP, redirector=True) as running:
        assert TARGET in run("iscsi-ls", f"iscsi://joe%secret of joe@{running.address}").stdout
        assert TARGET not in run("iscsi-ls", f"iscsi://joe%wrong@{running.address}").stdout


def test_a_discovery_shows_an_initiator_its_own_targets() -> None:
    settings = PortalSettings(addresses=LOOPBACK, targets={SECOND: Access(initiators=("iqn.2026-01.test:me",))})
    with served(settings, redirector=True) as running:
        for name, seen in (("me", True), ("you", False)):
            listing = run("iscsi-ls", "-i", f"iqn.2026-01.test:{name}", f"iscsi://{running.address}").stdout
            assert f"Target:{TARGET} Portal:{running.address},1" in listing
            assert (SECOND in listing) == seen


@pytest.mark.parametrize("digest", ["None", "CRC32C"])
def test_digests_are_agreed_on_behind_the_door(digest: str) -> None:
    settings = PortalSettings(addresses=LOOPBACK, header_digests=(digest,), data_digests=(digest,))
    with served(settings, redirector=True) as running, running.client() as client:
        client.login({"HeaderDigest": digest, "DataDigest": digest})
        assert client.read(0, 8) == bytes(4096)


def test_ipv6_works_alike() -> None:
    with served(PortalSettings(addresses=("[::1]:0",)), redirector=True) as running:
        assert "DIRECT_ACCESS" in run("iscsi-inq", running.uri()).stdout


SLOW = pytest.mark.parametrize(
    "data",
    [b"", login()[:20], login()[:60], Initiator().encode(split({}, 10)[0]), login(target=None)[:-1]],
    ids=["nothing", "half a header", "half a text", "a first part", "a discovery's last byte missing"],
)


@SLOW
def test_a_slow_client_costs_the_others_nothing(behind: Served, data: bytes) -> None:
    with behind.client() as slow, behind.client() as other:
        slow.sock.sendall(data)
        assert other.login().read(0, 1) == bytes(512)


@SLOW
def test_a_slow_client_is_sent_away(data: bytes) -> None:
    with served(limited(login_timeout=0.1), redirector=True) as running, running.client() as slow:
        slow.sock.sendall(data)
        while slow.receive() is not None:
            pass


def test_clients_that_say_nothing_make_room_for_those_that_log_in() -> None:
    with served(limited(connections=4), redirector=True) as running:
        silent = [running.client() for _ in range(40)]
        with running.client() as client:
            assert client.login().read(0, 1) == bytes(512)
            assert running.call(lambda: len(running.redirector.peers)) <= 4 + WAITING_ROOM  # type: ignore[union-attr]
        for one in silent:
            one.sock.close()


def test_more_sessions_than_the_limit_are_refused_by_the_target() -> None:
    with served(limited(connections=1), redirector=True) as running, running.client() as one:
        one.login()
        with running.client(Initiator(isid=bytes(6))) as two:
            answer = two.ask(two.initiator.login(OPERATIONAL))
            assert isinstance(answer, p.LoginResponse)
            assert LoginStatus(answer.status) is LoginStatus.OUT_OF_RESOURCES
        assert one.read(0, 1) == bytes(512)


def test_a_login_without_an_end_is_cut_off(behind: Served) -> None:
    part = split({}, 0)[0]
    with behind.client() as client:
        endless(client, part)


def endless(client: Client, part: p.LoginRequest) -> None:
    while isinstance(answer := client.ask(part), p.LoginResponse):
        if answer.status:
            break
    assert client.receive() is None


def test_a_client_that_leaves_at_once_is_forgotten(behind: Served) -> None:
    for _ in range(20):
        with behind.client() as client:
            client.send(client.initiator.login(OPERATIONAL))
    with behind.client(Initiator(isid=bytes(6))) as client:
        assert client.login().read(0, 1) == bytes(512)


def test_a_door_without_connections_closes_at_once(behind: Served) -> None:
    ended: list[bool] = []
    assert behind.redirector is not None
    behind.call(lambda: behind.redirector.shutdown(TIMEOUT, lambda: ended.append(True)))  # type: ignore[union-attr]
    assert ended
