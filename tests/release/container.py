"""A container of our image, run by crun as an ordinary user in namespaces of its own, as the documents have it run."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shlex
import socket
import subprocess
import threading
from pathlib import Path
from types import TracebackType
from typing import Any

import yaml

from tests.release.interpreters import NOBODY, ROOT

COMPOSE = ROOT / "packages" / "image" / "compose.yaml"

# crun takes control groups of both versions at once for a fault: it sees those of version 1 alone. It uses none.
HIDING = 'test ! -d /sys/fs/cgroup/unified || umount /sys/fs/cgroup/unified; exec "$@"'


class Image:
    """The archive that `make image` leaves, unpacked."""

    def __init__(self, archive: Path, goal: Path) -> None:
        unpacked = goal / "image"
        self.root = goal / "rootfs"
        for directory in (unpacked, self.root):
            directory.mkdir()
        subprocess.run(["tar", "-xf", archive, "-C", unpacked], check=True)
        (manifest,) = json.loads((unpacked / "manifest.json").read_text())
        self.tags: list[str] = manifest["RepoTags"]
        self.config: dict[str, Any] = json.loads((unpacked / manifest["Config"]).read_text())["config"]
        for layer in manifest["Layers"]:
            subprocess.run(["tar", "-xf", unpacked / layer, "-C", self.root], check=True)


def composed() -> dict[str, Any]:
    """Return the service of the compose file."""
    service: dict[str, Any] = yaml.safe_load(COMPOSE.read_text())["services"]["disk"]
    return service


def of_command(line: str) -> dict[str, Any]:
    """Return what a `podman run` has run, as a service of a compose file."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--read-only", action="store_true")
    parser.add_argument("--cap-drop", action="append", type=str.upper)
    parser.add_argument("--security-opt", action="append", default=[])
    parser.add_argument("-v", dest="volumes", action="append")
    parser.add_argument("-p", dest="ports", action="append")
    parser.add_argument("image")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    return {"secrets": [], **vars(parser.parse_args(shlex.split(line)[2:]))}


class Container:
    """A service. Its port is mapped to a free one of this host's loopback address, where it says which one.

    `volume` stands for its volume, `secrets` is where it has its secrets from.
    """

    def __init__(self, service: dict[str, Any], image: Image, place: Path, volume: Path, secrets: Path) -> None:
        self.service = service
        self._place = place
        self._mapped = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._mapped.getsockname()[1]}"
        self._user = image.config["User"].partition(":")[0]
        self._environment = image.config["Env"]
        self._healthy = image.config["Healthcheck"]["Test"][1:]
        (place / "config.json").write_text(json.dumps(self._bundle(image, volume, secrets)))
        (place / "run").mkdir(exist_ok=True)
        os.chown(place / "run", NOBODY, NOBODY)

    def _bundle(self, image: Image, volume: Path, secrets: Path) -> dict[str, Any]:
        """Return what the OCI runtime specification 1.0 has as config.json."""
        mounts = [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
            {"destination": "/run", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
        ]
        binds = [(volume, line.partition(":")[2]) for line in self.service["volumes"]]
        binds += [(secrets / name, f"/run/secrets/{name}") for name in self.service["secrets"]]
        mounts += [{"destination": to, "type": "bind", "source": str(of), "options": ["bind"]} for of, to in binds]
        one = [{"containerID": int(self._user), "hostID": NOBODY, "size": 1}]
        return {
            "ociVersion": "1.0.0",
            "root": {"path": str(image.root), "readonly": self.service["read_only"]},
            "process": self._process([*image.config["Entrypoint"], *map(self._filled, self.service["command"])]),
            "mounts": mounts,
            "linux": {
                "namespaces": [{"type": name} for name in ("user", "mount", "pid", "ipc", "uts", "network")],
                "uidMappings": one,
                "gidMappings": one,
            },
        }

    def _process(self, words: list[str]) -> dict[str, Any]:
        assert self.service["cap_drop"] == ["ALL"]
        return {
            "args": words,
            "user": {"uid": int(self._user), "gid": int(self._user)},
            "env": self._environment,
            "cwd": "/var/lib/tcmu",
            "capabilities": {},
            "noNewPrivileges": "no-new-privileges" in self.service["security_opt"],
        }

    def _filled(self, word: str) -> str:
        published = self.service["ports"][0].rpartition(":")[0]
        return re.sub(r"\$\{ADVERTISE:-([^}]*)\}", r"\1", word).replace(published, self.address)

    def _crun(self, *words: str) -> list[str]:
        run = str(self._place / "run")
        user = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--bounding-set=-all"]
        clean = ["env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", f"XDG_RUNTIME_DIR={run}"]
        return [*user, *clean, "crun", "--root", run, "--cgroup-manager", "disabled", *words]

    def __enter__(self) -> Container:
        self._process_of_crun = subprocess.Popen(
            ["unshare", "--mount", "sh", "-c", HIDING, "-", *self._crun("run", "--bundle", str(self._place), "disk")],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self._process_of_crun.stdout is not None
        if not self._process_of_crun.stdout.readline():
            raise AssertionError(self._process_of_crun.communicate()[1])
        state = json.loads(subprocess.run(self._crun("state", "disk"), capture_output=True, check=True).stdout)
        self.pid = state["pid"]
        threading.Thread(target=self._map, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._mapped.shutdown(socket.SHUT_RDWR)
        self._mapped.close()
        subprocess.run(self._crun("kill", "disk", "TERM"), capture_output=True, check=True)
        _out, err = self._process_of_crun.communicate()
        assert self._process_of_crun.returncode == 0, err

    def _map(self) -> None:
        """Give each connection to the mapped port one to the container's, until the port is closed."""
        relay = ["nsenter", f"--net=/proc/{self.pid}/ns/net", "busybox", "nc", "127.0.0.1", "3260"]
        relays = []
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._mapped.accept()
                with connection:
                    relays.append(subprocess.Popen(relay, stdin=connection, stdout=connection))
        for one in relays:
            one.kill()
            one.wait()

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a command in the container, as its user."""
        file = self._place / "process.json"
        file.write_text(json.dumps(self._process(list(words))))
        return subprocess.run(
            self._crun("exec", "--process", str(file), "disk"), capture_output=True, text=True, check=False
        )

    def healthy(self) -> bool:
        """Return whether its health check passes."""
        return self.run(*self._healthy).returncode == 0
