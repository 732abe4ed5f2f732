from __future__ import annotations

import pytest

from tcmu_core.iscsi import pdu as p
from tcmu_core.iscsi.constants import Opcode
from tcmu_core.iscsi.errors import ConnectionEnded, DigestError, PduError

LUN = "0001000000000000"


def hexadecimal(*parts: str) -> bytes:
    return bytes.fromhex("".join(parts).replace(" ", ""))


# Each row: a PDU, and its bytes as RFC 7143 section 11 draws them, word by word.
CODEC = [
    (
        p.NopOut(immediate=True, itt=0x11, cmd_sn=2, exp_stat_sn=3, data=b"ping"),
        hexadecimal("40800000 00000004", "00" * 8, "00000011 ffffffff 00000002 00000003", "00" * 16, b"ping".hex()),
    ),
    (
        p.NopIn(ttt=0x22, stat_sn=4, exp_cmd_sn=5, max_cmd_sn=6),
        hexadecimal("20800000 00000000", "00" * 8, "ffffffff 00000022 00000004 00000005 00000006", "00" * 12),
    ),
    (
        p.ScsiCommand(
            flags=0xC1,
            lun=bytes.fromhex(LUN),
            itt=7,
            expected_length=4096,
            cmd_sn=8,
            exp_stat_sn=9,
            cdb=bytes.fromhex("28000000000000000800").ljust(16, b"\0"),
        ),
        hexadecimal("01c10000 00000000", LUN, "00000007 00001000 00000008 00000009", "28000000000000000800", "00" * 6),
    ),
    (
        p.ScsiCommand(flags=0x81, itt=7, ahs=p.extended_cdb(bytes(range(20)))),
        hexadecimal("01810000 02000000", "00" * 8, "00000007", "00" * 28, "0005 0100 10111213"),
    ),
    (
        p.ScsiResponse(
            flags=0x82,
            response=0,
            status=2,
            itt=7,
            stat_sn=1,
            exp_cmd_sn=2,
            max_cmd_sn=3,
            residual=512,
            data=b"\0\3abc",
        ),
        hexadecimal(
            "21820002 00000005",
            "00" * 8,
            "00000007 00000000 00000001 00000002 00000003 00000000 00000000 00000200",
            "0003616263 000000",
        ),
    ),
    (
        p.TaskManagementRequest(
            function=0x81, lun=bytes.fromhex(LUN), itt=1, referenced_tag=2, cmd_sn=3, exp_stat_sn=4, ref_cmd_sn=5
        ),
        hexadecimal("02810000 00000000", LUN, "00000001 00000002 00000003 00000004 00000005 00000000", "00" * 8),
    ),
    (
        p.TaskManagementResponse(response=5, itt=1, stat_sn=2, exp_cmd_sn=3, max_cmd_sn=4),
        hexadecimal("22800500 00000000", "00" * 8, "00000001 00000000 00000002 00000003 00000004", "00" * 12),
    ),
    (
        p.DataOut(flags=0, lun=bytes.fromhex(LUN), itt=1, ttt=2, exp_stat_sn=3, data_sn=4, offset=5, data=b"\xaa" * 6),
        hexadecimal(
            "05000000 00000006",
            LUN,
            "00000001 00000002 00000000 00000003 00000000 00000004 00000005 00000000",
            "aaaaaaaaaaaa0000",
        ),
    ),
    (
        p.DataIn(
            flags=0x81, status=0, itt=1, stat_sn=2, exp_cmd_sn=3, max_cmd_sn=4, data_sn=5, offset=6, data=b"\x55" * 4
        ),
        hexadecimal(
            "25810000 00000004",
            "00" * 8,
            "00000001 ffffffff 00000002 00000003 00000004 00000005 00000006 00000000",
            "55555555",
        ),
    ),
    (
        p.ReadyToTransfer(itt=1, ttt=2, stat_sn=3, exp_cmd_sn=4, max_cmd_sn=5, r2t_sn=6, offset=7, length=8),
        hexadecimal(
            "31800000 00000000", "00" * 8, "00000001 00000002 00000003 00000004 00000005 00000006 00000007 00000008"
        ),
    ),
    (
        p.AsyncMessage(stat_sn=1, exp_cmd_sn=2, max_cmd_sn=3, event=1, vendor_code=0, parameter3=10),
        hexadecimal(
            "32800000 00000000", "00" * 8, "ffffffff 00000000 00000001 00000002 00000003 01000000 0000000a", "00" * 4
        ),
    ),
    (
        p.TextRequest(itt=1, cmd_sn=2, exp_stat_sn=3, data=b"SendTargets=All\0"),
        hexadecimal(
            "04800000 00000010", "00" * 8, "00000001 ffffffff 00000002 00000003", "00" * 16, b"SendTargets=All\0".hex()
        ),
    ),
    (
        p.TextResponse(flags=0x40, itt=1, ttt=9, stat_sn=2, exp_cmd_sn=3, max_cmd_sn=4, data=b"A=1\0"),
        hexadecimal(
            "24400000 00000004", "00" * 8, "00000001 00000009 00000002 00000003 00000004", "00" * 12, "413d3100"
        ),
    ),
    (
        p.LoginRequest(immediate=True, flags=0x87, isid=bytes.fromhex("800000010203"), tsih=4, itt=5, cid=6, cmd_sn=7),
        hexadecimal("43870000 00000000", "800000010203 0004", "00000005 00060000 00000007 00000000", "00" * 16),
    ),
    (
        p.LoginResponse(flags=0x87, isid=bytes.fromhex("800000010203"), tsih=4, itt=5, stat_sn=1, status=0x0201),
        hexadecimal(
            "23870000 00000000", "800000010203 0004", "00000005 00000000 00000001", "00" * 8, "0201", "00" * 10
        ),
    ),
    (
        p.LogoutRequest(immediate=True, reason=0x81, itt=1, cid=2, cmd_sn=3, exp_stat_sn=4),
        hexadecimal("46810000 00000000", "00" * 8, "00000001 00020000 00000003 00000004", "00" * 16),
    ),
    (
        p.LogoutResponsePdu(response=2, itt=1, stat_sn=3, exp_cmd_sn=4, max_cmd_sn=5, time2wait=2, time2retain=0),
        hexadecimal(
            "26800200 00000000", "00" * 8, "00000001 00000000 00000003 00000004 00000005 00000000 00020000 00000000"
        ),
    ),
    (
        p.SnackRequest(flags=0x81, itt=1, begin_run=2, run_length=3),
        hexadecimal(
            "10810000 00000000", "00" * 8, "00000001 ffffffff 00000000 00000000", "00" * 8, "00000002 00000003"
        ),
    ),
    (
        p.Reject(reason=4, stat_sn=1, exp_cmd_sn=2, max_cmd_sn=3, data=bytes(48)),
        hexadecimal(
            "3f800400 00000030", "00" * 8, "ffffffff 00000000 00000001 00000002 00000003", "00" * 12, "00" * 48
        ),
    ),
]
IDS = [f"{pdu.OPCODE.name}-{number}" for number, (pdu, _raw) in enumerate(CODEC)]
FRAMINGS = [p.Framing(h, d) for h in (False, True) for d in (False, True)]


def test_the_table_has_every_opcode() -> None:
    assert {pdu.OPCODE for pdu, _raw in CODEC} == set(Opcode) == set(p.LAYOUTS)


@pytest.mark.parametrize(("pdu", "raw"), CODEC, ids=IDS)
def test_a_pdu_is_encoded_as_the_standard_draws_it(pdu: p.Pdu, raw: bytes) -> None:
    assert p.Framing().encode(pdu).hex(" ", 4) == raw.hex(" ", 4)


@pytest.mark.parametrize(("pdu", "raw"), CODEC, ids=IDS)
def test_a_pdu_is_decoded_whole_and_with_trailing_data(pdu: p.Pdu, raw: bytes) -> None:
    framing = p.Framing()
    for trailing in (b"", b"\xff", raw):
        assert framing.size(raw + trailing, 0) == len(raw)
        assert framing.decode(raw + trailing, 0) == pdu
        assert framing.decode(trailing + raw, len(trailing)) == pdu


@pytest.mark.parametrize("framing", FRAMINGS, ids=str)
@pytest.mark.parametrize(("pdu", "raw"), CODEC, ids=IDS)
def test_digests_go_around_and_come_back(framing: p.Framing, pdu: p.Pdu, raw: bytes) -> None:
    whole = framing.encode(pdu)
    assert len(whole) == framing.size(whole, 0)
    assert framing.decode(whole + b"next", 0) == pdu
    digests = 4 * framing.header_digest + 4 * (framing.data_digest and bool(pdu.data))
    assert len(whole) == len(raw) + digests


def test_a_digest_is_the_crc32c_of_the_standard() -> None:
    # RFC 7143 appendix A: 32 bytes of zeros, of ones, rising, and a READ(10) PDU.
    assert p.digest(bytes(32)) == bytes.fromhex("aa36918a")
    assert p.digest(b"\xff" * 32) == bytes.fromhex("43aba862")
    assert p.digest(bytes(range(32))) == bytes.fromhex("4e79dd46")


def test_a_wrong_header_digest_ends_the_connection() -> None:
    framing = p.Framing(header_digest=True)
    raw = bytearray(framing.encode(p.NopOut(itt=1)))
    raw[17] ^= 1
    with pytest.raises(ConnectionEnded, match="header digest"):
        framing.decode(raw, 0)


def test_a_wrong_data_digest_is_told_apart() -> None:
    framing = p.Framing(header_digest=True, data_digest=True)
    raw = bytearray(framing.encode(p.NopOut(itt=1, data=b"hello")))
    raw[-5] ^= 1  # a byte of the padding: the digest covers it
    with pytest.raises(DigestError):
        framing.decode(raw, 0)


def test_an_unknown_opcode_is_refused() -> None:
    with pytest.raises(PduError, match="3Dh"):
        p.Framing().decode(b"\x3d" + bytes(47), 0)


def test_a_long_cdb_comes_back_from_its_additional_header() -> None:
    cdb = bytes(range(32))
    assert p.parse_ahs(p.extended_cdb(cdb)).cdb == cdb[16:]


def test_a_bidirectional_read_length_comes_back_beside_a_long_cdb() -> None:
    extra = p.parse_ahs(p.extended_cdb(bytes(18)) + p.bidi_read_length(1 << 20))
    assert (extra.cdb, extra.read_length) == (bytes(2), 1 << 20)


@pytest.mark.parametrize(
    ("ahs", "why"),
    [
        ("00", "cut short"),
        ("000001000000", "wrong length"),
        ("0009010000000000", "wrong length"),
        ("0005030000000000", "type 03h"),
        ("0004020000000000", "type 02h"),
        ("00050200000000000005020000000000", "type 02h"),
    ],
)
def test_a_malformed_additional_header_is_refused(ahs: str, why: str) -> None:
    with pytest.raises(PduError, match=why):
        p.parse_ahs(bytes.fromhex(ahs))
