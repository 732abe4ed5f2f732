"""What a peer gets for each PDU that a target can't accept in full-feature phase."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tcmu_core.iscsi import pdu as p
from tcmu_core.iscsi.constants import RejectReason
from tcmu_core.iscsi.settings import Limits, PortalSettings
from tests.iscsi.initiator import Initiator, cdb_10
from tests.iscsi.wire import logged_in

READ = cdb_10(0x28, 0, 1).ljust(16, b"\0")
Make = Callable[[Initiator], p.Pdu | bytes]

# What comes, the reason of the Reject (None: nothing is answered), and whether the connection ends
BAD: dict[str, tuple[Make, RejectReason | None, bool]] = {
    "unknown opcode": (lambda i: b"\x1f" + bytes(47), RejectReason.COMMAND_NOT_SUPPORTED, False),
    "vendor opcode": (lambda i: b"\x1c\x80" + bytes(46), RejectReason.COMMAND_NOT_SUPPORTED, False),
    "a target's opcode": (lambda i: p.NopIn(), RejectReason.PROTOCOL_ERROR, False),
    "another login": (lambda i: p.LoginRequest(immediate=True, flags=0x87), RejectReason.PROTOCOL_ERROR, False),
    "SNACK": (lambda i: p.SnackRequest(flags=0x81, itt=1), RejectReason.SNACK_REJECT, False),
    "data segment too long": (lambda i: b"\x00\x80\0\0\0\xff\xff\xff" + bytes(40), RejectReason.PROTOCOL_ERROR, True),
    "command without tag": (
        lambda i: p.ScsiCommand(flags=0x81, itt=0xFFFFFFFF, ahs=p.extended_cdb(bytes(20))),
        RejectReason.INVALID_PDU_FIELD,
        False,
    ),
    "data with a read": (
        lambda i: p.ScsiCommand(flags=0xC1, itt=1, expected_length=512, cdb=READ, data=bytes(512)),
        RejectReason.INVALID_PDU_FIELD,
        False,
    ),
    "data with a command that has none": (
        lambda i: p.ScsiCommand(flags=0x81, itt=1, expected_length=512, data=bytes(512)),
        RejectReason.INVALID_PDU_FIELD,
        False,
    ),
    "a read that is not final": (
        lambda i: p.ScsiCommand(flags=0x41, itt=1, expected_length=512, cdb=READ),
        RejectReason.INVALID_PDU_FIELD,
        False,
    ),
    "malformed additional header": (
        lambda i: p.ScsiCommand(flags=0x81, itt=1, ahs=b"\0\xff\1\0"),
        RejectReason.INVALID_PDU_FIELD,
        False,
    ),
    "logout for no reason": (lambda i: p.LogoutRequest(reason=0x85, itt=1), RejectReason.INVALID_PDU_FIELD, False),
    "text that is none": (lambda i: p.TextRequest(itt=1, data=b"nonsense"), RejectReason.PROTOCOL_ERROR, False),
    "text exchange that has ended": (lambda i: p.TextRequest(itt=1, ttt=5), RejectReason.NEGOTIATION_RESET, False),
    "data for no command": (lambda i: p.DataOut(itt=9, data=bytes(4)), RejectReason.INVALID_PDU_FIELD, False),
}


@pytest.mark.parametrize(("make", "reason", "ends"), BAD.values(), ids=list(BAD))
def test_a_bad_pdu_gets_what_the_table_says(make: Make, reason: RejectReason | None, ends: bool) -> None:
    wire = logged_in()
    bad = make(wire.initiator)
    raw = bad if isinstance(bad, bytes) else wire.initiator.encode(bad)
    answers = wire.feed(raw)
    (reject,) = answers
    assert isinstance(reject, p.Reject)
    assert reject.reason == reason
    assert reject.data[:8] == raw[:8]
    assert (wire.connection.ended is not None) == ends
    if not ends:  # the session goes on as if nothing had been
        (answer,) = wire.send(wire.initiator.read_10(0, 1))
        assert isinstance(answer, p.DataIn)


@pytest.mark.parametrize("write", [False, True], ids=["pending", "waiting for data"])
def test_a_tag_that_is_in_use_is_rejected(write: bool) -> None:
    wire = logged_in()
    wire.unit.hold = True
    first = wire.initiator.write_10(0, bytes(1024), 512, final=False) if write else wire.initiator.read_10(0, 1)
    wire.send(first)
    (reject,) = wire.send(p.ScsiCommand(flags=0xC1, itt=first.itt, expected_length=512, cdb=READ))
    assert isinstance(reject, p.Reject)
    assert reject.reason == RejectReason.TASK_IN_PROGRESS


def test_too_many_immediate_commands_are_rejected() -> None:
    wire = logged_in()
    wire.unit.hold = True
    answers = wire.send(
        *[p.ScsiCommand(immediate=True, flags=0xC1, itt=n, expected_length=512, cdb=READ) for n in range(150)]
    )
    assert {answer.reason for answer in answers} == {RejectReason.IMMEDIATE_COMMAND_REJECT}  # type: ignore[attr-defined]
    assert wire.connection.ended is None


def test_a_peer_that_runs_over_its_window_is_cut_off() -> None:
    wire = logged_in()
    wire.unit.hold = True
    wire.send(*[wire.initiator.read_10(0, 1) for _ in range(200)])
    assert wire.connection.ended == "more commands than the window allows"


def test_more_out_of_order_than_memory_allows_ends_the_connection() -> None:
    wire = logged_in(settings=PortalSettings(limits=Limits(memory=1 << 20)))
    wire.initiator.cmd_sn = 2
    wire.send(wire.initiator.write_10(0, bytes(65536)))
    assert wire.session.ended is None
    wire.send(*[wire.initiator.write_10(0, bytes(65536)) for _ in range(20)])
    assert wire.session.ended == "too much that is out of order"
    assert not wire.unit.commands
