"""Clients that put load on a server, and what they report: iscsi-perf of libiscsi, `qemu-img bench` of QEMU."""

from __future__ import annotations

import math
import re
import resource
import subprocess
import time
from dataclasses import dataclass
from typing import Literal

STRIDE = 10007  # blocks, prime: visits the disk in no order that anybody reads ahead, and no block twice in a round
BLOCK = 512  # bytes of the disk's logical block
INITIATOR = "iqn.2025-01.local.bench:client"

Tool = Literal["iscsi-perf", "qemu-img"]


@dataclass(frozen=True, slots=True)
class Job:
    """What a client does: commands of `size` bytes, `depth` at a time; `target` is the ratio that we aim for.

    With `flush` each write is followed by a flush, as a database's log has it.
    """

    tool: Tool
    kind: Literal["read", "write"]
    size: int
    depth: int
    random: bool
    target: float
    flush: bool = False

    @property
    def name(self) -> str:
        """What it is called in tables."""
        order = "random" if self.random else "sequential"
        flush = " and flush each" if self.flush else ""
        return f"{self.size >> 10} KiB {order} {self.kind}{flush}, depth {self.depth}"


@dataclass(frozen=True, slots=True)
class Load:
    """What a client has done: how many commands in how many seconds, and its own processor time in seconds."""

    commands: float
    seconds: float
    cpu: float

    @property
    def rate(self) -> float:
        """Commands a second."""
        return self.commands / self.seconds


def run(job: Job, uri: str, seconds: float, expected: float) -> Load:
    """Put load on `uri` for about `seconds`; `expected` commands a second, for a client that counts commands.

    Raises:
        SystemExit: the client failed; what it said.
    """
    before, began = _children(), time.monotonic()
    if job.tool == "iscsi-perf":
        rate = _iscsi_perf(job, uri, seconds)
        took = time.monotonic() - began
        return Load(rate * took, took, _children() - before)
    count = max(math.ceil(expected * seconds), 4 * job.depth)
    took = _qemu_img(job, uri, count, seconds)
    return Load(count, took, _children() - before)


def _iscsi_perf(job: Job, uri: str, seconds: float) -> float:
    if job.kind != "read":
        raise ValueError("iscsi-perf only reads")
    command = ["iscsi-perf", "-i", INITIATOR, "-m", str(job.depth), "-b", str(job.size // BLOCK)]
    command += ["-t", str(max(1, round(seconds))), *(["-r"] if job.random else []), uri]
    said = _say(command, seconds)
    averages: list[str] = re.findall(r"iops average (\d+)", said)
    if not averages:
        raise SystemExit(f"iscsi-perf said:\n{said}")
    return float(averages[-1])


def _qemu_img(job: Job, uri: str, count: int, seconds: float) -> float:
    step = job.size * (STRIDE if job.random else 1)
    command = ["qemu-img", "bench", "-f", "raw", "-t", "none", "-c", str(count), "-d", str(job.depth)]
    command += ["-s", str(job.size), "-S", str(step), *(["-w", "--pattern=165"] if job.kind == "write" else [])]
    command += [*(["--flush-interval=1"] if job.flush else []), uri]
    said = _say(command, seconds)
    found = re.search(r"Run completed in ([\d.]+) seconds", said)
    if found is None:
        raise SystemExit(f"qemu-img bench said:\n{said}")
    return float(found[1])


def _say(command: list[str], seconds: float) -> str:
    limit = 60 + 20 * seconds  # a busy machine is slow, a client that hangs is caught
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=limit, check=False)
    said = done.stdout + done.stderr
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: exit status {done.returncode}\n{said}")
    return said


def _children() -> float:
    """Return the processor time of all children that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
