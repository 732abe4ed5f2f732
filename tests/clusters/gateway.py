"""Gateways of one disk: hosts of a target as tcmu-runner makes them, each with its own portal of those in tcmu.conf.

`python -m tests.clusters.gateway FILE DIRECTORY ADDRESS` is one of them: it serves the target of FILE at ADDRESS.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tcmu_core.config.file import load
from tcmu_core.daemon.targets import jobs
from tcmu_core.handlers import Registry
from tcmu_core.host.host import Host
from tcmu_core.iscsi.messages import TargetWay
from tcmu_core.log import Log
from tcmu_core.loop import Loop
from tests.clusters.processes import free_ports, stop

TARGET = "iqn.2026-01.test:shared"
LOG = "log"
PATIENCE = 1.0  # seconds for clients to leave when it ends
CONFIGURATION = """\
[portal]
listen = {address}
acl = iqn.2026-01.test:*
[targets]
[[{target}]]
[[[groups]]]
{groups}
[[[lun 0]]]
handler = {handler}
cfgstring = {cfgstring}
"""
GROUP = """\
[[[[{number}]]]]
portals = {address}
state = {state}
"""


class Gateways:
    """Gateway N has portal group N, target port N and a directory of its own; the first one is preferred.

    `away` are the first gateways that do not run on loopback: their addresses, and the words before their commands.
    """

    def __init__(
        self,
        directory: Path,
        handler: str,
        cfgstring: str,
        *,
        away: Sequence[tuple[str, list[str]]] = (),
        count: int = 2,
    ) -> None:
        self.directory = directory
        places = [*away, *[("127.0.0.1", list[str]())] * (count - len(away))]
        self.addresses = [f"{host}:{port}" for (host, _), port in zip(places, free_ports(count), strict=True)]
        self.processes: dict[int, subprocess.Popen[str]] = {}
        self._prefixes = [words for _, words in places]
        self._disk = {"handler": handler, "cfgstring": cfgstring}

    def address(self, number: int) -> str:
        """Return the portal of a gateway."""
        return self.addresses[number - 1]

    def start(self, *numbers: int) -> None:
        """Start gateways; returns when they serve."""
        for number in numbers:
            self.processes[number] = self._start(number)
        for number in numbers:
            said = self.processes[number].stdout
            assert said is not None
            assert said.readline() == "serves\n", f"gateway {number} does not serve"

    def _start(self, number: int) -> subprocess.Popen[str]:
        directory = self.directory / str(number)
        directory.mkdir(exist_ok=True)
        file = directory / "tcmu.conf"
        states = ["optimized", *["non-optimized"] * (len(self.addresses) - 1)]
        groups = "".join(
            GROUP.format(number=group, address=address, state=state)
            for group, (address, state) in enumerate(zip(self.addresses, states, strict=True), 1)
        )
        address = self.address(number)
        file.write_text(CONFIGURATION.format(address=address, target=TARGET, groups=groups, **self._disk))
        words = [
            *self._prefixes[number - 1],
            sys.executable,
            "-m",
            "tests.clusters.gateway",
            str(file),
            str(directory),
            address,
        ]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        with (directory / LOG).open("a") as log:
            return subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, text=True, env=environment
            )

    def log(self, number: int) -> str:
        """Return what a gateway has logged, each time that it ran."""
        file = self.directory / str(number) / LOG
        return file.read_text() if file.exists() else ""

    def kill(self, number: int) -> None:
        """Kill a gateway; returns when it has ended."""
        with self.processes.pop(number) as process:
            process.kill()

    @contextlib.contextmanager
    def standing_still(self, number: int) -> Iterator[None]:
        """Have a gateway do nothing during the context, and go on afterwards."""
        process = self.processes[number]
        process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        """End all of them."""
        for process in self.processes.values():
            with process:
                stop(process)
        self.processes.clear()
        for number in range(1, len(self.addresses) + 1):  # shown where a test has failed
            sys.stderr.write(self.log(number))


def main(words: list[str]) -> None:
    """Serve until SIGTERM."""
    file, directory, address = words
    job = jobs(load(Path(file), must_exist=True), Path(directory))[TARGET]
    assert isinstance(job.way, TargetWay)
    way = dataclasses.replace(job.way, settings=dataclasses.replace(job.way.settings, addresses=(address,)))
    registry, logs = Registry(), Log()
    with contextlib.closing(Loop()) as loop:
        host = Host(loop, lambda spec: registry.get(spec.handler).disk(spec, loop), way)
        host.transport.needs_all = True
        host.open(job.disks)

        def end(*_idle: Any) -> None:
            loop.stop()

        loop.on_signal(signal.SIGTERM, lambda: host.drain(PATIENCE, PATIENCE, end))
        sys.stdout.write("serves\n")
        sys.stdout.flush()
        loop.run()
        host.close()
    logs.close()


if __name__ == "__main__":
    main(sys.argv[1:])
