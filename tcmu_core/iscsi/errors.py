"""What can go wrong with a peer: each exception carries what the wire says about it."""

from __future__ import annotations

from tcmu_core.errors import TcmuError
from tcmu_core.iscsi.constants import LoginStatus, RejectReason


class IscsiError(TcmuError):
    """Base of what a peer can do wrong."""


class ConnectionEnded(IscsiError):
    """The connection can't go on; the message is for the log."""


class PduError(IscsiError):
    """A PDU can't be accepted; it is rejected for `reason` (RFC 7143 11.17.1). `fatal` ends the connection too."""

    def __init__(
        self, message: str, reason: RejectReason = RejectReason.PROTOCOL_ERROR, *, fatal: bool = False
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.fatal = fatal


class DigestError(PduError):
    """A data digest is wrong: the PDU is discarded and rejected (RFC 7143 7.8)."""

    def __init__(self, message: str) -> None:
        super().__init__(message, RejectReason.DATA_DIGEST_ERROR)


class TextError(IscsiError):
    """Text does not have the form of key=value pairs, or is more than we take."""


class LoginError(IscsiError):
    """The login ends with `status` (RFC 7143 11.13.5)."""

    def __init__(self, status: LoginStatus, message: str) -> None:
        super().__init__(message)
        self.status = status
