"""What the tests of packages share, for it takes long to make."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.release.debian import make_root
from tests.release.making import make


@pytest.fixture(scope="session")
def shelf() -> Iterator[Path]:
    """A directory that everybody may look into."""
    with tempfile.TemporaryDirectory(prefix="tcmu-packages-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture(scope="session")
def debs(shelf: Path) -> Path:
    """All Debian packages, as `make deb` leaves them; it fails where lintian finds an error or has a warning."""
    make("deb", DEBS=shelf / "deb")
    return shelf / "deb"


@pytest.fixture(scope="session")
def archive(shelf: Path, debs: Path) -> Path:
    """The image, as `make image` leaves it when there are packages."""
    make("image", DEBS=debs, IMAGE=shelf / "tcmu.tar", made="deb")
    return shelf / "tcmu.tar"


@pytest.fixture(scope="session")
def root(shelf: Path) -> Path:
    """A Debian root that nothing was installed in."""
    make_root(shelf / "root")
    return shelf / "root"
