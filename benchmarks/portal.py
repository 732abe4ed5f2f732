"""The portal beside tgt: the same file in memory behind both, the same clients, in the same run.

    python -m benchmarks.portal [--rounds 5] [--seconds 3] [--only TEXT] [--json FILE] [--write]

Every job runs on each server in turn; the order turns round from round to round. `tgt tuned` is tgt with the
negotiable limits of iSCSI set to what our portal offers: tgt's own, of 8 KiB a segment, cost it much in large commands.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

from benchmarks import clients, report, servers
from benchmarks.clients import Job
from benchmarks.report import OURS, TGT, TUNED
from benchmarks.results import Result, Run, Series, machine

HERE = Path(__file__).parent
README, FIGURES, PLOT = HERE / "README.md", HERE / "portal.json", HERE / "portal.svg"
SIZE = 256 << 20
TOOLS = {"tgtd": "tgt", "tgtadm": "tgt", "iscsi-perf": "libiscsi-bin", "qemu-img": "qemu-utils qemu-block-extra"}
KIB = 1 << 10
JOBS = [
    Job("iscsi-perf", "read", 4 * KIB, 1, random=True, target=1.3),
    Job("iscsi-perf", "read", 4 * KIB, 32, random=True, target=3),
    Job("iscsi-perf", "read", 256 * KIB, 8, random=False, target=1),
    Job("qemu-img", "read", 4 * KIB, 1, random=True, target=1.3),
    Job("qemu-img", "read", 4 * KIB, 32, random=True, target=3),
    Job("qemu-img", "write", 4 * KIB, 1, random=True, target=1.3),
    Job("qemu-img", "write", 4 * KIB, 32, random=True, target=3),
    Job("qemu-img", "read", 256 * KIB, 8, random=False, target=1),
    Job("qemu-img", "write", 256 * KIB, 8, random=False, target=1),
]
OUR_LIMITS = {  # what tcmu_core.iscsi.settings.Limits declares, in tgt's names
    "MaxRecvDataSegmentLength": "262144",
    "MaxXmitDataSegmentLength": "262144",
    "FirstBurstLength": "262144",
    "MaxBurstLength": "1048576",
    "InitialR2T": "No",
}
WARM_UP = 0.25  # seconds of each job on each server before anything counts


def measure(jobs: Sequence[Job], directory: Path, rounds: int, seconds: float) -> list[Result]:
    """Run every job on each server in turn, `rounds` times, and return what came of it."""
    image = directory / "disk.img"
    with image.open("wb") as file:
        for _ in range(SIZE >> 20):
            file.write(os.urandom(1 << 20))
    results = [Result(job, {OURS: Series(), TGT: Series(), TUNED: Series()}) for job in jobs]
    with ExitStack() as stack:
        running = {
            OURS: stack.enter_context(servers.tcmu(image, directory)),
            TGT: stack.enter_context(servers.tgt(image, directory, {})),
            TUNED: stack.enter_context(servers.tgt(image, directory, OUR_LIMITS)),
        }
        expected = {
            (job, name): clients.run(job, server.uri, WARM_UP, 4000 / job.depth**0.5).rate
            for job in jobs
            for name, server in running.items()
        }
        for number in range(rounds):
            names = list(running)[:: -1 if number % 2 else 1]
            for result in results:
                job = result.job
                for name in names:
                    server = running[name]
                    before = server.cpu()
                    load = clients.run(job, server.uri, seconds, expected[job, name])
                    used = server.cpu() - before
                    expected[job, name] = load.rate
                    series = result.servers[name]
                    series.rate.append(load.rate)
                    series.cpu.append(used / load.commands * 1e6)
                    series.busy.append(load.cpu / load.seconds)
                rates = ", ".join(f"{name} {result.servers[name].rate[-1]:,.0f}" for name in running)
                print(f"round {number + 1}: {job.tool}: {job.name}: {rates} a second", file=sys.stderr, flush=True)
    return results


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the tables, and write what was asked for."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.portal", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5, help="runs of each job on each server (5)")
    parser.add_argument("--seconds", type=float, default=3.0, help="about how long each of them takes (3)")
    parser.add_argument("--only", default="", metavar="TEXT", help="only jobs that have this in client or name")
    parser.add_argument("--dir", default="/dev/shm", type=Path, help="a tmpfs with room for 256 MiB (/dev/shm)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--write", action="store_true", help="write portal.json, portal.svg and README.md's figures")
    parser.add_argument("--draw", action="store_true", help="measure nothing: plot and README.md from portal.json")
    options = parser.parse_args(arguments)
    if options.draw:
        publish(Run.load_json(FIGURES.read_text()))
        return 0
    jobs = [job for job in JOBS if options.only in f"{job.tool}: {job.name}"]
    if not jobs or options.rounds < 1 or (options.write and jobs != JOBS):
        parser.error("--write needs all jobs" if jobs and options.write else "nothing to measure")
    missing = sorted({package for tool, package in TOOLS.items() if shutil.which(tool) is None})
    if missing:
        raise SystemExit(f"programs are missing: apt-get install {' '.join(missing)}")
    if shutil.disk_usage(options.dir).free < 2 * SIZE:
        raise SystemExit(f"{options.dir} has no room: give --dir a tmpfs with {2 * SIZE >> 20} MiB free")
    load = os.getloadavg()[0]
    if load > 0.5:
        print(f"the machine is busy (load average {load:.1f}): only the ratios mean something", file=sys.stderr)
    with tempfile.TemporaryDirectory(prefix="tcmu-bench-", dir=options.dir) as directory:
        results = measure(jobs, Path(directory), options.rounds, options.seconds)
    date = datetime.now(UTC).date().isoformat()
    run = Run(date, machine(), servers.versions(), round(load, 1), options.rounds, options.seconds, results)
    print(report.circumstances(run), report.rates(run), report.costs(run), sep="\n\n")
    if options.json:
        options.json.write_text(run.dump())
    if options.write:
        FIGURES.write_text(run.dump())
        publish(run)
    return 0


def publish(run: Run) -> None:
    """Draw the plot, and put the figures into README.md."""
    report.plot(run, PLOT)
    report.fill(README, "portal", report.section(run, PLOT.name))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
