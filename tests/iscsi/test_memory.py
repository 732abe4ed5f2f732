"""What one session, and all sessions of a process, can make us keep: never more than the limits say."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest

from tcmu_core.iscsi import pdu as p
from tcmu_core.iscsi.budget import Account, Budget
from tcmu_core.iscsi.buffers import Inbox, Outbox
from tcmu_core.iscsi.connection import GUARANTEED
from tcmu_core.iscsi.constants import BHS
from tcmu_core.iscsi.settings import Limits, PortalSettings
from tcmu_core.scsi.command import Status
from tests.iscsi.initiator import Initiator, cdb_10
from tests.iscsi.test_writes import data_out, good, pattern
from tests.iscsi.wire import FakeHost, Scripted, Wire, logged_in

MIB = 1 << 20
DIGESTS = {"HeaderDigest": "CRC32C", "DataDigest": "CRC32C"}
SOLICITED = {"InitialR2T": "Yes", "ImmediateData": "No"}
SHARE = GUARANTEED * (BHS + Limits().segment)


def limited(**limits: int) -> PortalSettings:
    return PortalSettings(limits=Limits(**limits))


def session(agreed: Mapping[str, str] | None = None, settings: PortalSettings | None = None) -> Wire:
    """Return a session whose unit keeps no command that has ended."""
    wire = logged_in(agreed, settings)
    wire.unit.watch = False
    return wire


def pump_on(wire: Wire) -> list[p.Pdu]:
    """Let hooks return, and the session go on, until nothing is left to do."""
    answers = wire.collect()
    while wire.unit.held or (wire.connection.stalled and not wire.connection.blocked):
        if wire.unit.held:
            wire.unit.finish()
        answers += wire.collect()
        if wire.connection.stalled and not wire.connection.blocked:
            wire.connection.pump()
            answers += wire.collect()
    return answers


# -- the account ------------------------------------------------------------------------------------------------------


def test_a_block_counts_until_its_last_view_has_gone() -> None:
    budget = Budget(10 * MIB)
    account = budget.account(MIB, 0)
    part = account.block(1000)[10:20]
    assert account.used == budget.used > 1000
    del part
    assert account.used == budget.used == 0


def test_a_block_may_die_in_any_thread() -> None:
    budget = Budget(10 * MIB)
    account = budget.account(MIB, 0)
    views = [account.block(1000)]
    thread = threading.Thread(target=views.clear)
    thread.start()
    thread.join()
    assert account.used == 0


def test_a_guaranteed_share_is_there_whatever_the_others_took() -> None:
    budget = Budget(MIB)
    hog, other = budget.account(10 * MIB, 0), budget.account(10 * MIB, 1000)
    hog.charge(2 * MIB)
    assert other.allows(1000)
    assert not other.allows(1001)
    assert not hog.allows(1)


def test_nobody_takes_more_than_is_left_for_everybody() -> None:
    budget = Budget(8 * MIB)
    accounts = [budget.account(8 * MIB, 0) for _ in range(4)]
    for account in accounts:
        while account.allows(1024):
            account.charge(1024)
    assert [account.used // MIB for account in accounts] == [4, 2, 1, 0]
    assert budget.used < 8 * MIB


# -- buffers ----------------------------------------------------------------------------------------------------------


def test_an_inbox_grows_while_much_comes_and_shrinks_when_it_is_idle() -> None:
    account = Budget(100 * MIB).account(10 * MIB, 0)
    inbox = Inbox(account, MIB)
    for _ in range(6):
        room = inbox.room()
        inbox.end += len(room)
        inbox.filled()
        inbox.start = inbox.end
    assert len(inbox.room()) == MIB
    inbox.shrink()
    assert len(inbox.room()) == 65536


def test_an_outbox_that_nobody_reads_keeps_few_views() -> None:
    outbox = Outbox(Budget(100 * MIB).account(10 * MIB, 0), MIB, MIB)
    for _ in range(1000):
        outbox.append(bytes(48))
        outbox.close_run()
    assert outbox.queued == 48000
    assert len(outbox.queue) == 1


def test_an_outbox_gives_back_what_one_large_command_needed() -> None:
    account = Budget(100 * MIB).account(64 * MIB, 0)
    outbox = Outbox(account, MIB, MIB)
    assert outbox.make_room(16 * MIB)
    outbox.append(bytes(48))
    outbox.close_run()
    outbox.sent(48)
    assert account.used < 2 * MIB


def test_an_idle_connection_gives_its_memory_back() -> None:
    wire = session()
    wire.send(*[wire.initiator.read_10(0, 512) for _ in range(16)])
    wire.send(*[wire.initiator.write_10(0, bytes(65536)) for _ in range(64)])
    assert wire.session.account.used > 8 * 65536
    wire.connection.shrink()
    assert wire.session.account.used < 3 * 65536
    good(*wire.send(wire.initiator.write_10(0, pattern(65536))))
    assert wire.unit.disk[:65536] == pattern(65536)


def test_a_closed_connection_keeps_nothing() -> None:
    wire = session()
    wire.send(*[wire.initiator.read_10(0, 512) for _ in range(4)])
    wire.send(wire.initiator.write_10(0, bytes(65536), 512, final=False))
    wire.initiator.cmd_sn += 2
    wire.send(wire.initiator.write_10(0, bytes(4096)))
    wire.connection.close()
    assert wire.host.budget.used < 4096


# -- one session ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("agreed", [{}, DIGESTS], ids=["plain", "digests"])
def test_a_session_with_too_much_pending_takes_no_more_until_some_ends(agreed: dict[str, str]) -> None:
    wire = session(agreed, limited(memory=2 * MIB))
    wire.unit.hold = True
    answers = wire.send(*[wire.initiator.read_10(0, 512) for _ in range(16)])
    assert answers == []
    assert 0 < len(wire.unit.held) < 8
    assert wire.connection.blocked
    assert wire.session.account.used <= 2 * MIB
    answers = pump_on(wire)
    assert [len(answer.data) for answer in answers] == [262144] * 16


@pytest.mark.parametrize("agreed", [{}, DIGESTS], ids=["plain", "digests"])
@pytest.mark.parametrize("hold", [False, True], ids=["at once", "later"])
def test_reads_that_become_due_together_take_turns(agreed: dict[str, str], hold: bool) -> None:
    wire = session(agreed)
    wire.unit.hold = hold
    encode, number = wire.initiator.framing.encode, wire.initiator.number
    requests = [encode(number(wire.initiator.read_10(0, 2048))) for _ in range(100)]
    assert wire.feed(b"".join(requests[1:])) == []
    room = wire.connection.room()
    room[: len(requests[0])] = requests[0]
    wire.connection.received(len(requests[0]))
    most, answers = 0, wire.collect()
    while len(answers) < 400:
        most = max(most, wire.session.account.used)
        if wire.unit.held:
            wire.unit.finish()
        if wire.connection.stalled and not wire.connection.blocked:
            wire.connection.pump()
        most = max(most, wire.session.account.used)
        answers += wire.collect()
    assert most <= Limits().memory
    assert {(type(answer), len(answer.data)) for answer in answers} == {(p.DataIn, 262144)}


@pytest.mark.parametrize("agreed", [{}, DIGESTS], ids=["plain", "digests"])
def test_writes_of_which_little_has_come_take_little(agreed: dict[str, str]) -> None:
    wire = session(agreed)
    for tag in range(1, 100):
        command = wire.initiator.command(cdb_10(0x2A, 0, 32768), write=b"", final=False)
        command = replace(command, expected_length=16 * MIB)
        pieces = [p.DataOut(flags=0, itt=tag, data=bytes(4), offset=4 * n, data_sn=n) for n in range(66)]
        assert wire.send(command, *pieces) == []
    assert len(wire.session.transfers) == 99
    assert wire.session.account.used < 16 * MIB


def test_data_of_very_many_pieces_is_packed_at_no_more_than_twice_its_size() -> None:
    wire = session()
    data = pattern(60000)
    wire.send(wire.initiator.write_10(0, data + bytes(1440), 0, final=False))
    before = wire.session.account.used
    for n in range(0, 60000, 60):
        piece = p.DataOut(flags=0, itt=1, data=data[n : n + 60], offset=n, data_sn=n // 60)
        assert wire.send(piece) == []
    assert wire.session.account.used < before + 4 * 60000
    good(*wire.send(p.DataOut(itt=1, data=bytes(1440), offset=60000, data_sn=1000)))
    assert wire.unit.disk[:60000] == data


def test_memory_that_data_is_packed_into_is_taken_little_by_little(monkeypatch: pytest.MonkeyPatch) -> None:
    wire = logged_in(SOLICITED, units=[Scripted(8 * MIB)])
    taken: list[int] = []
    block = Account.block

    def noted(account: Account, size: int) -> memoryview:
        taken.append(size)
        return block(account, size)

    monkeypatch.setattr(Account, "block", noted)
    data = pattern(5 * MIB)
    asked = wire.send(wire.initiator.command(cdb_10(0x2A, 0, len(data) // 512), write=data))
    while isinstance(r2t := asked[-1], p.ReadyToTransfer):
        asked = wire.send(*data_out(r2t, data, 4096))
    good(*asked)
    assert len(taken) >= 5
    assert max(taken) <= 2 * MIB  # what is received is in one of 2 MiB
    assert wire.unit.disk[: len(data)] == data


def test_pieces_that_pin_their_memory_are_packed_when_there_is_no_more() -> None:
    wire = session(settings=limited(memory=2 * MIB))
    data = pattern(65536)
    for _ in range(60):  # the little that has come of each lies between much else
        command = wire.initiator.write_10(0, data, 512, final=False)
        answers = wire.send(command, p.NopOut(itt=1000, data=bytes(200000)))
        assert [type(answer) for answer in answers] == [p.NopIn]
    assert wire.session.ended is None
    assert wire.session.account.used <= 2 * MIB + SHARE


def test_writes_that_are_too_much_together_wait_for_each_other() -> None:
    wire = session(SOLICITED, limited(memory=2 * MIB, segment=65536))
    data = pattern(524288)
    asked = wire.send(*[wire.initiator.write_10(0, data, 0) for _ in range(5)])
    assert len(asked) == 3  # the others have to wait
    ended = []
    while asked:
        r2t = asked.pop(0)
        assert isinstance(r2t, p.ReadyToTransfer)
        for answer in wire.send(*data_out(r2t, data, 65536)):
            (ended if isinstance(answer, p.ScsiResponse) else asked).append(answer)
        assert wire.session.account.used <= 2 * MIB
    assert len(ended) == 5
    for answer in ended:
        good(answer)
    assert wire.unit.disk[:524288] == data


def test_a_write_that_waits_for_memory_may_be_aborted() -> None:
    wire = session(SOLICITED, limited(memory=2 * MIB, segment=65536))
    data = pattern(524288)
    asked = wire.send(*[wire.initiator.write_10(0, data, 0) for _ in range(5)])
    (response,) = wire.send(p.TaskManagementRequest(immediate=True, function=0x81, itt=99, referenced_tag=4))
    assert isinstance(response, p.TaskManagementResponse)
    assert response.response == 0
    ended = set()
    while asked:
        r2t = asked.pop(0)
        assert isinstance(r2t, p.ReadyToTransfer)
        for answer in wire.send(*data_out(r2t, data, 65536)):
            if isinstance(answer, p.ScsiResponse):
                ended.add(answer.itt)
            else:
                asked.append(answer)
    assert ended == {1, 2, 3, 5}


# -- all sessions -----------------------------------------------------------------------------------------------------


def hog(host: FakeHost, number: int) -> Wire:
    wire = Wire(host, Initiator(name=f"iqn.2026-01.test:hog{number}"))
    wire.login()
    return wire


def unread(wire: Wire) -> None:
    """Ask for much, and read nothing."""
    fill(wire, wire.initiator.encode(*[wire.initiator.command(cdb_10(0x28, 0, 2048), read=MIB) for _ in range(60)]))


def unfinished(wire: Wire) -> None:
    """Announce much, and send a little of each."""
    for _ in range(120):
        command = wire.initiator.write_10(0, bytes(65536), 0, final=False)
        fill(wire, wire.initiator.encode(command, p.DataOut(flags=0, itt=command.itt, data=bytes(40000))))


def ahead(wire: Wire) -> None:
    """Send what can't run before what never comes."""
    wire.initiator.cmd_sn += 1
    fill(wire, wire.initiator.encode(*[wire.initiator.write_10(0, bytes(60000)) for _ in range(100)]))


def pinging(wire: Wire) -> None:
    """Have pings answered that nobody reads."""
    fill(wire, wire.initiator.encode(*[p.NopOut(itt=n, data=bytes(200000)) for n in range(60)]))


def fill(wire: Wire, data: bytes) -> None:
    """Let data arrive as far as there is room, and send nothing of what is answered."""
    while data and wire.connection.ended is None and not wire.connection.stalled:
        room = wire.connection.room() or wire.connection.squeeze()
        if not room:
            return
        count = min(len(room), len(data))
        room[:count] = data[:count]
        data = data[count:]
        wire.connection.received(count)


@pytest.mark.parametrize("attack", [unread, unfinished, ahead, pinging])
def test_many_greedy_sessions_leave_a_good_one_what_it_needs(attack: Callable[[Wire], None]) -> None:
    total, many = 32 * MIB, 24
    host = FakeHost(limited(total=total))
    host.units[0].watch = False
    good_one = Wire(host, Initiator(name="iqn.2026-01.test:good"))
    good_one.login()
    hogs = [hog(host, number) for number in range(many)]
    for wire in hogs:
        attack(wire)
    assert host.budget.used <= total + (many + 1) * SHARE
    for lba in range(0, 2048, 512):
        good(*good_one.send(good_one.initiator.write_10(lba, pattern(65536))))
        (answer,) = good_one.send(good_one.initiator.read_10(lba, 128))
        assert answer.data == pattern(65536)
        (answer,) = good_one.send(good_one.initiator.read_10(0, 512))
        assert len(answer.data) == 262144
    for wire in hogs:
        wire.connection.close()
    assert host.budget.used < 4 * MIB


@pytest.mark.parametrize("agreed", [{}, DIGESTS], ids=["plain", "digests"])
def test_what_there_is_no_memory_for_is_to_come_again(agreed: dict[str, str]) -> None:
    host = FakeHost(limited(total=2 * MIB))
    wire = Wire(host)
    wire.login(agreed)
    hogs = host.budget.account(2 * MIB, 0)
    hogs.charge(2 * MIB)
    (answer,) = wire.send(wire.initiator.read_10(0, 2048))
    assert isinstance(answer, p.ScsiResponse)
    assert (answer.status, answer.residual, bytes(answer.data)) == (Status.BUSY, MIB, b"")
    (answer,) = wire.send(wire.initiator.write_10(0, bytes(MIB), 0))
    assert isinstance(answer, p.ScsiResponse)
    assert (answer.status, bytes(answer.data)) == (Status.BUSY, b"")
    (answer,) = wire.send(wire.initiator.read_10(0, 8))
    assert isinstance(answer, p.DataIn)
    hogs.release(2 * MIB)
    assert len(wire.send(wire.initiator.read_10(0, 2048))) == 4


def test_a_command_that_claims_to_move_much_more_than_it_can_takes_no_more() -> None:
    wire = session()
    before = wire.session.account.used
    wire.unit.hold = True
    wire.send(
        wire.initiator.command(bytes(6), read=0xFFFFFFFF), wire.initiator.command(cdb_10(0x28, 0, 1), read=1 << 30)
    )
    assert len(wire.unit.held) == 1
    assert wire.session.account.used == before


@pytest.mark.parametrize("agreed", [{}, DIGESTS], ids=["plain", "digests"])
def test_no_more_data_is_asked_for_than_a_write_can_move(agreed: dict[str, str]) -> None:
    wire = session(SOLICITED | agreed)
    command = replace(wire.initiator.write_10(0, pattern(131072), 0), expected_length=1 << 30)
    (r2t,) = wire.send(command)
    assert isinstance(r2t, p.ReadyToTransfer)
    assert r2t.length == 131072
    (answer,) = wire.send(*data_out(r2t, pattern(131072)))
    assert isinstance(answer, p.ScsiResponse)
    assert (answer.status, answer.flags, answer.residual) == (0, 0x82, (1 << 30) - 131072)
