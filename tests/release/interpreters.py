"""The Pythons of this machine, and commands run by an ordinary user."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
NOBODY = 65534
_CLASSIFIER = re.compile(r"Programming Language :: Python :: (3\.\d+)")


def supported() -> list[str]:
    """Return the versions that the classifiers of tcmu-core name."""
    classifiers = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["classifiers"]
    return [match[1] for line in classifiers if (match := _CLASSIFIER.fullmatch(line))]


def installed() -> dict[str, Path]:
    """Return the supported versions that there are here, each with an interpreter: from PATH, or pyenv's."""
    found = {}
    for version in supported():
        candidates = [path for path in _candidates(f"python{version}") if _works(path)]
        if candidates:  # one that an ordinary user can reach, where there is one
            found[version] = min(candidates, key=lambda path: not reachable(path))
    return found


def _candidates(name: str) -> Iterator[Path]:
    for directory in os.get_exec_path():
        yield Path(directory, name)
    if shutil.which("pyenv"):
        root = subprocess.run(["pyenv", "root"], capture_output=True, text=True, check=True).stdout.strip()
        yield from sorted(Path(root).glob(f"versions/*/bin/{name}"))


def _works(python: Path) -> bool:
    """Return whether it starts and can make a virtual environment with pip."""
    if not python.exists():
        return False
    return not subprocess.run([python, "-c", "import venv, ensurepip"], capture_output=True, check=False).returncode


def reachable(path: Path) -> bool:
    """Return whether anybody may look through every directory above the real `path`."""
    return all(directory.stat().st_mode & 0o001 for directory in path.resolve().parents)


def ordinary(python: Path) -> Sequence[str]:
    """Return the words that run a command as an ordinary user: none where we are one.

    An interpreter in root's home needs the right to look through directories; it is the only one that is left.
    """
    if os.getuid():
        return ()
    words = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--no-new-privs"]
    if reachable(python):
        return (*words, "--bounding-set=-all")
    right = "-all,+dac_read_search"
    return (*words, f"--bounding-set={right}", f"--inh-caps={right}", f"--ambient-caps={right}")
