"""tcmu-rbd through the portal beside what uses librbd without a target in between, on the same pool.

    python -m benchmarks.rbd [--rounds 3] [--write]

The peers: QEMU's rbd driver (by the same client, `qemu-img bench`), fio's rbd engine, and `rbd bench`. All of them have
librbd's cache off, as tcmu-rbd has. The cluster is one monitor and one OSD that keeps its data in memory, started for
this. Every case runs on each in turn, round by round.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.comparison import Comparison, options
from benchmarks.results import python
from tcmu_core import __version__
from tests.clusters.ceph import POOL, Ceph

OURS = "tcmu-rbd"
MIB = 1 << 20
SIZE = 256 * MIB
IMAGE = "bench"
STRIDE = 4096 * 10007  # prime in blocks: visits the image in no order that anybody reads ahead


@dataclass(frozen=True, slots=True)
class Case:
    """What a client does: `count` transfers of `block` bytes, `depth` at a time."""

    name: str
    block: int
    depth: int
    count: int
    random: bool
    write: bool = False


CASES = [
    Case("4 KiB random read, depth 1", 4096, 1, 6000, random=True),
    Case("4 KiB random read, depth 32", 4096, 32, 30000, random=True),
    Case("4 KiB random write, depth 1", 4096, 1, 3000, random=True, write=True),
    Case("4 KiB random write, depth 32", 4096, 32, 12000, random=True, write=True),
    Case("1 MiB sequential read, depth 4", MIB, 4, 512, random=False),
    Case("1 MiB sequential write, depth 4", MIB, 4, 512, random=False, write=True),
]


def run(command: Sequence[object]) -> str:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=600, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}: status {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def found(pattern: str, said: str) -> float:
    match = re.search(pattern, said)
    if match is None:
        raise SystemExit(f"{pattern!r} is not in\n{said}")
    return float(match[1])


def qemu_img(case: Case, uri: str) -> list[str]:
    command = ["qemu-img", "bench", "-f", "raw", "-t", "none", "-c", str(case.count), "-d", str(case.depth)]
    command += ["-s", str(case.block), "-S", str(STRIDE if case.random else case.block)]
    return [*command, *(["-w", "--pattern=90"] if case.write else []), uri]


def ours(ceph: Ceph, case: Case) -> float:
    template = shlex.join(qemu_img(case, "@")).replace("@", "$uri")
    tcmu = Path(sys.executable).with_name("tcmu")
    said = run([tcmu, "serve", "rbd", f"{POOL}/{IMAGE};conf={ceph.conf}", "--run", template])
    return case.count / found(r"Run completed in ([\d.]+) seconds", said)


def qemu(ceph: Ceph, case: Case) -> float:
    said = run(qemu_img(case, f"rbd:{POOL}/{IMAGE}:conf={ceph.conf}"))
    return case.count / found(r"Run completed in ([\d.]+) seconds", said)


def fio(ceph: Ceph, case: Case) -> float:
    kind = ("rand" if case.random else "") + ("write" if case.write else "read")
    command = ["env", f"CEPH_CONF={ceph.conf}", "fio", "--name=bench", "--ioengine=rbd", "--clientname=admin"]
    command += [f"--pool={POOL}", f"--rbdname={IMAGE}", f"--rw={kind}", f"--bs={case.block}", f"--iodepth={case.depth}"]
    # It may not end before it has done as much as the others; the image is smaller than that for large transfers.
    command += [f"--io_size={case.count * case.block}", f"--size={SIZE}", "--output-format=json"]
    said = run(command)
    job = json.loads(said[said.index("{") :])["jobs"][0]
    return float(job["write" if case.write else "read"]["iops"])


def rbd_bench(ceph: Ceph, case: Case) -> float:
    command = ["rbd", "-c", ceph.conf, "bench", "--io-type", "write" if case.write else "read"]
    command += ["--io-size", f"{case.block}B", "--io-threads", case.depth, "--io-total", f"{case.count * case.block}B"]
    command += ["--io-pattern", "rand" if case.random else "seq", f"{POOL}/{IMAGE}"]
    return found(r"ops/sec: ([\d.]+)", run(command))


SERVERS: dict[str, Callable[[Ceph, Case], float]] = {
    OURS: ours,
    "QEMU rbd": qemu,
    "fio rbd": fio,
    "rbd bench": rbd_bench,
}


def measure(ceph: Ceph, cases: Sequence[Case], comparison: Comparison) -> None:
    for number in range(comparison.rounds):
        for case in cases:
            for name in list(SERVERS)[:: -1 if number % 2 else 1]:
                comparison.add(case.name, case.block, name, SERVERS[name](ceph, case))
        print(f"round {number + 1} is over", file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    parser = options(__doc__ or "", rounds=3)
    parser.add_argument("--dir", default=None, help="where the cluster's monitor keeps its files (100 MiB)")
    args = parser.parse_args(argv)
    for tool in ("qemu-img", "fio", "rbd", "ceph-mon", "ceph-osd"):
        if shutil.which(tool) is None:
            raise SystemExit(f"{tool} is missing: tools/install-test-tools installs it")
    comparison = Comparison.begin(OURS, args.rounds)
    comparison.versions = {
        "tcmu-core": __version__,
        "Python": python(),
        "Ceph": run(["ceph", "--version"]).split()[2],
        "QEMU": run(["qemu-img", "--version"]).split()[2],
        "fio": run(["fio", "--version"]).strip().removeprefix("fio-"),
    }
    with tempfile.TemporaryDirectory(prefix="tcmu-bench-", dir=args.dir) as directory:
        ceph = Ceph(Path(directory), store="memstore")
        try:
            ceph.start()
            with ceph.conf.open("a") as file:
                file.write("\n[client]\nrbd_cache = false\n")
            ceph.rbd("import", "--dest", IMAGE, "-", data=b"\x11" * SIZE)
            measure(ceph, [case for case in CASES if args.jobs in case.name], comparison)
        finally:
            ceph.stop()
    print(comparison.section())
    if args.write:
        comparison.publish("rbd")
    return 0


if __name__ == "__main__":
    sys.exit(main())
