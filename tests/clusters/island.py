"""A network namespace with two cables to this one, of which one can be pulled: a gateway's to its cluster."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from tests.clusters.processes import run

CLUSTER, CLIENTS = "tcmu-cluster", "tcmu-clients"  # the ends of the cables on this side; less than 16 characters
NETWORKS = {CLUSTER: "169.254.77", CLIENTS: "169.254.78"}  # link-local: nothing routes it


class Island:
    """Where a gateway runs. It has `cluster` and `clients` for addresses, and `mainland` is ours at the first cable."""

    mainland = f"{NETWORKS[CLUSTER]}.1"
    clients = f"{NETWORKS[CLIENTS]}.2"

    def __init__(self, pid: int) -> None:
        self._pid = pid

    @property
    def prefix(self) -> list[str]:
        """The words before a command that is to run there."""
        return ["nsenter", f"--net=/proc/{self._pid}/ns/net", "--"]

    def build(self) -> None:
        """Lay the cables."""
        run(*self.prefix, "ip", "link", "set", "lo", "up")
        for name, network in NETWORKS.items():
            run("ip", "link", "add", name, "type", "veth", "peer", "name", name, "netns", self._pid)
            run("ip", "address", "add", f"{network}.1/30", "dev", name)
            run("ip", "link", "set", name, "up")
            run(*self.prefix, "ip", "address", "add", f"{network}.2/30", "dev", name)
            run(*self.prefix, "ip", "link", "set", name, "up")

    @contextmanager
    def cut_off(self) -> Iterator[None]:
        """Pull the cable to the cluster, and put it in again."""
        run(*self.prefix, "ip", "link", "set", CLUSTER, "down")
        try:
            yield
        finally:
            run(*self.prefix, "ip", "link", "set", CLUSTER, "up")


@contextmanager
def island() -> Iterator[Island]:
    """Have a namespace; its cables go with it, when the process ends that holds it."""
    with subprocess.Popen(
        ["unshare", "--net", "sh", "-c", "echo there; exec cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == b"there\n"
            made = Island(holder.pid)
            made.build()
            yield made
        finally:
            holder.kill()
            for name in NETWORKS:  # at once, not when the kernel gets to it
                subprocess.run(["ip", "link", "delete", name], capture_output=True, check=False)
