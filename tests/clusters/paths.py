"""Paths: an initiator's sessions with the gateways of a disk, and what a multipath driver makes of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import IntEnum

from tcmu_core.iscsi import pdu as p
from tests.clusters.gateway import TARGET
from tests.iscsi.initiator import Initiator, cdb_10
from tests.iscsi.served import Client

BLOCK = 512
ROOM = 4096  # bytes for what PERSISTENT RESERVE IN tells
PATIENCE = 120.0  # seconds for a disk that stays busy, or out of reach
SILENCE = 60.0  # seconds without an answer, after which a path is given up
PAUSE = 0.05
STANDBY = (0x2, (0x04, 0x0B))  # NOT READY, target port in standby state


class Status(IntEnum):
    """What a command is answered (SAM-5 table 42)."""

    GOOD = 0x00
    CHECK = 0x02
    BUSY = 0x08
    CONFLICT = 0x18


class Out(IntEnum):
    """Service actions of PERSISTENT RESERVE OUT (SPC-4 table 215)."""

    REGISTER = 0
    RESERVE = 1
    RELEASE = 2
    CLEAR = 3
    PREEMPT = 4
    PREEMPT_AND_ABORT = 5
    REGISTER_AND_IGNORE = 6


class LostError(Exception):
    """A path does not lead to the disk any more: its connection is broken, or its gateway stands by or says nothing."""


class SenseError(Exception):
    """A command has failed: sense key, and additional sense code with its qualifier."""


@dataclass(frozen=True, slots=True)
class Registration:
    """A descriptor of READ FULL STATUS: a key, the relative identifier of its target port, and whether it reserves."""

    key: int
    port: int
    holds: bool


class Path:
    """An initiator port's session with one gateway, which is begun anew when it is broken."""

    def __init__(self, address: str, who: str, silence: float) -> None:
        self.address = address
        self.told: list[tuple[int, int]] = []  # unit attentions
        self._who = f"iqn.2026-01.test:{who}"
        self._silence = silence
        self._client: Client | None = None

    @property
    def client(self) -> Client:
        """The connection; raises `LostError` where there can be none."""
        if self._client is None:
            client = None
            try:
                client = Client(self.address, Initiator(self._who, TARGET))
                client.sock.settimeout(self._silence)
                client.login()
            except (OSError, AssertionError) as error:
                if client is not None:
                    client.sock.close()
                raise LostError(f"no login at {self.address}") from error
            self._client = client
        return self._client

    def close(self) -> None:
        """Break the connection."""
        if self._client is not None:
            self._client.sock.close()
            self._client = None

    def once(self, cdb: bytes, data: bytes | None = None, read: int = 0) -> tuple[Status, bytes]:
        """Send a command and return its status and what came; a unit attention is kept in `told`.

        Raises:
            LostError: there is no answer, or the gateway stands by.
            SenseError: it has failed.
        """
        client = self.client
        try:
            answer = client.ask(client.initiator.command(cdb, read=read, write=data, data=data or b""))
            came = b""
            if isinstance(answer, p.DataIn):
                came = bytes(answer.data)
                if answer.flags & 1:
                    return Status(answer.status), came
                answer = client.receive()
        except OSError as error:
            self.close()
            raise LostError(f"{self.address} says nothing") from error
        if answer is None:
            self.close()
            raise LostError(f"{self.address} has broken the connection")
        assert isinstance(answer, p.ScsiResponse), answer
        if answer.status == Status.CHECK:
            self._failed(bytes(answer.data[2:]))
        return Status(answer.status), came

    def _failed(self, sense: bytes) -> None:
        key, code = sense[2] & 0x0F, (sense[12], sense[13])
        if (key, code) == STANDBY:
            raise LostError(f"{self.address} stands by")
        if key != 6:
            raise SenseError(key, code)
        self.told.append(code)


class Disk:
    """A disk by some paths, of which one is used until it fails; then the next one that leads to it.

    What is BUSY or meets a unit attention is sent again by the same path, as SCSI's middle layers do. `failures` counts
    the times that a path has failed.
    """

    def __init__(self, who: str, addresses: Iterable[str], silence: float = SILENCE) -> None:
        self.paths = [Path(address, who, silence) for address in addresses]
        self.failures = 0
        self._used = 0

    def __enter__(self) -> Disk:
        return self

    def __exit__(self, *_exception: object) -> None:
        for path in self.paths:
            path.close()

    @property
    def told(self) -> list[tuple[int, int]]:
        """All unit attentions that came."""
        return [code for path in self.paths for code in path.told]

    @property
    def used(self) -> int:
        """The gateway whose path is used."""
        return self._used + 1

    def use(self, number: int) -> None:
        """Go on by another path, that through gateway `number`, with a session that is begun anew."""
        self._used = number - 1
        self.paths[self._used].close()

    def send(self, cdb: bytes, data: bytes | None = None, read: int = 0) -> tuple[Status, bytes]:
        """Send a command by whatever path leads to the disk; raises `SenseError`, or `LostError` when none does."""
        last = time.monotonic() + PATIENCE
        while True:
            try:
                status, came = self.paths[self._used].once(cdb, data, read)
                if status not in (Status.BUSY, Status.CHECK):
                    return status, came
            except LostError:
                self.failures += 1
                if time.monotonic() > last:
                    raise
                self._used = (self._used + 1) % len(self.paths)
            assert time.monotonic() < last, "the disk stays busy"
            time.sleep(PAUSE)

    def write(self, lba: int, data: bytes) -> Status:
        """Write blocks."""
        return self.send(cdb_10(0x2A, lba, len(data) // BLOCK), data)[0]

    def read(self, lba: int, blocks: int = 1) -> bytes:
        """Read blocks; raises `AssertionError` for a conflict."""
        status, data = self.send(cdb_10(0x28, lba, blocks), read=blocks * BLOCK)
        assert status == Status.GOOD, status
        return data

    # -- persistent reservations ------------------------------------------------------------------------------------

    def out(
        self, action: Out, key: int = 0, new: int = 0, kind: int = 0, *, aptpl: bool = False, all_ports: bool = False
    ) -> Status:
        """Send PERSISTENT RESERVE OUT (SPC-4 6.16): `key` is ours, `new` the SERVICE ACTION RESERVATION KEY."""
        flags = 0x01 * aptpl | 0x04 * all_ports
        data = key.to_bytes(8, "big") + new.to_bytes(8, "big") + bytes([0, 0, 0, 0, flags, 0, 0, 0])
        return self.send(bytes([0x5F, action, kind, 0, 0, 0, 0, 0, len(data), 0]), data)[0]

    def on_each_path(self, what: Callable[[], Status]) -> list[Status]:
        """Do something by each path in turn, and go on by the one that was used before."""
        before, answers = self._used, []
        for number in range(len(self.paths)):
            self._used = number
            answers.append(what())
        self._used = before
        return answers

    def _in(self, action: int) -> bytes:
        status, data = self.send(bytes([0x5E, action, 0, 0, 0, 0, 0]) + ROOM.to_bytes(2, "big") + b"\0", read=ROOM)
        assert status == Status.GOOD, status
        return data[8 : 8 + int.from_bytes(data[4:8], "big")]

    def keys(self) -> list[int]:
        """READ KEYS: the registered keys, in order."""
        data = self._in(0)
        return sorted(int.from_bytes(data[at : at + 8], "big") for at in range(0, len(data), 8))

    def reservation(self) -> tuple[int, int] | None:
        """READ RESERVATION: the holder's key and the type."""
        data = self._in(1)
        return (int.from_bytes(data[:8], "big"), data[13] & 0x0F) if data else None

    def registrations(self) -> list[Registration]:
        """READ FULL STATUS, in the order of keys and ports."""
        data, at, found = self._in(3), 0, []
        while at < len(data):
            key, port = int.from_bytes(data[at : at + 8], "big"), int.from_bytes(data[at + 18 : at + 20], "big")
            found.append(Registration(key, port, bool(data[at + 12] & 1)))
            at += 24 + int.from_bytes(data[at + 20 : at + 24], "big")
        return sorted(found, key=lambda one: (one.key, one.port))
