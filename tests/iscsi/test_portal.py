"""The portal on real sockets."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from functools import partial

import pytest

from tcmu_core import hookimpl
from tcmu_core.iscsi import pdu as p
from tcmu_core.iscsi import portal as portal_module
from tcmu_core.iscsi.admission import LEFT_BEHIND
from tcmu_core.iscsi.chap import Algorithm, decode_binary, encode_binary, response
from tcmu_core.iscsi.constants import AsyncEvent, LoginStatus, Stage, TaskFunction
from tcmu_core.iscsi.portal import Portal, transport_id
from tcmu_core.iscsi.settings import Access, ChapUser, Limits, PortalSettings
from tcmu_core.loop import Loop
from tests.iscsi import served as served_module
from tests.iscsi.initiator import OPERATIONAL, TARGET, Initiator, cdb_10, text_of
from tests.iscsi.served import SECOND, TIMEOUT, Client, Served, served

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


def test_more_sessions_than_the_limit_are_refused() -> None:
    with served(limited(connections=1)) as running, running.client() as one:
        one.login()
        with running.client(Initiator(isid=bytes(6))) as two:
            answer = two.ask(two.initiator.login(OPERATIONAL))
            assert isinstance(answer, p.LoginResponse)
            assert LoginStatus(answer.status) is LoginStatus.OUT_OF_RESOURCES
            assert two.receive() is None
        assert one.read(0, 1) == bytes(512)


def test_peers_that_have_not_logged_in_make_room_for_the_next() -> None:
    with served(limited(connections=1)) as running:
        idle = [running.client() for _ in range(30)]
        with running.client() as busy:
            assert busy.login().read(0, 1) == bytes(512)
        assert idle[0].receive() is None
        for one in idle:
            one.sock.close()


def test_a_discovery_that_is_idle_is_closed() -> None:
    with served(limited(nop_interval=0.05)) as running, running.client(Initiator(target=None)) as client:
        client.ask(client.initiator.login({}))
        assert client.receive() is None


# -- a password, and none ---------------------------------------------------------------------------------------------

JOE = ChapUser("joe", b"secret of joe", ("iqn.2026-01.test:joe*",))
ANN = ChapUser("ann", b"secret of ann")
CLOSED = PortalSettings(addresses=LOOPBACK, targets={TARGET: Access(users=(JOE, ANN))}, limits=Limits(connections=8))


def prove(client: Client, user: ChapUser) -> LoginStatus:
    """Log in with a password."""
    initiator = client.initiator
    client.ask(initiator.login({"AuthMethod": "CHAP"}, Stage.SECURITY, None))
    answer = client.ask(initiator.login({"CHAP_A": "5"}, Stage.SECURITY, None, first=False))
    assert isinstance(answer, p.LoginResponse)
    keys = text_of(answer)
    value = response(Algorithm.MD5, int(keys["CHAP_I"]), user.secret, decode_binary(keys["CHAP_C"]))
    pairs = {"CHAP_N": user.name, "CHAP_R": encode_binary(value)}
    answer = client.ask(initiator.login(pairs, Stage.SECURITY, Stage.FULL_FEATURE, first=False))
    assert isinstance(answer, p.LoginResponse)
    return LoginStatus(answer.status)


@pytest.mark.parametrize("redirector", [False, True])
@pytest.mark.parametrize("target", [None, SECOND], ids=["discovery", "an open target"])
def test_a_login_with_a_password_is_not_kept_out_by_those_without(redirector: bool, target: str | None) -> None:
    with served(CLOSED, redirector=redirector) as running:
        crowd = [running.client(Initiator(target=target, isid=bytes([0, 0, 0, 0, 0, n]))) for n in range(64)]
        for one in crowd:
            with contextlib.suppress(OSError):
                one.ask(one.initiator.login({} if target is None else OPERATIONAL))
        for n in range(3):
            with running.client(Initiator(name=f"iqn.2026-01.test:joe{n}")) as client:
                assert prove(client, JOE) is LoginStatus.SUCCESS
        for one in crowd:
            one.sock.close()


def test_a_user_has_no_more_than_a_share_of_the_sessions() -> None:
    with served(CLOSED) as running:
        clients = [running.client(Initiator(name=f"iqn.2026-01.test:joe{n}")) for n in range(8)]
        statuses = [prove(client, JOE) for client in clients]
        assert statuses == [LoginStatus.SUCCESS] * 6 + [LoginStatus.OUT_OF_RESOURCES] * 2
        for client in clients:
            client.sock.close()


def test_a_user_is_bound_to_names() -> None:
    with served(CLOSED) as running:
        for name, status in (("joe-1", LoginStatus.SUCCESS), ("ann", LoginStatus.FORBIDDEN)):
            with running.client(Initiator(name=f"iqn.2026-01.test:{name}")) as client:
                assert prove(client, JOE) is status


def test_another_user_does_not_end_a_session() -> None:
    with served(CLOSED) as running, running.client(Initiator(name="iqn.2026-01.test:joe")) as own:
        assert prove(own, JOE) is LoginStatus.SUCCESS
        with running.client(Initiator(name="iqn.2026-01.test:joe")) as other:
            assert prove(other, ANN) is LoginStatus.FORBIDDEN
            assert own.read(0, 1) == bytes(512)
        with running.client(Initiator(name="iqn.2026-01.test:joe")) as again:
            assert prove(again, JOE) is LoginStatus.SUCCESS
            assert own.receive() is None


# -- discovery --------------------------------------------------------------------------------------------------------


def addresses_told(running: Served, address: str) -> list[str]:
    running.address = address
    with running.client(Initiator(target=None)) as client:
        client.ask(client.initiator.login({}))
        answer = client.ask(p.TextRequest(itt=1, data=b"SendTargets=" + TARGET.encode() + b"\0"))
    assert answer is not None
    pairs = [pair.partition("=")[::2] for pair in bytes(answer.data).decode().split("\0") if pair]
    return [value for key, value in pairs if key == "TargetAddress"]


@pytest.mark.parametrize("redirector", [False, True])
def test_a_discovery_lists_every_address(redirector: bool) -> None:
    settings = PortalSettings(addresses=("127.0.0.1:0", "127.0.0.2:0", "[::1]:0"))
    with served(settings, redirector=redirector) as running:
        everywhere = {f"{address},1" for address in running.addresses}
        for address in list(running.addresses):
            told = addresses_told(running, address)
            assert set(told) == everywhere
            assert told[0] == f"{address},1"


def test_an_address_that_stands_for_all_is_told_as_the_client_reached_it() -> None:
    with served(PortalSettings(addresses=("0.0.0.0:0",), insecure=True)) as running:
        port = running.addresses[0].rpartition(":")[2]
        assert addresses_told(running, f"127.0.0.3:{port}") == [f"127.0.0.3:{port},1"]


def test_an_address_that_stands_for_all_of_the_other_family_is_told_as_the_hosts_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(portal_module, "own_addresses", lambda ipv6: ["2001:db8::1", "2001:db8::2"] if ipv6 else [])
    with served(PortalSettings(addresses=("127.0.0.1:0", "[::]:0"), insecure=True)) as running:
        here, six = running.addresses
        port = six.rpartition(":")[2]
        told = addresses_told(running, here)
    assert told == [f"{here},1", f"[2001:db8::1]:{port},1", f"[2001:db8::2]:{port},1"]


@pytest.mark.parametrize("redirector", [False, True])
def test_what_is_advertised_is_told_instead(redirector: bool) -> None:
    settings = PortalSettings(addresses=LOOPBACK, advertise=("disks.example.com", "192.0.2.7:3261"))
    with served(settings, redirector=redirector) as running:
        assert addresses_told(running, running.address) == ["disks.example.com:3260,1", "192.0.2.7:3261,1"]


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


def test_a_shorter_time_of_silence_counts_at_once() -> None:
    with served(limited(nop_interval=3600.0, nop_timeout=3600.0)) as running, running.client() as client:
        client.login()
        running.call(lambda: running.portal.configure(limited(nop_interval=0.05, nop_timeout=3600.0)))
        assert isinstance(client.receive(), p.NopIn)
        running.call(lambda: running.portal.configure(limited(nop_interval=0.05, nop_timeout=0.05)))
        assert client.receive() is None


def test_a_write_whose_data_is_still_to_come_is_answered_when_its_unit_has_gone(portal: Served) -> None:
    with portal.client() as client:
        client.login({"InitialR2T": "Yes", "ImmediateData": "No"})
        client.read(0, 1, lun=1)
        r2t = client.ask(client.initiator.command(cdb_10(0x2A, 5, 1), write=bytes(512), lun=1))
        assert isinstance(r2t, p.ReadyToTransfer)
        portal.call(lambda: portal.portal.targets[TARGET].remove(1, lambda: None))
        data = p.DataOut(flags=0x80, lun=r2t.lun, itt=r2t.itt, ttt=r2t.ttt, data_sn=0, offset=0, data=b"x" * 512)
        answer = client.ask(data)
        assert isinstance(answer, p.ScsiResponse)
        assert (answer.itt, answer.status, bytes(answer.data[14:16])) == (r2t.itt, 2, b"\x25\x00")
        assert client.read(0, 1) == bytes(512)


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


class Hanging(served_module.MemoryDisk):
    """A disk whose reads wait until they may go on."""

    go_on = threading.Event()

    @hookimpl
    def read(self, offset: int, buffers: list[memoryview]) -> None:
        assert self.go_on.wait(TIMEOUT)


def test_who_comes_and_goes_while_the_storage_hangs_is_refused_before_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served_module, "MemoryDisk", Hanging)
    Hanging.go_on.clear()
    with served(PortalSettings(addresses=LOOPBACK, limits=Limits(connections=4)), threads=2) as running:
        try:
            for number in range(40):
                with running.client(Initiator(isid=number.to_bytes(6, "big"))) as client:
                    answer = client.ask(client.initiator.login(OPERATIONAL))
                    assert isinstance(answer, p.LoginResponse)
                    if answer.status:
                        break
                    for _ in range(2):
                        client.sense(bytes(6))
                    client.send(client.initiator.read_10(0, 1))
                    assert isinstance(client.ask(p.NopOut(itt=900, immediate=True)), p.NopIn)  # it has begun
                while running.call(running.portal.sessions):
                    pass
            assert (number, answer.status) == (LEFT_BEHIND, LoginStatus.OUT_OF_RESOURCES)
            assert len(running.units[0].unit.tasks.active) == LEFT_BEHIND
        finally:
            Hanging.go_on.set()
        until = time.monotonic() + TIMEOUT
        while not running.call(lambda: running.units[0].idle) and time.monotonic() < until:
            pass
        with running.client() as client:
            client.login().read(0, 1)


def test_a_transport_id_is_the_name_and_the_isid() -> None:
    identity = transport_id("iqn.x", bytes.fromhex("800000010203"))
    assert identity == b"\x45\x00\x00\x18iqn.x,i,0x800000010203\0\0"
    assert len(identity) % 4 == 0
