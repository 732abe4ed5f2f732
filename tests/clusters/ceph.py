"""A Ceph of one monitor and one OSD on one address of this machine, without authentication."""

from __future__ import annotations

import json
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.clusters.processes import free_ports, run, start, stop

POOL = "rbd"
SIZE = 4 << 30  # bytes of the sparse file behind BlueStore
HEARTBEAT = 1  # seconds between the heartbeats of OSDs
GRACE = 3  # seconds without one, after which an OSD counts as down

CONF = """\
[global]
fsid = {fsid}
mon_host = [v2:{address}:{v2}/0,v1:{address}:{v1}/0]
public_addr = {address}
auth_cluster_required = none
auth_service_required = none
auth_client_required = none
auth_allow_insecure_global_id_reclaim = true
run_dir = {directory}
admin_socket =
pid_file = {directory}/$name.pid
log_file = {directory}/$name.log
keyring = {directory}/keyring
osd_pool_default_size = 1
osd_pool_default_min_size = 1
mon_allow_pool_size_one = true
osd_crush_chooseleaf_type = 0
osd_heartbeat_interval = {heartbeat}
osd_heartbeat_grace = {grace}
rbd_default_features = 61

[mon]
mon_data = {directory}/mon
mon_cluster_log_file = {directory}/cluster.log
mon_data_avail_crit = 1
mon_data_avail_warn = 1

[mgr]
mgr_data = {directory}/mgr

[osd]
osd_data = {directory}/osd
osd_objectstore = {store}
osd_max_object_name_len = 256
bluestore_block_size = {size}
bluestore_block_path =
osd_memory_target = 939524096
"""


class Ceph:
    """The cluster. `conf` is what its clients read; everything lies in `directory`, which is the caller's to remove.

    `store` is `bluestore`, on a sparse file, or `memstore`, which is faster and forgets everything when its OSD ends.
    """

    def __init__(self, directory: Path, store: str = "bluestore", address: str = "127.0.0.1") -> None:
        self.store = store
        self.address = address
        self.directory = directory
        self.conf = directory / "ceph.conf"
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        """Make the cluster with a pool for images and start it; returns when it takes data."""
        directory, fsid, osd = self.directory, uuid.uuid4(), uuid.uuid4()
        v2, v1 = free_ports(2)
        for name in ("mon", "mgr", "osd"):
            (directory / name).mkdir()
        self.conf.write_text(
            CONF.format(
                directory=directory,
                address=self.address,
                fsid=fsid,
                v1=v1,
                v2=v2,
                store=self.store,
                size=SIZE,
                heartbeat=HEARTBEAT,
                grace=GRACE,
            )
        )
        addresses = f"[v2:{self.address}:{v2},v1:{self.address}:{v1}]"
        self._tool("monmaptool", "--create", "--fsid", fsid, "--addv", "a", addresses, directory / "monmap")
        self._tool("ceph-mon", "--mkfs", "-i", "a", "--monmap", directory / "monmap")
        self.start_daemon("mon")
        self.ceph("osd", "new", osd)
        self._tool("ceph-osd", "-i", 0, "--mkfs", "--osd-uuid", osd, "--no-mon-config")
        self.start_daemon("osd")
        self.ceph("osd", "pool", "create", POOL, 8, 8)
        self.ceph("osd", "pool", "application", "enable", POOL, "rbd")
        self.rados("put", "probe", "-", data=b"x")  # blocks until the placement groups are active
        self.rados("rm", "probe")

    def start_daemon(self, name: str) -> None:
        """Start `mon`, `osd`, or `mgr`, which nothing but the service map needs."""
        program, number = {"mon": ("ceph-mon", "a"), "osd": ("ceph-osd", "0"), "mgr": ("ceph-mgr", "x")}[name]
        self._daemons[name] = start(self.directory / f"{name}.out", program, "-f", "-i", number, "-c", self.conf)

    def kill_daemon(self, name: str) -> None:
        """Kill a daemon; returns when it has ended."""
        process = self._daemons.pop(name)
        process.kill()
        process.wait()

    @contextmanager
    def without(self, name: str) -> Iterator[None]:
        """Kill a daemon, and start it again afterwards."""
        self.kill_daemon(name)
        try:
            yield
        finally:
            self.start_daemon(name)

    def stop(self) -> None:
        """Stop everything."""
        for name in ("mgr", "osd", "mon"):  # an OSD that ends tells its monitor
            if process := self._daemons.pop(name, None):
                stop(process)

    # -- its tools --------------------------------------------------------------------------------------------------

    def _tool(self, *words: object, data: bytes | None = None) -> bytes:
        return run(words[0], "-c", self.conf, *words[1:], data=data)

    def ceph(self, *words: object) -> Any:
        """Run `ceph`; returns the JSON that it prints, None when there is none."""
        said = self._tool("ceph", "--format", "json", *words).decode().strip()
        # Some commands add a line for people.
        return json.JSONDecoder().raw_decode(said)[0] if said.startswith(("{", "[")) else None

    def rados(self, *words: object, data: bytes | None = None) -> bytes:
        """Run `rados` on the pool."""
        return self._tool("rados", "-p", POOL, *words, data=data)

    def rbd(self, *words: object, data: bytes | None = None) -> bytes:
        """Run `rbd`; images are of the pool that it takes by default."""
        return self._tool("rbd", *words, data=data)

    def create(self, image: str, size: str, *options: object) -> str:
        """Make an image; returns the cfgstring that opens it."""
        self.rbd("create", "--size", size, *options, image)
        return f"{POOL}/{image};conf={self.conf}"

    def blocklist(self) -> list[str]:
        """Return the addresses that are on the blocklist."""
        return [entry["addr"] for entry in self.ceph("osd", "blocklist", "ls") or []]
