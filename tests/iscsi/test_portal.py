"""The portal on real sockets."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial

import pytest

from tcmu_core.iscsi import pdu as p
from tcmu_core.iscsi.constants import AsyncEvent, TaskFunction
from tcmu_core.iscsi.portal import Portal, transport_id
from tcmu_core.iscsi.settings import Limits, PortalSettings
from tcmu_core.loop import Loop
from tests.iscsi.initiator import TARGET, Initiator
from tests.iscsi.served import SECOND, TIMEOUT, Served, served

LOOPBACK = ("127.0.0.1:0",)


@pytest.fixture
def portal() -> Iterator[Served]:
    with served() as running:
        yield running


def limited(**limits: float) -> PortalSettings:
    return PortalSettings(addresses=LOOPBACK, limits=Limits(**limits))  # type: ignore[arg-type]


def test_it_listens_on_each_address_and_tells_the_ports() -> None:
    with served(PortalSettings(addresses=("127.0.0.1:0", "[::1]:0"))) as running:
        first, second = running.addresses
        assert first.startswith("127.0.0.1:")
        assert second.startswith("[::1]:")
        for address in running.addresses:
            assert int(address.rpartition(":")[2]) > 0
            running.address = address
            with running.client() as client:
                assert client.login().read(0, 1) == bytes(512)


def test_an_address_in_use_is_named_and_nothing_is_left_listening(portal: Served) -> None:
    loop = Loop()
    other = Portal(loop, PortalSettings(addresses=(*LOOPBACK, portal.address)), {})
    with pytest.raises(OSError, match=f"portal {portal.address}"):
        other.listen()
    assert other.addresses == []
    loop.close()


def test_a_discovery_lists_the_address_that_the_client_came_to(portal: Served) -> None:
    with portal.client(Initiator(target=None)) as client:
        client.ask(client.initiator.login({}))
        answer = client.ask(p.TextRequest(itt=1, data=b"SendTargets=All\0"))
    assert answer is not None
    address = f"TargetAddress={portal.address},1\0"
    assert answer.data == f"TargetName={SECOND}\0{address}TargetName={TARGET}\0{address}".encode()


def test_the_same_initiator_port_logging_in_again_replaces_its_session(portal: Served) -> None:
    with portal.client() as old, portal.client() as new:
        old.login()
        new.login()
        assert old.receive() is None
        assert new.read(0, 1) == bytes(512)
        assert len(portal.call(portal.portal.sessions)) == 1


def test_another_port_of_the_same_initiator_has_a_session_beside_it(portal: Served) -> None:
    with portal.client() as one, portal.client(Initiator(isid=bytes(6))) as two:
        one.login()
        two.login()
        assert one.read(0, 1) == two.read(0, 1)


def test_more_connections_than_the_limit_are_closed_at_once() -> None:
    with served(limited(connections=1)) as running, running.client() as one:
        one.login()
        with running.client() as two:
            assert two.receive() is None
        assert one.read(0, 1) == bytes(512)


def test_a_peer_that_has_not_logged_in_makes_room_for_the_next() -> None:
    with served(limited(connections=1)) as running, running.client() as idle, running.client() as busy:
        assert busy.login().read(0, 1) == bytes(512)
        assert idle.receive() is None


def test_a_portal_that_can_not_accept_tries_again(portal: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tcmu_core.iscsi.portal.ACCEPT_PAUSE", 0.01)
    (listener,) = portal.portal._listeners
    failures = [OSError(24, "Too many open files")]

    class Broken:
        fileno = listener.fileno

        def accept(self) -> object:
            if failures:
                raise failures.pop()
            return listener.accept()

    broken = Broken()
    portal.call(lambda: portal.portal._listeners.append(broken))  # type: ignore[arg-type]
    portal.call(lambda: portal.loop._callbacks.update({listener.fileno(): partial(portal.portal._accept, broken)}))  # type: ignore[arg-type]
    with portal.client() as client:
        assert client.login().read(0, 1) == bytes(512)
    assert not failures
    portal.call(lambda: portal.portal._listeners.remove(broken))  # type: ignore[arg-type]


def test_a_peer_that_does_not_log_in_is_closed() -> None:
    with served(limited(login_timeout=0.05)) as running, running.client() as client:
        assert client.receive() is None


def test_a_peer_that_goes_silent_is_pinged_and_closed() -> None:
    with served(limited(nop_interval=0.05, nop_timeout=0.05)) as running, running.client() as client:
        client.login()
        assert isinstance(client.receive(), p.NopIn)
        assert client.receive() is None


def test_a_peer_that_does_not_read_costs_the_others_nothing(portal: Served) -> None:
    with portal.client() as greedy, portal.client(Initiator(isid=bytes(6))) as other:
        greedy.login()
        greedy.read(0, 1)
        requests = greedy.initiator.encode(*[greedy.initiator.read_10(0, 512) for _ in range(120)])
        greedy.sock.sendall(requests)  # 30 MiB to come, which nobody takes
        other.login()
        assert other.read(0, 1) == bytes(512)
        limits = portal.portal.settings.limits
        (most,) = portal.call(lambda: [max(s.outbox.queued for s in portal.portal.sessions())])
        assert most <= limits.send_queue + 4 * limits.segment
        for _ in range(120):  # once it reads, all comes
            answer = greedy.receive()
            assert isinstance(answer, p.DataIn)
            assert len(answer.data) == 262144


def test_a_peer_that_disappears_leaves_the_target(portal: Served) -> None:
    with portal.client() as client:
        client.login().read(0, 1)
    with portal.client() as client:
        client.login()
        assert len(portal.call(lambda: portal.portal.targets[TARGET].luns[0].unit.nexuses)) == 1


def test_a_connection_that_is_closed_gives_its_memory_back_at_once(portal: Served) -> None:
    with portal.client() as client:
        client.login().read(0, 512)
        (peer,) = portal.call(lambda: list(portal.portal.peers))
    while portal.call(lambda: peer in portal.portal.peers):
        pass
    buffers = peer.connection.inbox, peer.connection.outbox
    assert [buffer.memory.size for buffer in buffers] == [0, 0]


def test_an_internal_error_costs_one_peer_its_connection(portal: Served, caplog: pytest.LogCaptureFixture) -> None:
    with portal.client() as one, portal.client(Initiator(isid=bytes(6))) as two:
        one.login()
        two.login()

        def break_it() -> None:
            for session in portal.portal.sessions():
                if session.outcome.isid != bytes(6):
                    session.transfers = None  # type: ignore[assignment]

        portal.call(break_it)
        one.send(one.initiator.read_10(0, 1))
        assert one.receive() is None
        assert two.read(0, 1) == bytes(512)
    assert "internal error" in caplog.text


def test_a_removed_target_drops_its_sessions_alone(portal: Served) -> None:
    with portal.client() as one, portal.client(Initiator(target=SECOND)) as two:
        one.login()
        two.login()
        portal.call(lambda: portal.portal.remove_target(SECOND))
        assert two.receive() is None
        assert one.read(0, 1) == bytes(512)
    with portal.client(Initiator(target=SECOND)) as again:
        answer = again.ask(again.initiator.login({}))
        assert isinstance(answer, p.LoginResponse)
        assert answer.status == 0x0203


def test_a_cold_reset_ends_the_targets_sessions_after_its_response(portal: Served) -> None:
    with portal.client() as one, portal.client(Initiator(isid=bytes(6))) as two:
        one.login()
        two.login()
        function = 0x80 | TaskFunction.TARGET_COLD_RESET
        answer = one.ask(p.TaskManagementRequest(immediate=True, function=function, itt=1))
        assert isinstance(answer, p.TaskManagementResponse)
        assert answer.response == 0
        assert one.receive() is None
        assert two.receive() is None


def test_a_shutdown_asks_for_logout_and_ends_when_all_have_left(portal: Served) -> None:
    ended = threading.Event()
    with portal.client() as client:
        client.login()
        portal.call(lambda: portal.portal.shutdown(TIMEOUT, ended.set))
        message = client.receive()
        assert isinstance(message, p.AsyncMessage)
        assert message.event == AsyncEvent.LOGOUT_REQUEST
        assert not ended.is_set()
        assert isinstance(client.ask(p.LogoutRequest(reason=0x80, itt=1)), p.LogoutResponsePdu)
        assert ended.wait(TIMEOUT)
        assert client.receive() is None


def test_a_shutdown_does_not_wait_longer_than_it_says(portal: Served) -> None:
    ended = threading.Event()
    with portal.client() as client:
        client.login()
        portal.call(lambda: portal.portal.shutdown(0.05, ended.set))
        assert ended.wait(TIMEOUT)
        assert isinstance(client.receive(), p.AsyncMessage)
        assert client.receive() is None


def test_a_shutdown_without_sessions_ends_at_once(portal: Served) -> None:
    ended: list[bool] = []
    portal.call(lambda: portal.portal.shutdown(TIMEOUT, lambda: ended.append(True)))
    assert ended == [True]


@pytest.mark.parametrize("threads", [0, 4], ids=["at once", "pool"])
@pytest.mark.parametrize("digests", [{}, {"HeaderDigest": "CRC32C", "DataDigest": "CRC32C"}], ids=["plain", "digests"])
def test_what_many_commands_write_is_what_they_read(threads: int, digests: dict[str, str]) -> None:
    with served(threads=threads) as running, running.client() as client:
        client.login(digests)
        client.read(0, 1)
        pattern = bytes(range(256)) * 64
        for at in range(0, 1024, 32):
            client.send(client.initiator.write_10(at, pattern))
        statuses = [client.receive() for _ in range(32)]
        assert all(isinstance(answer, p.ScsiResponse) and answer.status == 0 for answer in statuses)
        for at in range(0, 1024, 32):
            client.send(client.initiator.read_10(at, 32))
        for _ in range(32):
            answer = client.receive()
            assert isinstance(answer, p.DataIn)
            assert answer.data == pattern


def test_many_compare_and_writes_of_one_block_all_end() -> None:
    with served(threads=4) as running, running.client() as client:
        client.login().read(0, 1)
        cdb = bytes([0x89]) + bytes(12) + b"\1\0\0"
        zeros = bytes(1024)
        client.send(*[client.initiator.command(cdb, write=zeros, data=zeros) for _ in range(100)])
        answers = [client.receive() for _ in range(100)]
        assert all(isinstance(answer, p.ScsiResponse) and answer.status == 0 for answer in answers)


def test_a_transport_id_is_the_name_and_the_isid() -> None:
    identity = transport_id("iqn.x", bytes.fromhex("800000010203"))
    assert identity == b"\x45\x00\x00\x18iqn.x,i,0x800000010203\0\0"
    assert len(identity) % 4 == 0
