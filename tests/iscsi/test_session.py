from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from concurrent.futures import Future

import pytest

from tcmu_core import hookimpl
from tcmu_core.disk.device import Device
from tcmu_core.errors import ReadError
from tcmu_core.iscsi import commands
from tcmu_core.iscsi import pdu as p
from tcmu_core.iscsi.constants import RESERVED_TAG, AsyncEvent, LogoutResponse, RejectReason
from tcmu_core.iscsi.settings import Limits, PortalSettings
from tcmu_core.posix import address
from tcmu_core.scsi.command import Command, Status
from tests.iscsi.initiator import Initiator, cdb_10, text_of
from tests.iscsi.wire import Answering, FakeHost, Scripted, Wire, logged_in

DIGESTS = {"HeaderDigest": "CRC32C", "DataDigest": "CRC32C"}


@pytest.fixture(params=[{}, DIGESTS], ids=["plain", "digests"])
def wire(request: pytest.FixtureRequest) -> Wire:
    """A session; each promise is kept with and without digests."""
    return logged_in(request.param)


def pattern(length: int) -> bytes:
    return bytes(n * 7 % 251 for n in range(length))


# -- reads ------------------------------------------------------------------------------------------------------------


def test_a_read_is_answered_with_one_data_in_that_carries_the_status(wire: Wire) -> None:
    wire.unit.disk[:4096] = pattern(4096)
    (answer,) = wire.send(wire.initiator.read_10(0, 8))
    assert isinstance(answer, p.DataIn)
    assert (answer.flags, answer.status, answer.residual) == (0x81, 0, 0)
    assert answer.data == pattern(4096)


def test_a_batch_of_reads_is_answered_in_order(wire: Wire) -> None:
    wire.unit.disk[:] = pattern(1 << 20)
    answers = wire.send(*[wire.initiator.read_10(n, 1) for n in range(100)])
    assert [answer.data for answer in answers] == [wire.unit.disk[n * 512 :][:512] for n in range(100)]
    assert [answer.itt for answer in answers] == list(range(1, 101))  # type: ignore[attr-defined]
    assert [answer.stat_sn for answer in answers] == list(range(1, 101))  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "agreed", [{}, {"HeaderDigest": "CRC32C"}, {"DataDigest": "CRC32C"}], ids=["plain", "header digest", "data digest"]
)
@pytest.mark.parametrize("length", [512, 509, 7])
def test_what_ends_later_is_answered_as_what_ends_at_once(agreed: dict[str, str], length: int) -> None:
    later: list[Future[Status]] = []

    def answer(command: Command) -> Future[Status]:
        command.put(pattern(length))
        later.append(Future())
        return later[-1]

    wire = logged_in(agreed, units=[Answering(answer)])  # type: ignore[arg-type]
    assert not wire.send(*[wire.initiator.command(b"\xc1", read=length) for _ in range(3)])
    for future in later:
        future.set_result(Status.GOOD)
    answers = wire.collect()
    assert [(answer.data, answer.flags, answer.residual) for answer in answers] == 3 * [(pattern(length), 0x81, 0)]  # type: ignore[attr-defined]


class Direct(Scripted):
    """A disk that wants its buffers where direct I/O can fill them."""

    @hookimpl
    def open(self, device: Device) -> None:
        super().open(device)
        device.buffer_alignment = 4096


@pytest.mark.parametrize("hold", [False, True], ids=["at once", "later"])
def test_reads_of_a_disk_that_wants_it_are_aligned_and_nothing_else_is_sent_for_that(hold: bool) -> None:
    unit = Direct()
    wire = logged_in(units=[unit])
    unit.disk[:] = pattern(1 << 20)
    unit.hold = hold
    lengths = [4096, 512, 65536, 512, 512, 262144, 4096]
    answers = wire.send(*[wire.initiator.read_10(n, length // 512) for n, length in enumerate(lengths)])
    while unit.held:
        unit.finish()
        answers += wire.collect()
    assert [answer.data for answer in answers] == [unit.disk[n * 512 :][:length] for n, length in enumerate(lengths)]
    assert [address(command.buffers[0]) % 512 for command in unit.commands] == [0] * len(lengths)  # type: ignore[operator]


def test_the_answers_do_not_depend_on_how_the_bytes_come() -> None:
    def requests(i: Initiator) -> list[p.Pdu]:
        write = i.write_10(8, pattern(1024))
        return [i.read_10(3, 3), write, i.read_10(8, 2), p.NopOut(itt=99, data=b"hello")]

    expected = None
    for step in (None, 1, 7, 47, 48, 49, 1000):
        wire = logged_in()
        answers = wire.send(*requests(wire.initiator), step=step)
        # What the window says depends on nothing but what was handled; so do all other fields.
        assert expected is None or answers == expected
        expected = answers


def test_a_read_longer_than_the_initiator_takes_comes_in_segments() -> None:
    wire = logged_in({"MaxRecvDataSegmentLength": "1000", "MaxBurstLength": "2500"})
    wire.unit.disk[:8192] = pattern(8192)
    answers = wire.send(wire.initiator.read_10(0, 16))
    assert all(isinstance(answer, p.DataIn) and len(answer.data) <= 1000 for answer in answers)
    data = bytearray(8192)
    for number, answer in enumerate(answers):
        assert isinstance(answer, p.DataIn)
        assert answer.data_sn == number
        data[answer.offset : answer.offset + len(answer.data)] = answer.data
    assert data == pattern(8192)


def test_each_burst_ends_with_the_f_bit_and_only_the_last_carries_status() -> None:
    wire = logged_in({"MaxRecvDataSegmentLength": "1024", "MaxBurstLength": "2048"})
    answers = wire.send(wire.initiator.read_10(0, 10))
    flags = [answer.flags for answer in answers]  # type: ignore[attr-defined]
    assert flags == [0x00, 0x80, 0x00, 0x80, 0x81]


def test_a_changed_segment_length_holds_from_then_on() -> None:
    wire = logged_in()
    wire.send(p.TextRequest(itt=1, data=b"MaxRecvDataSegmentLength=512\0"))
    assert len(wire.send(wire.initiator.read_10(0, 4))) == 4


@pytest.mark.parametrize(
    ("room", "blocks", "flags", "residual", "moved"),
    [(512, 2, 0x85, 512, 512), (1024, 1, 0x83, 512, 512), (700, 1, 0x83, 188, 512), (300, 1, 0x85, 212, 300)],
)
def test_a_read_of_another_length_moves_what_fits_and_tells_the_residual(
    wire: Wire, room: int, blocks: int, flags: int, residual: int, moved: int
) -> None:
    (answer,) = wire.send(wire.initiator.command(cdb_10(0x28, 0, blocks), read=room))
    assert isinstance(answer, p.DataIn)
    assert (answer.flags, answer.residual, len(answer.data)) == (flags, residual, moved)


def test_a_read_without_room_is_an_overflow(wire: Wire) -> None:
    (answer,) = wire.send(wire.initiator.command(cdb_10(0x28, 0, 1)))
    assert isinstance(answer, p.ScsiResponse)
    assert (answer.status, answer.flags, answer.residual) == (0, 0x84, 512)


def test_a_failed_read_gets_its_sense_and_no_data(wire: Wire) -> None:
    wire.unit.error = ReadError()
    (response,) = wire.send(wire.initiator.read_10(0, 1))
    assert isinstance(response, p.ScsiResponse)
    assert (response.status, response.flags, response.residual) == (2, 0x82, 512)
    assert int.from_bytes(response.data[:2], "big") == len(response.data) - 2
    assert bytes(response.data[14:16]) == b"\x11\x00"


def test_pending_reads_are_answered_as_they_end(wire: Wire) -> None:
    wire.unit.disk[:2048] = pattern(2048)
    wire.unit.hold = True
    assert wire.send(*[wire.initiator.read_10(n, 1) for n in range(4)]) == []
    for command in [wire.unit.held[n] for n in (2, 0, 3, 1)]:
        wire.unit.finish(command)
    answers = wire.collect()
    assert [answer.itt for answer in answers] == [3, 1, 4, 2]  # type: ignore[attr-defined]
    assert [answer.stat_sn for answer in answers] == [1, 2, 3, 4]  # type: ignore[attr-defined]
    assert answers[0].data == pattern(2048)[1024:1536]
    assert wire.notified == 4


def test_the_memory_of_a_pending_read_is_left_alone(wire: Wire) -> None:
    wire.unit.disk[:] = pattern(1 << 20)
    wire.unit.hold = True
    wire.send(wire.initiator.read_10(0, 8))
    wire.unit.hold = False
    for _ in range(3):
        wire.send(*[wire.initiator.read_10(100, 200) for _ in range(20)])
    wire.unit.finish()
    assert wire.collect()[0].data == pattern(4096)


def test_pending_commands_narrow_the_window_without_moving_it_back(wire: Wire) -> None:
    wire.unit.hold = True
    wire.send(*[wire.initiator.read_10(0, 1) for _ in range(5)])
    (nop,) = wire.send(p.NopOut(itt=50))
    assert isinstance(nop, p.NopIn)
    assert nop.max_cmd_sn == 129  # the login told 128; the NOP-Out alone has come and gone since
    while wire.unit.held:
        wire.unit.finish()
    assert wire.collect()[-1].max_cmd_sn == nop.exp_cmd_sn + 127  # type: ignore[attr-defined]


@pytest.mark.parametrize("agreed", [{}, DIGESTS], ids=["plain", "digests"])
def test_a_command_that_ends_while_another_is_taken_is_answered(agreed: dict[str, str]) -> None:
    slow = Scripted()

    def answer(_command: Command) -> Status:
        slow.finish()
        return Status.GOOD

    wire = logged_in(agreed, units=[slow, Answering(answer)])
    slow.hold = True
    wire.send(wire.initiator.read_10(0, 1))
    answers = wire.send(wire.initiator.command(bytes(6), lun=1))
    assert sorted(answer.itt for answer in answers) == [1, 2]  # type: ignore[attr-defined]
    assert [answer.stat_sn for answer in answers] == [1, 2]  # type: ignore[attr-defined]


def test_more_reads_than_the_outbox_holds_wait_for_the_peer() -> None:
    wire = logged_in()
    data = wire.initiator.encode(*[wire.initiator.read_10(0, 512) for _ in range(64)])
    room = wire.connection.room()
    room[: len(data)] = data
    wire.connection.received(len(data))
    limits = wire.host.settings.limits
    assert wire.connection.stalled
    assert wire.connection.outbox.queued <= limits.send_queue + 4 * limits.segment
    answers = wire.collect()
    while wire.connection.stalled:
        wire.connection.pump()
        answers += wire.collect()
    assert len(answers) == 64


def test_a_read_of_many_segments_is_the_last_of_its_batch() -> None:
    wire = logged_in({"MaxRecvDataSegmentLength": "512"})
    greedy = wire.initiator.command(cdb_10(0x28, 0, 1), read=0xFFFFFFFF)
    data = wire.initiator.encode(greedy, wire.initiator.read_10(0, 1))
    wire.connection.room()[: len(data)] = data
    wire.connection.received(len(data))
    assert len(wire.unit.commands) == 1
    assert wire.connection.stalled
    (answer,) = wire.collect()
    assert isinstance(answer, p.DataIn)
    assert answer.residual == 0xFFFFFFFF - 512
    wire.connection.pump()
    assert len(wire.unit.commands) == 2


# -- other commands ---------------------------------------------------------------------------------------------------


def test_a_command_without_data_is_answered_with_a_response(wire: Wire) -> None:
    (answer,) = wire.send(wire.initiator.command(bytes(6)))
    assert isinstance(answer, p.ScsiResponse)
    assert (answer.flags, answer.status, answer.residual) == (0x80, 0, 0)


def test_each_lun_has_its_own_unit(wire: Wire) -> None:
    wire.host.units[1].disk[:512] = b"1" * 512
    (answer,) = wire.send(wire.initiator.read_10(0, 1, lun=1))
    assert answer.data == b"1" * 512


def test_a_lun_may_be_addressed_flat(wire: Wire) -> None:
    wire.host.units[1].disk[:512] = b"1" * 512
    request = wire.initiator.read_10(0, 1)
    (answer,) = wire.send(
        p.ScsiCommand(flags=request.flags, lun=b"\x40\x01" + bytes(6), itt=5, expected_length=512, cdb=request.cdb)
    )
    assert answer.data == b"1" * 512


def test_a_lun_that_does_not_exist_is_told_by_the_target(wire: Wire) -> None:
    (answer,) = wire.send(wire.initiator.read_10(0, 1, lun=9))
    assert isinstance(answer, p.ScsiResponse)
    assert (answer.status, bytes(answer.data[14:16])) == (2, b"\x25\x00")


def test_a_long_cdb_reaches_the_unit_whole(wire: Wire) -> None:
    cdb = bytes([0x7F]) + bytes(range(31))
    wire.send(p.ScsiCommand(flags=0x81, itt=1, cdb=cdb[:16], ahs=p.extended_cdb(cdb)))
    assert wire.unit.commands[-1].cdb == cdb


def test_a_bidirectional_command_reports_that_nothing_was_read() -> None:
    wire = logged_in(units=[Answering(lambda command: Status.GOOD)])
    (answer,) = wire.send(
        p.ScsiCommand(flags=0xE1, itt=1, expected_length=0, cdb=b"\x53".ljust(16, b"\0"), ahs=p.bidi_read_length(512))
    )
    assert isinstance(answer, p.ScsiResponse)
    assert (answer.flags, answer.bidi_residual) == (0x88, 512)


def test_a_write_that_is_sent_as_a_read_writes_nothing(wire: Wire) -> None:
    before = bytes(wire.unit.disk)
    (answer,) = wire.send(wire.initiator.command(cdb_10(0x2A, 0, 1), read=512))
    assert wire.unit.disk == before
    assert isinstance(answer, p.ScsiResponse)
    assert answer.residual == 512


def test_a_handlers_own_command_finds_nothing_of_earlier_answers() -> None:
    found: list[bytes] = []

    def answer(command: Command) -> Status | None:
        if command.cdb[0] != 0xC1:
            return None
        found.append(command.take(512))  # what it would write to a disk, were it sent as a read
        return Status.GOOD

    wire = logged_in(units=[Answering(answer)])
    wire.unit.disk[:] = b"x" * len(wire.unit.disk)
    for _ in range(100):
        wire.send(wire.initiator.read_10(0, 128))
        (told,) = wire.send(wire.initiator.command(b"\xc1", read=512))
        assert isinstance(told, p.DataIn)
        assert bytes(told.data) == bytes(512)
    assert set(found) == {bytes(512)}


def test_a_read_that_is_sent_as_a_write_is_not_told_good_for_all(wire: Wire) -> None:
    (answer,) = wire.send(wire.initiator.command(cdb_10(0x28, 0, 1), write=bytes(512), data=bytes(512)))
    assert isinstance(answer, p.ScsiResponse)
    assert (answer.flags, answer.residual) == (0x82, 512)


def test_attributes_reach_the_unit(wire: Wire) -> None:
    request = wire.initiator.read_10(0, 1)
    wire.send(p.ScsiCommand(flags=0xC2, itt=1, expected_length=512, cdb=request.cdb, lun=request.lun))
    assert wire.unit.commands[-1].attribute == 2


# -- order ------------------------------------------------------------------------------------------------------------


def test_commands_run_in_the_order_of_their_numbers(wire: Wire) -> None:
    numbered = [wire.initiator.number(wire.initiator.read_10(n, 1)) for n in range(4)]
    encode = wire.initiator.framing.encode
    assert wire.feed(encode(numbered[2]) + encode(numbered[1]) + encode(numbered[3])) == []
    answers = wire.feed(encode(numbered[0]))
    assert [answer.itt for answer in answers] == [1, 2, 3, 4]  # type: ignore[attr-defined]


@pytest.mark.parametrize("agreed", [{}, DIGESTS], ids=["plain", "digests"])
def test_very_many_commands_may_come_out_of_order(agreed: dict[str, str]) -> None:
    wire = logged_in(agreed, PortalSettings(limits=Limits(queue_depth=2000)))
    encode, number = wire.initiator.framing.encode, wire.initiator.number
    requests = [encode(number(wire.initiator.read_10(n, 1))) for n in range(1500)]
    assert wire.feed(b"".join(requests[:0:-1])) == []
    answers = wire.feed(requests[0])
    assert [answer.itt for answer in answers] == list(range(1, 1501))  # type: ignore[attr-defined]


def test_very_many_commands_may_end_at_once() -> None:
    wire = logged_in(settings=PortalSettings(limits=Limits(queue_depth=2000)))
    wire.unit.hold = True
    wire.send(*[wire.initiator.read_10(n, 1) for n in range(1500)])
    pending, wire.unit.held = wire.unit.held, []
    for one in pending:
        one.run()
        one.future.set_result(None)
    assert len(wire.collect()) == 1500


def test_data_follows_a_write_that_waits_for_its_turn(wire: Wire) -> None:
    first = wire.initiator.number(wire.initiator.read_10(0, 1))
    write = wire.initiator.number(wire.initiator.write_10(0, pattern(1024), 512, final=False))
    data = p.DataOut(itt=2, data=pattern(1024)[512:], offset=512)
    encode = wire.initiator.framing.encode
    assert wire.feed(encode(write) + encode(data)) == []
    assert len(wire.feed(encode(first))) == 2
    assert wire.unit.disk[:1024] == pattern(1024)


@pytest.mark.parametrize("offset", [-1, 128, 1 << 31])
def test_a_number_outside_of_the_window_is_ignored(wire: Wire, offset: int) -> None:
    wire.initiator.cmd_sn = (1 + offset) & 0xFFFFFFFF
    assert wire.send(wire.initiator.read_10(0, 1)) == []
    wire.initiator.cmd_sn = 1
    assert len(wire.send(wire.initiator.read_10(0, 1))) == 1


def test_a_number_that_is_waiting_already_is_ignored(wire: Wire) -> None:
    later = p.ScsiCommand(flags=0x81, itt=5, cmd_sn=2)
    assert wire.feed(wire.initiator.framing.encode(later) * 2) == []
    assert len(wire.send(wire.initiator.read_10(0, 1))) == 2


def test_an_immediate_command_runs_at_once_and_uses_no_number(wire: Wire) -> None:
    (answer,) = wire.send(p.ScsiCommand(immediate=True, flags=0x81, itt=5))
    assert answer.exp_cmd_sn == 1  # type: ignore[attr-defined]
    assert len(wire.send(wire.initiator.read_10(0, 1))) == 1


def test_numbers_go_on_past_their_end(wire: Wire) -> None:
    wire = Wire(wire.host)
    wire.initiator.cmd_sn = 0xFFFFFFFE
    wire.login()
    assert len(wire.send(*[wire.initiator.read_10(0, 1) for _ in range(5)])) == 5
    assert wire.session.exp_cmd_sn == 3


# -- pings, text, logout ----------------------------------------------------------------------------------------------


def test_a_ping_comes_back_with_its_data(wire: Wire) -> None:
    (answer,) = wire.send(p.NopOut(itt=5, lun=b"\0\1" + bytes(6), data=b"hello"))
    assert isinstance(answer, p.NopIn)
    assert (answer.itt, answer.ttt, answer.data) == (5, RESERVED_TAG, b"hello")


def test_a_ping_without_tag_is_not_answered(wire: Wire) -> None:
    assert wire.send(p.NopOut(immediate=True)) == []


def test_a_silent_peer_is_pinged_and_then_given_up(wire: Wire) -> None:
    limits = wire.session.limits
    assert wire.session.check_alive() == limits.nop_interval  # it has just logged in
    assert wire.session.check_alive() == limits.nop_timeout
    (ping,) = wire.collect()
    assert isinstance(ping, p.NopIn)
    assert (ping.itt, ping.ttt != RESERVED_TAG) == (RESERVED_TAG, True)
    assert wire.session.check_alive() is None


def test_a_peer_that_answers_lives_on(wire: Wire) -> None:
    wire.session.check_alive()
    wire.session.check_alive()
    (ping,) = wire.collect()
    assert wire.send(p.NopOut(immediate=True, ttt=ping.ttt)) == []  # type: ignore[attr-defined]
    assert wire.session.check_alive() is not None
    assert wire.session.check_alive() is not None


def test_our_ping_takes_no_status_number(wire: Wire) -> None:
    wire.session.check_alive()
    wire.session.check_alive()
    (ping,) = wire.collect()
    (answer,) = wire.send(p.NopOut(itt=1))
    assert answer.stat_sn == ping.stat_sn  # type: ignore[attr-defined]


def test_a_normal_session_hears_of_its_own_target(wire: Wire) -> None:
    (answer,) = wire.send(p.TextRequest(itt=3, data=b"SendTargets=\0"))
    assert isinstance(answer, p.TextResponse)
    assert text_of(answer) == {"TargetName": wire.initiator.target, "TargetAddress": "127.0.0.1:3260,1"}


def test_a_discovery_session_lists_all_targets_and_does_nothing_else() -> None:
    wire = Wire(initiator=Initiator(target=None))
    wire.login()
    (answer,) = wire.send(p.TextRequest(itt=3, data=b"SendTargets=All\0"))
    assert "TargetName" in text_of(answer)
    for request in (wire.initiator.read_10(0, 1), p.TaskManagementRequest(function=0x85, itt=4)):
        (answer,) = wire.send(request)
        assert isinstance(answer, p.Reject)
        assert answer.reason == RejectReason.PROTOCOL_ERROR


@pytest.mark.parametrize(
    ("reason", "cid", "response", "ends"),
    [
        (0, 0, LogoutResponse.CLOSED, True),
        (1, 1, LogoutResponse.CLOSED, True),
        (1, 2, LogoutResponse.NO_CID, False),
        (2, 1, LogoutResponse.NO_RECOVERY, False),
    ],
)
def test_a_logout_is_answered(wire: Wire, reason: int, cid: int, response: LogoutResponse, ends: bool) -> None:
    (answer,) = wire.send(p.LogoutRequest(reason=0x80 | reason, itt=9, cid=cid))
    assert isinstance(answer, p.LogoutResponsePdu)
    assert answer.response == response
    assert (wire.connection.ended is not None) == ends


def test_nothing_runs_after_a_logout(wire: Wire) -> None:
    answers = wire.send(p.LogoutRequest(reason=0x80, itt=9), wire.initiator.read_10(0, 1))
    assert len(answers) == 1
    assert not wire.unit.commands


def test_closing_leaves_the_target_and_drops_what_is_under_way(wire: Wire) -> None:
    wire.unit.hold = True
    wire.send(wire.initiator.read_10(0, 1), wire.initiator.write_10(0, pattern(1024), 512))
    wire.collect()
    wire.connection.close()
    wire.unit.finish()
    assert wire.unit.calls == ["detach"]
    assert wire.collect() == []


def test_an_initiator_is_asked_to_log_out(wire: Wire) -> None:
    wire.session.ask_logout(5)
    (message,) = wire.collect()
    assert isinstance(message, p.AsyncMessage)
    assert (message.event, message.parameter3) == (AsyncEvent.LOGOUT_REQUEST, 5)


def test_two_sessions_share_a_unit() -> None:
    host = FakeHost()
    one, two = Wire(host), Wire(host, Initiator(name="iqn.2026-01.test:two"))
    one.login()
    two.login()
    one.send(one.initiator.write_10(0, pattern(512)))
    (answer,) = two.send(two.initiator.read_10(0, 1))
    assert answer.data == pattern(512)


@pytest.mark.parametrize("agreed", [{}, DIGESTS], ids=["plain", "digests"])
def test_what_a_command_claims_to_read_costs_nothing(agreed: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    laid: list[int] = []
    real = commands.lay_out

    def lay_out(at: int, length: int, *rest: int) -> object:
        laid.append(length)
        return real(at, length, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(commands, "lay_out", lay_out)
    wire = logged_in({"MaxRecvDataSegmentLength": "512", **agreed})
    for cdb in (bytes(6), cdb_10(0x2A, 0, 1), b"\x35" + bytes(9), cdb_10(0x28, 0, 1)):
        wire.send(wire.initiator.command(cdb, read=0xFFFFFFFF))
    assert max(laid) <= 512


def test_a_command_has_a_bounded_number_of_segments() -> None:
    wire = logged_in({"MaxRecvDataSegmentLength": "512"}, units=[Scripted(8 << 20)])
    answers = wire.send(wire.initiator.read_10(0, 16384))
    assert len(answers) == 2048
    last = answers[-1]
    assert isinstance(last, p.DataIn)
    assert (last.flags, last.residual) == (0x83, 7 << 20)


# -- what ended may still write ---------------------------------------------------------------------------------------

END: dict[str, Callable[[Wire], object]] = {
    "the connection breaks": lambda wire: wire.connection.close(),
    "logout": lambda wire: (wire.send(p.LogoutRequest(reason=0x80, itt=99)), wire.connection.close()),
    "aborted, then logout": lambda wire: (
        wire.send(p.TaskManagementRequest(immediate=True, function=0x82, itt=98)),
        wire.send(p.LogoutRequest(reason=0x80, itt=99)),
        wire.connection.close(),
    ),
}


@pytest.mark.parametrize("end", END.values(), ids=END)
def test_a_write_of_a_session_that_has_ended_never_lands_on_a_newer_one(end: Callable[[Wire], object]) -> None:
    host = FakeHost()
    unit = host.units[0]
    old, new = Wire(host), Wire(host)
    old.login()
    unit.hold = True
    old.send(old.initiator.write_10(8, b"old!" * 128))
    end(old)
    unit.hold = False
    assert new.login().status == 0  # at once
    (answer,) = new.send(new.initiator.write_10(100, b"else" * 128))
    assert answer.status == 0  # type: ignore[attr-defined]
    assert new.send(new.initiator.write_10(8, b"new!" * 128)) == []  # it waits for the hook
    unit.finish()
    (answer,) = new.collect()
    assert answer.status == 0  # type: ignore[attr-defined]
    assert unit.disk[8 * 512 : 9 * 512] == b"new!" * 128


def test_a_session_that_has_ended_is_free_when_its_commands_have_ended() -> None:
    host = FakeHost()
    host.units[0].watch = False
    wire = Wire(host)
    wire.login()
    host.units[0].hold = True
    wire.send(wire.initiator.write_10(8, bytes(4096)), wire.initiator.read_10(0, 8))
    host.sessions.clear()
    session = weakref.ref(wire.session)
    wire.connection.close()
    while host.units[0].held:
        host.units[0].finish()
    wire.connection.session = None
    wire.connection.pump = lambda: None
    gc.collect()
    assert session() is None
    assert host.budget.used < 4096
