"""What is in an image and what the disk shows are the same; snapshots, namespaces, space, geometry, and mistakes."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from tcmu_core import ConfigError, Extent
from tcmu_core.testing import open_device
from tcmu_rbd import RbdHandler
from tests.clusters.ceph import POOL, Ceph

MIB = 1 << 20


def test_what_was_written_is_what_rbd_exports_and_the_other_way(make, ceph: Ceph) -> None:
    image = make(size="12M")
    data = random.Random(1).randbytes(3 * MIB)
    with open_device(RbdHandler, image.cfgstring) as disk:
        disk.write(3 * MIB, data, [512, 4096, MIB])
        # No flush: what was answered is there, even while the disk is open.
        exported = ceph.rbd("export", image.name, "-")
        assert exported == bytes(3 * MIB) + data + bytes(6 * MIB)
    ceph.rbd("import", "-", f"{image.name}-back", data=data[::-1])
    with open_device(RbdHandler, image.cfgstring.replace(image.name, f"{image.name}-back", 1)) as disk:
        assert disk.read(0, 3 * MIB) == data[::-1]


def test_a_snapshot_shows_what_was_and_cannot_be_written(make, ceph: Ceph) -> None:
    image = make()
    with open_device(RbdHandler, image.cfgstring) as disk:
        disk.write(0, b"before" + bytes(506))
        ceph.rbd("snap", "create", f"{image.name}@then")
        disk.write(0, b"after" + bytes(507))
        with open_device(RbdHandler, f"{image.cfgstring};snapshot=then") as snapshot:
            assert snapshot.device.read_only
            assert snapshot.read(0, 512) == b"before" + bytes(506)
            with pytest.raises(OSError, match="EROFS"):
                snapshot.write(0, bytes(512))
        assert disk.read(0, 512) == b"after" + bytes(507)


def test_an_image_of_a_namespace_is_another_one(make, ceph: Ceph) -> None:
    image = make()
    ceph.rbd("namespace", "create", f"{POOL}/{image.name}-space")
    ceph.rbd("create", "--size", "16M", f"{POOL}/{image.name}-space/{image.name}")
    with (
        open_device(RbdHandler, image.cfgstring) as one,
        open_device(RbdHandler, f"{image.cfgstring};namespace={image.name}-space") as other,
    ):
        one.write(0, b"1" * 512)
        other.write(0, b"2" * 512)
        assert (one.read(0, 512), other.read(0, 512)) == (b"1" * 512, b"2" * 512)
    assert ceph.rbd("export", f"{POOL}/{image.name}-space/{image.name}", "-")[:512] == b"2" * 512


def test_a_discard_gives_space_back_and_zeros_take_it(make, ceph: Ceph) -> None:
    image = make(size="32M")

    def used() -> int:
        return int(json.loads(ceph.rbd("du", "--format", "json", image.name))["images"][0]["used_size"])

    with open_device(RbdHandler, image.cfgstring) as disk:
        disk.write(0, b"x" * (16 * MIB))
        assert used() == 16 * MIB
        disk.discard(4 * MIB, 8 * MIB)
        assert used() == 8 * MIB
        assert disk.extents(0, 32 * MIB) == [
            Extent(0, 4 * MIB, True),
            Extent(4 * MIB, 8 * MIB, False),
            Extent(12 * MIB, 4 * MIB, True),
            Extent(16 * MIB, 16 * MIB, False),
        ]
        disk.write_zeroes(16 * MIB, 8 * MIB)
        assert used() == 16 * MIB
        assert not any(disk.read(16 * MIB, 8 * MIB))


def test_the_object_size_gives_limits_and_granularity(make) -> None:
    with open_device(RbdHandler, make("--object-size", "1M").cfgstring) as disk:
        device = disk.device
        assert (device.optimal_transfer_length, device.max_transfer_length) == (MIB, 4 * MIB)
        assert (device.discard_granularity, device.max_discard_length) == (64 << 10, 64 * MIB)
        assert not device.write_cache
        assert device.thin


def test_an_image_that_has_a_volatile_cache_of_its_own_is_refused(make, ceph: Ceph) -> None:
    image = make()
    ceph.rbd("config", "image", "set", image.name, "rbd_cache", "true")
    with pytest.raises(ConfigError, match=f"rbd config image set {POOL}/{image.name} rbd_cache false"):
        open_device(RbdHandler, image.cfgstring).__enter__()
    with open_device(RbdHandler, image.cfgstring, read_only=True) as disk:
        assert disk.read(0, 512) == bytes(512)
    ceph.rbd("config", "image", "set", image.name, "rbd_cache", "false")
    with open_device(RbdHandler, image.cfgstring) as disk:
        disk.write(0, b"w" * 512)


def test_the_size_that_was_asked_for_must_be_the_images(make) -> None:
    image = make()
    with pytest.raises(ConfigError, match=r"16777216 bytes, the device 8388608: .*rbd resize --size 8388608B"):
        open_device(RbdHandler, image.cfgstring, size=8 * MIB).__enter__()
    with open_device(RbdHandler, image.cfgstring, size=16 * MIB) as disk:
        assert disk.size == 16 * MIB


@pytest.mark.parametrize(
    ("cfgstring", "says"),
    [
        ("rbd/nothing;conf={conf}", "rbd/nothing does not exist: rbd create"),
        ("rbd/{image};conf={conf};snapshot=no", "rbd/{image}@no does not exist: `rbd snap ls`"),
        ("rbd/{image};conf={conf};namespace=no", "does not exist"),
        ("nopool/disk;conf={conf}", "no pool 'nopool'"),
        ("rbd/{image};conf=/nowhere/ceph.conf", "no /nowhere/ceph.conf"),
    ],
)
def test_what_is_missing_is_named(make, ceph: Ceph, cfgstring: str, says: str) -> None:
    image = make()
    words = {"conf": ceph.conf, "image": image.name}
    with pytest.raises(ConfigError, match=says.format(**words)):
        open_device(RbdHandler, cfgstring.format(**words)).__enter__()


def test_a_cluster_that_does_not_answer_is_told_after_a_while(make, ceph: Ceph, tmp_path: Path) -> None:
    text = ceph.conf.read_text().replace("[global]", "[global]\nclient_mount_timeout = 1", 1)
    conf = tmp_path / "dead.conf"
    lines = ["mon_host = 127.0.0.1:9" if "mon_host" in line else line for line in text.splitlines()]
    conf.write_text("\n".join([*lines, ""]))
    with pytest.raises(ConfigError, match="does not answer"):
        open_device(RbdHandler, f"rbd/x;conf={conf}").__enter__()
