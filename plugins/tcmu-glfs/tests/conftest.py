"""A GlusterFS for all tests of the session, and disks that are served from it."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tcmu_core.testing import open_device
from tcmu_glfs import GlfsHandler
from tests.clusters.gluster import Gluster
from tests.clusters.serving import Serving, serving

Serve = Callable[..., Serving]


@pytest.fixture(scope="session")
def gluster() -> Iterator[Gluster]:
    with tempfile.TemporaryDirectory(prefix="tcmu-gluster-") as directory:
        cluster = Gluster(Path(directory))
        try:
            cluster.start()
            # One disk that is always open keeps the connection: a new one for each test would cost seconds.
            with open_device(GlfsHandler, cluster.cfgstring("kept"), size=1 << 20):
                yield cluster
        finally:
            cluster.stop()


@pytest.fixture(scope="session")
def names() -> Iterator[str]:
    return (f"disk{number}" for number in itertools.count())


@pytest.fixture
def name(names: Iterator[str]) -> str:
    """A file that is not there yet."""
    return next(names)


@pytest.fixture
def cfgstring(gluster: Gluster, name: str) -> str:
    return gluster.cfgstring(name)


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Serve a file by `tcmu serve` until the test ends."""
    with ExitStack() as stack:
        yield lambda *argv: stack.enter_context(serving(tmp_path, "glfs", *argv))
