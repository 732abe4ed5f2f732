"""Targets of tcmu.conf that a real supervisor's side serves: what tests of them share."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from typing import Any

from tcmu_core.config.configuration import Config, LunConfig, TargetConfig
from tcmu_core.daemon.targets import REDIRECTOR, Targets
from tcmu_core.iscsi.settings import PortalSettings
from tests.daemon.parent import Parent
from tests.iscsi.initiator import Initiator
from tests.iscsi.served import Client

IQN = "iqn.2026-01.org.example:disk"
OTHER = "iqn.2026-01.org.example:other"
PATIENCE = 30.0
RAM = LunConfig(0, "ram", size=1 << 20)


def stop(parent: Parent, targets: Targets) -> None:
    ended: list[bool] = []
    targets.stop(lambda: ended.append(True))
    parent.until(lambda: ended)


def config(*luns: LunConfig, others: tuple[LunConfig, ...] = (), **settings: Any) -> Config:
    """Return a configuration of up to two targets."""
    targets = [TargetConfig(name, own) for name, own in ((IQN, luns), (OTHER, others)) if own]
    limits = settings.pop("memory_limits", {})
    portal = PortalSettings(**{"addresses": ("127.0.0.1:0",), **settings})
    return Config(portal=portal, targets=tuple(targets), memory_limits=limits)


def serve(parent: Parent, targets: Targets, wanted: Config) -> None:
    """Have the targets serve what is wanted, and wait until all of it is."""
    targets.configure(wanted)
    names = {REDIRECTOR, *(target.name for target in wanted.targets)} if wanted.targets else set()
    parent.until(lambda: set(targets.processes) == names and all(one.serving for one in targets.processes.values()))


def pid(targets: Targets, key: str) -> int:
    process = targets.processes[key].process
    assert process is not None
    return process.pid


def kill(parent: Parent, targets: Targets, key: str) -> None:
    """Kill a process of the portal and wait for the next one to be ready."""
    before = pid(targets, key)
    os.kill(before, signal.SIGKILL)
    parent.until(lambda: targets.processes[key].serving and pid(targets, key) != before)


def listing(targets: Targets) -> str:
    command = ["iscsi-ls", "-s", f"iscsi://{targets.addresses[0]}"]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=PATIENCE).stdout


def client(targets: Targets, target: str, port: int = 0) -> Client:
    """Return a client; `port` tells one port of the initiator from another."""
    return Client(targets.addresses[0], Initiator(target=target, isid=bytes([0x80, 0, 0, 0, 0, port])))


class Reader:
    """One session that reads all the time, and does not connect again."""

    def __init__(self, one: Client) -> None:
        self.client = one.login()
        self.reads = 0
        self.error: BaseException | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                assert self.client.read(0, 8) == bytes(4096)
                self.reads += 1
        except BaseException as error:
            self.error = error

    def end(self) -> None:
        """Read once more, then leave."""
        self._stop.set()
        self._thread.join(PATIENCE)
        try:
            assert self.error is None, self.error
            assert self.client.read(0, 8) == bytes(4096)
        finally:
            self.client.sock.close()


@contextlib.contextmanager
def undisturbed(targets: Targets, target: str) -> Iterator[None]:
    """Hold that a session of the target goes on during the context."""
    reader = Reader(client(targets, target))
    try:
        yield
    finally:
        reader.end()
    assert reader.reads
