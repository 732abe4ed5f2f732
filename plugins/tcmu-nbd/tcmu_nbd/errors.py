"""What goes wrong with a server, as `OSError`s: each has the errno that SCSI's answer is made from."""

from __future__ import annotations

import errno

from tcmu_nbd.constants import NbdError


class ProtocolError(ConnectionError):
    """The server sent what the protocol does not have; the connection is of no use any more."""

    def __init__(self, message: str) -> None:
        super().__init__(errno.EPROTO, f"the NBD server broke the protocol: {message}")


class Refused(ConnectionError):
    """The server does not give what was asked for, and says why."""

    def __init__(self, message: str) -> None:
        super().__init__(errno.ECONNREFUSED, message)


class Lost(ConnectionError):
    """The server ended the connection."""

    def __init__(self, message: str = "the NBD server closed the connection") -> None:
        super().__init__(errno.ECONNRESET, message)


_TEXT = {
    NbdError.EPERM: "not permitted",
    NbdError.EIO: "input/output error",
    NbdError.ENOMEM: "out of memory",
    NbdError.EINVAL: "invalid request",
    NbdError.ENOSPC: "no space left",
    NbdError.EOVERFLOW: "the answer would be too large",
    NbdError.ENOTSUP: "not supported",
    NbdError.ESHUTDOWN: "the server is shutting down",
}


def from_reply(code: int, text: str = "") -> OSError:
    """Return what an error value of a reply means; one that the protocol does not know counts as EINVAL."""
    known = NbdError(code) if code in _TEXT else NbdError.EINVAL
    return OSError(int(known), f"the NBD server says: {text or _TEXT[known]}")


def printable(raw: bytes) -> str:
    """Return a server's message as one line that can be shown, of a length that can be read."""
    text = raw[:300].decode("utf-8", "replace")
    return "".join(char if char.isprintable() else " " for char in text).strip()
