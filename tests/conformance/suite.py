"""Running libiscsi's test suite, `iscsi-test-cu`, and reading what became of each test."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass, field

_SUITE = re.compile(r"Suite: (\S+)")
_TEST = re.compile(r"  Test: (\S+) \.\.\.(.*)")
_FAILURE = re.compile(r"\s+\d+\. \S+:\d+ ")
TIMEOUT = 600


@dataclass
class Results:
    """Names as `Family.Test`. A test that logged nothing counts as skipped: the suite calls it passed."""

    passed: set[str] = field(default_factory=set)
    failed: dict[str, str] = field(default_factory=dict)
    skipped: set[str] = field(default_factory=set)

    @property
    def ran(self) -> int:
        return len(self.passed) + len(self.failed) + len(self.skipped)


def run(uri: str, *tests: str, sanitize: bool = False) -> Results:
    """Run tests by their names (`ALL`, `ALL.Family`, `ALL.Family.Test`) against one LUN, which loses its data."""
    results = Results()
    for test in tests:
        words = ["iscsi-test-cu", "--dataloss", "-V", f"--test={test}", *(["--allow-sanitize"] if sanitize else [])]
        # The same LUN twice: the multipath tests need a second way to it.
        done = subprocess.run(
            [*words, uri, uri], capture_output=True, text=True, errors="replace", timeout=TIMEOUT, check=False
        )
        before = results.ran
        read(done.stdout, results)
        assert results.ran > before, f"{test} ran nothing: {done.stdout[-500:]}{done.stderr[-500:]}"
    return results


def read(text: str, results: Results) -> None:
    """Sort the tests of one log by their outcome."""
    family, name, lines = "", "", list[str]()

    def end() -> None:
        if not name:
            return
        full = f"{family}.{name}"
        if any(line.strip() == "FAILED" or _FAILURE.match(line) for line in lines):
            results.failed[full] = "\n".join(line for line in lines if "[FAILED]" in line or _FAILURE.match(line))
        elif any("[SKIPPED]" in line for line in lines) or not any(line.strip(" \npased") for line in lines):
            results.skipped.add(full)
        else:
            results.passed.add(full)

    for line in text.splitlines():
        if line.startswith("Run Summary"):
            break
        if suite := _SUITE.match(line):
            end()
            family, name, lines = suite[1], "", []
        elif test := _TEST.match(line):
            end()
            name, lines = test[1], [test[2]]
        else:
            lines.append(line)
    end()
