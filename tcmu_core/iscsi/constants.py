"""Numbers of the iSCSI wire format (RFC 7143 section 11)."""

from __future__ import annotations

from enum import IntEnum

BHS = 48  # bytes of a basic header segment (11.2.1)
SERIAL = 0xFFFFFFFF  # serial numbers count modulo 2**32 (RFC 1982)
RESERVED_TAG = 0xFFFFFFFF  # no task (11.2.1.8)

IMMEDIATE = 0x40  # I, in byte 0
FINAL = 0x80  # F, in byte 1
CONTINUE = 0x40  # C, in byte 1 of Text and Login

# SCSI Command, byte 1 (11.3.1)
COMMAND_READ = 0x40
COMMAND_WRITE = 0x20
ATTRIBUTE = 0x07

# SCSI Response, byte 1 (11.4.1), and Data-In, byte 1 (11.7)
BIDI_OVERFLOW = 0x10
BIDI_UNDERFLOW = 0x08
OVERFLOW = 0x04
UNDERFLOW = 0x02
DATA_STATUS = 0x01


class Opcode(IntEnum):
    """PDU operation codes (11.2.1.2)."""

    NOP_OUT = 0x00
    SCSI_COMMAND = 0x01
    TASK_MANAGEMENT_REQUEST = 0x02
    LOGIN_REQUEST = 0x03
    TEXT_REQUEST = 0x04
    DATA_OUT = 0x05
    LOGOUT_REQUEST = 0x06
    SNACK_REQUEST = 0x10
    NOP_IN = 0x20
    SCSI_RESPONSE = 0x21
    TASK_MANAGEMENT_RESPONSE = 0x22
    LOGIN_RESPONSE = 0x23
    TEXT_RESPONSE = 0x24
    DATA_IN = 0x25
    LOGOUT_RESPONSE = 0x26
    R2T = 0x31
    ASYNC_MESSAGE = 0x32
    REJECT = 0x3F


class AhsType(IntEnum):
    """Additional header segments (11.2.2.1)."""

    EXTENDED_CDB = 1
    BIDI_READ_LENGTH = 2


class RejectReason(IntEnum):
    """Why a PDU is rejected (11.17.1)."""

    DATA_DIGEST_ERROR = 0x02
    SNACK_REJECT = 0x03
    PROTOCOL_ERROR = 0x04
    COMMAND_NOT_SUPPORTED = 0x05
    IMMEDIATE_COMMAND_REJECT = 0x06
    TASK_IN_PROGRESS = 0x07
    INVALID_DATA_ACK = 0x08
    INVALID_PDU_FIELD = 0x09
    LONG_OPERATION_REJECT = 0x0A
    NEGOTIATION_RESET = 0x0B
    WAITING_FOR_LOGOUT = 0x0C


class TaskFunction(IntEnum):
    """Task management functions (11.5.1)."""

    ABORT_TASK = 1
    ABORT_TASK_SET = 2
    CLEAR_ACA = 3
    CLEAR_TASK_SET = 4
    LOGICAL_UNIT_RESET = 5
    TARGET_WARM_RESET = 6
    TARGET_COLD_RESET = 7
    TASK_REASSIGN = 8


class TaskResponse(IntEnum):
    """What became of a task management function (11.6.1)."""

    COMPLETE = 0
    NO_TASK = 1
    NO_LUN = 2
    STILL_ALLEGIANT = 3
    NO_REASSIGNMENT = 4
    NOT_SUPPORTED = 5
    NOT_AUTHORIZED = 6
    REJECTED = 255


class AsyncEvent(IntEnum):
    """Asynchronous messages (11.9.1)."""

    SCSI = 0
    LOGOUT_REQUEST = 1
    CONNECTION_DROP = 2
    SESSION_DROP = 3
    NEGOTIATE = 4
    TASKS_TERMINATED = 5


class LogoutReason(IntEnum):
    """Why an initiator logs out (11.14.1)."""

    CLOSE_SESSION = 0
    CLOSE_CONNECTION = 1
    REMOVE_FOR_RECOVERY = 2


class LogoutResponse(IntEnum):
    """What a logout got (11.15.1)."""

    CLOSED = 0
    NO_CID = 1
    NO_RECOVERY = 2
    FAILED = 3


class Stage(IntEnum):
    """Stages of a login: CSG and NSG (11.12.3)."""

    SECURITY = 0
    OPERATIONAL = 1
    FULL_FEATURE = 3


class LoginStatus(IntEnum):
    """Status class and detail of a Login Response (11.13.5)."""

    SUCCESS = 0x0000
    MOVED_TEMPORARILY = 0x0101
    MOVED_PERMANENTLY = 0x0102
    INITIATOR_ERROR = 0x0200
    AUTHENTICATION_FAILED = 0x0201
    FORBIDDEN = 0x0202
    NOT_FOUND = 0x0203
    REMOVED = 0x0204
    UNSUPPORTED_VERSION = 0x0205
    TOO_MANY_CONNECTIONS = 0x0206
    MISSING_PARAMETER = 0x0207
    CANNOT_INCLUDE = 0x0208
    SESSION_TYPE_NOT_SUPPORTED = 0x0209
    NO_SESSION = 0x020A
    INVALID_REQUEST = 0x020B
    TARGET_ERROR = 0x0300
    SERVICE_UNAVAILABLE = 0x0301
    OUT_OF_RESOURCES = 0x0302
