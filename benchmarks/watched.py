"""What it costs to be watched: the same load with and without `tcmu top`, a scrape each second, and the page open.

    python -m benchmarks.watched [--minutes 10] [--slice 10] [--targets 20] [--sessions 64] [--depth 1] [--write]

`tcmu-runner` serves targets, each by a process of its own; a client for each session reads 4 KiB at random all the
time, so that servers and clients take all of the machine. Slices of time take turns: in one somebody watches, in the
next nobody does, and each pair begins the other way round than the one before. The rate is what the processes that
serve have counted. What they, `tcmu top` and `tcmu metrics` hold of memory, descriptors and threads is noted after each
pair.
"""

from __future__ import annotations

import contextlib
import json
import os
import pty
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import tcmu_core
from benchmarks import comparison, report, results
from benchmarks.comparison import HERE, README, Comparison
from benchmarks.servers import PATIENCE, TICK, stop
from tcmu_core.host import control

SIZE = "16M"
BLOCKS = 8  # of 512 bytes, of one read
SETTLE = 0.5  # seconds at the beginning of a slice that are not counted
OPENMETRICS = "application/openmetrics-text; version=1.0.0"
# An ordinary user's tcmu-runner: one that looks after no kernel device of this machine.
RUNNER = "import os, sys; os.geteuid = lambda: 1000; from tcmu_core.cli.runner import main; sys.exit(main())"


@dataclass(frozen=True, slots=True)
class Held:
    """What a process holds: memory of its own (bytes), descriptors, threads; and its processor time so far (s)."""

    memory: int
    descriptors: int
    threads: int
    cpu: float

    @classmethod
    def by(cls, pid: int) -> Held:
        """Look at a process (proc(5))."""
        place = Path(f"/proc/{pid}")
        rollup = (place / "smaps_rollup").read_text().splitlines()
        own = sum(int(line.split()[1]) for line in rollup if line.startswith(("Private_Clean:", "Private_Dirty:")))
        fields = (place / "stat").read_text().rpartition(")")[2].split()
        cpu = (int(fields[11]) + int(fields[12])) * TICK
        return cls(own << 10, len(os.listdir(place / "fd")), len(os.listdir(place / "task")), cpu)


class Watchers:
    """`tcmu top` on a terminal, `tcmu metrics`, who scrapes it, and a page that is open; all of them can pause.

    `top`, `scrape` and `page` are the seconds between two looks of each.
    """

    def __init__(
        self, state: Path, stack: contextlib.ExitStack, *, top: float = 2.0, scrape: float = 1.0, page: float = 2.0
    ) -> None:
        tcmu = [sys.executable, "-m", "tcmu_core.cli.tcmu"]
        place = ["--state-dir", str(state)]
        main, terminal = pty.openpty()
        stack.callback(os.close, main)
        environment = {**os.environ, "TERM": "xterm", "COLUMNS": "160", "LINES": "60"}
        self.top = subprocess.Popen(
            [*tcmu, "top", "--interval", str(top), *place],
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            env=environment,
            text=True,
        )
        os.close(terminal)
        stack.callback(self._end_top)
        self._drain = threading.Thread(target=_drained, args=(main,), daemon=True)
        self._drain.start()
        self.metrics = subprocess.Popen(
            [*tcmu, "metrics", "--listen", "127.0.0.1:0", "--json", *place], stdout=subprocess.PIPE, text=True
        )
        stack.callback(stop, self.metrics)
        assert self.metrics.stdout is not None
        stack.callback(self.metrics.stdout.close)
        self._page = json.loads(self.metrics.stdout.readline())["page"]
        self._on = threading.Event()
        self._over = threading.Event()
        self.asked = {"metrics": 0, "status.json": 0}
        self.error: BaseException | None = None
        threads = [threading.Thread(target=self._ask, args=one) for one in (("metrics", scrape), ("status.json", page))]
        for thread in threads:
            thread.start()
        stack.callback(lambda: [thread.join() for thread in threads])
        stack.callback(self._end)
        self.pause()

    @property
    def pids(self) -> tuple[int, int]:
        """Return the processes of `tcmu top` and of `tcmu metrics`."""
        return self.top.pid, self.metrics.pid

    def pause(self) -> None:
        """Look no more for a while."""
        self._on.clear()
        self.top.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Look again."""
        self.top.send_signal(signal.SIGCONT)
        self._on.set()

    def _ask(self, path: str, every: float) -> None:
        """Ask for one thing every so often, as Prometheus or a page does."""
        request = urllib.request.Request(f"{self._page}{path}", headers={"Accept": OPENMETRICS})
        try:
            while not self._over.is_set():
                begun = time.monotonic()
                if self._on.is_set():
                    with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
                        answer.read()
                    self.asked[path] += 1
                self._over.wait(max(0.001, begun + every - time.monotonic()))
        except BaseException as error:
            self.error = error

    def _end(self) -> None:
        self._over.set()

    def _end_top(self) -> None:
        self.top.send_signal(signal.SIGCONT)
        stop(self.top)


def _drained(fd: int) -> None:
    with contextlib.suppress(OSError):
        while os.read(fd, 1 << 16):
            pass


@contextlib.contextmanager
def served(directory: Path, targets: int) -> Iterator[list[str]]:
    """Have a tcmu-runner serve so many targets with a disk each; yields their addresses."""
    names = [f"iqn.2025-01.local.bench:t{number}" for number in range(targets)]
    config = directory / "tcmu.conf"
    lines = ["[portal]", "listen = 127.0.0.1:0", "max_connections = 256", "[targets]"]
    for name in names:
        image = directory / name.rpartition(":")[2]
        lines += [f"[[{name}]]", "[[[lun 0]]]", "handler = file", f"cfgstring = {image}", f"size = {SIZE}"]
    config.write_text("\n".join([*lines, ""]))
    state = directory / "state"
    command = [sys.executable, "-c", RUNNER, "--config", str(config), "--state-dir", str(state)]
    environment = {**os.environ, "DBUS_SYSTEM_BUS_ADDRESS": "unix:path=/nowhere"}
    with (
        (directory / "log").open("w") as log,
        subprocess.Popen(command, stderr=log, text=True, env=environment) as runner,
    ):
        try:
            deadline = time.monotonic() + 3 * PATIENCE
            while len(found := list(control.hosts(state))) <= targets or not all(
                status.disks for _, status in found if status.title in names
            ):
                if runner.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit(f"tcmu-runner does not serve:\n{(directory / 'log').read_text()}")
                time.sleep(0.2)
            (address,) = [one for _, status in found if status.title not in names for one in status.addresses]
            yield [f"iscsi://{address}/{name}/0" for name in names]
        finally:
            stop(runner)


@contextlib.contextmanager
def loaded(uris: list[str], sessions: int, depth: int) -> Iterator[None]:
    """Have so many clients read at random, each in a session of its own, as long as the context lasts."""
    clients: list[subprocess.Popen[str]] = []
    try:
        for number in range(sessions):
            command = ["iscsi-perf", "-i", f"iqn.2025-01.local.bench:c{number}", "-m", str(depth), "-b", str(BLOCKS)]
            clients.append(
                subprocess.Popen(
                    [*command, "-r", uris[number % len(uris)]],
                    stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True, start_new_session=True,
                )
            )  # fmt: skip
        yield
        ended = sum(client.poll() is not None for client in clients)
        if ended:
            raise SystemExit(f"{ended} clients have ended")
    finally:
        for client in clients:
            client.kill()
        for client in clients:
            client.wait()


def commands(state: Path) -> dict[int, int]:
    """Return how many commands each process has taken, by its pid."""
    return {status.pid: status.commands for _, status in control.hosts(state) if status.disks}


def rate(state: Path, seconds: float) -> float:
    """Return the commands a second of all targets in a time that begins now."""
    time.sleep(SETTLE)
    before, begun = sum(commands(state).values()), time.monotonic()
    time.sleep(seconds)
    after, ended = sum(commands(state).values()), time.monotonic()
    return (after - before) / (ended - begun)


@dataclass(slots=True)
class Watch:
    """What a run has found: rates in pairs, and what the processes held after each pair."""

    watched: list[float]
    alone: list[float]
    held: list[dict[str, list[Held]]]  # by what the processes are
    seconds: float  # of a slice

    @property
    def ratios(self) -> list[float]:
        """Return the ratio of each pair."""
        return [one / other for one, other in zip(self.watched, self.alone, strict=True)]

    @property
    def error(self) -> float:
        """Return the standard error of the mean of the ratios."""
        return statistics.stdev(self.ratios) / len(self.ratios) ** 0.5 if len(self.ratios) > 1 else 0.0

    def table(self) -> str:
        """Return as Markdown what processes held, after the first pair and after the last one."""
        lines = [["process", "memory of its own, MiB", "descriptors", "threads", "processor time, ms a second watched"]]
        first, last = self.held[0], self.held[-1]
        for name in first:
            cells = [name]
            for field, unit in (("memory", 1 << 20), ("descriptors", 1), ("threads", 1)):
                found = [statistics.mean(getattr(one, field) for one in held[name]) / unit for held in (first, last)]
                cells.append(" → ".join(f"{value:.1f}".removesuffix(".0") for value in found))
            cells.append(f"{self._cpu(name):.0f}" if name != "a target's process" else "")
            lines.append(cells)
        return report.table(lines, left=1)

    def _cpu(self, name: str) -> float:
        first, last = self.held[0][name][0], self.held[-1][name][0]
        pairs = len(self.held) - 1
        return (last.cpu - first.cpu) * 1000 / (pairs * self.seconds) if pairs else 0.0


def measure(pairs: int, seconds: float, targets: int, sessions: int, depth: int) -> Watch:
    """Run pairs of slices, and return what was found."""
    found = Watch([], [], [], seconds + SETTLE)
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tcmu-bench-", dir="/dev/shm")))
        state = directory / "state"
        uris = stack.enter_context(served(directory, targets))
        stack.enter_context(loaded(uris, sessions, depth))
        watchers = Watchers(state, stack)
        watchers.go_on()
        rate(state, seconds)  # the first one warms up
        servers = list(commands(state))
        for number in range(pairs):
            for watching in (True, False) if number % 2 else (False, True):
                (watchers.go_on if watching else watchers.pause)()
                (found.watched if watching else found.alone).append(rate(state, seconds))
            top, metrics = watchers.pids
            found.held.append(
                {
                    "a target's process": [Held.by(pid) for pid in servers],
                    "`tcmu top`": [Held.by(top)],
                    "`tcmu metrics`": [Held.by(metrics)],
                }
            )
            print(f"pair {number + 1} of {pairs}: {found.ratios[-1]:.3f}", file=sys.stderr, flush=True)
        if watchers.error is not None:
            raise watchers.error
        if list(commands(state)) != servers:
            raise SystemExit("a process that served was replaced")
    return found


def main(argv: list[str] | None = None) -> int:
    """Measure, print, and publish if that is asked for."""
    parser = comparison.options(__doc__ or "", rounds=0)
    parser.prog = "python -m benchmarks.watched"
    parser.add_argument("--minutes", type=float, default=10.0, help="how long all of it takes (10)")
    parser.add_argument("--slice", type=float, default=10.0, metavar="SECONDS", help="of each turn (10)")
    parser.add_argument("--targets", type=int, default=20, help="how many (20)")
    parser.add_argument("--sessions", type=int, default=64, help="how many of all of them (64)")
    parser.add_argument("--depth", type=int, default=1, help="commands in flight of each session (1)")
    options = parser.parse_args(argv)
    pairs = options.rounds or max(1, round(options.minutes * 60 / (2 * (options.slice + SETTLE))))
    run = Comparison.begin("watched", pairs)
    run.versions["tcmu-core"] = tcmu_core.__version__
    run.versions["Python"] = results.python()
    found = measure(pairs, options.slice, options.targets, options.sessions, options.depth)
    job = f"4 KiB random read, {options.targets} targets, {options.sessions} sessions"
    for watched, alone in zip(found.watched, found.alone, strict=True):
        run.add(job, BLOCKS * 512, "watched", watched)
        run.add(job, BLOCKS * 512, "nobody watches", alone)
    mean = statistics.mean(found.ratios)
    text = f"Mean of the ratios {mean:.3f}, standard error {found.error:.3f}; slices of {options.slice:g} s."
    section = f"{run.circumstances()}\n\n{run.table()}\n\n{text}\n\n{found.table()}"
    print(section)
    if options.write:
        (HERE / "watched.json").write_text(json.dumps({**asdict(run), "watch": asdict(found)}, indent=1) + "\n")
        report.fill(README, "watched", section)
    return 0


if __name__ == "__main__":
    sys.exit(main())
