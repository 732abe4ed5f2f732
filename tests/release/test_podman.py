"""podman and podman-compose run the image by the commands that the guide has."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import tcmu_core
from tests.release.container import COMPOSE
from tests.release.interpreters import ROOT
from tests.release.lines import commands
from tests.release.session import Session

pytestmark = pytest.mark.soak

LINES = [line for line in commands(ROOT / "docs" / "admin.md") if line.startswith("podman")]
LOGIN = "LIBISCSI_CHAP_USERNAME=alice LIBISCSI_CHAP_PASSWORD='correct horse battery'"

# What a host has, and a sandbox lacks: /sys of its own; and podman's settings for one without systemd, without control
# groups to share, and on a file system that overlays can't lie on.
HOST = """
mount -t tmpfs tmpfs /dev/shm
mount -t sysfs sysfs /sys
mount -t cgroup2 cgroup2 /sys/fs/cgroup
rm -rf /var/lib/containers /run/containers /run/libpod
cat > /etc/containers/storage.conf << 'END'
[storage]
driver = "vfs"
runroot = "/run/containers"
graphroot = "/var/lib/containers"
END
cat > /etc/containers/containers.conf << 'END'
[containers]
cgroups = "disabled"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "none"
END
"""


def typed(session: Session, beginning: str) -> str:
    """Type the guide's line that begins so."""
    (line,) = (line for line in LINES if line.startswith(beginning))
    return session.type(line)


@pytest.fixture
def session(archive: Path) -> Iterator[Session]:
    """A host that the image was loaded on."""
    with Session() as session:
        session.type(HOST)
        session.type(f"mkdir build; ln -s {archive} build/tcmu-image.tar")
        assert f"localhost/tcmu:{tcmu_core.__version__}" in typed(session, "podman load")
        yield session


def test_the_guides_command_serves_a_disk_at_the_mapped_port(session: Session) -> None:
    typed(session, "podman run")
    session.type("until iscsi-ls -s iscsi://127.0.0.1:3260 | grep Lun:0; do sleep 0.1; done")
    session.type("podman healthcheck run $(podman ps --quiet)")


def test_the_compose_file_serves_a_disk_to_who_knows_the_password(session: Session) -> None:
    session.type(f"cp {COMPOSE} .; echo 'alice:correct horse battery' > chap; chmod 600 chap; chown 10001:10001 chap")
    typed(session, "podman-compose up")
    session.type(f"until {LOGIN} iscsi-ls -s iscsi://127.0.0.1:3260 | grep Lun:0; do sleep 0.1; done")
    session.type("iscsi-ls -s iscsi://127.0.0.1:3260", fails="Authentication failure")
    session.type("podman healthcheck run $(podman ps --quiet)")
    typed(session, "podman-compose down")
    assert session.type("podman ps --quiet") == ""
