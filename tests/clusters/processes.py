"""Programs of a cluster: run one to its end, start one in the foreground, stop it by its own process id."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PATIENCE = 60.0  # seconds for a daemon to come up or go down, on a busy machine


class ClusterError(RuntimeError):
    """A program of the cluster failed; the message holds what it said."""


def free_ports(count: int) -> list[int]:
    """Return `count` ports of loopback that nothing listens on, all different."""
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]
    finally:
        for probe in probes:
            probe.close()


def run(*words: object, data: bytes | None = None) -> bytes:
    """Run a program that must succeed; returns what it printed."""
    command = [str(word) for word in words]
    done = subprocess.run(command, input=data, capture_output=True, timeout=PATIENCE, check=False)
    if done.returncode:
        raise ClusterError(f"{' '.join(command)}: status {done.returncode}: {done.stderr.decode(errors='replace')}")
    return done.stdout


def start(log: Path, *words: object) -> subprocess.Popen[bytes]:
    """Start a program that stays in the foreground; what it says goes to `log`."""
    with log.open("ab") as file:
        return subprocess.Popen(
            [str(word) for word in words],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,  # Ctrl-C is for the tests, which then stop it in order
        )


def stop(process: subprocess.Popen[Any]) -> None:
    """End a process, if it has not ended."""
    if process.poll() is None:
        process.terminate()
    try:
        process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def until(condition: Callable[[], bool], what: str, patience: float = PATIENCE) -> None:
    """Wait until `condition()` holds.

    Raises:
        ClusterError: it does not, within `patience` seconds.
    """
    deadline = time.monotonic() + patience
    while not condition():
        if time.monotonic() > deadline:
            raise ClusterError(f"{what}: not within {patience:.0f} seconds")
        time.sleep(0.05)
