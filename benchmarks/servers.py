"""Servers under measurement: started on a free port of loopback, stopped by their own process id.

They run in sessions of their own, so that Ctrl-C reaches the benchmark alone, which then stops them in order.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from benchmarks.results import python

TICK = 1 / os.sysconf("SC_CLK_TCK")
PATIENCE = 20.0  # seconds for a server to come up or go down


@dataclass(frozen=True, slots=True)
class Server:
    """A server that runs: where clients reach it, and the process that does its work."""

    uri: str
    pid: int

    def cpu(self) -> float:
        """Return the seconds of processor time that all its threads have used (proc(5), utime and stime)."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) * TICK


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str], what: str) -> None:
    """Wait until `condition()`; SystemExit if `process` ends before that, or takes too long."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if process.poll() is not None:
            raise SystemExit(f"{what} ended with status {process.returncode}")
        if time.monotonic() > deadline:
            raise SystemExit(f"{what} is not ready after {PATIENCE:.0f} seconds")
        time.sleep(0.02)


def stop(process: subprocess.Popen[str]) -> None:
    """End a process that was started here, if it has not ended."""
    if process.poll() is None:
        process.terminate()
    try:
        process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def tcmu(image: Path, directory: Path, options: str = "", name: str = "disk") -> Iterator[Server]:
    """Serve `image` by our own portal, with every setting as it comes but the cfgstring's `options`."""
    words = ["file", f"{image}{options}", "--name", name, "--state-dir", str(directory / f"state-{name}")]
    with serving(words) as server:
        yield server


@contextmanager
def serving(words: Sequence[str]) -> Iterator[Server]:
    """Run `tcmu serve` with these words, on a free port."""
    command = [sys.executable, "-m", "tcmu_core.cli.tcmu", "serve", *words, "--portal", "127.0.0.1:0", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                raise SystemExit("tcmu serve did not start")
            yield Server(json.loads(line)["uri"], process.pid)
        finally:
            stop(process)


@contextmanager
def tgt(
    image: Path, directory: Path, options: Mapping[str, str], unit: Sequence[str] = (), name: str = ""
) -> Iterator[Server]:
    """Serve `image` by a tgtd of our own: its control socket is in `directory`, another tgtd is not disturbed.

    `options` are of the target, `unit` arguments for the logical unit.
    """
    control = directory / f"tgt-{name or len(options)}"
    environment = {**os.environ, "TGT_IPC_SOCKET": str(control)}
    port = free_port()
    target = "iqn.2025-01.local.bench:disk"
    tid = ("--tid", "1")

    def admin(mode: str, operation: str, *arguments: str) -> None:
        command = ["tgtadm", "-C", "1", "--lld", "iscsi", "--mode", mode, "--op", operation, *arguments]
        subprocess.run(command, env=environment, check=True, timeout=PATIENCE)

    command = ["tgtd", "-f", "-C", "1", "--iscsi", f"portal=127.0.0.1:{port}"]
    quiet = subprocess.DEVNULL
    with subprocess.Popen(command, env=environment, stderr=quiet, text=True, start_new_session=True) as process:
        try:
            wait_for(lambda: Path(f"{control}.1").exists() and answers(port), process, "tgtd")
            admin("target", "new", *tid, "--targetname", target)
            try:
                for key, value in options.items():
                    admin("target", "update", *tid, "--name", key, "--value", value)
                admin("logicalunit", "new", *tid, "--lun", "1", "--backing-store", str(image), *unit)
                admin("target", "bind", *tid, "--initiator-address", "ALL")
                yield Server(f"iscsi://127.0.0.1:{port}/{target}/1", process.pid)
            finally:
                admin("target", "delete", *tid, "--force")
                admin("system", "delete")  # it goes within a second; SIGTERM alone it ignores
                process.wait(PATIENCE)
        finally:
            stop(process)


def versions() -> dict[str, str]:
    """Return the versions of all that takes part."""
    return {
        "tcmu-core": version("tcmu-core"),
        "Python": python(),
        "tgt": _version("tgtd", "-V"),
        "qemu-img": _version("qemu-img", "--version"),
        "libiscsi (iscsi-perf)": _package("libiscsi-bin"),
    }


def _version(*command: str) -> str:
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"\d+(\.\d+)+", said)
    return found[0] if found else said.strip()


def _package(name: str) -> str:
    """Return the version of a Debian package; iscsi-perf's own is that of the tool only."""
    command = ["dpkg-query", "-W", "-f", "${Version}", name]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
