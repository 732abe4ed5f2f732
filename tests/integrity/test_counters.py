"""Counters kept by COMPARE AND WRITE from many clients, while commands are aborted, units reset and sessions replaced.

A block holds a counter, and how much of it each client has added. Each increment is one COMPARE AND WRITE of the whole
block, so whatever happens the counter is the sum of the shares; and of a client's share it knows all but those
increments whose end it was not told.
"""

from __future__ import annotations

import random
import struct
import threading

import pytest

from tcmu_core.iscsi import pdu as p
from tcmu_core.iscsi.constants import RESERVED_TAG, TaskFunction
from tests.iscsi.initiator import TARGET, Initiator
from tests.iscsi.served import SECOND, TIMEOUT, Client, Served, served

CLIENTS = 8
BLOCK = struct.Struct(f"<I{CLIENTS}I{512 - 4 - 4 * CLIENTS}x")
LBA = 77
SILENCE = 0.5  # seconds after which a client takes its command for lost


class Counting:
    """One client: it adds to the counter, and makes trouble of one kind or another all the time."""

    def __init__(self, running: Served, number: int, increments: int, seed: int) -> None:
        self.number = number
        self.target = (TARGET, SECOND)[number % 2]
        self.known = 0  # increments that were answered GOOD
        self.unknown = 0  # those that may have taken place
        self.error: BaseException | None = None
        self._running = running
        self._left = increments
        self._random = random.Random(seed * CLIENTS + number)
        self._client: Client | None = None
        self.thread = threading.Thread(target=self._run, name=f"client {number}")

    def _run(self) -> None:
        try:
            self._log_in()
            while self._left:
                self._increment()
        except BaseException as error:
            self.error = error
        finally:
            if self._client is not None:
                self._client.sock.close()

    def _log_in(self) -> None:
        """Log in, in place of the session before: it is the same initiator port."""
        isid = bytes([0x80, 0, 0, 0, 0, self.number])
        self._old, self._client = self._client, self._running.client(Initiator(target=self.target, isid=isid))
        self._client.login()
        if self._old is not None:
            self._old.sock.close()

    def _increment(self) -> None:
        client = self._client
        assert client is not None
        before = self._read()
        total, *shares = BLOCK.unpack(before)
        assert total == sum(shares), f"the counter is {total}, the shares are {shares}"
        shares[self.number] += 1
        cdb = bytes([0x89, 0]) + LBA.to_bytes(8, "big") + bytes([0, 0, 0, 1, 0, 0])
        data = before + BLOCK.pack(total + 1, *shares)
        client.send(client.initiator.command(cdb, write=data, data=data))
        trouble = self._random.random()
        if trouble < 0.05:
            self._may_have_happened()
            self._log_in()
            return
        if trouble < 0.10:
            self._abort()
        elif trouble < 0.15:
            self._manage(TaskFunction.LOGICAL_UNIT_RESET, RESERVED_TAG)
        answer = self._answers(managed=trouble < 0.15)
        if answer is None:
            self._may_have_happened()
        elif isinstance(answer, p.ScsiResponse) and not answer.status:
            self.known += 1
            self._left -= 1

    def _abort(self) -> None:
        assert self._client is not None
        self._manage(TaskFunction.ABORT_TASK, self._client.initiator.itt)

    def _manage(self, function: TaskFunction, referenced: int) -> None:
        assert self._client is not None
        self._client.send(
            p.TaskManagementRequest(
                immediate=True, function=0x80 | function, itt=0x40000000, referenced_tag=referenced, lun=bytes(8)
            )
        )

    def _answers(self, *, managed: bool) -> p.Pdu | None:
        """Return the answer to the command, after that to the task management function if there was one.

        Who was reset by another initiator is not told (SAM-5 5.7): one that hears nothing aborts its command, too.
        None: nobody knows what became of it.
        """
        client = self._client
        assert client is not None
        found: p.Pdu | None = None
        while found is None or managed:
            client.sock.settimeout(TIMEOUT if managed else SILENCE)
            try:
                answer = client.receive()
            except TimeoutError:
                assert not managed, "a task management function is not answered"
                managed = True
                self._abort()
                continue
            assert answer is not None, "the connection was closed"
            if isinstance(answer, p.TaskManagementResponse):
                break
            if isinstance(answer, p.ScsiResponse | p.DataIn):
                found = answer
        return found

    def _read(self) -> bytes:
        client = self._client
        assert client is not None
        while True:
            client.send(client.initiator.read_10(LBA, 1))
            answer = self._answers(managed=False)
            if isinstance(answer, p.DataIn):
                return bytes(answer.data)

    def _may_have_happened(self) -> None:
        self.unknown += 1
        self._left -= 1


def count(increments: int, seed: int, threads: int) -> None:
    with served(threads=threads) as running:
        clients = [Counting(running, number, increments, seed) for number in range(CLIENTS)]
        for one in clients:
            one.thread.start()
        for one in clients:
            one.thread.join()
        for one in clients:
            assert one.error is None, f"client {one.number}: {one.error!r}"
        for disk, name in ((running.disks[0], TARGET), (running.disks[2], SECOND)):
            total, *shares = BLOCK.unpack(disk.data[LBA * 512 : (LBA + 1) * 512])
            assert total == sum(shares)
            for one in clients:
                if one.target == name:
                    share = shares[one.number]
                    assert one.known <= share <= one.known + one.unknown, f"client {one.number}"


@pytest.mark.parametrize("threads", [0, 4])
def test_no_increment_is_lost_and_none_is_made_twice(threads: int) -> None:
    count(60, seed=1, threads=threads)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(2, 6))
def test_no_increment_of_many_is_lost_and_none_is_made_twice(seed: int) -> None:
    count(1500, seed=seed, threads=4)
