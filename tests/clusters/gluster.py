"""A GlusterFS of one glusterd and one brick, on an address of loopback that is its own: the port is always the same."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
from pathlib import Path

from tests.clusters.processes import ClusterError, run, start, stop, until

VOLUME = "vol0"
PORT = 24007  # clients ask glusterd there, and nowhere else
# Where bricks have their sockets and logs is compiled in: the daemons see directories of ours there.
NAMESPACE = """\
mount --bind "$1/sockets" /var/run/gluster
mount --bind "$1/log" /var/log/glusterfs
shift
exec "$@"
"""

GLUSTERD = """\
volume management
    type mgmt/glusterd
    option working-directory {directory}/lib
    option run-directory {directory}/run
    option glusterd-sockfile {directory}/run/glusterd.socket
    option transport-type socket
    option transport.address-family inet
    option transport.socket.bind-address {host}
    option transport.socket.listen-port {port}
    option event-threads 1
end-volume
"""


class Gluster:
    """The cluster; everything lies in `directory`, which is the caller's to remove.

    Clients reach it at `host`: an address of this machine, one of loopback by default.
    """

    def __init__(self, directory: Path, host: str = "") -> None:
        self.directory = directory
        self.brick = directory / "brick"
        self.host = host or _own_address()
        self._glusterd: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it with a volume; returns when that can be used."""
        directory = self.directory
        for name in ("lib", "run", "brick", "sockets", "log"):
            (directory / name).mkdir()
        file = directory / "glusterd.vol"
        file.write_text(GLUSTERD.format(directory=directory, host=self.host, port=PORT))
        words = ["unshare", "--mount", "sh", "-ec", NAMESPACE, "sh", directory, "glusterd", "-N", "-f", file]
        words += ["-p", directory / "run/glusterd.pid", "-l", directory / "log/glusterd.log"]
        self._glusterd = start(directory / "glusterd.out", *words)
        until(self._answers, "glusterd answers")
        self.gluster("volume", "create", VOLUME, f"{self.host}:{self.brick}", "force")
        self.gluster("volume", "start", VOLUME)

    def _answers(self) -> bool:
        with contextlib.suppress(ClusterError):
            self.gluster("volume", "list")
            return True
        return False

    def gluster(self, *words: object) -> str:
        """Run `gluster`; returns what it printed."""
        directory = self.directory
        command = ["gluster", "--mode=script", f"--glusterd-sock={directory}/run/glusterd.socket"]
        return run(*command, f"--log-file={directory}/log/cli.log", *words).decode()

    def cfgstring(self, path: str) -> str:
        """Return what opens the file `path` of the volume."""
        return f"{VOLUME}@{self.host}/{path}"

    # -- the brick --------------------------------------------------------------------------------------------------

    def brick_pid(self) -> int:
        """Return the process id of the brick's server; 0 when there is none."""
        for file in (self.directory / "run/vols" / VOLUME).glob("*.pid"):
            with contextlib.suppress(OSError, ValueError):
                pid = int(file.read_text())
                state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
                if state not in ("Z", "X"):
                    return pid
        return 0

    def kill_brick(self) -> None:
        """Kill the brick's server; returns when it has ended."""
        os.kill(self.brick_pid(), signal.SIGKILL)
        until(lambda: not self.brick_pid(), "the brick ends")

    def start_brick(self) -> None:
        """Start the brick's server again."""
        until(self._brick_starts, "the brick starts")

    def _brick_starts(self) -> bool:
        self.gluster("volume", "start", VOLUME, "force")  # does nothing until glusterd has noticed that it ended
        return bool(self.brick_pid())

    def stop(self) -> None:
        """Stop everything."""
        if self._glusterd is None:
            return
        with contextlib.suppress(ClusterError):
            self.gluster("volume", "stop", VOLUME, "force")
        if self.brick_pid():
            self.kill_brick()
        stop(self._glusterd)
        self._glusterd = None


def _own_address() -> str:
    """Return an address of loopback at which nobody listens on glusterd's port."""
    while True:
        host = f"127.{random.randint(1, 254)}.{random.randint(0, 254)}.{random.randint(2, 254)}"
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind((host, PORT))
            return host
