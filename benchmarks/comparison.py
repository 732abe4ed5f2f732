"""What a benchmark has measured on us and on peers, round by round; its table, its JSON, and its place in README.md."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import textwrap
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks import report, results

HERE = Path(__file__).parent
README = HERE / "README.md"
LARGE = 64 << 10  # bytes of a transfer, from which on rates are told in MiB a second
BUSY = 0.5  # load average before a run


@dataclass(slots=True)
class Row:
    """One job: rates (transfers a second) of every server that could do it, one for each round."""

    job: str
    size: int  # bytes of a transfer
    rates: dict[str, list[float]]

    def median(self, server: str) -> float:
        """Return the middle rate, transfers a second."""
        return statistics.median(self.rates[server])

    def ratio(self, server: str, peer: str) -> float:
        """Return how many times as fast `server` is as `peer`, by their medians."""
        return self.median(server) / self.median(peer)


@dataclass(slots=True)
class Comparison:
    """One run. `ours` is compared with each of the other servers, which come in the order of the rows."""

    ours: str
    rows: list[Row]
    versions: dict[str, str]
    rounds: int
    date: str = ""
    machine: dict[str, str] = field(default_factory=dict)
    load: float = 0.0  # average of the minute before it began

    @classmethod
    def begin(cls, ours: str, rounds: int) -> Comparison:
        """Note when, where and how busy; warn if it is too busy to publish what comes."""
        load = round(os.getloadavg()[0], 1)
        if load > BUSY:
            print(f"the machine is busy (load average {load}): only the ratios mean something", file=sys.stderr)
        return cls(ours, [], {}, rounds, datetime.now(UTC).date().isoformat(), results.machine(), load)

    def add(self, job: str, size: int, server: str, rate: float) -> None:
        """Take one measurement."""
        row = next((row for row in self.rows if row.job == job), None)
        if row is None:
            row = Row(job, size, {})
            self.rows.append(row)
        row.rates.setdefault(server, []).append(rate)

    @property
    def peers(self) -> list[str]:
        """The other servers."""
        names = dict.fromkeys(name for row in self.rows for name in row.rates)
        return [name for name in names if name != self.ours]

    def mean(self, peer: str) -> float:
        """Return the geometric mean of our ratios to a peer, over the jobs that both did."""
        return statistics.geometric_mean(
            row.ratio(self.ours, peer) for row in self.rows if peer in row.rates and self.ours in row.rates
        )

    def table(self) -> str:
        """Return rates and ratios as Markdown."""
        peers = self.peers
        lines = [["job", self.ours, *peers, *(f"{self.ours} ÷ {peer}" for peer in peers)]]
        for row in self.rows:
            cells = [_rate(row, name) for name in (self.ours, *peers)]
            lines.append([row.job, *cells, *(self._ratio(row, peer) for peer in peers)])
        means = [f"{self.mean(peer):.2f}" for peer in peers]
        lines.append(["geometric mean", *[""] * (1 + len(peers)), *means])
        return report.table(lines, left=1)

    def _ratio(self, row: Row, peer: str) -> str:
        if peer not in row.rates or self.ours not in row.rates:
            return "-"
        pairs = zip(row.rates[self.ours], row.rates[peer], strict=False)
        each = [mine / theirs for mine, theirs in pairs]
        return f"{row.ratio(self.ours, peer):.2f} ({min(each):.2f} to {max(each):.2f})"

    def circumstances(self) -> str:
        """Return where, when and with what it was measured."""
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        text = (
            f"{self.date}. {report.describe(self.machine)}; load average before the run {self.load:.1f}. "
            f"{versions}. {self.rounds} rounds; medians, in brackets the lowest and highest ratio within a round."
        )
        return textwrap.fill(text, report.WIDTH, break_on_hyphens=False)

    def section(self) -> str:
        """Return the generated part of README.md."""
        return f"{self.circumstances()}\n\n{self.table()}"

    def publish(self, name: str) -> None:
        """Keep the figures in NAME.json, and put them between README.md's markers of that name."""
        (HERE / f"{name}.json").write_text(json.dumps(asdict(self), indent=1) + "\n")
        report.fill(README, name, self.section())


def load(name: str) -> Comparison:
    """Return what `publish` has kept."""
    raw: dict[str, Any] = json.loads((HERE / f"{name}.json").read_text())
    raw["rows"] = [Row(**row) for row in raw["rows"]]
    return Comparison(**raw)


def options(description: str, *, rounds: int) -> argparse.ArgumentParser:
    """Return a parser with what every benchmark takes."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=rounds, help=f"runs of each job on each server ({rounds})")
    parser.add_argument("--jobs", default="", metavar="TEXT", help="only jobs that have this in their name")
    parser.add_argument("--write", action="store_true", help="keep the figures: JSON file and README.md")
    return parser


def _rate(row: Row, name: str) -> str:
    if name not in row.rates:
        return "failed"
    rate = row.median(name)
    return f"{rate * row.size / (1 << 20):,.0f} MiB/s" if row.size >= LARGE else f"{rate:,.0f} /s"
