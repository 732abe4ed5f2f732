"""A cluster that fails and comes back, a client that is fenced, an image that is resized: nothing is lost."""

from __future__ import annotations

import json
import random
import subprocess
from contextlib import ExitStack
from pathlib import Path

import pytest

from tcmu_core import Busy, ConfigError
from tcmu_core.testing import open_device
from tcmu_rbd import RbdHandler
from tests.clusters.ceph import Ceph
from tests.clusters.load import Load
from tests.clusters.processes import until
from tests.conformance.suite import run as run_suite

MIB = 1 << 20


def test_an_osd_that_is_killed_and_started_again_costs_no_error(make, ceph: Ceph) -> None:
    with open_device(RbdHandler, make(size="64M", more=";osd_op_timeout=60").cfgstring) as disk:
        load = Load(disk)
        load.start()
        load.more()
        with ceph.without("osd"):
            load.stalls()
        load.more()
        load.finish()
        assert not load.busy


@pytest.mark.soak
def test_a_monitor_that_is_killed_is_not_missed(make, ceph: Ceph) -> None:
    with open_device(RbdHandler, make(size="64M").cfgstring) as disk:
        load = Load(disk)
        load.start()
        load.more()
        with ceph.without("mon"):
            load.more(500)
        load.finish()
        ceph.ceph("osd", "stat")
        assert not load.busy


def test_a_client_that_was_blocklisted_goes_on_with_another_connection(make, ceph: Ceph) -> None:
    image = make(size="64M")
    with open_device(RbdHandler, image.cfgstring) as disk:
        load = Load(disk)
        load.start()
        load.more()
        watchers = json.loads(ceph.rbd("status", "--format", "json", image.name))["watchers"]
        address = watchers[0]["address"]
        ceph.ceph("osd", "blocklist", "add", address)
        until(lambda: load.busy > 0, "it is noticed")
        load.more()
        load.finish()
        now = json.loads(ceph.rbd("status", "--format", "json", image.name))["watchers"]
        assert address not in [watcher["address"] for watcher in now]


@pytest.mark.soak
def test_after_the_timeout_commands_hear_busy_and_the_old_connection_is_fenced(make, ceph: Ceph) -> None:
    image = make(size="64M", more=";osd_op_timeout=5")
    with open_device(RbdHandler, image.cfgstring) as disk:
        load = Load(disk)
        load.start()
        load.more()
        old = json.loads(ceph.rbd("status", "--format", "json", image.name))["watchers"][0]["address"]
        with ceph.without("osd"):
            until(lambda: load.busy > 0, "the timeout comes")
        load.more()
        load.finish()
        assert old in ceph.blocklist()


@pytest.mark.soak
def test_a_disk_that_is_closed_while_the_cluster_is_away_does_not_hang(make, ceph: Ceph) -> None:
    image = make(more=";osd_op_timeout=5")
    with ExitStack() as stack:
        disk = stack.enter_context(open_device(RbdHandler, image.cfgstring))
        with ceph.without("osd"):
            with pytest.raises(Busy):
                disk.write(0, bytes(512))
            stack.close()
    ceph.rados("put", "probe", "-", data=b"x")  # until the cluster is whole again


def test_a_resize_by_rbd_is_seen_by_the_initiator(make, serve, ceph: Ceph) -> None:
    image = make()
    uri = serve(image).uri

    def capacity() -> int:
        # It fails when the unit attention is what it is answered: it does not ask again.
        said = subprocess.run(["iscsi-readcapacity16", uri], capture_output=True, text=True, check=False).stdout
        return int(said.split("Total size:")[1].split()[0]) if "Total size:" in said else 0

    assert capacity() == 16 * MIB
    ceph.rbd("resize", "--size", "24M", image.name)
    until(lambda: capacity() == 24 * MIB, "the disk grows")
    tool = ["qemu-io", "-f", "raw", "-c", "write -P 7 23M 1M", "-c", "read -P 7 23M 1M", uri]
    subprocess.run(tool, check=True, capture_output=True)
    ceph.rbd("resize", "--allow-shrink", "--size", "8M", image.name)
    until(lambda: capacity() == 8 * MIB, "the disk shrinks")


@pytest.mark.soak
def test_a_resize_of_a_disk_that_only_reads_is_seen_too(make, ceph: Ceph) -> None:
    image = make()
    with open_device(RbdHandler, image.cfgstring, read_only=True) as disk:
        told: list[tuple[int, int]] = []
        disk.device.changed = lambda asc, ascq, but: told.append((asc, ascq))
        ceph.rbd("resize", "--size", "24M", image.name)
        until(lambda: bool(told), "the disk grows")
        assert (told, disk.size) == ([(0x2A, 0x09)], 24 * MIB)

        def readable() -> bool:
            try:
                return disk.read(23 * MIB, 512) == bytes(512)
            except Busy:
                return False

        until(readable, "what was added can be read")


def test_a_resize_of_the_disk_grows_the_image_and_never_cuts_it_off(make, ceph: Ceph) -> None:
    image = make()
    with open_device(RbdHandler, image.cfgstring) as disk:
        disk.reconfigure(size=24 * MIB)
        assert json.loads(ceph.rbd("info", "--format", "json", image.name))["size"] == 24 * MIB
        disk.write(23 * MIB, b"g" * 512)
        with pytest.raises(ConfigError, match="--allow-shrink"):
            disk.reconfigure(size=8 * MIB)
        assert disk.size == 24 * MIB
        with pytest.raises(ConfigError, match="no write cache"):
            disk.reconfigure(write_cache=True)
        with pytest.raises(ConfigError, match="can't change"):
            disk.reconfigure(cfgstring="rbd/other")


@pytest.mark.soak
def test_the_cluster_is_told_of_the_disk(make, ceph: Ceph) -> None:
    image = make()
    ceph.start_daemon("mgr")
    with open_device(RbdHandler, image.cfgstring):

        def daemons() -> list[dict[str, object]]:
            services = ceph.ceph("service", "dump")["services"]
            found = services.get("tcmu-runner", {"daemons": {}})["daemons"]
            return [entry for entry in found.values() if isinstance(entry, dict)]

        until(lambda: any(entry["metadata"].get("image_name") == image.name for entry in daemons()), "it registers")
        (entry,) = [entry for entry in daemons() if entry["metadata"].get("image_name") == image.name]
        assert entry["metadata"]["daemon_type"] == "portal"
        assert entry["metadata"]["pool_name"] == "rbd"
    ceph.kill_daemon("mgr")


# -- clients that we did not write -------------------------------------------------------------------------------------

FAMILIES = ("Read10", "ReadCapacity16", "Inquiry")


def test_libiscsis_suite_finds_nothing_in_what_touches_the_image(make, serve) -> None:
    results = run_suite(serve(make(size="64M")).uri, *(f"ALL.{family}" for family in FAMILIES))
    assert results.failed == {}
    assert len(results.passed) > 8


@pytest.mark.soak
def test_libiscsis_whole_suite(make, serve) -> None:
    results = run_suite(serve(make(size="64M")).uri, "ALL")
    assert results.failed == {}
    assert len(results.passed) >= 190


@pytest.mark.soak
def test_an_image_goes_in_and_comes_out_by_qemus_tools(make, serve, ceph: Ceph, tmp_path: Path) -> None:
    image = make(size="64M")
    source = tmp_path / "source.img"
    source.write_bytes(random.Random(3).randbytes(40 * MIB) + bytes(24 * MIB))
    uri = serve(image).uri
    subprocess.run(["qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", source, uri], check=True, timeout=300)
    subprocess.run(["qemu-img", "compare", "-f", "raw", "-F", "raw", source, uri], check=True, timeout=300)
    assert ceph.rbd("export", image.name, "-") == source.read_bytes()
