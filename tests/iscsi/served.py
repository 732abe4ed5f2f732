"""A portal on a loop of its own thread, with memory disks behind it; and a client on a socket."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from typing import TypeVar

from tcmu_core import hookimpl
from tcmu_core.disk.device import Device
from tcmu_core.disk.spec import DiskSpec
from tcmu_core.iscsi import pdu as p
from tcmu_core.iscsi.portal import Portal
from tcmu_core.iscsi.redirector import Redirector
from tcmu_core.iscsi.settings import PortalSettings
from tcmu_core.loop import Loop
from tcmu_core.scsi.engine import Engine
from tcmu_core.scsi.target import Target
from tcmu_core.testing.harness import make_disk
from tests.iscsi.initiator import OPERATIONAL, TARGET, Initiator, cdb_10

SECOND = "iqn.2026-01.test:second"
SIZE = 32 << 20
TIMEOUT = 60.0
ATTENTIONS = 4  # unit attentions that a nexus may have to be told, one by one
T = TypeVar("T")


class MemoryDisk:
    """A handler over memory; `threads` of the device decide whether its hooks answer at once."""

    def __init__(self) -> None:
        self.data = memoryview(bytearray(SIZE))

    @hookimpl
    def open(self, device: Device) -> None:
        device.size = SIZE

    @hookimpl
    def read(self, offset: int, buffers: list[memoryview]) -> None:
        for buffer in buffers:
            buffer[:] = self.data[offset : offset + len(buffer)]
            offset += len(buffer)

    @hookimpl
    def write(self, offset: int, buffers: list[memoryview]) -> None:
        for buffer in buffers:
            self.data[offset : offset + len(buffer)] = buffer
            offset += len(buffer)

    @hookimpl
    def flush(self) -> None:
        pass

    @hookimpl
    def discard(self, offset: int, length: int) -> None:
        self.data[offset : offset + length] = bytes(length)


class Served:
    """Two targets, the first with two LUNs, behind a portal on a free port, or behind a redirector in its place."""

    def __init__(self, settings: PortalSettings, threads: int = 0, *, redirector: bool = False) -> None:
        self.loop = Loop()
        self.disks = [MemoryDisk() for _ in range(3)]
        self.units = [self._unit(number, disk, threads) for number, disk in enumerate(self.disks)]
        targets = {TARGET: Target(TARGET, dict(enumerate(self.units[:2]))), SECOND: Target(SECOND, {0: self.units[2]})}
        self.portal = Portal(self.loop, settings, targets)
        self.away = False  # whether the portal takes nothing from the redirector
        self.redirector = Redirector(self.loop, settings, targets, self._pass_on) if redirector else None
        self.addresses = (self.redirector or self.portal).listen()
        self.address = self.addresses[0]
        self._thread = threading.Thread(target=self.loop.run, name="portal")
        self._thread.start()

    def _pass_on(self, _target: str, fd: int, heard: bytes, told: int) -> bool:
        if not self.away:
            self.loop.post(self.portal.take, os.dup(fd), heard, told)
        return not self.away

    def _unit(self, number: int, disk: MemoryDisk, threads: int) -> Engine:
        opened = make_disk(disk, DiskSpec("memory", name=f"disk{number}"), threads=threads)
        opened.open()
        return Engine(opened, post=self.loop.post)

    def uri(self, lun: int = 0, *, login: str = "", options: str = "") -> str:
        """Return the libiscsi URL of a LUN of the first target."""
        return f"iscsi://{login}{self.address}/{TARGET}/{lun}{options}"

    def call(self, fn: Callable[[], T]) -> T:
        """Call `fn()` on the loop's thread and return what it returns."""
        results: list[T] = []
        done = threading.Event()

        def run() -> None:
            try:
                results.append(fn())
            finally:
                done.set()

        self.loop.post(run)
        assert done.wait(TIMEOUT)
        return results[0]

    def client(self, initiator: Initiator | None = None) -> Client:
        """Return a client that is connected but not logged in."""
        return Client(self.address, initiator or Initiator())

    def stop(self) -> None:
        """Close everything."""
        if self.redirector is not None:
            self.call(self.redirector.close)
        self.call(self.portal.close)
        self.loop.stop()
        self._thread.join(TIMEOUT)
        assert not self._thread.is_alive()
        for unit in self.units:
            unit.close()
        self.loop.close()


@contextlib.contextmanager
def served(settings: PortalSettings | None = None, threads: int = 0, *, redirector: bool = False) -> Iterator[Served]:
    """Serve while the context lasts."""
    settings = settings or PortalSettings(addresses=("127.0.0.1:0",))
    running = Served(settings, threads, redirector=redirector)
    try:
        yield running
    finally:
        running.stop()


class Client:
    """An initiator on a blocking socket."""

    def __init__(self, address: str, initiator: Initiator) -> None:
        host, _, port = address.rpartition(":")
        self.sock = socket.create_connection((host.strip("[]"), int(port)), TIMEOUT)
        self.initiator = initiator
        self._pdus: list[p.Pdu] = []

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.sock.close()

    def send(self, *pdus: p.Pdu) -> None:
        """Send requests."""
        self.sock.sendall(self.initiator.encode(*pdus))

    def receive(self) -> p.Pdu | None:
        """Return the next PDU; None when the portal has closed the connection."""
        while not self._pdus:
            try:
                data = self.sock.recv(1 << 20)
            except ConnectionResetError:
                return None
            if not data:
                return None
            self._pdus = self.initiator.decode(data)
        return self._pdus.pop(0)

    def ask(self, pdu: p.Pdu) -> p.Pdu | None:
        """Send one request and return the next PDU that comes."""
        self.send(pdu)
        return self.receive()

    def login(self, changes: dict[str, str] | None = None) -> Client:
        """Log in without authentication."""
        answer = self.ask(self.initiator.login(OPERATIONAL | (changes or {})))
        assert isinstance(answer, p.LoginResponse)
        assert answer.status == 0
        self.initiator.framing = p.Framing(
            (changes or {}).get("HeaderDigest") == "CRC32C", (changes or {}).get("DataDigest") == "CRC32C"
        )
        return self

    def read(self, lba: int, blocks: int, lun: int = 0) -> bytes:
        """Read blocks; unit attentions that wait are taken first."""
        for _ in range(ATTENTIONS):
            answer = self.ask(self.initiator.read_10(lba, blocks, lun))
            if isinstance(answer, p.DataIn):
                return bytes(answer.data)
        raise AssertionError(answer)

    def write(self, lba: int, data: bytes, lun: int = 0) -> None:
        """Write blocks; unit attentions that wait are taken first."""
        cdb = cdb_10(0x2A, lba, len(data) // 512)
        for _ in range(ATTENTIONS):
            answer = self.ask(self.initiator.command(cdb, write=data, data=data, lun=lun))
            if isinstance(answer, p.ScsiResponse) and not answer.status:
                return
        raise AssertionError(answer)

    def sense(self, cdb: bytes, lun: int = 0) -> tuple[int, int, int] | None:
        """Send a command without data; return sense key, ASC and ASCQ, None when it is GOOD."""
        answer = self.ask(self.initiator.command(cdb, lun=lun))
        assert isinstance(answer, p.ScsiResponse)
        if not answer.status:
            return None
        sense = bytes(answer.data)[2:]
        return sense[2] & 0x0F, sense[12], sense[13]


def run(*command: str) -> subprocess.CompletedProcess[str]:
    """Run a client program."""
    return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False)
