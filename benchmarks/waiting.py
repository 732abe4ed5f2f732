"""Storage that waits: a file on a real disk, beside tgt on the same file and fio's io_uring without any server.

    python -m benchmarks.waiting [--rounds 3] [--seconds 3] [--jobs TEXT] [--dir DIR] [--write]

`direct` bypasses the page cache on both sides; `cold` goes through it, and what it holds of the file is dropped before
each run; `busy` is direct, while other processes want all processors. Every job runs on each server in turn; the order
turns round from round to round. `bare` is the disk itself.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from benchmarks import clients, comparison, servers
from benchmarks.clients import Job
from benchmarks.comparison import Comparison
from benchmarks.portal import OUR_LIMITS

OURS, TGT, BARE = "tcmu", "tgt", "bare"
SIZE = 1 << 30
KIB = 1 << 10
TOOLS = {"tgtd": "tgt", "tgtadm": "tgt", "iscsi-perf": "libiscsi-bin", "qemu-img": "qemu-utils", "fio": "fio"}
READS = [
    Job("iscsi-perf", "read", 4 * KIB, 1, random=True, target=1.2),
    Job("iscsi-perf", "read", 4 * KIB, 8, random=True, target=1.2),
    Job("iscsi-perf", "read", 4 * KIB, 32, random=True, target=1.6),
    Job("iscsi-perf", "read", 64 * KIB, 8, random=False, target=1),
    Job("iscsi-perf", "read", 256 * KIB, 8, random=False, target=1),
]
WRITES = [
    Job("qemu-img", "write", 4 * KIB, 1, random=True, target=1),
    Job("qemu-img", "write", 4 * KIB, 32, random=True, target=1),
    Job("qemu-img", "write", 256 * KIB, 8, random=False, target=1),
]
LOG = Job("qemu-img", "write", 4 * KIB, 1, random=False, target=1, flush=True)
# What goes into the page cache and stays there is memory's speed.
MODES = {"direct": [*READS, *WRITES, LOG], "cold": [*READS, LOG], "busy": [*READS[:3], LOG]}
EXPECTED = 2000  # commands a second, for a client that counts commands; the first round tells better


@dataclass(frozen=True, slots=True)
class Contender:
    """A way to the file: `measure(job, seconds)` returns commands a second."""

    name: str
    measure: Callable[[Job, float], float]


def drop(image: Path) -> None:
    """Have nothing of the file in the page cache."""
    fd = os.open(image, os.O_RDONLY)
    try:
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)


def fio(image: Path, job: Job, seconds: float, *, direct: bool) -> float:
    """Return the commands a second of fio's io_uring on the file itself."""
    kind = ("rand" if job.random else "") + job.kind
    command = ["fio", "--name=bare", f"--filename={image}", f"--rw={kind}", f"--bs={job.size}", "--ioengine=io_uring"]
    command += [f"--iodepth={job.depth}", f"--direct={int(direct)}", f"--runtime={max(1, round(seconds))}"]
    command += ["--time_based", "--output-format=json", *(["--fdatasync=1"] if job.flush else [])]
    said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60 + 20 * seconds).stdout
    return float(json.loads(said[said.index("{") :])["jobs"][0][job.kind]["iops"])


def through(server: servers.Server) -> Callable[[Job, float], float]:
    """Return how a server is measured."""
    rates: dict[Job, float] = {}

    def measure(job: Job, seconds: float) -> float:
        rates[job] = clients.run(job, server.uri, seconds, rates.get(job, EXPECTED)).rate
        return rates[job]

    return measure


@contextmanager
def others() -> Iterator[None]:
    """Have as many processes as there are processors do nothing but take them, as long as the context lasts."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in os.sched_getaffinity(0)]
    try:
        yield
    finally:
        for one in busy:
            one.kill()
        for one in busy:
            one.wait()


def measure(jobs: Sequence[tuple[str, Job]], directory: Path, rounds: int, seconds: float) -> Comparison:
    """Run every job on each contender in turn, `rounds` times."""
    image = directory / "disk.img"
    with image.open("wb") as file:
        for _ in range(SIZE >> 20):
            file.write(os.urandom(1 << 20))
    result = Comparison.begin(OURS, rounds)
    result.versions = {**servers.versions(), "fio": subprocess.check_output(["fio", "--version"], text=True).strip()}
    for mode in dict.fromkeys(mode for mode, _ in jobs):
        direct = mode != "cold"
        with ExitStack() as stack:
            stack.enter_context(others() if mode == "busy" else nullcontext())
            ours = stack.enter_context(servers.tcmu(image, directory, ";direct=1" if direct else "", mode))
            unit = ["--bsoflags", "direct"] if direct else []
            peer = stack.enter_context(servers.tgt(image, directory, OUR_LIMITS, unit, mode))
            contenders = [
                Contender(OURS, through(ours)),
                Contender(TGT, through(peer)),
                Contender(BARE, lambda job, seconds, direct=direct: fio(image, job, seconds, direct=direct)),  # type: ignore[misc]
            ]
            for number in range(rounds):
                for job in [job for its_mode, job in jobs if its_mode == mode]:
                    rates = {}
                    for contender in contenders[:: -1 if number % 2 else 1]:
                        drop(image)
                        rates[contender.name] = contender.measure(job, seconds)
                        result.add(f"{mode}: {job.name}", job.size, contender.name, rates[contender.name])
                    told = ", ".join(f"{name} {rate:,.0f}" for name, rate in rates.items())
                    print(f"round {number + 1}: {mode}: {job.name}: {told} a second", file=sys.stderr, flush=True)
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the table, and publish it if asked to."""
    parser = comparison.options(__doc__ or "", rounds=3)
    parser.add_argument("--seconds", type=float, default=3.0, help="about how long each run takes (3)")
    parser.add_argument("--dir", default="/var/tmp", type=Path, help="a directory on a real disk (/var/tmp)")
    options = parser.parse_args(arguments)
    every = [(mode, job) for mode, jobs in MODES.items() for job in jobs]
    jobs = [(mode, job) for mode, job in every if options.jobs in f"{mode}: {job.name}"]
    if not jobs or options.rounds < 1 or (options.write and jobs != every):
        parser.error("--write needs all jobs" if jobs and options.write else "nothing to measure")
    missing = sorted({package for tool, package in TOOLS.items() if shutil.which(tool) is None})
    if missing:
        raise SystemExit(f"programs are missing: apt-get install {' '.join(missing)}")
    if shutil.disk_usage(options.dir).free < 2 * SIZE:
        raise SystemExit(f"{options.dir} has no room: give --dir a disk with {2 * SIZE >> 20} MiB free")
    with tempfile.TemporaryDirectory(prefix="tcmu-bench-", dir=options.dir) as directory:
        result = measure(jobs, Path(directory), options.rounds, options.seconds)
    print(result.circumstances(), result.table(), sep="\n\n")
    if options.write:
        result.publish("waiting")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
