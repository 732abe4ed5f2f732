"""The promises of every handler, on images of all kinds."""

from __future__ import annotations

import functools

import pytest

from tcmu_core.testing import WAYS, check_handler, open_device
from tcmu_rbd import RbdHandler
from tests.clusters.ceph import Ceph

CLAIMS = ["not forked"]  # librbd; what a crash leaves is tested with processes of their own
KINDS = {
    "default": (),
    "without features": ("--image-feature", "layering"),
    "small objects": ("--object-size", "64K"),
    "striped": ("--stripe-unit", "64K", "--stripe-count", "4"),
}
MARKS = {"small objects": pytest.mark.soak, "striped": pytest.mark.soak}


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=MARKS.get(kind, ())) for kind in KINDS])
def test_an_image_keeps_the_promises_of_a_handler(make, kind: str) -> None:
    image = make(*KINDS[kind])
    make_device = functools.partial(open_device, RbdHandler, image.cfgstring)
    ways = WAYS if kind == "default" else ["engine"]
    check_handler(make_device, persistent=True, examples=5, claims=CLAIMS, ways=ways)


def test_and_so_does_a_clone_with_blocks_of_4096_bytes(make, ceph: Ceph) -> None:
    parent = make(size="8M")
    ceph.rbd("import", "--dest", f"{parent.name}-full", "-", data=b"p" * (8 << 20))
    ceph.rbd("snap", "create", f"{parent.name}-full@base")
    ceph.rbd("clone", "--rbd-default-clone-format", "2", f"{parent.name}-full@base", f"{parent.name}-clone")
    cfgstring = parent.cfgstring.replace(parent.name, f"{parent.name}-clone", 1)
    with open_device(RbdHandler, cfgstring) as disk:
        assert disk.read(1 << 20, 4096) == b"p" * 4096
    make_device = functools.partial(open_device, RbdHandler, cfgstring, block_size=4096)
    check_handler(make_device, persistent=True, examples=5, claims=CLAIMS, ways=["engine"])
