"""What `make dist` makes installs from its files alone, on every Python that is here, and does the main job."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import tcmu_core
from tests.release.interpreters import NOBODY, ROOT, installed, ordinary
from tests.release.lines import commands
from tests.release.making import make
from tests.release.session import Session
from tests.release.test_metadata import META, PLUGINS, PROJECTS, read

pytestmark = pytest.mark.soak

PYTHONS = installed()
PIP = ("--quiet", "--disable-pip-version-check")

# What all of it needs that is not made here.
OTHERS = {word for path in PROJECTS for word in read(path)["project"]["dependencies"] if not word.startswith("tcmu")}

# What runs on every Python: sans I/O for the most part, and quick. Properties that take long do not depend on Python.
UNITS = ["scsi", "config", "test_codec.py", "test_errors.py", "test_log.py", "test_loop.py", "test_options.py"]
LEFT_OUT = ["scsi/test_properties.py", "scsi/test_order.py", "config/test_file.py"]  # the last looks at the sources

# The client of a disk, by what tcmu-core itself brings: what was written is read back.
CLIENT = """
import os
from tcmu_core.testing import Client
with Client(os.environ["uri"]) as client:
    blocks, size = client.capacity()
    data = os.urandom(8 * size)
    assert client.command(bytes.fromhex("2a000000000000000800"), write=data).status == 0
    assert client.command(bytes.fromhex("28000000000000000800"), read=len(data)).data == data
    print(os.getuid(), blocks * size)
"""


class Environment:
    """A fresh virtual environment that nothing but `wheels` was installed in."""

    def __init__(self, python: Path, directory: Path, wheels: list[Path]) -> None:
        self.base = python
        self.directory = directory
        self.wheels = wheels
        subprocess.run([python, "-m", "venv", "--without-pip", directory], check=True)
        self.python = directory / "bin" / "python"
        self.user = ordinary(python)

    def install(self, *what: str) -> None:
        words = [
            sys.executable,
            "-m",
            "pip",
            "--python",
            str(self.python),
            "install",
            *PIP,
            "--no-index",
            "--no-compile",
        ]
        finders = [word for path in self.wheels for word in ("--find-links", str(path))]
        subprocess.run([*words, *finders, "--root-user-action=ignore", *what], check=True)

    def run(self, *words: str | Path, home: Path) -> str:
        """Run a command as an ordinary user, with none of what surrounds the tests; return what it prints."""
        surroundings = {"PATH": f"{self.directory / 'bin'}:/usr/bin:/bin", "HOME": str(home), "LC_ALL": "C.UTF-8"}
        done = subprocess.run(
            [*self.user, *words], capture_output=True, text=True, check=False, cwd=home, env=surroundings, timeout=300
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """A directory that an ordinary user can look into."""
    with tempfile.TemporaryDirectory(prefix="tcmu-release-") as name:
        path = Path(name)
        path.chmod(0o755)
        yield path


@pytest.fixture(scope="module")
def dist(place: Path) -> Path:
    """All distributions, as `make dist` leaves them."""
    make("dist", DIST=place / "dist")
    return place / "dist"


@pytest.fixture
def home(tmp_path_factory: pytest.TempPathFactory, place: Path) -> Iterator[Path]:
    """The ordinary user's directory."""
    path = Path(tempfile.mkdtemp(prefix="home-", dir=place))
    if not os.getuid():
        os.chown(path, NOBODY, NOBODY)
    yield path
    shutil.rmtree(path)


def everything(version: str, place: Path, dist: Path) -> Environment:
    """Make an environment with all of it, installed offline; what comes from an index was fetched before."""
    python = PYTHONS[version]
    fetched = place / f"index-{version}"
    fetch = Environment(python, place / f"fetch-{version}", [])
    words = [sys.executable, "-m", "pip", "--python", fetch.python, "download", *PIP, "--dest", fetched]
    subprocess.run([*words, *OTHERS, "pytest", "hypothesis"], check=True)
    made = Environment(python, place / f"environment-{version}", [dist, fetched])
    made.install("tcmu-runner[nbd,rbd,glfs]", "pytest", "hypothesis")
    return made


@pytest.fixture(scope="module")
def made(place: Path, dist: Path) -> dict[str, Environment]:
    """One environment for each Python."""
    return {version: everything(version, place, dist) for version in PYTHONS}


@pytest.fixture(params=list(PYTHONS))
def environment(request: pytest.FixtureRequest, made: dict[str, Environment]) -> Environment:
    """The environment of each Python in turn."""
    return made[request.param]


def test_the_running_python_is_one_that_is_supported() -> None:
    assert f"{sys.version_info.major}.{sys.version_info.minor}" in PYTHONS


def test_each_distribution_has_a_wheel_and_its_source(dist: Path) -> None:
    wanted = set()
    for project in PROJECTS:
        name = f"{read(project)['project']['name'].replace('-', '_')}-{tcmu_core.__version__}"
        wanted |= {f"{name}-py3-none-any.whl", f"{name}.tar.gz"}
    assert {file.name for file in dist.iterdir()} == wanted


def test_a_disk_is_served_and_read_by_an_ordinary_user(environment: Environment, home: Path) -> None:
    (home / "client.py").write_text(CLIENT)
    for words in (["ram"], ["file", "./disk.img"], ["qcow", "./disk.qcow2;create=1"]):
        said = environment.run(
            "tcmu",
            "serve",
            *words,
            "--size",
            "64M",
            "--state-dir",
            home / "state",
            "--run",
            "python client.py",
            home=home,
        )
        assert said.splitlines()[-1] == f"{os.getuid() or NOBODY} {64 << 20}"
    assert (home / "disk.img").stat().st_size == 64 << 20


def test_every_handler_is_there_and_usable(environment: Environment, home: Path) -> None:
    found = {row["name"]: row for row in json.loads(environment.run("tcmu", "handlers", "--json", home=home))}
    assert set(found) == {path.name.removeprefix("tcmu-") for path in PLUGINS}
    for name in ("file", "ram", "qcow", "fbo", "nbd"):  # the clusters' ones need their C libraries too
        assert found[name]["usable"], found[name]
        assert found[name]["version"] == tcmu_core.__version__


def test_the_daemon_and_its_files_are_there(environment: Environment, home: Path) -> None:
    assert environment.run("tcmu-runner", "-V", home=home) == f"tcmu-runner {tcmu_core.__version__}\n"
    environment.run("tcmu", "install-service", "--root", home / "tree", home=home)
    assert list((home / "tree").rglob("tcmu-runner.service"))
    assert list((home / "tree").rglob("tcmu.conf.5"))


def test_the_unit_tests_pass(environment: Environment, home: Path) -> None:
    shutil.copytree(ROOT / "tests", home / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "conf", home / "conf")
    shutil.copy(ROOT / "pyproject.toml", home)
    if not os.getuid():
        subprocess.run(["chown", "-R", f"{NOBODY}:{NOBODY}", home], check=True)
    chosen = [f"tests/{name}" for name in UNITS]
    left_out = [f"--ignore=tests/{name}" for name in LEFT_OUT]
    words = ["python", "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not soak and not vm", *left_out, *chosen]
    said = environment.run(*words, home=home)
    assert " passed" in said
    assert not {"failed", "skipped", "error"} & set(said.splitlines()[-1].split())


def test_the_guides_environment_serves_a_disk(made: dict[str, Environment], dist: Path) -> None:
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    lines = [line for line in commands(ROOT / "docs" / "admin.md") if "/opt/tcmu" in line]
    assert len(lines) == 2
    with Session(PYTHONS[version].parent) as session:
        for line in (f"cd {dist.parent}", f"export PIP_FIND_LINKS={made[version].wheels[1]}", *lines):
            session.type(line)
        assert session.type("/opt/tcmu/bin/tcmu serve ram --size 64M --run 'echo $uri'").startswith("iscsi://")


@pytest.mark.parametrize("project", [*PLUGINS, META], ids=lambda path: path.name)
def test_a_distribution_alone_brings_what_it_needs(project: Path, made: dict[str, Environment], tmp_path: Path) -> None:
    newest = list(made.values())[-1]
    alone = Environment(newest.base, tmp_path / "alone", newest.wheels)
    alone.install(project.name)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", alone.python]
    listed = subprocess.run([*pip, "list", "--format=json"], capture_output=True, check=True).stdout
    table = read(project)["project"]
    wanted = {word.partition("~")[0] for word in table["dependencies"] if word.startswith("tcmu")}
    found = {row["name"] for row in json.loads(listed)}
    assert {name for name in found if name.startswith("tcmu")} == {project.name, "tcmu-core", *wanted}
    subprocess.run([*pip, "check"], capture_output=True, check=True)
    for goal in table.get("entry-points", {}).get("tcmu.handlers", {}).values():
        subprocess.run([alone.python, "-c", f"import {goal.partition(':')[0]}"], check=True)
