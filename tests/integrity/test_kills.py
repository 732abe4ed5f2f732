"""Hosts that are killed under load, through the portal of tcmu.conf: nothing that was acknowledged is lost."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tcmu_core.config.configuration import LunConfig
from tcmu_core.daemon.targets import Targets
from tcmu_core.iscsi import pdu as p
from tests.daemon.parent import Parent
from tests.daemon.running import IQN, client, config, pid, serve, stop
from tests.iscsi.initiator import cdb_10
from tests.iscsi.served import Client

ACKNOWLEDGED = 10_000
BLOCKS = 2048
KILLS = 20
PATIENCE = 60.0  # seconds for a host to be back


@pytest.fixture
def parent(tmp_path: Path) -> Iterator[Parent]:
    made = Parent(tmp_path / "run")
    yield made
    made.close()


class Writer:
    """Writes ever higher numbers to blocks by chance, and keeps what was acknowledged and what may be there."""

    def __init__(self, targets: Targets, seed: int) -> None:
        self.acknowledged: dict[int, int] = {}
        self.tried: dict[int, int] = {}
        self.done = 0
        self.broken = 0
        self.error: BaseException | None = None
        self._targets = targets
        self._random = random.Random(seed)
        self._client: Client | None = None
        self.thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        try:
            while self.done < ACKNOWLEDGED:
                try:
                    self._write()
                except OSError:
                    self.broken += 1
                    self._again()
        except BaseException as error:
            self.error = error
        finally:
            if self._client is not None:
                self._client.sock.close()

    def _write(self) -> None:
        if self._client is None:
            self._client = client(self._targets, IQN)
            self._client.login()
        lba, number = self._random.randrange(BLOCKS), self.done + self.broken + 1
        self.tried[lba] = number
        data = number.to_bytes(8, "little") * 64
        answer = self._client.ask(self._client.initiator.command(cdb_10(0x2A, lba, 1), write=data, data=data))
        if answer is None:
            raise ConnectionResetError
        if isinstance(answer, p.ScsiResponse) and not answer.status:
            self.acknowledged[lba] = number
            self.done += 1

    def _again(self) -> None:
        """Log in again as soon as somebody serves the target."""
        until = time.monotonic() + PATIENCE
        while True:
            if self._client is not None:
                self._client.sock.close()
                self._client = None
            try:
                self._client = client(self._targets, IQN)
                self._client.login()
            except (OSError, AssertionError, IndexError):
                if time.monotonic() > until:
                    raise
                time.sleep(0.01)
            else:
                return


def test_ten_thousand_acknowledged_writes_survive_twenty_kills(parent: Parent, tmp_path: Path) -> None:
    image = tmp_path / "disk"
    image.write_bytes(bytes(BLOCKS * 512))
    targets = Targets(parent, tmp_path / "state")
    serve(parent, targets, config(LunConfig(0, "file", str(image))))
    writer = Writer(targets, seed=1)
    writer.thread.start()
    try:
        for number in range(1, KILLS + 1):
            parent.until(lambda due=number * ACKNOWLEDGED // (KILLS + 1): writer.done >= due or writer.error)  # type: ignore[misc]
            parent.until(lambda: targets.processes[IQN].serving)
            # A quick initiator can kill its host eight times in a row; then the next one would be waited for.
            targets.processes[IQN].crashes = 0
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid(targets, IQN), signal.SIGKILL)
        parent.until(lambda: not writer.thread.is_alive())
    finally:
        writer.thread.join(PATIENCE)
        stop(parent, targets)
    assert writer.error is None, writer.error
    assert writer.broken >= KILLS // 2  # a kill that follows another at once breaks nothing more
    data = image.read_bytes()
    for lba, number in writer.acknowledged.items():
        found = int.from_bytes(data[lba * 512 : lba * 512 + 8], "little")
        assert found in (number, writer.tried[lba]), f"block {lba}: {number} was acknowledged, {found} is there"
        assert data[lba * 512 : (lba + 1) * 512] == found.to_bytes(8, "little") * 64
