"""tcmu-qcow through the portal beside qemu-nbd and qemu-storage-daemon, on the same image, by the same client.

    python -m benchmarks.qcow [--rounds 3] [--write]

The client is `qemu-img bench`, over iSCSI on loopback to us and over NBD on a Unix socket to QEMU's servers. Every case
runs on each server in turn, round by round.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.comparison import Comparison, options
from benchmarks.results import python
from tcmu_core import __version__

OURS = "tcmu-qcow"
GIB = 1 << 30
SIZE = GIB
STRIDE = 4096 * 10007  # prime in blocks: visits the disk in no order that read-ahead knows


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
    Case("4 KiB random read, depth 1", 4096, 1, STRIDE, 16000),
    Case("4 KiB random read, depth 32", 4096, 32, STRIDE, 40000),
    Case("4 KiB random write, depth 1", 4096, 1, STRIDE, 16000, write=True),
    Case("4 KiB random write, depth 32", 4096, 32, STRIDE, 40000, write=True),
    Case("256 KiB sequential read, depth 4", 256 << 10, 4, 256 << 10, SIZE // (256 << 10)),
    Case("256 KiB sequential write, depth 4", 256 << 10, 4, 256 << 10, SIZE // (256 << 10), write=True),
    Case("256 KiB first write, depth 4", 256 << 10, 4, 256 << 10, SIZE // (256 << 10), write=True, fresh=True),
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
    OURS: ours,
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


def measure(directory: Path, cases: Sequence[Case], comparison: Comparison) -> None:
    full = directory / "full.qcow2"
    make(full, full=True)
    for number in range(comparison.rounds):
        for case in cases:
            names = list(SERVERS)[:: -1 if number % 2 else 1]
            for name in names:
                image = full
                if case.fresh:
                    image = directory / "fresh.qcow2"
                    make(image, full=False)
                comparison.add(case.name, case.block, name, case.count / SERVERS[name](image, case))
                if case.write:
                    run(["qemu-img", "check", "-q", "-f", "qcow2", str(image)])
        print(f"round {number + 1} is over", file=sys.stderr, flush=True)


def main() -> int:
    parser = options(__doc__ or "", rounds=3)
    parser.add_argument("--dir", default=None, help="where the images are made (2.5 GiB)")
    args = parser.parse_args()
    for tool in ("qemu-img", "qemu-io", "qemu-nbd", "qemu-storage-daemon"):
        if shutil.which(tool) is None:
            raise SystemExit(f"{tool} is missing: apt-get install qemu-utils qemu-system-common")
    comparison = Comparison.begin(OURS, args.rounds)
    comparison.versions = {
        "tcmu-core": __version__,
        "Python": python(),
        "QEMU": run(["qemu-img", "--version"]).split()[2],
    }
    with tempfile.TemporaryDirectory(prefix="tcmu-bench-", dir=args.dir) as directory:
        measure(Path(directory), [case for case in CASES if args.jobs in case.name], comparison)
    print(comparison.section())
    if args.write:
        comparison.publish("qcow")
    return 0


if __name__ == "__main__":
    sys.exit(main())
