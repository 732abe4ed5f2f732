"""What `make image` makes serves disks as the documents have it: not as root, and writes to its volume alone."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import tcmu_core
from tests.cli.conftest import run
from tests.release.container import COMPOSE, Container, Image, composed, of_command
from tests.release.interpreters import NOBODY, ROOT
from tests.waiting import suspend

pytestmark = pytest.mark.soak

PASSWORD = "correct horse battery"
LOGIN = {"LIBISCSI_CHAP_USERNAME": "alice", "LIBISCSI_CHAP_PASSWORD": PASSWORD}


@pytest.fixture(scope="module")
def image(shelf: Path, archive: Path) -> Image:
    """The image, unpacked."""
    (shelf / "image").mkdir()
    return Image(archive, shelf / "image")


@pytest.fixture
def volume() -> Iterator[Path]:
    """An empty volume, as the image's user has it, and beside it the file of secrets."""
    with tempfile.TemporaryDirectory(prefix="tcmu-volume-") as name:
        place = Path(name)
        place.chmod(0o755)
        (place / "disks").mkdir(mode=0o700)
        (place / "chap").write_text(f"alice:{PASSWORD}\n")
        (place / "chap").chmod(0o600)
        for path in (place / "disks", place / "chap"):
            os.chown(path, NOBODY, NOBODY)
        yield place


@contextlib.contextmanager
def running(image: Image, volume: Path, service: dict[str, Any] | None = None) -> Iterator[Container]:
    with tempfile.TemporaryDirectory(prefix="tcmu-bundle-") as name:
        Path(name).chmod(0o755)
        with Container(service or composed(), image, Path(name), volume / "disks", volume) as container:
            yield container


def test_it_is_not_roots_and_says_how_it_is(image: Image) -> None:
    config = image.config
    assert image.tags == [f"localhost/tcmu:{tcmu_core.__version__}"]
    assert config["User"] not in {"", "0", "root"}
    assert list(config["Volumes"]) == ["/var/lib/tcmu"]
    assert list(config["ExposedPorts"]) == ["3260/tcp"]
    assert config["Healthcheck"]["Test"] == ["CMD", "tcmu", "status", "--check"]
    assert f"image: {image.tags[0]}\n" in COMPOSE.read_text()


def test_a_disk_of_the_compose_file_is_served_to_who_knows_the_password(image: Image, volume: Path) -> None:
    with running(image, volume) as container:
        assert container.healthy()
        portal = f"iscsi://{container.address}"
        listed = run("iscsi-ls", portal, **LOGIN).stdout
        assert listed == f"Target:iqn.2025-01.local.tcmu:disk Portal:{container.address},1\n"
        uri = f"{portal}/iqn.2025-01.local.tcmu:disk/0"
        assert run("iscsi-inq", uri).returncode != 0
        assert run("iscsi-inq", uri, **LOGIN | {"LIBISCSI_CHAP_PASSWORD": "a wrong password"}).returncode != 0
        written = run("qemu-io", "-f", "raw", "-c", "write -P 0x31 1M 64k", "-c", "flush", uri, **LOGIN)
        assert written.returncode == 0, written.stderr
    with running(image, volume) as container:  # another container, the same volume
        uri = f"iscsi://{container.address}/iqn.2025-01.local.tcmu:disk/0"
        read = run("qemu-io", "-f", "raw", "-c", "read -P 0x31 1M 64k", uri, **LOGIN)
        assert read.returncode == 0, read.stderr
        assert "verification failed" not in read.stdout
    assert (volume / "disks" / "disk.img").stat().st_uid == NOBODY


def test_the_guides_command_serves_a_disk(image: Image, volume: Path) -> None:
    (line,) = re.findall(r"^ {4}(podman run .*)$", (ROOT / "docs" / "admin.md").read_text(), re.MULTILINE)
    service = of_command(line)
    assert service["image"] == image.tags[0]
    with running(image, volume, service) as container:
        listed = run("iscsi-ls", f"iscsi://{container.address}").stdout
        assert listed == f"Target:iqn.2025-01.local.tcmu:disk Portal:{container.address},1\n"
    assert (volume / "disks" / "disk.img").stat().st_size == 1 << 30


def test_it_writes_to_its_volume_alone_and_has_no_rights(image: Image, volume: Path) -> None:
    with running(image, volume) as container:
        assert container.run("touch", "/var/lib/tcmu/file").returncode == 0
        for path in ("/file", "/tmp/file", "/etc/file", "/usr/file"):
            assert container.run("touch", path).returncode != 0, path
        rights = container.run("grep", "-E", "Uid|CapEff|CapBnd|NoNewPrivs", "/proc/self/status").stdout.split()
        user = image.config["User"].partition(":")[0]
        assert rights == [
            "Uid:", *[user] * 4, "CapEff:", "0" * 16, "CapBnd:", "0" * 16, "NoNewPrivs:", "1",
        ]  # fmt: skip


def test_a_container_that_hangs_is_not_healthy(image: Image, volume: Path) -> None:
    with running(image, volume) as container:
        assert container.healthy()
        suspend(container.pid)
        try:
            assert not container.healthy()
        finally:
            os.kill(container.pid, signal.SIGCONT)
