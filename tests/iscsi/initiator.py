"""A small iSCSI initiator without I/O: numbers its PDUs, turns them into bytes, and bytes into PDUs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from tcmu_core.iscsi import pdu as p
from tcmu_core.iscsi.constants import BHS, CONTINUE, FINAL, IMMEDIATE, Stage
from tcmu_core.iscsi.text import format_text, parse_text

NAME = "iqn.2026-01.test:initiator"
TARGET = "iqn.2026-01.test:target"
ISID = bytes.fromhex("800000010000")
OPERATIONAL = {
    "HeaderDigest": "None",
    "DataDigest": "None",
    "InitialR2T": "No",
    "ImmediateData": "Yes",
    "MaxRecvDataSegmentLength": "262144",
    "MaxBurstLength": "262144",
    "FirstBurstLength": "65536",
    "MaxOutstandingR2T": "1",
    "ErrorRecoveryLevel": "0",
}


class Initiator:
    """One connection as the initiator sees it."""

    def __init__(self, name: str = NAME, target: str | None = TARGET, isid: bytes = ISID) -> None:
        self.name = name
        self.target = target
        self.isid = isid
        self.framing = p.Framing()
        self.tsih = 0
        self.cmd_sn = 1
        self.exp_stat_sn = 0
        self.itt = 0
        self._stream = bytearray()

    def number(self, pdu: p.Pdu) -> p.Pdu:
        """Give a request its ExpStatSN and, if it is not immediate, the next CmdSN."""
        values: dict[str, int] = {}
        if hasattr(pdu, "exp_stat_sn"):
            values["exp_stat_sn"] = self.exp_stat_sn
        if hasattr(pdu, "cmd_sn"):
            values["cmd_sn"] = self.cmd_sn
            if not pdu.immediate and not isinstance(pdu, p.LoginRequest):
                self.cmd_sn = (self.cmd_sn + 1) & 0xFFFFFFFF
        return replace(pdu, **values)

    def encode(self, *pdus: p.Pdu) -> bytes:
        """Number the requests and return their bytes."""
        return b"".join(self.framing.encode(self.number(pdu)) for pdu in pdus)

    def decode(self, data: bytes) -> list[p.Pdu]:
        """Return the PDUs that are complete after `data` has come."""
        self._stream += data
        pdus: list[p.Pdu] = []
        while len(self._stream) >= BHS and len(self._stream) >= (size := self.framing.size(self._stream, 0)):
            pdu = self.framing.decode(bytes(self._stream[:size]), 0)
            del self._stream[:size]
            if pdu.OPCODE.name not in {"R2T", "DATA_IN"} or (isinstance(pdu, p.DataIn) and pdu.flags & 1):
                self.exp_stat_sn = (pdu.stat_sn + 1) & 0xFFFFFFFF  # type: ignore[attr-defined]
            pdus.append(pdu)
        return pdus

    def tag(self) -> int:
        """Return a fresh initiator task tag."""
        self.itt += 1
        return self.itt

    # -- requests -----------------------------------------------------------------------------------------------------

    def login(
        self,
        pairs: Mapping[str, str],
        csg: Stage = Stage.OPERATIONAL,
        nsg: Stage | None = Stage.FULL_FEATURE,
        *,
        more: bool = False,
        first: bool = True,
    ) -> p.LoginRequest:
        """Return a login request; the first one says who and where to."""
        text = dict(pairs)
        if first:
            text = {"InitiatorName": self.name, **text}
            text |= {"SessionType": "Discovery"} if self.target is None else {"TargetName": self.target}
        flags = csg << 2 | (0 if nsg is None else FINAL | nsg) | (CONTINUE if more else 0)
        return p.LoginRequest(
            immediate=True, flags=flags, isid=self.isid, tsih=self.tsih, itt=7, cid=1, data=format_text(text)
        )

    def command(
        self,
        cdb: bytes,
        *,
        read: int = 0,
        write: bytes | None = None,
        lun: int = 0,
        data: bytes = b"",
        final: bool = True,
    ) -> p.ScsiCommand:
        """Return a SCSI command; of what is to be written, `data` goes along with it."""
        flags = 0x01 | (FINAL if final else 0) | (0x40 if read else 0) | (0x20 if write is not None else 0)
        length = read if write is None else len(write)
        return p.ScsiCommand(
            flags=flags,
            lun=bytes([0, lun]) + bytes(6),
            itt=self.tag(),
            expected_length=length,
            cdb=cdb.ljust(16, b"\0"),
            data=data,
        )

    def read_10(self, lba: int, blocks: int, lun: int = 0) -> p.ScsiCommand:
        """Return READ(10) of blocks of 512 bytes."""
        return self.command(cdb_10(0x28, lba, blocks), read=blocks * 512, lun=lun)

    def write_10(self, lba: int, data: bytes, immediate: int | None = None, *, final: bool = True) -> p.ScsiCommand:
        """Return WRITE(10) with the first `immediate` bytes (all of them by default) along."""
        return self.command(cdb_10(0x2A, lba, len(data) // 512), write=data, data=data[:immediate], final=final)


def cdb_10(code: int, lba: int, blocks: int) -> bytes:
    """Return a ten-byte CDB with an LBA and a transfer length."""
    return bytes([code, 0]) + lba.to_bytes(4, "big") + b"\0" + blocks.to_bytes(2, "big") + b"\0"


def text_of(pdu: p.Pdu) -> dict[str, str]:
    """Return the pairs in a PDU's data segment."""
    return parse_text(pdu.data)


def as_immediate(data: bytes) -> bytes:
    """Return a PDU's bytes with the I bit set."""
    return bytes([data[0] | IMMEDIATE]) + data[1:]
