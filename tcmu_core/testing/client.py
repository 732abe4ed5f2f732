"""The initiator on a socket: one disk behind an iSCSI URL, a command at a time."""

from __future__ import annotations

import re
import socket
from types import TracebackType
from typing import Self

from tcmu_core.errors import ConfigError
from tcmu_core.iscsi.settings import parse_address
from tcmu_core.testing.initiator import Initiator, InitiatorError, Reply, State

NAME = "iqn.2025-01.local.tcmu:initiator"
PATIENCE = 60.0  # seconds that the target may be silent
_URL = re.compile(r"iscsi://(?P<portal>[^/]+)/(?P<target>[^/]+)/(?P<lun>\d+)")
_RECEIVE = 1 << 18


class Client:
    """A session with the target of `iscsi://HOST[:PORT]/IQN/LUN`; a context manager.

    Raises `ConfigError` for what is no such URL, `OSError` when the portal can't be reached or the connection breaks,
    `InitiatorError` when the target refuses.
    """

    def __init__(self, url: str, *, name: str = NAME, patience: float = PATIENCE) -> None:
        match = _URL.fullmatch(url)
        if match is None:
            raise ConfigError(f"{url!r} is no URL of a disk: write iscsi://HOST:PORT/IQN/LUN")
        self.lun = int(match["lun"])
        self.initiator = Initiator(name, match["target"])
        self._sock = socket.create_connection(parse_address(match["portal"]), patience)
        try:
            self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._sock.sendall(self.initiator.login())
            self._until(State.FULL_FEATURE)
            self._clear_attentions()
        except BaseException:
            self._sock.close()
            raise

    def _clear_attentions(self) -> None:
        """Hear what the unit has to say to somebody new (SAM-5 5.14)."""
        for _ in range(8):
            if self.command(bytes(6)).error[0] != 0x6:  # UNIT ATTENTION
                return

    def command(self, cdb: bytes, *, write: bytes = b"", read: int = 0) -> Reply:
        """Send a command and return how it ended."""
        _tag, data = self.initiator.command(cdb, write=write, read=read, lun=self.lun)
        self._sock.sendall(data)
        while True:
            replies = self._receive()
            if replies:
                return replies[0]

    def _until(self, state: State) -> None:
        while self.initiator.state is not state:
            self._receive()

    def _receive(self) -> list[Reply]:
        data = self._sock.recv(_RECEIVE)
        if not data:
            raise ConnectionResetError("the target has closed the connection")
        replies = self.initiator.receive(data)
        out = self.initiator.outgoing()
        if out:
            self._sock.sendall(out)
        return replies

    def capacity(self) -> tuple[int, int]:
        """Return the number of blocks and the bytes of each, by READ CAPACITY(16) (SBC-4 5.16)."""
        reply = self.command(bytes([0x9E, 0x10]) + bytes(8) + (32).to_bytes(4, "big") + bytes(2), read=32)
        if reply.status or len(reply.data) < 12:
            raise InitiatorError("the disk does not tell its capacity")
        return int.from_bytes(reply.data[:8], "big") + 1, int.from_bytes(reply.data[8:12], "big")

    def close(self) -> None:
        """Log out, if there still is a session, and close the connection."""
        try:
            if self.initiator.state is State.FULL_FEATURE and not self.initiator.in_flight:
                self._sock.sendall(self.initiator.logout())
                self._until(State.ENDED)
        except (OSError, InitiatorError):
            pass  # the session ends with the connection, too
        finally:
            self._sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()
