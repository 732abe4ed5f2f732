from __future__ import annotations

from dataclasses import replace

import pytest

from tcmu_core.iscsi import pdu as p
from tcmu_core.iscsi.constants import RejectReason, TaskFunction, TaskResponse
from tests.iscsi.initiator import Initiator
from tests.iscsi.wire import FakeHost, Wire, logged_in

LUN_1 = b"\0\1" + bytes(6)


def request(function: int, **fields: object) -> p.TaskManagementRequest:
    return p.TaskManagementRequest(immediate=True, function=0x80 | function, itt=1000, **fields)  # type: ignore[arg-type]


def response_of(pdus: list[p.Pdu]) -> TaskResponse:
    (pdu,) = pdus
    assert isinstance(pdu, p.TaskManagementResponse)
    assert pdu.itt == 1000
    return TaskResponse(pdu.response)


@pytest.fixture
def wire() -> Wire:
    return logged_in()


def test_a_pending_command_is_aborted_without_a_response(wire: Wire) -> None:
    wire.unit.hold = True
    wire.send(wire.initiator.read_10(0, 1), wire.initiator.read_10(1, 1))
    assert wire.send(request(TaskFunction.ABORT_TASK, referenced_tag=1)) == []  # its hook has not returned
    wire.unit.finish()
    assert response_of(wire.collect()) == TaskResponse.COMPLETE
    wire.unit.finish()
    (answer,) = wire.collect()
    assert answer.itt == 2  # type: ignore[attr-defined]


def test_a_write_that_waits_for_data_is_aborted_and_its_data_passed_over(wire: Wire) -> None:
    wire.send(wire.initiator.write_10(0, bytes(1024), 512, final=False))
    assert response_of(wire.send(request(TaskFunction.ABORT_TASK, referenced_tag=1))) == TaskResponse.COMPLETE
    assert wire.send(p.DataOut(itt=1, data=bytes(512), offset=512)) == []
    assert not wire.unit.commands


def test_a_command_that_has_ended_is_no_task_any_more(wire: Wire) -> None:
    wire.send(wire.initiator.read_10(0, 1))
    answer = wire.send(request(TaskFunction.ABORT_TASK, referenced_tag=1, ref_cmd_sn=1))
    assert response_of(answer) == TaskResponse.NO_TASK


def test_a_command_of_another_lun_is_not_aborted(wire: Wire) -> None:
    wire.unit.hold = True
    wire.send(wire.initiator.read_10(0, 1))
    answer = wire.send(request(TaskFunction.ABORT_TASK, referenced_tag=1, lun=LUN_1))
    assert response_of(answer) == TaskResponse.NO_TASK


def test_a_command_that_was_aborted_before_it_came_is_skipped(wire: Wire) -> None:
    lost = wire.initiator.number(wire.initiator.read_10(0, 1))
    waiting = wire.initiator.encode(wire.initiator.read_10(1, 1))
    assert wire.feed(waiting) == []
    response, answer = wire.send(request(TaskFunction.ABORT_TASK, referenced_tag=1, ref_cmd_sn=1))[::-1]
    assert isinstance(response, p.TaskManagementResponse)
    assert response.response == TaskResponse.COMPLETE
    assert answer.itt == 2  # type: ignore[attr-defined]
    assert wire.feed(wire.initiator.framing.encode(lost)) == []


def test_the_data_of_a_command_that_was_aborted_before_its_turn_is_passed_over(wire: Wire) -> None:
    late = wire.initiator.encode(wire.initiator.read_10(0, 1, lun=1))
    write = wire.initiator.write_10(0, b"o" * 1024, 512, final=False)
    assert wire.send(write) == []
    answer = wire.send(request(TaskFunction.ABORT_TASK, referenced_tag=write.itt, ref_cmd_sn=2))
    assert response_of(answer) == TaskResponse.COMPLETE
    assert wire.send(p.DataOut(itt=write.itt, data=b"o" * 512, offset=512, flags=0x80)) == []
    assert [pdu.itt for pdu in wire.feed(late)] == [1]  # type: ignore[attr-defined]
    assert not wire.session.held


@pytest.mark.parametrize(
    ("function", "call"),
    [
        (TaskFunction.ABORT_TASK_SET, "abort task set"),
        (TaskFunction.CLEAR_TASK_SET, "clear task set"),
        (TaskFunction.LOGICAL_UNIT_RESET, "reset"),
        (TaskFunction.TARGET_WARM_RESET, "reset"),
        (TaskFunction.TARGET_COLD_RESET, "reset"),
    ],
)
def test_a_set_of_tasks_is_aborted(wire: Wire, function: TaskFunction, call: str) -> None:
    wire.unit.hold = True
    wire.send(wire.initiator.read_10(0, 1), wire.initiator.write_10(0, bytes(1024), 512, final=False))
    assert wire.send(request(function)) == []
    assert wire.unit.calls == [call]
    wire.unit.finish()
    assert response_of(wire.collect()) == TaskResponse.COMPLETE
    assert wire.send(p.DataOut(itt=2, data=bytes(512), offset=512)) == []


@pytest.mark.parametrize("lun", [bytes(8), b"\x40\0" + bytes(6), LUN_1])
@pytest.mark.parametrize(
    "function",
    [
        TaskFunction.ABORT_TASK_SET,
        TaskFunction.CLEAR_TASK_SET,
        TaskFunction.LOGICAL_UNIT_RESET,
        TaskFunction.TARGET_WARM_RESET,
    ],
)
def test_what_waits_for_its_turn_does_not_run_behind_an_immediate_request(
    wire: Wire, function: TaskFunction, lun: bytes
) -> None:
    late = wire.initiator.encode(wire.initiator.read_10(0, 1, lun=1))
    write = wire.initiator.write_10(0, b"o" * 1024, 512, final=False)
    assert wire.send(write) == []
    assert response_of(wire.send(request(function, lun=lun))) == TaskResponse.COMPLETE
    mine = lun != LUN_1 or function == TaskFunction.TARGET_WARM_RESET
    assert wire.send(p.DataOut(itt=write.itt, data=b"o" * 512, offset=512, flags=0x80)) == []
    after = wire.initiator.write_10(1, b"n" * 512)
    wire.send(after)
    answers = [pdu.itt for pdu in wire.feed(late)]  # type: ignore[attr-defined]
    assert answers == [1, after.itt] if mine else [1, write.itt, after.itt]
    assert any(wire.unit.disk[:512]) is not mine
    assert not wire.session.held


@pytest.mark.parametrize("function", [TaskFunction.CLEAR_TASK_SET, TaskFunction.LOGICAL_UNIT_RESET])
def test_the_task_set_of_every_initiator_is_cleared(function: TaskFunction) -> None:
    host = FakeHost()
    one, two = Wire(host), Wire(host, Initiator(name="iqn.2026-01.test:two"))
    one.login()
    two.login()
    two.send(two.initiator.write_10(0, bytes(1024), 512, final=False))
    one.send(request(function))
    assert two.send(p.DataOut(itt=1, data=bytes(512), offset=512)) == []
    assert not host.units[0].commands


FLAT = b"\x40\0" + bytes(6)  # LUN 0 with flat space addressing (SAM-5 4.7.4)
TAS = bytes(4) + bytes.fromhex("0a 0a 02 10 00 40 00 00 ff ff 00 00")


def two_wires() -> tuple[Wire, Wire]:
    host = FakeHost()
    one, two = Wire(host), Wire(host, Initiator(name="iqn.2026-01.test:two"))
    one.login()
    two.login()
    return one, two


def take_attentions(wire: Wire) -> list[tuple[int, int]]:
    """Return the unit attentions that wait for an initiator at LUN 0, one by one."""
    found = []
    while True:
        (answer,) = wire.send(wire.initiator.command(bytes(6)))
        assert isinstance(answer, p.ScsiResponse)
        if not answer.status:
            return found
        found.append((answer.data[2 + 12], answer.data[2 + 13]))


@pytest.mark.parametrize(
    ("function", "told"),
    [(TaskFunction.CLEAR_TASK_SET, (0x2F, 0)), (TaskFunction.LOGICAL_UNIT_RESET, (0x29, 3))],
)
def test_whose_write_was_dropped_before_its_data_came_hears_of_it(
    function: TaskFunction, told: tuple[int, int]
) -> None:
    one, two = two_wires()
    two.send(two.initiator.write_10(0, bytes(1024), 512, final=False))
    one.send(request(function))
    assert take_attentions(two) == [told]


@pytest.mark.parametrize("function", [TaskFunction.CLEAR_TASK_SET, TaskFunction.LOGICAL_UNIT_RESET])
def test_with_tas_a_write_that_waits_for_its_data_is_answered_when_another_aborts_it(function: TaskFunction) -> None:
    one, two = two_wires()
    one.send(one.initiator.command(bytes.fromhex("151000001000"), write=TAS, data=TAS))
    assert take_attentions(two) == [(0x2A, 1)]
    write = two.initiator.write_10(0, bytes(1024), 512, final=False)
    two.send(write)
    notified = two.notified
    one.send(request(function))
    assert two.notified > notified
    (answer,) = two.collect()
    assert isinstance(answer, p.ScsiResponse)
    assert (answer.itt, answer.status) == (write.itt, 0x40)
    assert two.send(p.DataOut(itt=write.itt, data=bytes(512), offset=512)) == []
    if function == TaskFunction.CLEAR_TASK_SET:
        assert take_attentions(two) == []
    assert not two.session.transfers


def test_whose_window_was_full_of_dropped_writes_is_told_at_once() -> None:
    one, two = two_wires()
    for _ in range(two.session.limits.queue_depth):
        two.send(two.initiator.write_10(0, bytes(1024), 512, final=False))
    notified = two.notified
    one.send(request(TaskFunction.CLEAR_TASK_SET))
    assert two.notified > notified
    assert isinstance(two.collect()[0], p.NopIn)


@pytest.mark.parametrize(("of_write", "of_request"), [(FLAT, bytes(8)), (bytes(8), FLAT)])
@pytest.mark.parametrize("mine", [True, False])
def test_a_lun_that_is_written_otherwise_is_the_same(of_write: bytes, of_request: bytes, mine: bool) -> None:
    one, two = two_wires()
    writer = one if mine else two
    writer.send(replace(writer.initiator.write_10(0, bytes(1024), 512, final=False), lun=of_write))
    answers = one.send(request(TaskFunction.LOGICAL_UNIT_RESET, lun=of_request))
    assert response_of(answers) == TaskResponse.COMPLETE
    assert not writer.session.transfers
    assert writer.send(p.DataOut(itt=1, data=bytes(512), offset=512)) == []
    assert not one.unit.commands


@pytest.mark.parametrize("held", [False, True], ids=["writes that wait for data", "reads"])
def test_an_initiator_whose_window_was_full_hears_that_it_may_go_on(held: bool) -> None:
    host = FakeHost()
    one, two = Wire(host), Wire(host, Initiator(name="iqn.2026-01.test:two"))
    one.login()
    two.login()
    host.units[0].hold = held
    told = []
    while not told or (told[-1].max_cmd_sn - two.initiator.cmd_sn) & 0xFFFFFFFF < 1 << 31:
        if held:
            two.send(two.initiator.read_10(0, 1))
        else:
            two.send(two.initiator.write_10(0, bytes(1024), 512, final=False))
        told = [pdu for pdu in two.send(p.NopOut(immediate=True, itt=999)) if isinstance(pdu, p.NopIn)]
    one.send(request(TaskFunction.CLEAR_TASK_SET))
    while host.units[0].held:
        host.units[0].finish()
    nop = two.collect()[0]
    assert isinstance(nop, p.NopIn)
    assert nop.itt == nop.ttt == 0xFFFFFFFF  # no answer is asked for
    assert (nop.max_cmd_sn - two.initiator.cmd_sn) & 0xFFFFFFFF < 1 << 31


@pytest.mark.parametrize("immediate", [True, False])
def test_requests_that_wait_for_a_command_to_end_are_not_taken_without_end(wire: Wire, immediate: bool) -> None:
    wire.unit.hold = True
    wire.send(wire.initiator.read_10(0, 1))
    sent = 3 * wire.session.limits.queue_depth
    abort = replace(request(TaskFunction.ABORT_TASK_SET), immediate=immediate)
    refused = [pdu for _ in range(sent) for pdu in wire.send(abort)]
    assert len(refused) == wire.session.limits.queue_depth
    for pdu in refused:
        if immediate:
            assert isinstance(pdu, p.Reject)
            assert pdu.reason == RejectReason.IMMEDIATE_COMMAND_REJECT
        else:
            assert isinstance(pdu, p.TaskManagementResponse)
            assert pdu.response == TaskResponse.REJECTED
    wire.unit.finish()
    assert len(wire.collect()) == sent - len(refused)
    assert response_of(wire.send(abort)) == TaskResponse.COMPLETE


def test_a_cold_reset_ends_the_targets_sessions(wire: Wire) -> None:
    wire.send(request(TaskFunction.TARGET_COLD_RESET))
    assert wire.host.reset == [wire.host.target]


def test_other_luns_are_left_alone_by_a_unit_reset(wire: Wire) -> None:
    wire.send(wire.initiator.write_10(0, bytes(1024), 512, final=False))
    wire.send(request(TaskFunction.LOGICAL_UNIT_RESET, lun=LUN_1))
    assert wire.unit.calls == []
    assert len(wire.send(p.DataOut(itt=1, data=bytes(512), offset=512))) == 1


@pytest.mark.parametrize(
    ("function", "lun", "response"),
    [
        (TaskFunction.ABORT_TASK, b"\0\7", TaskResponse.NO_LUN),
        (TaskFunction.ABORT_TASK_SET, b"\0\7", TaskResponse.NO_LUN),
        (TaskFunction.CLEAR_TASK_SET, b"\xff\xff", TaskResponse.NO_LUN),
        (TaskFunction.LOGICAL_UNIT_RESET, b"\0\7", TaskResponse.NO_LUN),
        (TaskFunction.TASK_REASSIGN, b"\0\0", TaskResponse.NO_REASSIGNMENT),
        (TaskFunction.CLEAR_ACA, b"\0\0", TaskResponse.NOT_SUPPORTED),
        (0x55, b"\0\0", TaskResponse.NOT_SUPPORTED),
    ],
)
def test_what_can_not_be_done_is_said(wire: Wire, function: int, lun: bytes, response: TaskResponse) -> None:
    assert response_of(wire.send(request(function, lun=lun + bytes(6)))) == response
