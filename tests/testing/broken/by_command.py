"""Faults that hooks alone don't show: of handlers that answer commands themselves, and of commands that are aborted."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future

from tcmu_core import Status, hookimpl
from tests.testing.broken.sound import Memory

ABORT_SECONDS = 0.01  # that a command waits for its abort
LATE_SECONDS = 1.0  # that one which was aborted waits before it does harm


def within(seconds: float, condition: Callable[[], object]) -> None:
    """Wait until `condition()` is true, for so long at most."""
    until = time.monotonic() + seconds
    while not condition() and time.monotonic() < until:
        time.sleep(0.0005)


class SaysOneBlockMore(Memory):
    """READ CAPACITY answers with the number of blocks, not with the last one's."""

    @hookimpl
    def handle_cmd(self, device, command):
        if command.cdb[0] != 0x25:
            return None
        command.put((device.size // device.block_size).to_bytes(4, "big") + device.block_size.to_bytes(4, "big"))
        return Status.GOOD


class SwallowsWritesThatItSees(Memory):
    """Writes to the last block are answered before anybody has done them."""

    @hookimpl
    def handle_cmd(self, device, command):
        last = device.size // device.block_size - 1
        if command.cdb[0] == 0x2A and int.from_bytes(command.cdb[2:6], "big") == last:
            command.take()
            return Status.GOOD
        return None


class AnswersWithTrue(Memory):
    """A command is said to be handled by True."""

    @hookimpl
    def handle_cmd(self, device, command):
        return True if command.cdb[0] == 0x35 else None


class EndsAbortedAtOnce(Memory):
    """A write that is aborted ends at once, and its thread goes on."""

    @hookimpl
    def handle_cmd(self, device, command):
        if command.cdb[0] != 0x2A:
            return None
        ended: Future[Status] = Future()
        threading.Thread(target=self.late, args=(command, command.take(), ended)).start()
        return ended

    def late(self, command, data, ended):
        offset = int.from_bytes(command.cdb[2:6], "big") * 512
        before = self.data[offset]
        within(ABORT_SECONDS, lambda: command.aborted)
        if command.aborted:
            ended.set_result(Status.GOOD)
            within(LATE_SECONDS, lambda: self.data[offset] != before)  # until a newer one is there
        self.data[offset : offset + len(data)] = data
        if not ended.done():
            ended.set_result(Status.GOOD)


class FillsAbortedReads(Memory):
    """A read that is aborted ends at once, and its buffers are filled all the same."""

    @hookimpl
    def handle_cmd(self, device, command):
        if command.cdb[0] != 0x28:
            return None
        ended: Future[Status] = Future()
        threading.Thread(target=self.late, args=(command, ended)).start()
        return ended

    def late(self, command, ended):
        offset = int.from_bytes(command.cdb[2:6], "big") * 512
        before = command.buffers[0][0]
        within(ABORT_SECONDS, lambda: command.aborted)
        if command.aborted:
            ended.set_result(Status.GOOD)
            within(LATE_SECONDS, lambda: command.buffers[0][0] != before)  # until they are used for something else
        command.put(self.data[offset : offset + command.length])
        if not ended.done():
            ended.set_result(Status.GOOD)


CAUGHT = {
    SaysOneBlockMore: r"check_capacity through the engine: 25 00 .*: 513 blocks are said, 512 are there",
    SwallowsWritesThatItSees: r"check_ends through the engine: read\(261632, 512 bytes in 1 buffers\) by READ\(10\): "
    r"the block that was written: byte 261632 is 0x00, it should be 0x5a",
    AnswersWithTrue: r"check_giving_back through the engine: flush\(\) by SYNCHRONIZE CACHE\(10\): it ended with "
    r"CHECK_CONDITION, sense 04h/44h/00h",
    EndsAbortedAtOnce: r"check_abort through the engine: read\(\d+, .* by READ\(10\): written when an older write had "
    r"been aborted: byte \d+ is 0x6f, it should be 0x6e",
    FillsAbortedReads: r"check_abort through the engine: .*the buffers of a read that was aborted were filled",
}
COPIED = {FillsAbortedReads}  # a way in that copies what was read hides it
