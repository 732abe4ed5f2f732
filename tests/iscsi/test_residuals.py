"""Data that is more or less than a command moves: it did what its residual says, or nothing (RFC 7143 11.4.5)."""

from __future__ import annotations

import pytest

from tcmu_core.iscsi import pdu as p
from tests.iscsi.initiator import cdb_10
from tests.iscsi.wire import logged_in

DIGESTS = {"HeaderDigest": "CRC32C", "DataDigest": "CRC32C"}
SOLICITED = {"InitialR2T": "Yes", "ImmediateData": "No"}


def cdb_12(code: int, blocks: int) -> bytes:
    return bytes([code, 0]) + bytes(4) + blocks.to_bytes(4, "big") + bytes(2)


def cdb_16(code: int, blocks: int, flags: int = 0) -> bytes:
    return bytes([code, flags]) + bytes(8) + blocks.to_bytes(4, "big") + bytes(2)


# CDB, and how many bytes it moves
DATA_OUT: dict[str, tuple[bytes, int]] = {
    "WRITE(6)": (b"\x0a\0\0\0\2\0", 1024),
    "WRITE(10)": (cdb_10(0x2A, 0, 2), 1024),
    "WRITE(12)": (cdb_12(0xAA, 2), 1024),
    "WRITE(16)": (cdb_16(0x8A, 2), 1024),
    "WRITE AND VERIFY(10)": (cdb_10(0x2E, 0, 2), 1024),
    "WRITE AND VERIFY(12)": (cdb_12(0xAE, 2), 1024),
    "WRITE AND VERIFY(16)": (cdb_16(0x8E, 2), 1024),
    "WRITE SAME(10)": (cdb_10(0x41, 0, 2), 512),
    "WRITE SAME(16)": (cdb_16(0x93, 2), 512),
    "WRITE ATOMIC(16)": (b"\x9c" + bytes(11) + b"\0\2\0\0", 1024),
    "COMPARE AND WRITE": (b"\x89" + bytes(12) + b"\2\0\0", 2048),
    "ORWRITE(16)": (cdb_16(0x8B, 2), 1024),
    "VERIFY(10)": (b"\x2f\2" + cdb_10(0x2F, 0, 2)[2:], 1024),
    "VERIFY(16)": (cdb_16(0x8F, 2, 2), 1024),
    "UNMAP": (b"\x42" + bytes(7) + b"\x18\0", 24),
    "MODE SELECT(6)": (b"\x15\x10\0\0\x18\0", 24),
    "MODE SELECT(10)": (b"\x55\x10" + bytes(6) + b"\x1c\0", 28),
    "PERSISTENT RESERVE OUT": (b"\x5f" + bytes(7) + b"\x18\0", 24),
}


@pytest.mark.parametrize("agreed", [{}, DIGESTS, SOLICITED], ids=["plain", "digests", "solicited"])
@pytest.mark.parametrize("more", [-(1 << 16), -300, -13, -1, 0, 1, 100, 512, 4096])
@pytest.mark.parametrize(("cdb", "moves"), DATA_OUT.values(), ids=DATA_OUT)
def test_the_residual_is_the_difference_or_nothing_was_done(
    cdb: bytes, moves: int, more: int, agreed: dict[str, str]
) -> None:
    wire = logged_in(agreed)
    sent = max(0, moves + more)
    data = bytes(n % 7 for n in range(sent))
    unasked = "ImmediateData" not in agreed
    before = bytes(wire.unit.disk)
    answers = wire.send(wire.initiator.command(cdb, write=data, data=data if unasked else b""))
    while isinstance(r2t := answers[-1], p.ReadyToTransfer):
        part = data[r2t.offset : r2t.offset + r2t.length]
        answers = wire.send(p.DataOut(itt=r2t.itt, ttt=r2t.ttt, lun=r2t.lun, offset=r2t.offset, data=part))
    (answer,) = answers
    assert isinstance(answer, p.ScsiResponse)
    if answer.status:
        assert answer.status == 2
        assert wire.unit.disk == before
        assert (answer.flags, answer.residual) == (0x82 if sent else 0x80, sent)
    else:
        assert (answer.flags, answer.residual) == (
            (0x80, 0) if sent == moves else (0x84, moves - sent) if sent < moves else (0x82, sent - moves)
        )
