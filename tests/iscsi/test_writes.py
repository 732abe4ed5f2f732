from __future__ import annotations

from dataclasses import replace

import pytest

from tcmu_core.iscsi import pdu as p
from tcmu_core.iscsi.constants import RESERVED_TAG, RejectReason
from tests.iscsi.wire import Wire, logged_in

DIGESTS = {"HeaderDigest": "CRC32C", "DataDigest": "CRC32C"}
SOLICITED = {"InitialR2T": "Yes", "ImmediateData": "No"}


@pytest.fixture(params=[{}, DIGESTS], ids=["plain", "digests"])
def wire(request: pytest.FixtureRequest) -> Wire:
    """A session that takes immediate and unsolicited data; FirstBurstLength is 64 KiB."""
    return logged_in(request.param)


def pattern(length: int) -> bytes:
    return bytes(n * 7 % 251 for n in range(length))


def data_out(r2t: p.ReadyToTransfer, data: bytes, segment: int = 1 << 18) -> list[p.DataOut]:
    """Return what answers an R2T in segments."""
    whole = data[r2t.offset : r2t.offset + r2t.length]
    parts = [whole[at : at + segment] for at in range(0, len(whole), segment)]
    return [
        p.DataOut(
            flags=0x80 if number == len(parts) - 1 else 0,
            lun=r2t.lun,
            itt=r2t.itt,
            ttt=r2t.ttt,
            data_sn=number,
            offset=r2t.offset + number * segment,
            data=part,
        )
        for number, part in enumerate(parts)
    ]


def good(answer: p.Pdu) -> None:
    assert isinstance(answer, p.ScsiResponse)
    assert (answer.flags, answer.status, answer.residual) == (0x80, 0, 0)


def aborted(answer: p.Pdu, code: str) -> None:
    assert isinstance(answer, p.ScsiResponse)
    assert answer.status == 2
    assert answer.data[4] & 0x0F == 0x0B
    assert bytes(answer.data[14:16]).hex() == code


def rejected(answer: p.Pdu, reason: RejectReason) -> None:
    assert isinstance(answer, p.Reject)
    assert answer.reason == reason
    assert len(answer.data) == 48


# -- ways for data to come --------------------------------------------------------------------------------------------


def test_data_may_come_with_the_command(wire: Wire) -> None:
    (answer,) = wire.send(wire.initiator.write_10(1, pattern(4096)))
    good(answer)
    assert wire.unit.disk[512:4608] == pattern(4096)


def test_data_may_come_unasked_behind_the_command(wire: Wire) -> None:
    data = pattern(4096)
    answers = wire.send(
        wire.initiator.write_10(0, data, 0, final=False),
        p.DataOut(flags=0, itt=1, data=data[:1000], data_sn=0),
        p.DataOut(itt=1, data=data[1000:], data_sn=1, offset=1000),
    )
    good(*answers)
    assert wire.unit.disk[:4096] == data


def test_the_rest_of_a_long_write_is_asked_for(wire: Wire) -> None:
    data = pattern(100 * 1024)
    command = wire.initiator.write_10(0, data, 512, final=False)
    unasked = p.DataOut(itt=1, data=data[512:65536], offset=512)
    (r2t,) = wire.send(command, unasked)
    assert isinstance(r2t, p.ReadyToTransfer)
    assert (r2t.offset, r2t.length, r2t.r2t_sn) == (65536, len(data) - 65536, 0)
    (answer,) = wire.send(*data_out(r2t, data, 8192))
    good(answer)
    assert wire.unit.disk[: len(data)] == data


def test_all_data_is_asked_for_where_that_was_agreed() -> None:
    wire = logged_in(SOLICITED)
    data = pattern(8192)
    (r2t,) = wire.send(wire.initiator.write_10(0, data, 0))
    assert isinstance(r2t, p.ReadyToTransfer)
    assert (r2t.offset, r2t.length) == (0, 8192)
    (answer,) = wire.send(*data_out(r2t, data))
    good(answer)
    assert wire.unit.disk[:8192] == data


def test_no_more_than_a_burst_is_asked_for_at_once() -> None:
    wire = logged_in(SOLICITED | {"MaxBurstLength": "1024", "MaxOutstandingR2T": "2"})
    data = pattern(3584)
    r2ts = wire.send(wire.initiator.write_10(0, data, 0))
    seen = []
    while isinstance(r2ts[0], p.ReadyToTransfer):
        assert len(r2ts) <= 2
        first, *rest = r2ts
        seen.append((first.offset, first.length, first.r2t_sn))
        r2ts = rest + wire.send(*data_out(first, data))
    good(*r2ts)
    assert seen == [(0, 1024, 0), (1024, 1024, 1), (2048, 1024, 2), (3072, 512, 3)]
    assert r2ts[0].exp_data_sn == 4  # type: ignore[attr-defined]
    assert wire.unit.disk[:3584] == data


@pytest.mark.parametrize("step", [1, 13, 48, 500])
def test_a_write_does_not_depend_on_how_its_bytes_come(wire: Wire, step: int) -> None:
    data = pattern(8192)
    answers = wire.send(
        wire.initiator.write_10(0, data, 1024, final=False),
        p.DataOut(flags=0, itt=1, data=data[1024:5000], offset=1024),
        p.DataOut(itt=1, data=data[5000:], offset=5000, data_sn=1),
        step=step,
    )
    good(*answers)
    assert wire.unit.disk[:8192] == data


def test_data_in_very_many_pieces_is_gathered(wire: Wire) -> None:
    data = pattern(1024)
    pieces = [
        p.DataOut(flags=0x80 * (n == 1023), itt=1, data=data[n : n + 1], offset=n, data_sn=n) for n in range(1024)
    ]
    answers = wire.send(wire.initiator.write_10(0, data, 0, final=False), *pieces)
    good(*answers)
    assert wire.unit.disk[:1024] == data
    assert wire.unit.pieces == 1


def test_other_commands_go_between(wire: Wire) -> None:
    data = pattern(1024)
    assert wire.send(wire.initiator.write_10(0, data, 512, final=False)) == []
    assert len(wire.send(wire.initiator.read_10(100, 1))) == 1
    good(*wire.send(p.DataOut(itt=1, data=data[512:], offset=512)))


def test_a_pending_write_keeps_its_data(wire: Wire) -> None:
    wire.unit.hold = True
    wire.send(wire.initiator.write_10(0, pattern(4096)))
    wire.unit.hold = False
    for _ in range(40):
        wire.send(wire.initiator.write_10(100, b"\xee" * 60 * 1024))
    wire.unit.finish()
    assert wire.unit.disk[:4096] == pattern(4096)


@pytest.mark.parametrize(
    ("sent", "blocks", "flags", "residual", "moved"),
    [(512, 2, 0x84, 512, 512), (1024, 1, 0x82, 512, 512), (700, 1, 0x82, 188, 512)],
)
def test_a_write_of_another_length_moves_what_fits_and_tells_the_residual(
    wire: Wire, sent: int, blocks: int, flags: int, residual: int, moved: int
) -> None:
    request = wire.initiator.write_10(0, pattern(blocks * 512), 0)
    request = replace(request, expected_length=sent, data=pattern(sent))
    (answer,) = wire.send(request)
    assert isinstance(answer, p.ScsiResponse)
    assert (answer.status, answer.flags, answer.residual) == (0, flags, residual)
    assert wire.unit.disk[:moved] == pattern(moved)
    assert not any(wire.unit.disk[moved : moved + 512])


# -- data that is wrong: a Reject, then the command's own status once its data has ended ------------------------------


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"data_sn": 1}, RejectReason.PROTOCOL_ERROR),
        ({"offset": 0}, RejectReason.PROTOCOL_ERROR),
        ({"offset": 1024}, RejectReason.PROTOCOL_ERROR),
        ({"data": bytes(1024)}, RejectReason.PROTOCOL_ERROR),
    ],
    ids=["DataSN", "offset back", "offset ahead", "too much"],
)
def test_wrong_unsolicited_data_fails_the_command(
    wire: Wire, changes: dict[str, int | bytes], reason: RejectReason
) -> None:
    right = p.DataOut(itt=1, data=pattern(512), offset=512)
    wrong = replace(right, **changes)  # type: ignore[arg-type]
    reject, response = wire.send(wire.initiator.write_10(0, pattern(1024), 512, final=False), wrong)
    rejected(reject, reason)
    aborted(response, "0c0d")
    assert not any(wire.unit.disk[:1024])


@pytest.mark.parametrize(
    "changes",
    [{"data_sn": 3}, {"offset": 512}, {"data": bytes(512)}, {"data": bytes(2048)}],
    ids=["DataSN", "offset", "too little", "too much"],
)
def test_wrong_solicited_data_fails_the_command(changes: dict[str, int | bytes]) -> None:
    wire = logged_in(SOLICITED)
    data = pattern(1024)
    (r2t,) = wire.send(wire.initiator.write_10(0, data, 0))
    assert isinstance(r2t, p.ReadyToTransfer)
    (right,) = data_out(r2t, data)
    reject, response = wire.send(replace(right, **changes))  # type: ignore[arg-type]
    rejected(reject, RejectReason.PROTOCOL_ERROR)
    aborted(response, "0c0d")
    assert not wire.unit.commands


def test_a_burst_that_lacks_its_f_bit_fails_and_is_answered_when_it_ends() -> None:
    wire = logged_in(SOLICITED)
    data = pattern(1024)
    (r2t,) = wire.send(wire.initiator.write_10(0, data, 0))
    assert isinstance(r2t, p.ReadyToTransfer)
    (right,) = data_out(r2t, data)
    (reject,) = wire.send(replace(right, flags=0))
    rejected(reject, RejectReason.PROTOCOL_ERROR)
    (response,) = wire.send(right)
    aborted(response, "0c0d")


@pytest.mark.parametrize("changes", [{"ttt": 77}, {"ttt": RESERVED_TAG}, {"lun": b"\0\1" + bytes(6)}])
def test_data_that_nobody_asked_for_is_rejected_and_harms_nothing(changes: dict[str, int | bytes]) -> None:
    wire = logged_in(SOLICITED)
    data = pattern(1024)
    (r2t,) = wire.send(wire.initiator.write_10(0, data, 0))
    assert isinstance(r2t, p.ReadyToTransfer)
    (right,) = data_out(r2t, data)
    (reject,) = wire.send(replace(right, **changes))  # type: ignore[arg-type]
    rejected(reject, RejectReason.INVALID_PDU_FIELD)
    good(*wire.send(right))
    assert wire.unit.disk[:1024] == data


def test_data_for_no_command_is_rejected(wire: Wire) -> None:
    (reject,) = wire.send(p.DataOut(itt=5, data=bytes(512)))
    rejected(reject, RejectReason.INVALID_PDU_FIELD)


@pytest.mark.parametrize(
    ("agreed", "immediate", "final", "code"),
    [
        ({"ImmediateData": "No"}, 512, True, "0c0c"),
        ({"InitialR2T": "Yes"}, 0, False, "0c0c"),
        ({"FirstBurstLength": "512"}, 1024, True, "0c0d"),
        ({"FirstBurstLength": "512"}, 512, False, "0c0d"),
    ],
    ids=["immediate", "unsolicited", "more than the first burst", "nothing left for the first burst"],
)
def test_unsolicited_data_that_was_not_agreed_on_fails_the_command(
    agreed: dict[str, str], immediate: int, final: bool, code: str
) -> None:
    wire = logged_in(agreed)
    answers = wire.send(wire.initiator.write_10(0, pattern(2048), immediate, final=final))
    if not final:
        assert answers == []
        answers = wire.send(p.DataOut(itt=1, data=bytes(512)))
    aborted(answers[0], code)
    assert not wire.unit.commands


def test_sense_data_has_the_format_that_d_sense_says() -> None:
    wire = logged_in({"InitialR2T": "Yes"})
    select = bytes(4) + bytes.fromhex("0a 0a 06 10 00 00 00 00 ff ff 00 00")
    good(*wire.send(wire.initiator.command(bytes.fromhex("151000001000"), write=select, data=select)))
    write = wire.initiator.write_10(0, pattern(2048), 0, final=False)
    wire.send(write)
    (answer,) = wire.send(p.DataOut(itt=write.itt, data=bytes(2048), flags=0x80))
    assert bytes(answer.data[2:6]) == bytes.fromhex("72 0b 0c 0c")


def test_a_wrong_data_digest_of_a_data_out_fails_the_command() -> None:
    wire = logged_in(DIGESTS)
    data = pattern(1024)
    wire.send(wire.initiator.write_10(0, data, 512, final=False))
    raw = bytearray(wire.initiator.encode(p.DataOut(itt=1, data=data[512:], offset=512)))
    raw[-1] ^= 1
    reject, response = wire.feed(bytes(raw))
    rejected(reject, RejectReason.DATA_DIGEST_ERROR)
    aborted(response, "4705")


def test_a_command_with_a_wrong_data_digest_is_as_if_it_had_not_come() -> None:
    wire = logged_in(DIGESTS)
    raw = wire.initiator.encode(wire.initiator.write_10(0, pattern(512)))
    (reject,) = wire.feed(raw[:-1] + bytes([raw[-1] ^ 1]))
    rejected(reject, RejectReason.DATA_DIGEST_ERROR)
    good(*wire.feed(raw))


def test_a_wrong_header_digest_ends_the_connection() -> None:
    wire = logged_in(DIGESTS)
    raw = bytearray(wire.initiator.encode(wire.initiator.read_10(0, 1)))
    raw[20] ^= 1
    assert wire.feed(bytes(raw)) == []
    assert wire.connection.ended == "wrong header digest"
