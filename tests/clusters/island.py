"""A network namespace with two cables to this one, of which one can be pulled: a gateway's to its cluster."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from tests.clusters.processes import run


class Island:
    """Where a gateway runs. It has `cluster` and `clients` for addresses, and `mainland` is ours at the first cable.

    Those that are there at once need different numbers, from 0 to 9.
    """

    def __init__(self, pid: int, number: int) -> None:
        self._pid = pid
        self._cluster = f"tcmu-cluster{number}"  # the ends of the cables, here and there: less than 16 characters
        # Link-local: nothing routes it.
        self.cables = {self._cluster: f"169.254.{70 + number}", f"tcmu-clients{number}": f"169.254.{80 + number}"}
        networks = list(self.cables.values())
        self.mainland = f"{networks[0]}.1"
        self.clients = f"{networks[1]}.2"

    @property
    def prefix(self) -> list[str]:
        """The words before a command that is to run there."""
        return ["nsenter", f"--net=/proc/{self._pid}/ns/net", "--"]

    def build(self) -> None:
        """Lay the cables."""
        run(*self.prefix, "ip", "link", "set", "lo", "up")
        for name, network in self.cables.items():
            run("ip", "link", "add", name, "type", "veth", "peer", "name", name, "netns", self._pid)
            run("ip", "address", "add", f"{network}.1/30", "dev", name)
            run("ip", "link", "set", name, "up")
            run(*self.prefix, "ip", "address", "add", f"{network}.2/30", "dev", name)
            run(*self.prefix, "ip", "link", "set", name, "up")

    @contextmanager
    def cut_off(self) -> Iterator[None]:
        """Pull the cable to the cluster, and put it in again."""
        run(*self.prefix, "ip", "link", "set", self._cluster, "down")
        try:
            yield
        finally:
            run(*self.prefix, "ip", "link", "set", self._cluster, "up")


@contextmanager
def island(number: int = 0) -> Iterator[Island]:
    """Have a namespace; its cables go with it, when the process ends that holds it."""
    with subprocess.Popen(
        ["unshare", "--net", "sh", "-c", "echo there; exec cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        made = Island(holder.pid, number)
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == b"there\n"
            made.build()
            yield made
        finally:
            holder.kill()
            for name in made.cables:  # at once, not when the kernel gets to it
                subprocess.run(["ip", "link", "delete", name], capture_output=True, check=False)
