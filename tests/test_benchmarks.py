"""The published figures are those that were measured, and a run of one job works from end to end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import comparison, filters, portal, report, watched
from benchmarks.comparison import Comparison
from benchmarks.results import Result, Run, Series


def series(*rates: float) -> Series:
    return Series(list(rates), [10.0] * len(rates), [0.5] * len(rates))


@pytest.fixture
def result() -> Result:
    return Result(portal.JOBS[0], {"tcmu": series(300, 200, 900), "tgt": series(100, 200, 90)})


def test_readme_shows_the_figures_that_are_kept() -> None:
    run = Run.load_json(portal.FIGURES.read_text())
    assert report.section(run, portal.PLOT.name) in portal.README.read_text()


@pytest.mark.parametrize("name", ["kernel", "qcow", "qcow_kernel"])
def test_readme_shows_the_figures_that_a_comparison_has_kept(name: str) -> None:
    assert comparison.load(name).section() in comparison.README.read_text()


def test_a_comparison_tells_ratios_and_what_failed() -> None:
    compared = Comparison("tcmu", [], {}, 2)
    for rate, peer in ((200, 100), (300, 100)):
        compared.add("small", 4096, "tcmu", rate)
        compared.add("small", 4096, "other", peer)
    compared.add("large", 1 << 20, "tcmu", 8)
    compared.add("large", 1 << 20, "tcmu", 8)
    small, large, mean = compared.table().splitlines()[2:]
    assert small.split(" | ")[-1] == "2.50 (2.00 to 3.00) |"
    assert "8 MiB/s" in large
    assert "failed" in large
    assert mean.split(" | ")[-1].split() == ["2.50", "|"]


def test_a_ratio_is_that_of_the_medians_and_its_spread_that_of_the_rounds(result: Result) -> None:
    assert result.ratio("tcmu", "tgt") == 3
    assert result.spread("tcmu", "tgt") == (1, 10)


def test_a_missed_aim_is_told(result: Result) -> None:
    run = Run("2025-01-01", {}, {}, 0.0, 3, 1.0, [result])
    assert "reached" in report.rates(run)
    result.servers["tgt"].rate = [300, 300, 300]
    assert "missed" in report.rates(run)


def test_json_gives_back_the_run(result: Result) -> None:
    run = Run("2025-01-01", {"cores": "2"}, {"tgt": "1"}, 0.5, 3, 1.0, [result])
    assert Run.load_json(run.dump()) == run


def test_only_what_is_between_the_markers_is_replaced(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- x: begin -->\nold\n<!-- x: end -->\nafter\n")
    report.fill(readme, "x", "new")
    assert readme.read_text() == "before\n<!-- x: begin -->\nnew\n<!-- x: end -->\nafter\n"
    with pytest.raises(ValueError, match="y: begin"):
        report.fill(readme, "y", "new")


def test_both_servers_are_measured_and_gone_afterwards(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figures = tmp_path / "figures.json"
    arguments = ["--rounds", "1", "--seconds", "0.1", "--only", "qemu-img: 4 KiB random write, depth 32"]
    assert portal.main([*arguments, "--dir", str(tmp_path), "--json", str(figures)]) == 0
    (measured,) = json.loads(figures.read_text())["results"]
    assert set(measured["servers"]) == {"tcmu", "tgt", "tgt tuned"}
    assert all(each["rate"][0] > 0 for each in measured["servers"].values())
    assert "tcmu ÷ tgt" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == [figures]


def test_the_watched_are_measured_beside_the_same_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert watched.main(["--rounds", "1", "--slice", "0.3", "--targets", "2", "--sessions", "3"]) == 0
    said = capsys.readouterr().out
    assert "watched ÷ nobody watches" in said
    assert "| `tcmu metrics`     |" in said


def test_filters_are_measured_beside_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figures = tmp_path / "figures.json"
    assert filters.main(["--rounds", "1", "--seconds", "0", "--json", str(figures)]) == 0
    measured = json.loads(figures.read_text())
    assert measured.keys() == filters.STACKS.keys()
    assert all(each[0] > 0 for each in measured.values())
    assert "| three counting | " in capsys.readouterr().out
