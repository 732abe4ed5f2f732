"""PDUs of RFC 7143 section 11: one table of fields for each opcode drives both encoding and decoding."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, TypeAlias

import crc32c

from tcmu_core.iscsi.constants import BHS, FINAL, IMMEDIATE, RESERVED_TAG, AhsType, Opcode, RejectReason
from tcmu_core.iscsi.errors import ConnectionEnded, DigestError, PduError

Buffer: TypeAlias = bytes | bytearray | memoryview


def _at(offset: int, code: str, default: Any = 0) -> Any:
    """Return a dataclass field that lies at `offset` of the BHS in the form of struct's `code`."""
    return field(default=default, metadata={"wire": (offset, code)})


@dataclass(frozen=True, slots=True, kw_only=True)
class Pdu:
    """What every PDU has: the I bit, additional header segments (with their padding) and the data segment."""

    OPCODE: ClassVar[Opcode]

    immediate: bool = False
    ahs: bytes = b""
    data: Buffer = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class NopOut(Pdu):
    """NOP-Out (11.18)."""

    OPCODE = Opcode.NOP_OUT
    flags: int = _at(1, "B", FINAL)
    lun: bytes = _at(8, "8s", bytes(8))
    itt: int = _at(16, "I", RESERVED_TAG)
    ttt: int = _at(20, "I", RESERVED_TAG)
    cmd_sn: int = _at(24, "I")
    exp_stat_sn: int = _at(28, "I")


@dataclass(frozen=True, slots=True, kw_only=True)
class NopIn(Pdu):
    """NOP-In (11.19)."""

    OPCODE = Opcode.NOP_IN
    flags: int = _at(1, "B", FINAL)
    lun: bytes = _at(8, "8s", bytes(8))
    itt: int = _at(16, "I", RESERVED_TAG)
    ttt: int = _at(20, "I", RESERVED_TAG)
    stat_sn: int = _at(24, "I")
    exp_cmd_sn: int = _at(28, "I")
    max_cmd_sn: int = _at(32, "I")


@dataclass(frozen=True, slots=True, kw_only=True)
class ScsiCommand(Pdu):
    """SCSI Command (11.3)."""

    OPCODE = Opcode.SCSI_COMMAND
    flags: int = _at(1, "B", FINAL)
    lun: bytes = _at(8, "8s", bytes(8))
    itt: int = _at(16, "I")
    expected_length: int = _at(20, "I")
    cmd_sn: int = _at(24, "I")
    exp_stat_sn: int = _at(28, "I")
    cdb: bytes = _at(32, "16s", bytes(16))


@dataclass(frozen=True, slots=True, kw_only=True)
class ScsiResponse(Pdu):
    """SCSI Response (11.4)."""

    OPCODE = Opcode.SCSI_RESPONSE
    flags: int = _at(1, "B", FINAL)
    response: int = _at(2, "B")
    status: int = _at(3, "B")
    itt: int = _at(16, "I")
    snack_tag: int = _at(20, "I")
    stat_sn: int = _at(24, "I")
    exp_cmd_sn: int = _at(28, "I")
    max_cmd_sn: int = _at(32, "I")
    exp_data_sn: int = _at(36, "I")
    bidi_residual: int = _at(40, "I")
    residual: int = _at(44, "I")


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskManagementRequest(Pdu):
    """Task Management Function Request (11.5); `function` has the F bit set above it."""

    OPCODE = Opcode.TASK_MANAGEMENT_REQUEST
    function: int = _at(1, "B", FINAL)
    lun: bytes = _at(8, "8s", bytes(8))
    itt: int = _at(16, "I")
    referenced_tag: int = _at(20, "I", RESERVED_TAG)
    cmd_sn: int = _at(24, "I")
    exp_stat_sn: int = _at(28, "I")
    ref_cmd_sn: int = _at(32, "I")
    exp_data_sn: int = _at(36, "I")


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskManagementResponse(Pdu):
    """Task Management Function Response (11.6)."""

    OPCODE = Opcode.TASK_MANAGEMENT_RESPONSE
    flags: int = _at(1, "B", FINAL)
    response: int = _at(2, "B")
    itt: int = _at(16, "I")
    stat_sn: int = _at(24, "I")
    exp_cmd_sn: int = _at(28, "I")
    max_cmd_sn: int = _at(32, "I")


@dataclass(frozen=True, slots=True, kw_only=True)
class DataOut(Pdu):
    """SCSI Data-Out (11.7)."""

    OPCODE = Opcode.DATA_OUT
    flags: int = _at(1, "B", FINAL)
    lun: bytes = _at(8, "8s", bytes(8))
    itt: int = _at(16, "I")
    ttt: int = _at(20, "I", RESERVED_TAG)
    exp_stat_sn: int = _at(28, "I")
    data_sn: int = _at(36, "I")
    offset: int = _at(40, "I")


@dataclass(frozen=True, slots=True, kw_only=True)
class DataIn(Pdu):
    """SCSI Data-In (11.7)."""

    OPCODE = Opcode.DATA_IN
    flags: int = _at(1, "B", FINAL)
    status: int = _at(3, "B")
    lun: bytes = _at(8, "8s", bytes(8))
    itt: int = _at(16, "I")
    ttt: int = _at(20, "I", RESERVED_TAG)
    stat_sn: int = _at(24, "I")
    exp_cmd_sn: int = _at(28, "I")
    max_cmd_sn: int = _at(32, "I")
    data_sn: int = _at(36, "I")
    offset: int = _at(40, "I")
    residual: int = _at(44, "I")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadyToTransfer(Pdu):
    """R2T (11.8)."""

    OPCODE = Opcode.R2T
    flags: int = _at(1, "B", FINAL)
    lun: bytes = _at(8, "8s", bytes(8))
    itt: int = _at(16, "I")
    ttt: int = _at(20, "I")
    stat_sn: int = _at(24, "I")
    exp_cmd_sn: int = _at(28, "I")
    max_cmd_sn: int = _at(32, "I")
    r2t_sn: int = _at(36, "I")
    offset: int = _at(40, "I")
    length: int = _at(44, "I")


@dataclass(frozen=True, slots=True, kw_only=True)
class AsyncMessage(Pdu):
    """Asynchronous Message (11.9)."""

    OPCODE = Opcode.ASYNC_MESSAGE
    flags: int = _at(1, "B", FINAL)
    lun: bytes = _at(8, "8s", bytes(8))
    itt: int = _at(16, "I", RESERVED_TAG)
    stat_sn: int = _at(24, "I")
    exp_cmd_sn: int = _at(28, "I")
    max_cmd_sn: int = _at(32, "I")
    event: int = _at(36, "B")
    vendor_code: int = _at(37, "B")
    parameter1: int = _at(38, "H")
    parameter2: int = _at(40, "H")
    parameter3: int = _at(42, "H")


@dataclass(frozen=True, slots=True, kw_only=True)
class TextRequest(Pdu):
    """Text Request (11.10)."""

    OPCODE = Opcode.TEXT_REQUEST
    flags: int = _at(1, "B", FINAL)
    lun: bytes = _at(8, "8s", bytes(8))
    itt: int = _at(16, "I")
    ttt: int = _at(20, "I", RESERVED_TAG)
    cmd_sn: int = _at(24, "I")
    exp_stat_sn: int = _at(28, "I")


@dataclass(frozen=True, slots=True, kw_only=True)
class TextResponse(Pdu):
    """Text Response (11.11)."""

    OPCODE = Opcode.TEXT_RESPONSE
    flags: int = _at(1, "B", FINAL)
    lun: bytes = _at(8, "8s", bytes(8))
    itt: int = _at(16, "I")
    ttt: int = _at(20, "I", RESERVED_TAG)
    stat_sn: int = _at(24, "I")
    exp_cmd_sn: int = _at(28, "I")
    max_cmd_sn: int = _at(32, "I")


@dataclass(frozen=True, slots=True, kw_only=True)
class LoginRequest(Pdu):
    """Login Request (11.12). Byte 1: T, C, two reserved bits, CSG, NSG."""

    OPCODE = Opcode.LOGIN_REQUEST
    flags: int = _at(1, "B")
    version_max: int = _at(2, "B")
    version_min: int = _at(3, "B")
    isid: bytes = _at(8, "6s", bytes(6))
    tsih: int = _at(14, "H")
    itt: int = _at(16, "I")
    cid: int = _at(20, "H")
    cmd_sn: int = _at(24, "I")
    exp_stat_sn: int = _at(28, "I")


@dataclass(frozen=True, slots=True, kw_only=True)
class LoginResponse(Pdu):
    """Login Response (11.13). `status` is class and detail in one number."""

    OPCODE = Opcode.LOGIN_RESPONSE
    flags: int = _at(1, "B")
    version_max: int = _at(2, "B")
    version_active: int = _at(3, "B")
    isid: bytes = _at(8, "6s", bytes(6))
    tsih: int = _at(14, "H")
    itt: int = _at(16, "I")
    stat_sn: int = _at(24, "I")
    exp_cmd_sn: int = _at(28, "I")
    max_cmd_sn: int = _at(32, "I")
    status: int = _at(36, "H")


@dataclass(frozen=True, slots=True, kw_only=True)
class LogoutRequest(Pdu):
    """Logout Request (11.14); `reason` has the F bit set above it."""

    OPCODE = Opcode.LOGOUT_REQUEST
    reason: int = _at(1, "B", FINAL)
    itt: int = _at(16, "I")
    cid: int = _at(20, "H")
    cmd_sn: int = _at(24, "I")
    exp_stat_sn: int = _at(28, "I")


@dataclass(frozen=True, slots=True, kw_only=True)
class LogoutResponsePdu(Pdu):
    """Logout Response (11.15); times in seconds."""

    OPCODE = Opcode.LOGOUT_RESPONSE
    flags: int = _at(1, "B", FINAL)
    response: int = _at(2, "B")
    itt: int = _at(16, "I")
    stat_sn: int = _at(24, "I")
    exp_cmd_sn: int = _at(28, "I")
    max_cmd_sn: int = _at(32, "I")
    time2wait: int = _at(40, "H")
    time2retain: int = _at(42, "H")


@dataclass(frozen=True, slots=True, kw_only=True)
class SnackRequest(Pdu):
    """SNACK Request (11.16)."""

    OPCODE = Opcode.SNACK_REQUEST
    flags: int = _at(1, "B", FINAL)
    lun: bytes = _at(8, "8s", bytes(8))
    itt: int = _at(16, "I", RESERVED_TAG)
    ttt: int = _at(20, "I", RESERVED_TAG)
    exp_stat_sn: int = _at(28, "I")
    begin_run: int = _at(40, "I")
    run_length: int = _at(44, "I")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reject(Pdu):
    """Reject (11.17); the data segment is the header that was rejected."""

    OPCODE = Opcode.REJECT
    flags: int = _at(1, "B", FINAL)
    reason: int = _at(2, "B")
    itt: int = _at(16, "I", RESERVED_TAG)
    stat_sn: int = _at(24, "I")
    exp_cmd_sn: int = _at(28, "I")
    max_cmd_sn: int = _at(32, "I")
    data_sn: int = _at(36, "I")


class Layout:
    """A PDU class compiled to a struct of the whole BHS: opcode byte, `names[0:...]` and, before byte 8, the lengths.

    The struct's values are in the order of their offsets; the word at offset 4 is TotalAHSLength in its high byte and
    DataSegmentLength below (11.2.1.5, 11.2.1.6).
    """

    def __init__(self, kind: type[Pdu]) -> None:
        rows: list[tuple[int, str, str]] = [(0, "B", "opcode"), (4, "I", "lengths")]
        for item in fields(kind):
            if "wire" in item.metadata:
                offset, code = item.metadata["wire"]
                rows.append((offset, code, item.name))
        rows.sort()
        form, at = ">", 0
        for offset, code, _name in rows:
            form += f"{offset - at}x" * (offset > at) + code
            at = offset + struct.calcsize(">" + code)
        form += f"{BHS - at}x" * (at < BHS)
        self.kind = kind
        self.struct = struct.Struct(form)
        self.names = [name for _offset, _code, name in rows]

    def encode(self, pdu: Pdu) -> bytes:
        """Return the basic header segment of `pdu`."""
        values = [
            pdu.OPCODE | (IMMEDIATE if pdu.immediate else 0)
            if name == "opcode"
            else len(pdu.ahs) // 4 << 24 | len(pdu.data)
            if name == "lengths"
            else getattr(pdu, name)
            for name in self.names
        ]
        return self.struct.pack(*values)

    def decode(self, header: Buffer, at: int, ahs: bytes, data: Buffer) -> Pdu:
        """Return the PDU whose basic header segment lies at `at` of `header`."""
        values = dict(zip(self.names, self.struct.unpack_from(header, at), strict=True))
        immediate = bool(values.pop("opcode") & IMMEDIATE)
        del values["lengths"]
        return self.kind(immediate=immediate, ahs=ahs, data=data, **values)


PDUS: tuple[type[Pdu], ...] = (
    NopOut, ScsiCommand, TaskManagementRequest, LoginRequest, TextRequest, DataOut, LogoutRequest, SnackRequest,
    NopIn, ScsiResponse, TaskManagementResponse, LoginResponse, TextResponse, DataIn, LogoutResponsePdu,
    ReadyToTransfer, AsyncMessage, Reject,
)  # fmt: skip
LAYOUTS: dict[int, Layout] = {kind.OPCODE: Layout(kind) for kind in PDUS}

# The PDUs of the hot path are packed and unpacked without making an object.
SCSI_COMMAND = LAYOUTS[Opcode.SCSI_COMMAND].struct
DATA_IN = LAYOUTS[Opcode.DATA_IN].struct
SCSI_RESPONSE = LAYOUTS[Opcode.SCSI_RESPONSE].struct
LENGTHS = struct.Struct(">4xI")  # the word at offset 4 of any BHS
DIGEST = struct.Struct("<I")  # a CRC32C goes out low byte first (RFC 7143 13.1)


def digest(data: Buffer) -> bytes:
    """Return the CRC32C of `data` as it stands on the wire."""
    return DIGEST.pack(crc32c.crc32c(data))


@dataclass(frozen=True, slots=True)
class Framing:
    """How PDUs follow each other on a connection: whether header and data digests stand between."""

    header_digest: bool = False
    data_digest: bool = False

    def encode(self, pdu: Pdu) -> bytes:
        """Return `pdu` as it goes out: header segments, data, padding, digests (11.2)."""
        header = LAYOUTS[pdu.OPCODE].encode(pdu) + pdu.ahs
        if self.header_digest:
            header += digest(header)
        if not pdu.data:
            return header
        data = bytes(pdu.data) + bytes(-len(pdu.data) & 3)
        if self.data_digest:
            data += digest(data)
        return header + data

    def size(self, header: Buffer, at: int) -> int:
        """Return how many bytes the PDU whose BHS lies at `at` takes in all."""
        lengths: int = LENGTHS.unpack_from(header, at)[0]
        total = BHS + (lengths >> 24) * 4
        if self.header_digest:
            total += 4
        length = lengths & 0xFFFFFF
        if length:
            total += (length + 3) & ~3
            if self.data_digest:
                total += 4
        return total

    def decode(self, stream: Buffer, at: int) -> Pdu:
        """Return the PDU at `at` of `stream`, which holds all of it; a memoryview's data segment is not copied.

        Raises:
            ConnectionEnded: the header digest is wrong, so nothing after it can be trusted.
            DigestError: the data digest is wrong.
            PduError: there is no such opcode.
        """
        lengths: int = LENGTHS.unpack_from(stream, at)[0]
        body = at + BHS + (lengths >> 24) * 4
        ahs = bytes(stream[at + BHS : body])
        if self.header_digest:
            if digest(stream[at:body]) != stream[body : body + 4]:
                raise ConnectionEnded("wrong header digest")
            body += 4
        end = body + (lengths & 0xFFFFFF)
        padded = body + ((end - body + 3) & ~3)
        if self.data_digest and end > body and digest(stream[body:padded]) != stream[padded : padded + 4]:
            raise DigestError("wrong data digest")
        layout = LAYOUTS.get(stream[at] & 0x3F)
        if layout is None:
            raise PduError(f"unknown opcode {stream[at] & 0x3F:02X}h", RejectReason.COMMAND_NOT_SUPPORTED)
        return layout.decode(stream, at, ahs, stream[body:end])


@dataclass(frozen=True, slots=True)
class AdditionalHeaders:
    """What the additional header segments of a SCSI Command hold (11.2.2)."""

    cdb: bytes = b""  # the CDB's bytes from 16 on
    read_length: int | None = None  # expected bidirectional read data length


def parse_ahs(ahs: bytes) -> AdditionalHeaders:
    """Return what `ahs` holds.

    Raises:
        PduError: a segment has no known type, goes beyond the end, or comes twice.
    """
    cdb, read_length = b"", None
    while ahs:
        if len(ahs) < 4:
            raise PduError("additional header segment is cut short", RejectReason.INVALID_PDU_FIELD)
        length = int.from_bytes(ahs[:2], "big")
        segment, rest = ahs[3 : 3 + length], ahs[(3 + length + 3) & ~3 :]
        if length < 1 or len(segment) < length:
            raise PduError("additional header segment has a wrong length", RejectReason.INVALID_PDU_FIELD)
        if ahs[2] & 0x3F == AhsType.EXTENDED_CDB and not cdb:
            cdb = segment[1:]
        elif ahs[2] & 0x3F == AhsType.BIDI_READ_LENGTH and length == 5 and read_length is None:
            read_length = int.from_bytes(segment[1:], "big")
        else:
            raise PduError(f"additional header segment of type {ahs[2]:02X}h", RejectReason.INVALID_PDU_FIELD)
        ahs = rest
    return AdditionalHeaders(cdb, read_length)


def extended_cdb(cdb: bytes) -> bytes:
    """Return the additional header segment that carries the bytes from 16 on of a long `cdb`."""
    rest = cdb[16:]
    segment = (len(rest) + 1).to_bytes(2, "big") + bytes([AhsType.EXTENDED_CDB, 0]) + rest
    return segment + bytes(-len(segment) & 3)


def bidi_read_length(length: int) -> bytes:
    """Return the additional header segment that announces `length` bytes of bidirectional read data."""
    return b"\x00\x05" + bytes([AhsType.BIDI_READ_LENGTH, 0]) + length.to_bytes(4, "big")
