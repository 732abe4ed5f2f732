"""What `make deb` makes installs in a clean Debian, serves disks there, and is gone again when it is purged."""

from __future__ import annotations

import contextlib
import email
import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import tcmu_core
from tests.cli.conftest import run
from tests.release.debian import Sandbox
from tests.release.interpreters import ROOT
from tests.release.lines import commands
from tests.release.test_dist import LEFT_OUT, UNITS
from tests.release.test_metadata import META, PLUGINS, read

pytestmark = pytest.mark.soak

VERSION = f"1:{tcmu_core.__version__}"
LIGHT = {"file", "ram", "qcow", "fbo", "nbd"}  # handlers that need no cluster's libraries
USER = "somebody"


def documented(word: str, title: str = "Debian") -> list[str]:
    """Return the command lines of a section of the administrator's guide that begin with `word`."""
    section = re.split(rf"\n##+ {title}\n", (ROOT / "docs" / "admin.md").read_text())[1].partition("\n#")[0]
    found = re.findall(rf"^ {{4}}((?:{word}) .*)$", section, re.MULTILINE)
    assert found
    return [line.replace("./build/deb/", "/mnt/debs/") for line in found]


@pytest.fixture(scope="module")
def system(root: Path, debs: Path) -> Iterator[Sandbox]:
    with Sandbox(root, debs) as sandbox:
        sandbox.run(["useradd", "--create-home", USER])
        yield sandbox


@pytest.fixture(scope="module")
def before(system: Sandbox) -> set[str]:
    """The files of the system that had none of the packages."""
    return system.files()


@pytest.fixture(scope="module")
def smallest(system: Sandbox, before: set[str]) -> Sandbox:
    """The system with what the first documented command installs."""
    system.run(documented("apt install")[0])
    return system


@pytest.fixture(scope="module")
def installed(smallest: Sandbox) -> Sandbox:
    """The system with the daemon and all handlers that need no cluster."""
    smallest.run(documented("apt install")[1])
    smallest.run("apt-get install /mnt/debs/python3-tcmu-nbd_*.deb")
    return smallest


@contextlib.contextmanager
def serving(system: Sandbox, command: str, user: str) -> Iterator[dict[str, object]]:
    """Run a `tcmu serve` inside; yields what it says as JSON."""
    words = system.words(f"cd; exec {command} --portal 127.0.0.1:0 --json", user)
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line
        said = json.loads(line)
        try:
            yield said
        finally:
            system.run(f"kill {said['pid']}")  # bash's own
    assert process.returncode == 0


def fields(package: Path) -> dict[str, str]:
    said = subprocess.run(["dpkg-deb", "--field", package], capture_output=True, text=True, check=True).stdout
    return dict(email.message_from_string(said))


def test_there_are_a_core_handlers_and_the_daemon_of_one_version(debs: Path) -> None:
    names = {"tcmu-runner", "python3-tcmu-core", *(f"python3-{path.name}" for path in PLUGINS)}
    found = {row["Package"]: row for row in map(fields, debs.glob("*.deb"))}
    assert found.keys() == names
    for name, row in found.items():
        assert row["Version"] == VERSION
        assert name == "python3-tcmu-core" or f"python3-tcmu-core (= {VERSION})" in row["Depends"]
        for other in set(re.findall(r"[\w-]+", row["Depends"])) & names:
            assert other == "python3-tcmu-core", name
    brought = {f"python3-{word.partition('~')[0]}" for word in read(META)["project"]["dependencies"]}
    assert brought - {"python3-tcmu-core"} <= set(re.findall(r"[\w-]+", found["tcmu-runner"]["Recommends"]))


@pytest.mark.parametrize("user", ["root", USER])
def test_two_commands_serve_a_disk(smallest: Sandbox, user: str) -> None:
    (command,) = documented("tcmu serve")
    with serving(smallest, command, user) as said:
        uri = said["uri"]
        assert "Vendor" in run("iscsi-inq", uri).stdout  # libiscsi, outside
        assert run("qemu-io", "-f", "raw", "-c", "write -P 0x31 1M 64k", "-c", "flush", uri).returncode == 0
        assert "verification failed" not in run("qemu-io", "-f", "raw", "-c", "read -P 0x31 1M 64k", uri).stdout
        assert int(smallest.run(["stat", "--format=%u", f"/proc/{said['pid']}"])) == int(
            smallest.run(["id", "--user", user])
        )


def test_every_handler_is_usable_and_every_requirement_there(installed: Sandbox) -> None:
    found = {row["name"]: row for row in json.loads(installed.run(["tcmu", "handlers", "--json"]))}
    assert found.keys() == LIGHT
    for row in found.values():
        assert (row["usable"], row["version"]) == (True, tcmu_core.__version__)
    check = """
import importlib.metadata as m, re
for one in m.distributions():
    for needed in one.requires or () if one.metadata["Name"].startswith("tcmu") else ():
        if "extra ==" not in needed:
            print(m.version(re.split("[^A-Za-z0-9_.-]", needed)[0]))
"""
    assert len(installed.run(["python3", "-c", check]).split()) >= len(LIGHT)


def test_an_image_is_served_from_a_file(installed: Sandbox) -> None:
    for command in ("tcmu serve file a.img --size 8M", "tcmu serve qcow 'a.qcow2;create=1' --size 8M"):
        with serving(installed, command, USER) as said:
            assert run("qemu-io", "-f", "raw", "-c", "write -P 0x31 0 64k", "-c", "flush", said["uri"]).returncode == 0
    assert (
        installed.run("cd; head --bytes 65536 a.img | tr --delete 1 | wc --bytes; head --bytes 3 a.qcow2", USER)
        == "0\nQFI"
    )


def test_the_daemon_its_pages_and_what_shells_complete_are_there(installed: Sandbox) -> None:
    assert installed.run(["tcmu-runner", "-V"]) == f"tcmu-runner {tcmu_core.__version__}\n"
    assert installed.run(["tcmu-runner", "--check-config", "--config", "/etc/tcmu/tcmu.conf"])
    for page in ("man8/tcmu.8", "man8/tcmu-runner.8", "man5/tcmu.conf.5"):
        assert ".Sh NAME" in installed.run(f"zcat /usr/share/man/{page}.gz")
    for name in ("tcmu", "tcmu-runner"):
        source = f". /usr/share/bash-completion/completions/{name}; complete -p {name}"
        assert f" {name}" in installed.run(source)
        assert f"#compdef {name}" in installed.run(["cat", f"/usr/share/zsh/vendor-completions/_{name}"])
        assert f"complete -c {name}" in installed.run(["cat", f"/usr/share/fish/vendor_completions.d/{name}.fish"])


def test_the_service_is_enabled_and_has_its_old_names(installed: Sandbox) -> None:
    link = "/etc/systemd/system/multi-user.target.wants/tcmu-runner.service"
    assert installed.run(["readlink", link]) == "/lib/systemd/system/tcmu-runner.service\n"
    assert "ExecStart=/usr/bin/tcmu-runner\n" in installed.run(["cat", "/lib/systemd/system/tcmu-runner.service"])
    owner = "/usr/share/dbus-1/system-services/org.kernel.TCMUService1.service"
    assert "SystemdService=tcmu-runner.service" in installed.run(["cat", owner])
    assert 'allow own="org.kernel.TCMUService1"' in installed.run(
        ["cat", "/usr/share/dbus-1/system.d/tcmu-runner.conf"]
    )


def test_unit_tests_pass_with_the_modules_of_debian(installed: Sandbox, debs: Path) -> None:
    home = debs / "tests"  # seen inside
    shutil.copytree(ROOT / "tests", home / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "conf", home / "conf")
    shutil.copy(ROOT / "pyproject.toml", home)
    installed.run(
        ["apt-get", "install", "--mark-auto", "--no-install-recommends", "python3-pytest", "python3-hypothesis"]
    )
    chosen = [f"tests/{name}" for name in UNITS]
    left_out = [f"--ignore=tests/{name}" for name in LEFT_OUT]
    words = ["python3", "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not soak and not vm", *left_out, *chosen]
    run_them = f"PYTHONDONTWRITEBYTECODE=1 {shlex.join(words)} --basetemp /tmp/tests"
    said = installed.run(f"cd /mnt/debs/tests; {run_them}; rm -r /tmp/tests")
    assert " passed" in said
    assert not {"failed", "skipped", "error"} & set(said.splitlines()[-1].split())


def test_purged_it_leaves_no_trace(installed: Sandbox, before: set[str]) -> None:
    installed.run("mkdir -p /var/lib/tcmu /run/tcmu")  # what the daemon makes
    installed.run("touch /var/lib/tcmu/disk.aptpl /var/log/tcmu-runner.log.1 /run/tcmu.lock /run/tcmu/disk.sock")
    for command in documented("apt purge"):
        installed.run(command)
    installed.run(["apt-get", "autoremove", "--purge"])
    changed = sorted(path for path in installed.files() ^ before if not path.startswith(f"/home/{USER}/"))
    assert not changed, "\n".join(changed)


def test_the_libraries_of_clusters_come_by_the_commands_for_it(root: Path) -> None:
    lines = [line for name in ("glfs", "rbd") for line in commands(ROOT / "plugins" / f"tcmu-{name}" / "README.md")]
    with Sandbox(root) as system:
        for line in lines:
            if line.startswith("apt-get"):
                system.run(line)
        system.run("python3 -c 'import rados, rbd, ctypes; ctypes.CDLL(\"libgfapi.so.0\")'")


def test_the_runner_in_c_is_replaced(root: Path, debs: Path) -> None:
    with Sandbox(root, debs) as system:
        system.run(["apt-get", "install", "--no-install-recommends", "tcmu-runner"])
        before = {path for path in system.files() if "tcmu" in path}
        assert "/etc/init.d/tcmu-runner" in before
        assert "/etc/rc2.d/S01tcmu-runner" in before
        system.run("echo log_level = 4 >> /etc/tcmu/tcmu.conf")
        ours = documented("apt install")[1].replace("apt install", "apt-get install -o Dpkg::Options::=--force-confold")
        system.run(f"{ours} /mnt/debs/python3-tcmu-{{rbd,glfs}}_*_all.deb")
        assert VERSION in system.run("apt-cache policy tcmu-runner | grep Installed")
        assert system.run("tail --lines 1 /etc/tcmu/tcmu.conf") == "log_level = 4\n"
        assert "in order" in system.run("tcmu-runner --check-config")
        left = {path for path in system.files() if path.startswith("/etc/") and "tcmu" in path}
        assert left == {
            "/etc/tcmu", "/etc/tcmu/tcmu.conf", "/etc/tcmu/tcmu.conf.dpkg-dist", "/etc/logrotate.d/tcmu-runner",
            "/etc/systemd/system/multi-user.target.wants/tcmu-runner.service",
        }  # fmt: skip
        found = {row["name"]: row for row in json.loads(system.run(["tcmu", "handlers", "--json"]))}
        assert [found[name]["usable"] for name in ("rbd", "glfs")] == [True, True], found
        for command in documented("apt purge"):
            system.run(command)
        system.run(["apt-get", "autoremove", "--purge"])
        assert not {path for path in system.files() if "tcmu" in path}
