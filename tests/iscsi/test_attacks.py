"""Many hostile clients against a portal in a process of its own: it stays small, and a good client goes on."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tcmu_core.iscsi import pdu as p
from tests.iscsi.initiator import Initiator, cdb_10
from tests.iscsi.served import TIMEOUT, Client

MIB = 1 << 20
HOSTILE = 32
GROUP = 256 * MIB  # of a cgroup that all of this has to fit in
KERNEL = 48 * MIB  # of it for socket buffers and page tables
Attack = Callable[[Initiator], Iterator[bytes]]


def unread(i: Initiator) -> Iterator[bytes]:
    """Reads of 4 MiB whose data nobody takes."""
    for _ in range(100):
        yield i.encode(i.command(cdb_10(0x28, 0, 8192), read=4 * MIB))


def ahead_of_their_turn(i: Initiator) -> Iterator[bytes]:
    """Reads that all become due with one command."""
    number, encode = i.number, i.framing.encode
    requests = [encode(number(i.command(cdb_10(0x28, 0, 8192), read=16 * MIB))) for _ in range(120)]
    yield from requests[1:]
    yield requests[0]


def in_tiny_pieces(i: Initiator) -> Iterator[bytes]:
    """Writes of 4 MiB of which a little comes, in very many pieces."""
    for _ in range(120):
        command = i.command(cdb_10(0x2A, 0, 8192), write=bytes(4 * MIB), final=False)
        pieces = [p.DataOut(flags=0, itt=command.itt, data=bytes(4), offset=4 * n, data_sn=n) for n in range(66)]
        yield i.encode(command, *pieces)


def never_finished(i: Initiator) -> Iterator[bytes]:
    """Writes that lack their last byte, in large pieces."""
    for _ in range(120):
        command = i.command(cdb_10(0x2A, 0, 8192), write=bytes(4 * MIB), final=False)
        yield i.encode(command, p.DataOut(flags=0, itt=command.itt, data=bytes(65532)))


def before_what_never_comes(i: Initiator) -> Iterator[bytes]:
    """Writes that have to wait for a command that is never sent."""
    i.cmd_sn += 1
    for _ in range(120):
        yield i.encode(i.write_10(0, bytes(65536)))


def pinging(i: Initiator) -> Iterator[bytes]:
    """Pings whose data has to be sent back, and nobody takes it."""
    for _ in range(100):
        yield i.encode(p.NopOut(itt=i.tag(), data=bytes(256 * 1024)))


def asking(i: Initiator) -> Iterator[bytes]:
    """Text without end."""
    for _ in range(5000):
        yield i.encode(p.TextRequest(flags=0x40, itt=1, data=b"X-a=" + b"y" * 8000))


ATTACKS: list[Attack] = [
    unread, ahead_of_their_turn, in_tiny_pieces, never_finished, before_what_never_comes, pinging, asking
]  # fmt: skip


@contextlib.contextmanager
def fortress(threads: int) -> Iterator[tuple[str, int]]:
    """Return the address and process id of a portal."""
    command = [sys.executable, "-m", "tests.iscsi.fortress", str(threads)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip(), process.pid
            assert process.poll() is None
        finally:
            process.stdin.close()
            try:
                process.wait(TIMEOUT)
            except subprocess.TimeoutExpired:
                process.kill()
        assert process.returncode == 0


def most_memory(pid: int) -> int:
    """Return the most memory that a process ever had, in bytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise AssertionError


def rage(address: str, number: int, attack: Attack, stop: threading.Event) -> None:
    """Send an attack as far as the portal takes it, and hold on to the connection."""
    client = Client(address, Initiator(name=f"iqn.2026-01.test:hostile{number}"))
    with client, contextlib.suppress(OSError):
        client.login().read(0, 1)
        client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.sock.settimeout(0.5)
        for data in attack(client.initiator):
            while data and not stop.is_set():
                try:
                    data = data[client.sock.send(data) :]
                except TimeoutError:
                    continue
        stop.wait(TIMEOUT)


@pytest.mark.parametrize("threads", [0, 4], ids=["at once", "pool"])
@pytest.mark.parametrize(
    "attacks",
    [*[pytest.param([attack], id=attack.__name__, marks=pytest.mark.soak) for attack in ATTACKS],
     pytest.param(ATTACKS, id="all")],
)  # fmt: skip
def test_hostile_sessions_do_not_fill_the_memory_and_a_good_one_goes_on(attacks: list[Attack], threads: int) -> None:
    stop = threading.Event()
    with fortress(threads) as (address, pid):
        hostile = [
            threading.Thread(target=rage, args=(address, number, attacks[number % len(attacks)], stop))
            for number in range(HOSTILE)
        ]
        try:
            with Client(address, Initiator(name="iqn.2026-01.test:good")) as good:
                good.login().read(0, 1)
                for thread in hostile:
                    thread.start()
                until = time.monotonic() + 4
                turn = 0
                while time.monotonic() < until:
                    turn += 1
                    data = turn.to_bytes(4, "big") * 16384
                    answer = good.ask(good.initiator.command(cdb_10(0x2A, 7000, 128), write=data, data=data, lun=1))
                    while isinstance(answer, p.ScsiResponse) and answer.status:  # what it missed, or BUSY
                        answer = good.ask(good.initiator.command(cdb_10(0x2A, 7000, 128), write=data, data=data, lun=1))
                    assert isinstance(answer, p.ScsiResponse)
                    answer = good.ask(good.initiator.read_10(7000, 128, lun=1))
                    assert isinstance(answer, p.DataIn)
                    assert answer.data == data
                assert turn > 3
                assert most_memory(pid) < GROUP - KERNEL
        finally:
            stop.set()
            for thread in hostile:
                if thread.ident is not None:
                    thread.join(TIMEOUT)
