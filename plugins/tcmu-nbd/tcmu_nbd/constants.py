"""The NBD protocol's numbers, by their names there: https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md."""

from __future__ import annotations

from enum import IntEnum, IntFlag

PORT = 10809  # IANA's, for newstyle negotiation
MAX_NAME = 4096  # bytes of an export's name ("Values")
MAX_PAYLOAD = 32 << 20  # bytes of a read or write where the server sets no other limit ("Block size constraints")
MAX_LENGTH = 0xFFFFFFFF  # bytes of any request: the field has 32 bits ("Request message")

# "Newstyle negotiation" and "Transmission"
NBDMAGIC = 0x4E42444D41474943
CLISERV_MAGIC = 0x00420281861253  # of the old handshake
IHAVEOPT = 0x49484156454F5054
OPTION_REPLY_MAGIC = 0x0003E889045565A9
REQUEST_MAGIC = 0x25609513
SIMPLE_REPLY_MAGIC = 0x67446698
STRUCTURED_REPLY_MAGIC = 0x668E33EF

BASE_ALLOCATION = "base:allocation"  # "Metadata querying"
STATE_HOLE = 1
STATE_ZERO = 2


class HandshakeFlag(IntFlag):
    """Handshake flags; the client's answer has the same bits."""

    FIXED_NEWSTYLE = 1 << 0
    NO_ZEROES = 1 << 1


class ExportFlag(IntFlag):
    """Transmission flags: what an export can do."""

    HAS_FLAGS = 1 << 0
    READ_ONLY = 1 << 1
    SEND_FLUSH = 1 << 2
    SEND_FUA = 1 << 3
    ROTATIONAL = 1 << 4
    SEND_TRIM = 1 << 5
    SEND_WRITE_ZEROES = 1 << 6
    CAN_MULTI_CONN = 1 << 8


class Opt(IntEnum):
    """Option types."""

    EXPORT_NAME = 1
    ABORT = 2
    STARTTLS = 5
    GO = 7
    STRUCTURED_REPLY = 8
    SET_META_CONTEXT = 10


class Rep(IntEnum):
    """Option reply types; errors have bit 31."""

    ACK = 1
    INFO = 3
    META_CONTEXT = 4
    ERR_UNSUP = 1 << 31 | 1
    ERR_POLICY = 1 << 31 | 2
    ERR_INVALID = 1 << 31 | 3
    ERR_PLATFORM = 1 << 31 | 4
    ERR_TLS_REQD = 1 << 31 | 5
    ERR_UNKNOWN = 1 << 31 | 6
    ERR_SHUTDOWN = 1 << 31 | 7
    ERR_BLOCK_SIZE_REQD = 1 << 31 | 8
    ERR_TOO_BIG = 1 << 31 | 9


REP_ERROR = 1 << 31


class Info(IntEnum):
    """Information types of NBD_REP_INFO ("Option reply types")."""

    EXPORT = 0
    BLOCK_SIZE = 3


class Cmd(IntEnum):
    """Request types."""

    READ = 0
    WRITE = 1
    DISC = 2
    FLUSH = 3
    TRIM = 4
    WRITE_ZEROES = 6
    BLOCK_STATUS = 7


class CmdFlag(IntFlag):
    """Command flags."""

    FUA = 1 << 0
    NO_HOLE = 1 << 1


class Chunk(IntEnum):
    """Structured reply types; errors have bit 15."""

    NONE = 0
    OFFSET_DATA = 1
    OFFSET_HOLE = 2
    BLOCK_STATUS = 5
    ERROR = 1 << 15 | 1
    ERROR_OFFSET = 1 << 15 | 2


CHUNK_ERROR = 1 << 15
CHUNK_DONE = 1 << 0  # "Structured reply flags"


class NbdError(IntEnum):
    """Error values: they are Linux's errno."""

    EPERM = 1
    EIO = 5
    ENOMEM = 12
    EINVAL = 22
    ENOSPC = 28
    EOVERFLOW = 75
    ENOTSUP = 95
    ESHUTDOWN = 108
