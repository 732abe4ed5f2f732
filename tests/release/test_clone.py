"""What is said of a checkout works in a clean one: copied from what git knows, with an environment of its own."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.release.interpreters import ROOT
from tests.release.lines import commands
from tests.release.making import make
from tests.release.session import Session

pytestmark = pytest.mark.soak

COPY = "git ls-files -z --cached --others --exclude-standard | tar --create --null --files-from - | tar --extract -C"


@pytest.fixture(scope="module")
def clone() -> Iterator[Path]:
    """The checkout as it is, without what was made in it."""
    with tempfile.TemporaryDirectory(prefix="tcmu-clone-") as name:
        subprocess.run(f"{COPY} {name}", cwd=ROOT, shell=True, check=True)
        yield Path(name)


@pytest.fixture(scope="module")
def user(clone: Path) -> Iterator[Path]:
    """The directory of programs of a fresh environment."""
    with tempfile.TemporaryDirectory(prefix="tcmu-user-") as name:
        subprocess.run([sys.executable, "-m", "venv", name], check=True)
        yield Path(name) / "bin"


def documented(name: str, beginning: str) -> str:
    """Return the command line of a document that begins so."""
    (line,) = {line for line in commands(ROOT / name) if line.startswith(beginning)}
    return line.partition("  #")[0]


def run(line: str, clone: Path, programs: Path) -> str:
    done = subprocess.run(
        ["bash", "-c", f"PATH={programs}:$PATH; {line}"], cwd=clone, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_make_run_serves_a_disk(clone: Path) -> None:
    run(f"make PYTHON={sys.executable} .venv/.run", clone, Path(sys.prefix) / "bin")  # what takes a network
    with Session() as session:
        session.type(f"cd {clone}")
        session.type(documented("README.md", "make run"))
        session.type("until iscsi-ls -s iscsi://127.0.0.1 | grep Lun:0; do sleep 0.1; done")
        session.type("test $(stat --format=%s disk.img) = $((1 << 30))")


def test_the_readme_installs_from_a_checkout(clone: Path, user: Path) -> None:
    run(documented("README.md", "pip install"), clone, user)
    assert run("tcmu serve ram --size 64M --portal 127.0.0.1:0 --run 'echo $uri'", clone, user).startswith("iscsi://")


def test_the_guide_installs_the_daemon_from_a_checkout(clone: Path, user: Path) -> None:
    run(documented("docs/admin.md", "pip install './[kernel,dbus]'"), clone, user)
    run("python -c 'import gi, pydbus, rtslib_fb'; tcmu-runner -V", clone, user)


def test_make_docs_builds_the_site(tmp_path: Path) -> None:
    make("docs", SITE=tmp_path / "site")
    assert (tmp_path / "site" / "index.html").is_file()


def test_make_unit_runs_what_needs_python_alone() -> None:
    make("unit", UNITS="test_codec.py test_options.py")  # all of them run on each Python: see test_dist.py


def test_make_bench_runs_benchmarks() -> None:
    make("bench", made=f"{sys.prefix}/.bench", BENCHMARKS="filters")  # one that needs no peer
