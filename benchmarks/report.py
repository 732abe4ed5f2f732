"""Tables and the plot of a run, on the terminal and in README.md between the markers of its section."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.results import Result, Run

OURS, TGT, TUNED = "tcmu", "tgt", "tgt tuned"
COLOURS = {TGT: "#c77c2b", TUNED: "#e8be85"}
BUSY = 0.9  # of one core: a client that uses as much is what limits the rate
WIDTH = 118
LARGE = 65536  # bytes: jobs of larger commands are told in MiB a second


def rates(run: Run) -> str:
    """Return the table of throughputs and ratios."""
    peers = [name for name in run.results[0].servers if name != OURS]
    rows = [["client", "job", OURS, *peers, *(f"{OURS} ÷ {peer}" for peer in peers), "aim"]]
    for result in run.results:
        job = result.job
        ratios = []
        for peer in peers:
            low, high = result.spread(OURS, peer)
            ratios.append(f"{result.ratio(OURS, peer):.2f} ({low:.2f} to {high:.2f})")
        met = result.ratio(OURS, TGT) >= job.target
        aim = f"≥ {job.target:g} {TGT}: {'reached' if met else 'missed'}"
        rows.append([job.tool, job.name, *(_rate(result, name) for name in (OURS, *peers)), *ratios, aim])
    return table(rows, left=2)


def costs(run: Run) -> str:
    """Return the table of processor time: the server's for a command, the client's share of a core."""
    names = list(run.results[0].servers)
    rows = [["client", "job", *names, f"{TGT} ÷ {OURS}", *(f"client with {name}" for name in names)]]
    for result in run.results:
        micros = [f"{result.median(name, 'cpu'):.1f} µs" for name in names]
        busy = [_busy(result.median(name, "busy")) for name in names]
        rows.append([result.job.tool, result.job.name, *micros, f"{result.ratio(TGT, OURS, 'cpu'):.2f}", *busy])
    return table(rows, left=2)


def circumstances(run: Run) -> str:
    """Return where, when and with what it was measured."""
    versions = ", ".join(f"{name} {version}" for name, version in run.versions.items())
    text = (
        f"{run.date}. {describe(run.machine)}; load average before the run {run.load:.1f}. {versions}. "
        f"{run.rounds} rounds, {run.seconds:g} s for each job on each server; medians, "
        "in brackets the lowest and highest ratio within a round."
    )
    return textwrap.fill(text, WIDTH, break_on_hyphens=False)


def describe(machine: Mapping[str, str]) -> str:
    """Return in words what results.machine() found."""
    virtual = ", a virtual machine" if machine["virtual"] == "yes" else ""
    return f"{machine['cores']} cores ({machine['processor']}{virtual}), {machine['memory']}, {machine['kernel']}"


def section(run: Run, plot: str) -> str:
    """Return the generated part of README.md; `plot` is the file of the plot beside it."""
    return "\n\n".join(
        [
            circumstances(run),
            f"![Ratio of throughputs, and processor time for a command]({plot})",
            "Throughput, and ours as a multiple of each peer's:",
            rates(run),
            "Processor time of the server for one command, and how much of one core the client used\n"
            f"(from {BUSY:.0%} on, marked \\*, the client is what limits the rate):",
            costs(run),
        ]
    )


def fill(readme: Path, name: str, text: str) -> None:
    """Put `text` between the markers `<!-- NAME: begin -->` and `<!-- NAME: end -->` of a file.

    Raises:
        ValueError: it has no such markers.
    """
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    head, found, rest = readme.read_text().partition(begin)
    _old, closed, tail = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"{readme} has no {begin} … {end}")
    readme.write_text(f"{head}{begin}\n{text}\n{end}{tail}")


def plot(run: Run, path: Path) -> None:
    """Draw the ratios of throughput with what we aim for, and those of processor time, as SVG."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt

    mpl.rcParams.update({"svg.hashsalt": "tcmu", "font.size": 9})  # the same figures give the same file
    peers = {name: colour for name, colour in COLOURS.items() if name in run.results[0].servers}
    labels = [f"{result.job.name}\n({result.job.tool})" for result in run.results]
    rows = range(len(labels))
    size = (11, 0.6 * len(labels) + 1.6)
    figure, (left, right) = plt.subplots(1, 2, figsize=size, sharey=True, layout="constrained")
    height = 0.8 / len(peers)
    for number, (peer, colour) in enumerate(peers.items()):
        at = [row - 0.4 + (number + 0.5) * height for row in rows]
        throughput = [result.ratio(OURS, peer) for result in run.results]
        cost = [result.ratio(peer, OURS, "cpu") for result in run.results]
        left.bar_label(left.barh(at, throughput, height, color=colour, label=peer), fmt="%.2f", padding=3)
        right.bar_label(right.barh(at, cost, height, color=colour), fmt="%.2f", padding=3)
    for row, result in zip(rows, run.results, strict=True):
        name = "aim, beside tgt" if row == 0 else None
        left.plot([result.job.target] * 2, [row - 0.42, row + 0.42], color="black", label=name)
    left.set(title="our throughput, as a multiple of the peer's", yticks=list(rows), yticklabels=labels)
    right.set(title="the peer's processor time, as a multiple of ours")
    left.invert_yaxis()
    for axes in (left, right):
        axes.axvline(1, color="grey", linewidth=0.6)
        axes.margins(x=0.12)
    figure.legend(loc="outside lower center", ncols=len(peers) + 1)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def _rate(result: Result, name: str) -> str:
    rate = result.median(name, "rate")
    if result.job.size > LARGE:
        return f"{rate * result.job.size / (1 << 20):,.0f} MiB/s"
    return f"{rate:,.0f} /s"


def _busy(share: float) -> str:
    return f"{share:.0%}" + (" \\*" if share >= BUSY else "")


def table(rows: Sequence[Sequence[str]], *, left: int) -> str:
    """Return a Markdown table that is aligned as plain text too; the first `left` columns are left-aligned."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        parts = [c.ljust(w) if i < left else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True))]
        return f"| {' | '.join(parts)} |"

    rule = "|".join("-" * (w + 2) if i < left else "-" * (w + 1) + ":" for i, w in enumerate(widths))
    return "\n".join([line(rows[0]), f"|{rule}|", *map(line, rows[1:])])
