"""What a run has measured: series of each job on each server, their medians and ratios, and the JSON of it all."""

from __future__ import annotations

import json
import os
import platform
import re
import statistics
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.clients import Job


@dataclass(slots=True)
class Series:
    """One job on one server, round by round."""

    rate: list[float] = field(default_factory=list)  # commands a second
    cpu: list[float] = field(default_factory=list)  # microseconds of the server's processor time for a command
    busy: list[float] = field(default_factory=list)  # share of one core that the client used


@dataclass(slots=True)
class Result:
    """One job on every server."""

    job: Job
    servers: dict[str, Series]

    def median(self, server: str, what: str) -> float:
        """Return the median over the rounds of `rate`, `cpu` or `busy`."""
        values: list[float] = getattr(self.servers[server], what)
        return statistics.median(values)

    def ratio(self, server: str, peer: str, what: str = "rate") -> float:
        """Return how many times as much `server` has as `peer`, by their medians."""
        return self.median(server, what) / self.median(peer, what)

    def spread(self, server: str, peer: str) -> tuple[float, float]:
        """Return the lowest and the highest ratio of rates within one round."""
        ratios = [a / b for a, b in zip(self.servers[server].rate, self.servers[peer].rate, strict=True)]
        return min(ratios), max(ratios)


@dataclass(slots=True)
class Run:
    """All that one run has measured, and where."""

    date: str
    machine: dict[str, str]
    versions: dict[str, str]
    load: float  # average of the minute before it began
    rounds: int
    seconds: float  # of each job on each server in each round
    results: list[Result]

    def dump(self) -> str:
        """Return it as JSON."""
        return json.dumps(asdict(self), indent=1, default=str) + "\n"

    @classmethod
    def load_json(cls, text: str) -> Run:
        """Return what `dump` wrote."""
        raw: dict[str, Any] = json.loads(text)
        raw["results"] = [
            Result(Job(**each["job"]), {name: Series(**series) for name, series in each["servers"].items()})
            for each in raw["results"]
        ]
        return cls(**raw)


def python() -> str:
    """Return which Python this is: a build of one's own is often slower than the distribution's."""
    return platform.python_version() + (" (the distribution's)" if sys.base_prefix == "/usr" else "")


def machine() -> dict[str, str]:
    """Describe the machine, without its name."""
    cpuinfo = Path("/proc/cpuinfo").read_text()
    model = re.search(r"model name\s*: (.*)", cpuinfo)
    memory = re.search(r"MemTotal:\s*(\d+)", Path("/proc/meminfo").read_text())
    release = re.match(r"[\d.]+", platform.release())
    return {
        "cores": str(os.cpu_count()),
        "processor": model[1].strip() if model else platform.machine(),
        "virtual": "yes" if re.search(r"\bhypervisor\b", cpuinfo) else "no",
        "memory": f"{int(memory[1]) >> 20} GiB" if memory else "unknown",
        "kernel": f"Linux {release[0].rstrip('.') if release else platform.release()}",
    }
