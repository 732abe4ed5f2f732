"""`make`, called as by hand."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.release.interpreters import ROOT


def make(target: str, *, made: str = "", **variables: object) -> None:
    """Have make do something, in the environment of the Python that runs; a target that is `made` is left alone."""
    surroundings = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    words = ["make", "--no-print-directory", target, f"VENV={sys.prefix}"]
    words += [f"--old-file={made}"] if made else []
    words += [f"{name}={value}" for name, value in variables.items()]
    done = subprocess.run(words, cwd=ROOT, env=surroundings, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
