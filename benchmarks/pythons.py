"""The ring on each Python that is installed, from 3.11 on: the same commands by each, in turn, in one run.

    python -m benchmarks.pythons [--rounds 5] [--seconds 1] [--write]

Each gets a virtual environment of its own, with what the core needs. As in `benchmarks.hotpath`, the ring is fed from
memory, without a kernel, and the processes take turns many times a second.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks import comparison
from benchmarks.comparison import Comparison
from benchmarks.hotpath import HERE, RING_JOBS, SIZE, ring_rates
from benchmarks.results import python
from tcmu_core import __version__

VERSIONS = ("3.11", "3.12", "3.13", "3.14")


def installed() -> dict[str, str]:
    """Return the interpreters that can be found and run, by what they are."""
    found: dict[str, str] = {}
    for version in VERSIONS:
        candidates = [name for name in (shutil.which(f"python{version}"), f"/usr/bin/python{version}") if name]
        candidates += [str(path) for path in sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))]
        for candidate in candidates:
            if not Path(candidate).exists():
                continue
            tell = "import ensurepip; from benchmarks.results import python; print(python())"
            told = subprocess.run([candidate, "-c", tell], cwd=HERE, capture_output=True, text=True, check=False)
            if not told.returncode:
                found.setdefault(f"Python {told.stdout.strip()}", candidate)
    return found


def environment(python: str, directory: Path) -> str:
    """Return the interpreter of a new environment that has what the core needs, and the core of this checkout."""
    subprocess.run([python, "-m", "venv", str(directory)], check=True)
    own = str(directory / "bin" / "python")
    pip = [own, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", str(HERE)]
    subprocess.run(pip, check=True)
    return own


def main() -> int:
    """Measure, print the table, and publish it if asked to."""
    parser = comparison.options(__doc__ or "", rounds=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="how long each run takes (1)")
    args = parser.parse_args()
    found = installed()
    ours = f"Python {python()}"
    result = Comparison.begin(ours, args.rounds)
    result.versions = {"tcmu-core": __version__}
    with tempfile.TemporaryDirectory(prefix="tcmu-bench-", dir="/dev/shm") as directory:
        image = Path(directory, "disk.img")
        image.write_bytes(os.urandom(1 << 20) * (SIZE >> 20))
        pythons = {ours: sys.executable}
        for number, (name, interpreter) in enumerate(found.items()):
            if name not in pythons:
                pythons[name] = environment(interpreter, Path(directory, str(number)))
        for number in range(args.rounds):
            order = list(pythons.items())[:: -1 if number % 2 else 1]
            for job, kind in RING_JOBS.items():
                if args.jobs in job:
                    trees = [(HERE, image)] * len(order)
                    rates = ring_rates(trees, kind, args.seconds, [interpreter for _, interpreter in order])
                    for (name, _), rate in zip(order, rates, strict=True):
                        result.add(job, 4096, name, rate)
    for row in result.rows:
        row.rates = {name: row.rates[name] for name in pythons}
    print(result.circumstances(), result.table(), sep="\n\n")
    if args.write:
        result.publish("pythons")
    return 0


if __name__ == "__main__":
    sys.exit(main())
