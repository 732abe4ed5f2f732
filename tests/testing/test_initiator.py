"""The initiator without I/O, against a session without I/O: in pieces of any length it understands the same."""

from __future__ import annotations

import pytest

from tcmu_core.iscsi import pdu as p
from tcmu_core.testing.initiator import Initiator, InitiatorError, State

NAME, TARGET = "iqn.2026-01.test:me", "iqn.2026-01.test:target"


def logged_in() -> Initiator:
    initiator = Initiator(NAME, TARGET)
    initiator.login()
    initiator.receive(p.Framing().encode(p.LoginResponse(flags=0x87, max_cmd_sn=8, exp_cmd_sn=1)))
    assert initiator.state is State.FULL_FEATURE
    return initiator


def test_the_login_says_who_and_where_to() -> None:
    data = Initiator(NAME, TARGET).login()
    assert NAME.encode() in data
    assert TARGET.encode() in data


@pytest.mark.parametrize("step", [1, 7, 48, 1000])
def test_data_comes_in_order_or_not_and_in_any_pieces(step: int) -> None:
    initiator = logged_in()
    tag, _ = initiator.command(b"\x88" + bytes(15), read=1024)
    parts = [
        p.DataIn(itt=tag, flags=0, offset=512, data=b"b" * 512),
        p.DataIn(itt=tag, flags=0x81, offset=0, status=0, data=b"a" * 512, data_sn=1, stat_sn=1, max_cmd_sn=9),
    ]
    stream = b"".join(p.Framing().encode(part) for part in parts)
    replies = [reply for at in range(0, len(stream), step) for reply in initiator.receive(stream[at : at + step])]
    assert [(reply.tag, reply.status, reply.data) for reply in replies] == [(tag, 0, b"a" * 512 + b"b" * 512)]
    assert initiator.in_flight == 0


def test_what_is_written_goes_out_as_it_is_asked_for() -> None:
    initiator = logged_in()
    tag, _ = initiator.command(b"\x8a" + bytes(15), write=bytes(20000) + b"e" * 480)
    initiator.receive(p.Framing().encode(p.ReadyToTransfer(itt=tag, ttt=5, offset=0, length=20480)))
    framing, out, at, found = p.Framing(), initiator.outgoing(), 0, []
    while at < len(out):
        found.append(framing.decode(out, at))
        at += framing.size(out, at)
    assert [(pdu.offset, len(pdu.data), bool(pdu.flags & 0x80), pdu.data_sn) for pdu in found] == [  # type: ignore[attr-defined]
        (0, 8192, False, 0),
        (8192, 8192, False, 1),
        (16384, 4096, True, 2),
    ]
    assert b"".join(pdu.data for pdu in found).endswith(b"e" * 480)


@pytest.mark.parametrize("sense", [bytes([0x70, 0, 3, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x11, 2]), bytes([0x72, 3, 0x11, 2])])
def test_sense_is_understood_in_both_formats(sense: bytes) -> None:
    initiator = logged_in()
    tag, _ = initiator.command(bytes(6))
    data = len(sense).to_bytes(2, "big") + sense
    (reply,) = initiator.receive(p.Framing().encode(p.ScsiResponse(itt=tag, status=2, data=data)))
    assert (reply.status, reply.error) == (2, (3, 0x11, 2))


def test_a_ping_is_answered() -> None:
    initiator = logged_in()
    initiator.receive(p.Framing().encode(p.NopIn(ttt=77)))
    answer = p.Framing().decode(initiator.outgoing(), 0)
    assert isinstance(answer, p.NopOut)
    assert answer.ttt == 77


def test_what_the_target_refuses_or_breaks_is_told() -> None:
    initiator = Initiator(NAME, TARGET)
    initiator.login()
    with pytest.raises(InitiatorError, match="status 0201h"):
        initiator.receive(p.Framing().encode(p.LoginResponse(status=0x0201)))
    with pytest.raises(InitiatorError, match="there is no session"):
        initiator.command(bytes(6))
    with pytest.raises(InitiatorError, match="rejected a PDU: reason 04h"):
        logged_in().receive(p.Framing().encode(p.Reject(reason=4)))
