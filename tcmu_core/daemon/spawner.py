"""The nursery: starts the zygote, has it fork workers, and says when one has died."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from tcmu_core import channel
from tcmu_core.channel import Channel, Message
from tcmu_core.loop import READ, Loop

log = logging.getLogger("tcmu.runner")

RESTART_DELAY = 1.0  # seconds between the end of a zygote and the start of the next


class WorkerProcess:
    """A worker as the supervisor sees it: its channel, its pid, its end.

    `on_message(message)` is called for what it says; `on_death(reason)` once, when all its descriptors are closed.
    """

    def __init__(self, on_message: Callable[[Message], object], on_death: Callable[[str], object]) -> None:
        self.pid = 0
        self.channel: Channel | None = None
        self.pidfd = -1
        self.on_message = on_message
        self.on_death = on_death
        self.doomed = False

    @property
    def memory(self) -> int:
        """Return the bytes of anonymous memory that it has, in RAM and in swap; 0 for one that has ended."""
        try:
            status = Path(f"/proc/{self.pid}/status").read_text()
        except OSError:
            return 0
        return sum(int(kib) << 10 for kib in re.findall(r"^(?:RssAnon|VmSwap):\s*(\d+) kB", status, re.MULTILINE))

    def send(self, message: Message, fds: Iterable[int] = ()) -> None:
        """Tell it something."""
        if self.channel is not None:
            self.channel.send(message, fds)

    def kill(self) -> None:
        """Kill it, now or as soon as it exists."""
        self.doomed = True
        if self.pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)


class Nursery:
    """Makes worker processes; one zygote serves for all, and is replaced when it dies."""

    def __init__(self, loop: Loop, handler_paths: Sequence[str] = ()) -> None:
        self._loop = loop
        self._handler_paths = tuple(handler_paths)
        self._keys = itertools.count(1)
        self._unborn: dict[int, WorkerProcess] = {}
        self._living: dict[int, WorkerProcess] = {}
        self._statuses: dict[int, int] = {}
        self._queue: list[tuple[int, Message, int]] = []  # while there is no zygote
        self._channel: Channel | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._closing = False
        self.start()

    def start(self) -> None:
        """Start a zygote."""
        if self._closing:
            return
        ours, theirs = channel.pair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tcmu_core.daemon.zygote", str(theirs.fileno()), *self._handler_paths],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # a terminal's Ctrl-C is the supervisor's alone
            )
        self._channel = Channel(self._loop, ours, self._message, self._zygote_died)
        queue, self._queue = self._queue, []
        for key, job, fd in queue:
            self._channel.send({"spawn": key, "job": job}, [fd])
            os.close(fd)

    def spawn(
        self, job: Message, on_message: Callable[[Message], object], on_death: Callable[[str], object]
    ) -> WorkerProcess:
        """Start a worker for `job`."""
        key = next(self._keys)
        worker = WorkerProcess(on_message, on_death)
        self._unborn[key] = worker
        ours, theirs = channel.pair()
        worker.channel = Channel(self._loop, ours, lambda message, _fds: worker.on_message(message), _nothing)
        with theirs:
            if self._channel is None:
                self._queue.append((key, job, os.dup(theirs.fileno())))
            else:
                self._channel.send({"spawn": key, "job": job}, [theirs.fileno()])
        return worker

    def close(self) -> None:
        """Let the zygote go; workers that still live end by themselves or are killed by it."""
        self._closing = True
        if self._channel is not None:
            self._channel.send({"stop": True})
            self._channel.close()
            self._channel = None
        for worker in [*self._living.values(), *self._unborn.values()]:
            self._forget(worker)
        for _, _, fd in self._queue:
            os.close(fd)
        self._queue.clear()
        if self._process is not None:
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def _message(self, message: Message, fds: list[int]) -> None:
        if "spawned" in message:
            worker = self._unborn.pop(message["spawned"])
            worker.pid, worker.pidfd = message["pid"], fds[0]
            self._living[worker.pid] = worker
            self._loop.register(worker.pidfd, READ, lambda _events: self._died(worker))
            if worker.doomed:
                worker.kill()
        elif "exited" in message:
            self._statuses[message["exited"]] = message["status"]
        elif "ready" in message:
            log.debug("the zygote is ready")

    def _died(self, worker: WorkerProcess) -> None:
        # The zygote's word about the status is on its way or here; wait for the former one turn of the loop.
        self._forget(worker)
        self._loop.call_later(0.01, self._report, worker)

    def _report(self, worker: WorkerProcess) -> None:
        worker.on_death(_reason(self._statuses.pop(worker.pid, None)))

    def _forget(self, worker: WorkerProcess) -> None:
        self._living.pop(worker.pid, None)
        if worker.pidfd >= 0:
            self._loop.unregister(worker.pidfd)
            os.close(worker.pidfd)
            worker.pidfd = -1
        if worker.channel is not None:
            worker.channel.drain()
            worker.channel.close()

    def _zygote_died(self) -> None:
        assert self._process is not None
        status = self._process.wait()
        self._channel = None
        if self._closing:
            return
        log.error("the zygote ended with status %d; workers go on, another one follows", status)
        unborn, self._unborn = self._unborn, {}
        self._loop.call_later(RESTART_DELAY, self.start)
        for worker in unborn.values():
            self._forget(worker)
            worker.on_death("the zygote died before it was born")


def _reason(status: int | None) -> str:
    if status is None:
        return "it ended"
    if os.WIFSIGNALED(status):
        return f"killed by {signal.Signals(os.WTERMSIG(status)).name}"
    code = os.waitstatus_to_exitcode(status)
    return f"it ended with status {code}" if code else "it ended"


def _nothing() -> None:
    pass
