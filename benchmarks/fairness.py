"""What one client can do to another: the worst wait of one that reads, while the other sends the dearest commands.

    python -m benchmarks.fairness [--seconds 5] [--only TEXT]

`tcmu serve ram` stands behind both. The one keeps 64 commands of a kind in flight; the other reads 4 KiB, one after
another, and what counts is the longest of its waits. The first row is without any other client.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks import report
from tcmu_core.testing.client import Client

SIZE = "1G"
BLOCKS = (1 << 30) // 512
DEPTH = 64
READ_4K = bytes([0x28, 0, 0, 0, 0, 0, 0, 0, 8, 0])
MIB16 = (16 << 20) // 512
READY = b"ready\n"


def wide(code: int, lba: int, count: int, flags: int = 0) -> bytes:
    """Return a 16-byte block CDB."""
    return bytes([code, flags]) + lba.to_bytes(8, "big") + count.to_bytes(4, "big") + bytes(2)


def copy(client: Client) -> tuple[bytes, bytes, int]:
    """Return an EXTENDED COPY of all that one command may move, within the disk."""
    page = client.command(bytes([0x12, 1, 0x83, 0, 255, 0]), read=255).data
    naa = page[8:24]  # the first designator is the NAA one
    target = bytes([0xE4, 0, 0, 0, 1, 3, 0, 16]) + naa + bytes(5) + (512).to_bytes(3, "big")
    count = 65535
    segments = b"".join(
        bytes([2, 0, 0, 24, 0, 0, 0, 0, 0, 0]) + count.to_bytes(2, "big") + (n * count).to_bytes(8, "big")
        + (BLOCKS // 2 + n * count).to_bytes(8, "big")
        for n in range(15)
    )  # fmt: skip
    data = bytes([1, 0x18]) + len(target).to_bytes(2, "big") + bytes(4) + len(segments).to_bytes(4, "big") + bytes(4)
    data = bytes([0, 0x18]) + data[2:] + target + segments
    return bytes([0x83]) + bytes(9) + len(data).to_bytes(4, "big") + bytes(2), data, 0


def registrations(_client: Client) -> tuple[bytes, bytes, int]:
    """Return a PERSISTENT RESERVE OUT with 14 MiB of TransportIDs."""
    one = b"\x45\x00\x00\x14" + b"iqn.a:b,i,0x00000000"
    names = one * ((14 << 20) // len(one))
    data = bytes(8) + (1).to_bytes(8, "big") + bytes(4) + b"\x08" + bytes(3) + len(names).to_bytes(4, "big") + names
    return bytes([0x5F, 0, 0, 0, 0]) + len(data).to_bytes(4, "big") + b"\0", data, 0


def fragmented(client: Client) -> tuple[bytes, bytes, int]:
    """Write every second chunk of the disk, and return a GET LBA STATUS over all of them."""
    for at in range(0, BLOCKS, 256):
        client.command(wide(0x8A, at, 1), write=b"x" * 512)
    cdb = bytes([0x9E, 0x12]) + bytes(8) + (65536 * 16 + 8).to_bytes(4, "big") + bytes(2)
    return cdb, b"", 65536 * 16 + 8


def fixed(cdb: bytes, write: bytes = b"", read: int = 0) -> Callable[[Client], tuple[bytes, bytes, int]]:
    """Return a row that sends the same command each time."""
    return lambda _client: (cdb, write, read)


UNMAP = bytes([0, 22, 0, 16]) + bytes(4) + bytes(8) + (1 << 20).to_bytes(4, "big") + bytes(4)
ROWS: dict[str, Callable[[Client], tuple[bytes, bytes, int]]] = {
    "EXTENDED COPY of the maximum": copy,
    "VERIFY of 16 MiB, each block": fixed(wide(0x8F, 0, MIB16, 6), bytes(512)),
    "GET LBA STATUS over 4,096 extents": fragmented,
    "PERSISTENT RESERVE OUT, 14 MiB": registrations,
    "TEST UNIT READY that wants 4 GiB": fixed(bytes(6), b"", 1),
    "WRITE SAME of the maximum": fixed(wide(0x93, 0, MIB16), b"y" * 512),
    "UNMAP of the maximum": fixed(bytes([0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0]), UNMAP),
    "ORWRITE of 16 MiB": fixed(wide(0x8B, 0, MIB16), bytes(16 << 20)),
    "READ of 16 MiB": fixed(wide(0x88, 0, MIB16), b"", 16 << 20),
    "SANITIZE OVERWRITE": fixed(bytes([0x48, 0x81, 0, 0, 0, 0, 0, 0, 8, 0]), bytes([1, 0, 0, 4]) + b"abcd"),
    "FORMAT UNIT": fixed(bytes([0x04, 0x10, 0, 0, 0, 0]), bytes([0, 2, 0, 0])),
}


def attack(row: str, uri: str) -> None:
    """Keep commands of one kind in flight until this process is ended."""
    client = Client(uri, name="iqn.2025-01.local.bench:attacker")
    cdb, write, read = ROWS[row](client)
    sys.stdout.buffer.write(READY)
    sys.stdout.buffer.flush()
    while True:
        while client.initiator.in_flight < min(DEPTH, max(client.initiator.room, 1)):
            client._sock.sendall(client.initiator.command(cdb, write=write, read=read, lun=client.lun)[1])
        client._receive()


def waits(uri: str, seconds: float) -> list[float]:
    """Return how long each read of 4 KiB took (seconds), whatever its status."""
    found = []
    with Client(uri, name="iqn.2025-01.local.bench:victim") as client:
        until = time.monotonic() + seconds
        while (begun := time.monotonic()) < until:
            client.command(READ_4K, read=4096)
            found.append(time.monotonic() - begun)
    return found


def measure(row: str, seconds: float) -> list[str]:
    """Measure one row; "" is without an attacker."""
    serve = [sys.executable, "-m", "tcmu_core.cli.tcmu", "serve", "ram", "--size", SIZE, "--portal", "127.0.0.1:0"]
    with subprocess.Popen([*serve, "--json"], stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            uri = json.loads(server.stdout.readline())["uri"]
            if not row:
                found = waits(uri, seconds)
            else:
                attacker = [sys.executable, "-m", "benchmarks.fairness", "--attack", row, "--uri", uri]
                with subprocess.Popen(attacker, stdout=subprocess.PIPE, cwd=Path(__file__).parents[1]) as other:
                    try:
                        assert other.stdout is not None
                        assert other.stdout.readline() == READY
                        found = waits(uri, seconds)
                    finally:
                        other.kill()
        finally:
            server.terminate()
    found.sort()
    middle, high = found[len(found) // 2], found[len(found) * 99 // 100]
    numbers = [f"{wait * 1000:.2f}" for wait in (middle, high, found[-1])]
    return [row or "nobody else", f"{len(found):,}", *numbers]


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.fairness", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=5.0, help="how long each row takes (5)")
    parser.add_argument("--only", default="", metavar="TEXT", help="only rows that have this in their name")
    parser.add_argument("--attack", choices=list(ROWS), help=argparse.SUPPRESS)
    parser.add_argument("--uri", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.attack:
        attack(options.attack, options.uri)
    lines = [["the other client sends", "reads", "median ms", "99th ms", "worst ms"]]
    for row in itertools.chain([""], (row for row in ROWS if options.only in row)):
        lines.append(measure(row, options.seconds))
    print(report.table(lines, left=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
