"""Bytes of the NBD protocol and what they say: options, requests, replies. No state, no input or output."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from tcmu_nbd import constants as nbd
from tcmu_nbd.constants import ExportFlag, Info
from tcmu_nbd.errors import ProtocolError, from_reply, printable

GREETING = struct.Struct(">QQH")  # NBDMAGIC, IHAVEOPT, handshake flags ("Newstyle negotiation")
OPTION = struct.Struct(">QII")  # IHAVEOPT, option, length
OPTION_REPLY = struct.Struct(">QIII")  # magic, option, reply type, length
EXPORT_NAME_REPLY = struct.Struct(">QH")  # size, transmission flags
REQUEST = struct.Struct(">IHHQQI")  # magic, command flags, type, cookie, offset, length ("Request message")
SIMPLE = struct.Struct(">IIQ")  # magic, error, cookie ("Simple reply message")
STRUCTURED = struct.Struct(">IHHQI")  # magic, flags, type, cookie, length ("Structured reply chunk message")
DATA = struct.Struct(">IHHQIQ")  # the same, and the offset of NBD_REPLY_TYPE_OFFSET_DATA; length counts that too
_INFO_EXPORT = struct.Struct(">HQH")
_INFO_BLOCK_SIZE = struct.Struct(">HIII")
_ERROR = struct.Struct(">IH")
_HOLE = struct.Struct(">QI")
_DESCRIPTOR = struct.Struct(">II")


@dataclass(frozen=True, slots=True)
class BlockSizes:
    """NBD_INFO_BLOCK_SIZE: bytes; `minimum` is 1 where anything goes."""

    minimum: int = 1
    preferred: int = 4096
    maximum: int = nbd.MAX_PAYLOAD


@dataclass(frozen=True, slots=True)
class Export:
    """What a server told of an export. `context` is the id of base:allocation, None where it has none."""

    size: int
    flags: ExportFlag
    blocks: BlockSizes = BlockSizes()
    structured: bool = False
    context: int | None = None
    encrypted: bool = False


# -- negotiation ----------------------------------------------------------------------------------------------------


def option(number: int, data: bytes = b"") -> bytes:
    """Return an option request."""
    return OPTION.pack(nbd.IHAVEOPT, number, len(data)) + data


def go(name: str) -> bytes:
    """Return the data of NBD_OPT_GO, asking for the block sizes too."""
    raw = name.encode()
    return struct.pack(f">I{len(raw)}sHH", len(raw), raw, 1, Info.BLOCK_SIZE)


def meta_context(name: str, query: str) -> bytes:
    """Return the data of NBD_OPT_SET_META_CONTEXT with one query."""
    raw, asked = name.encode(), query.encode()
    return struct.pack(f">I{len(raw)}sII{len(asked)}s", len(raw), raw, 1, len(asked), asked)


def info_kind(data: bytes) -> int:
    """Return the type of an NBD_REP_INFO."""
    if len(data) < 2:
        raise ProtocolError("NBD_REP_INFO without a type")
    return int.from_bytes(data[:2], "big")


def info_export(data: bytes) -> tuple[int, ExportFlag]:
    """Return size and flags of NBD_INFO_EXPORT."""
    if len(data) != _INFO_EXPORT.size:
        raise ProtocolError(f"NBD_INFO_EXPORT of {len(data)} bytes")
    _, size, flags = _INFO_EXPORT.unpack(data)
    return export_size(size), ExportFlag(flags)


def export_size(size: int) -> int:
    """Return an export's size; raises ProtocolError where offsets could not be told (they have 63 bits)."""
    if size >= 1 << 63:
        raise ProtocolError(f"an export of {size} bytes")
    return size


def info_block_size(data: bytes) -> BlockSizes:
    """Return what NBD_INFO_BLOCK_SIZE says, held against its rules ("Block size constraints")."""
    if len(data) != _INFO_BLOCK_SIZE.size:
        raise ProtocolError(f"NBD_INFO_BLOCK_SIZE of {len(data)} bytes")
    _, minimum, preferred, maximum = _INFO_BLOCK_SIZE.unpack(data)
    powers = all(size and not size & (size - 1) for size in (minimum, preferred))
    if not powers or minimum > 65536 or preferred < minimum or maximum < minimum:
        raise ProtocolError(f"block sizes {minimum}, {preferred}, {maximum}")
    return BlockSizes(minimum, preferred, min(maximum, nbd.MAX_PAYLOAD) // minimum * minimum)


def context_id(data: bytes) -> tuple[int, str]:
    """Return id and name of an NBD_REP_META_CONTEXT."""
    if len(data) < 4:
        raise ProtocolError("NBD_REP_META_CONTEXT without an id")
    return int.from_bytes(data[:4], "big"), printable(data[4:])


# -- transmission ---------------------------------------------------------------------------------------------------


def request(command: int, cookie: int, offset: int = 0, length: int = 0, flags: int = 0) -> bytes:
    """Return the header of a request; a write's data follows it."""
    return REQUEST.pack(nbd.REQUEST_MAGIC, flags, command, cookie, offset, length)


def hole(payload: bytes) -> tuple[int, int]:
    """Return offset and length of NBD_REPLY_TYPE_OFFSET_HOLE."""
    if len(payload) != _HOLE.size:
        raise ProtocolError(f"a hole of {len(payload)} bytes")
    offset, length = _HOLE.unpack(payload)
    return offset, length


def error(kind: int, payload: bytes) -> OSError:
    """Return the error of an error chunk; of a type that is not known its first fields are the same."""
    if len(payload) < _ERROR.size:
        raise ProtocolError(f"an error chunk of {len(payload)} bytes")
    code, length = _ERROR.unpack_from(payload)
    if length > len(payload) - _ERROR.size:
        raise ProtocolError("an error message that is longer than its chunk")
    if not code:
        raise ProtocolError(f"error chunk {kind:#x} without an error")
    return from_reply(code, printable(payload[_ERROR.size : _ERROR.size + length]))


def block_status(payload: bytes) -> tuple[int, list[tuple[int, int]]]:
    """Return the context's id and (length, status flags) of each run of NBD_REPLY_TYPE_BLOCK_STATUS."""
    if len(payload) < 12 or (len(payload) - 4) % _DESCRIPTOR.size:
        raise ProtocolError(f"a block status of {len(payload)} bytes")
    runs = list(_DESCRIPTOR.iter_unpack(payload[4:]))
    if not all(length for length, _ in runs):
        raise ProtocolError("a block status of an empty run")
    return int.from_bytes(payload[:4], "big"), runs
