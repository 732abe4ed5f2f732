"""A Ceph for all tests of the session, images on it, and disks that are served from them."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.clusters.ceph import POOL, Ceph
from tests.clusters.gateway import Gateways
from tests.clusters.serving import Serving, serving


@dataclass(frozen=True, slots=True)
class Image:
    """An image: its name, and the cfgstring that opens it."""

    name: str
    cfgstring: str


Make = Callable[..., Image]
Serve = Callable[..., Serving]


@pytest.fixture(scope="session")
def ceph() -> Iterator[Ceph]:
    with tempfile.TemporaryDirectory(prefix="tcmu-ceph-") as directory:
        cluster = Ceph(Path(directory))
        try:
            cluster.start()
            yield cluster
        finally:
            cluster.stop()


@pytest.fixture(scope="session")
def names() -> Iterator[str]:
    return (f"disk{number}" for number in itertools.count())


@pytest.fixture
def make(ceph: Ceph, names: Iterator[str]) -> Make:
    """Make an image with the options of `rbd create`; `;options` are added to its cfgstring."""

    def make_image(*options: object, size: str = "16M", more: str = "") -> Image:
        name = next(names)
        ceph.rbd("create", "--size", size, *options, name)
        return Image(name, f"{POOL}/{name};conf={ceph.conf}{more}")

    return make_image


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Serve an image by `tcmu serve` until the test ends."""
    with ExitStack() as stack:
        yield lambda image, *argv: stack.enter_context(serving(tmp_path, "rbd", image.cfgstring, *argv))


@pytest.fixture
def gateways(make, tmp_path: Path) -> Iterator[Gateways]:
    """Two gateways of an image of their own, which serve."""
    both = Gateways(tmp_path, "rbd", make(more=";lock=move").cfgstring)
    try:
        both.start(1, 2)
        yield both
    finally:
        both.stop()
