"""tcmu-nbd through the portal beside the same NBD server without it, by the same client.

    python -m benchmarks.nbd [--rounds 3] [--write]

The client is `qemu-img bench`: over iSCSI on loopback to us, who go on to the server on a Unix socket, and straight to
that socket with QEMU's own NBD client. Two servers take part, qemu-nbd on a raw file and nbdkit on memory; both stand
for the whole run, and each case takes each way in turn, round by round. With nbdkit
one case is told of TCP too.
"""

from __future__ import annotations

import contextlib
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.comparison import Comparison, options
from benchmarks.qcow import Case, client, run, seconds
from benchmarks.results import python
from benchmarks.servers import answers, free_port
from tcmu_core import __version__

OURS = "tcmu-nbd"
DIRECT = "straight"
OVER_TCP = " over TCP"
SIZE = 1 << 30
STRIDE = 4096 * 10007  # prime in blocks: visits the disk in no order that read-ahead knows

CASES = [
    Case("4 KiB random read, depth 1", 4096, 1, STRIDE, 8000),
    Case("4 KiB random read, depth 32", 4096, 32, STRIDE, 150000),
    Case("4 KiB random write, depth 1", 4096, 1, STRIDE, 8000, write=True),
    Case("4 KiB random write, depth 32", 4096, 32, STRIDE, 150000, write=True),
    Case("256 KiB sequential read, depth 4", 256 << 10, 4, 256 << 10, SIZE // (256 << 10)),
    Case("256 KiB sequential write, depth 4", 256 << 10, 4, 256 << 10, SIZE // (256 << 10), write=True),
]


TCP = [Case("4 KiB random read, depth 32", 4096, 32, STRIDE, 100000)]


@dataclass(frozen=True, slots=True)
class Served:
    """A server that runs: what `tcmu serve nbd` is told of it, and what QEMU's client is."""

    cfgstring: str
    uri: str


def ours(server: Served, case: Case) -> float:
    template = shlex.join(client(case, "@")).replace("@", "$uri")
    tcmu = Path(sys.executable).with_name("tcmu")
    return seconds(run([str(tcmu), "serve", "nbd", server.cfgstring, "--run", template]))


def straight(server: Served, case: Case) -> float:
    return seconds(run(client(case, server.uri)))


WAYS = {OURS: ours, DIRECT: straight}


@contextmanager
def server(command: list[str], address: Path | int) -> Iterator[Served]:
    """A server that listens on a Unix socket, or on a port of loopback; stopped by its own process id."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        try:
            for _ in range(400):
                if answers(address) if isinstance(address, int) else address.exists():
                    break
                time.sleep(0.05)
            if isinstance(address, int):
                yield Served(f"nbd://127.0.0.1:{address}", f"nbd://127.0.0.1:{address}")
            else:
                yield Served(str(address), f"nbd+unix:///?socket={address}")
        finally:
            process.terminate()
            process.wait(30)


def commands(directory: Path) -> dict[str, tuple[list[str], Path | int]]:
    """Return each server's command line and address, a socket's path or a port."""
    image = directory / "disk.img"
    with image.open("wb") as file:
        for _ in range(SIZE >> 20):
            file.write(b"\x11" * (1 << 20))
    qemu, kit = directory / "qemu.sock", directory / "nbdkit.sock"
    words = ["qemu-nbd", "-t", "-e", "8", "-k", str(qemu), "-f", "raw", "--cache=writeback", str(image)]
    port = free_port()
    return {
        "qemu-nbd": (words, qemu),
        "nbdkit": (["nbdkit", "-f", "-U", str(kit), "memory", str(SIZE)], kit),
        f"nbdkit{OVER_TCP}": (["nbdkit", "-f", "-i", "127.0.0.1", "-p", str(port), "memory", str(SIZE)], port),
    }


def measure(directory: Path, only: str, comparison: Comparison) -> None:
    with contextlib.ExitStack() as stack:
        servers = {name: stack.enter_context(server(*words)) for name, words in commands(directory).items()}
        for number in range(comparison.rounds):
            for name, served in servers.items():
                for case in TCP if name.endswith(OVER_TCP) else CASES:
                    if only not in case.name:
                        continue
                    for way in list(WAYS)[:: -1 if number % 2 else 1]:
                        rate = case.count / WAYS[way](served, case)
                        comparison.add(f"{name}: {case.name}", case.block, way, rate)
            print(f"round {number + 1} is over", file=sys.stderr, flush=True)


def main() -> int:
    parser = options(__doc__ or "", rounds=3)
    parser.add_argument("--dir", default=None, help="where the image is made (1 GiB)")
    args = parser.parse_args()
    for tool in ("qemu-img", "qemu-nbd", "nbdkit"):
        if shutil.which(tool) is None:
            raise SystemExit(f"{tool} is missing: apt-get install qemu-utils nbdkit")
    comparison = Comparison.begin(OURS, args.rounds)
    comparison.versions = {
        "tcmu-core": __version__,
        "Python": python(),
        "QEMU": run(["qemu-img", "--version"]).split()[2],
        "nbdkit": run(["nbdkit", "--version"]).split()[1],
    }
    with tempfile.TemporaryDirectory(prefix="tcmu-bench-", dir=args.dir) as directory:
        measure(Path(directory), args.jobs, comparison)
    print(comparison.section())
    if args.write:
        comparison.publish("nbd")
    return 0


if __name__ == "__main__":
    sys.exit(main())
