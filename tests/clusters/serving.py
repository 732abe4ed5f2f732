"""`tcmu serve` as people run it, on a free port, with its state in a directory of the test's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.clusters.processes import stop


@dataclass(frozen=True, slots=True)
class Serving:
    """What runs, and what it said that it serves."""

    process: subprocess.Popen[str]
    said: dict[str, Any]

    @property
    def uri(self) -> str:
        """Where a client reaches the disk."""
        return str(self.said["uri"])


@contextmanager
def serving(directory: Path, *argv: object) -> Iterator[Serving]:
    """Serve a disk while the context lasts."""
    words = [sys.executable, "-m", "tcmu_core.cli.tcmu", "serve", *(str(word) for word in argv), "--json"]
    words += ["--portal", "127.0.0.1:0", "--state-dir", str(directory / "state")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line, "tcmu serve said nothing"
            yield Serving(process, json.loads(line))
        finally:
            stop(process)
