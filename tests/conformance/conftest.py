from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

Serve = Callable[..., str]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Serve a disk with `tcmu serve` as people do; returns its URI."""
    started: list[subprocess.Popen[str]] = []

    def start(*argv: object) -> str:
        words = [sys.executable, "-m", "tcmu_core.cli.tcmu", "serve", *(str(word) for word in argv), "--json"]
        words += ["--portal", "127.0.0.1:0", "--state-dir", str(tmp_path / "state")]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, env=environment)
        started.append(process)
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, "tcmu serve said nothing"
        return str(json.loads(line)["uri"])

    yield start
    for process in started:
        with process:
            process.terminate()
            assert process.wait(30) == 0
