"""tcmu-qcow through the portal beside qemu-nbd and qemu-storage-daemon, on the same image, by the same client.

    python -m benchmarks.qcow [--rounds 3]

The client is `qemu-img bench`, over iSCSI on loopback to us and over NBD on a Unix socket to QEMU's servers. Every case
runs on each server in turn, several times; the best run of each counts. A ratio above 1 means that tcmu-qcow is faster.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

GIB = 1 << 30
SIZE = GIB
STRIDE = 4096 * 10007  # prime in blocks: visits the disk in no order that read-ahead knows
ROUNDS = 3


@dataclass(frozen=True)
class Case:
    """What the client does."""

    name: str
    block: int
    depth: int
    stride: int
    count: int
    write: bool = False
    fresh: bool = False  # on an image without clusters


CASES = [
    Case("random read 4K, depth 1", 4096, 1, STRIDE, 16000),
    Case("random read 4K, depth 32", 4096, 32, STRIDE, 40000),
    Case("random write 4K, depth 1", 4096, 1, STRIDE, 16000, write=True),
    Case("random write 4K, depth 32", 4096, 32, STRIDE, 40000, write=True),
    Case("sequential read 256K, depth 4", 256 << 10, 4, 256 << 10, SIZE // (256 << 10)),
    Case("sequential write 256K, depth 4", 256 << 10, 4, 256 << 10, SIZE // (256 << 10), write=True),
    Case("first write 256K, depth 4", 256 << 10, 4, 256 << 10, SIZE // (256 << 10), write=True, fresh=True),
]


def client(case: Case, uri: str) -> list[str]:
    command = ["qemu-img", "bench", "-f", "raw", "-t", "writeback", "-c", str(case.count), "-d", str(case.depth)]
    command += ["-s", str(case.block), "-S", str(case.stride)]
    return [*command, *(["-w", "--pattern=90"] if case.write else []), uri]


def seconds(output: str) -> float:
    found = re.search(r"Run completed in ([\d.]+) seconds", output)
    if found is None:
        raise SystemExit(f"qemu-img bench said:\n{output}")
    return float(found[1])


def run(command: list[str]) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=600).stdout


def ours(image: Path, case: Case) -> float:
    template = shlex.join(client(case, "@")).replace("@", "$uri")
    tcmu = Path(sys.executable).with_name("tcmu")
    return seconds(run([str(tcmu), "serve", "qcow", f"{image};format=qcow2", "--run", template]))


@contextmanager
def server(command: list[str], address: Path) -> Iterator[None]:
    """A server that listens on a Unix socket: over TCP, QEMU's NBD waits for delayed acknowledgements."""
    address.unlink(missing_ok=True)
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        try:
            for _ in range(400):
                if address.exists():
                    break
                time.sleep(0.05)
            yield
        finally:
            process.terminate()
            process.wait(30)


def qemu_nbd(image: Path, case: Case) -> float:
    address = image.with_suffix(".sock")
    command = ["qemu-nbd", "-t", "-e", "4", "-k", str(address), "-f", "qcow2", "--cache=writeback", str(image)]
    with server(command, address):
        return seconds(run(client(case, f"nbd+unix:///?socket={address}")))


def storage_daemon(image: Path, case: Case) -> float:
    address = image.with_suffix(".sock")
    node = {"driver": "qcow2", "node-name": "disk", "file": {"driver": "file", "filename": str(image)}}
    listen = f"addr.type=unix,addr.path={address}"
    command = ["qemu-storage-daemon", "--blockdev", json.dumps(node), "--nbd-server", listen]
    with server([*command, "--export", "nbd,id=disk,node-name=disk,name=disk,writable=on"], address):
        return seconds(run(client(case, f"nbd+unix:///disk?socket={address}")))


SERVERS: dict[str, Callable[[Path, Case], float]] = {
    "tcmu-qcow": ours,
    "qemu-nbd": qemu_nbd,
    "qemu-storage-daemon": storage_daemon,
}


def make(path: Path, *, full: bool) -> None:
    path.unlink(missing_ok=True)
    run(["qemu-img", "create", "-q", "-f", "qcow2", str(path), str(SIZE)])
    if full:
        chunk = 64 << 20
        commands = [part for at in range(0, SIZE, chunk) for part in ("-c", f"write -q -P 17 {at} {chunk}")]
        run(["qemu-io", "-f", "qcow2", *commands, str(path)])


def measure(directory: Path, rounds: int) -> Iterator[tuple[Case, dict[str, float]]]:
    full = directory / "full.qcow2"
    make(full, full=True)
    for case in CASES:
        best: dict[str, float] = {}
        for _ in range(rounds):
            for name, serve in SERVERS.items():
                image = full
                if case.fresh:
                    image = directory / "fresh.qcow2"
                    make(image, full=False)
                took = serve(image, case)
                best[name] = min(best.get(name, took), took)
                if case.write:
                    run(["qemu-img", "check", "-q", "-f", "qcow2", str(image)])
        yield case, best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="runs of each case on each server")
    parser.add_argument("--dir", default=None, help="where the images are made (2.5 GiB)")
    arguments = parser.parse_args()
    for tool in ("qemu-img", "qemu-io", "qemu-nbd", "qemu-storage-daemon"):
        if shutil.which(tool) is None:
            raise SystemExit(f"{tool} is missing: apt-get install qemu-utils qemu-system-common")
    peers = [name for name in SERVERS if name != "tcmu-qcow"]
    print(f"{'case':32} {'tcmu-qcow':>16} " + " ".join(f"{name + ' (ratio)':>28}" for name in peers))
    with tempfile.TemporaryDirectory(prefix="tcmu-bench-", dir=arguments.dir) as directory:
        for case, best in measure(Path(directory), arguments.rounds):
            mine = best["tcmu-qcow"]
            cells = [f"{rate(case, best[name])} ({best[name] / mine:4.2f})".rjust(28) for name in peers]
            print(f"{case.name:32} {rate(case, mine):>16} " + " ".join(cells), flush=True)


def rate(case: Case, took: float) -> str:
    if case.block >= 65536:
        return f"{case.count * case.block / took / 1e6:,.0f} MB/s"
    return f"{case.count / took:,.0f} IOPS"


if __name__ == "__main__":
    main()
