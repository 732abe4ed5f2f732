"""Real NBD servers for the tests: nbdkit and qemu-nbd, on a Unix socket or a port, killed and started again."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.waiting import suspend

PATIENCE = 30  # seconds for a server to come up
MIB = 1 << 20


@pytest.fixture
def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """A server: `cfgstring` is where it is; `kill` ends it at once, `start` begins it (again)."""

    def __init__(self, command: list[str], address: Path | int) -> None:
        self.command = command
        self.address = address
        self.process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def cfgstring(self) -> str:
        return f";host=127.0.0.1;port={self.address}" if isinstance(self.address, int) else str(self.address)

    def start(self) -> None:
        if isinstance(self.address, Path):
            self.address.unlink(missing_ok=True)
        self.process = subprocess.Popen(self.command, stdin=subprocess.DEVNULL)
        deadline = time.monotonic() + PATIENCE
        while not self._answers():
            assert self.process.poll() is None, f"{self.command[0]} ended with status {self.process.returncode}"
            assert time.monotonic() < deadline, f"{self.command[0]} does not come up"
            time.sleep(0.005)

    def _answers(self) -> bool:
        here = isinstance(self.address, Path)
        with socket.socket(socket.AF_UNIX if here else socket.AF_INET) as probe:
            return probe.connect_ex(str(self.address) if here else ("127.0.0.1", self.address)) == 0

    def kill(self, number: int = signal.SIGKILL) -> None:
        process, self.process = self.process, None
        if process is not None:
            process.send_signal(signal.SIGCONT)
            process.send_signal(number)
            process.wait(PATIENCE)

    def suspend(self) -> None:
        assert self.process is not None
        suspend(self.process.pid)

    def resume(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)


Start = Callable[..., Server]


@pytest.fixture
def fast_dir() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="tcmu-nbd-", dir="/dev/shm") as name:
        yield Path(name)


@pytest.fixture
def start(fast_dir: Path) -> Iterator[Start]:
    """Start a server; all are ended after the test."""
    started: list[Server] = []

    def begin(command: list[str], address: Path | int) -> Server:
        server = Server(command, address)
        started.append(server)
        return server

    yield begin
    for server in started:
        server.kill(signal.SIGTERM)


@pytest.fixture
def nbdkit(start: Start, fast_dir: Path) -> Start:
    """Start nbdkit with a plugin, filters and their parameters."""

    def begin(*words: object, port: int | None = None) -> Server:
        address = port or fast_dir / f"nbdkit{len(os.listdir(fast_dir))}.sock"
        where = ["-i", "127.0.0.1", "-p", str(port)] if port else ["-U", str(address)]
        return start(["nbdkit", "-f", *where, *(str(word) for word in words)], address)

    return begin


@pytest.fixture
def qemu_nbd(start: Start, fast_dir: Path) -> Start:
    """Start qemu-nbd on an image, with its options."""

    def begin(*words: object) -> Server:
        address = fast_dir / f"qemu{len(os.listdir(fast_dir))}.sock"
        return start(["qemu-nbd", "-t", "-e", "16", "-k", str(address), *(str(word) for word in words)], address)

    return begin


@pytest.fixture
def image(fast_dir: Path) -> Path:
    path = fast_dir / "disk.img"
    with path.open("wb") as file:
        file.truncate(8 * MIB)
    return path
