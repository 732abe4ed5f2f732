"""The spawner: has the zygote fork hosts, finds those that an earlier supervisor left, and says when one has died."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from hashlib import sha256
from pathlib import Path

from tcmu_core import channel
from tcmu_core.channel import Channel
from tcmu_core.codec import Message
from tcmu_core.host.messages import Adopt, Exited, Job, Ready, Spawn, Spawned, Stop
from tcmu_core.loop import READ, Loop

log = logging.getLogger("tcmu.runner")

RESTART_DELAY = 1.0  # seconds between the end of a zygote and the start of the next
CLOSE_SECONDS = 20.0  # for a zygote to end


class Process:
    """A host process as the supervisor sees it: its channel, its pid, its end.

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


class Spawner:
    """Makes host processes; one zygote serves for all, and is replaced when it dies.

    `runtime` is the directory in which hosts can be found again.
    """

    def __init__(self, loop: Loop, runtime: Path, handler_paths: Sequence[str] = ()) -> None:
        self._loop = loop
        self._runtime = runtime
        self._handler_paths = tuple(handler_paths)
        self._keys = itertools.count(1)
        self._unborn: dict[int, Process] = {}
        self._living: dict[int, Process] = {}
        self._statuses: dict[int, int] = {}
        self._queue: list[tuple[Spawn, int]] = []  # while there is no zygote
        self._channel: Channel | None = None
        self._zygote: subprocess.Popen[bytes] | None = None
        self._closing = False
        self.start()

    def start(self) -> None:
        """Start a zygote."""
        if self._closing:
            return
        ours, theirs = channel.pair()
        with theirs:
            self._zygote = subprocess.Popen(
                [sys.executable, "-m", "tcmu_core.daemon.zygote", str(theirs.fileno()), *self._handler_paths],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # a terminal's Ctrl-C is the supervisor's alone
            )
        self._channel = Channel(self._loop, ours, self._message, self._zygote_died)
        queue, self._queue = self._queue, []
        for order, fd in queue:
            self._channel.send(order, [fd])
            os.close(fd)

    def rendezvous(self, key: str) -> Path:
        """Return where the host of this key can be found."""
        return self._runtime / f"{sha256(key.encode()).hexdigest()[:16]}.sock"

    def spawn(self, job: Job, on_message: Callable[[Message], object], on_death: Callable[[str], object]) -> Process:
        """Start a host for `job`."""
        key = next(self._keys)
        process = Process(on_message, on_death)
        self._unborn[key] = process
        ours, theirs = channel.pair()
        self._connect(process, ours)
        order = Spawn(key, job)
        with theirs:
            if self._channel is None:
                self._queue.append((order, os.dup(theirs.fileno())))
            else:
                self._channel.send(order, [theirs.fileno()])
        return process

    def adopt(
        self, path: Path, on_message: Callable[[Message], object], on_death: Callable[[str], object]
    ) -> Process | None:
        """Take over the host that is found at `path`, if one is: it says what it does, if it can."""
        process = Process(on_message, on_death)
        try:
            sock, process.pid = channel.connect(path)
        except FileNotFoundError:
            return None
        except TimeoutError as error:
            log.error("%s; the process that listens there hangs, and has to be killed", error)
            return None
        except OSError as error:
            log.debug("%s: %s", path, error)
            path.unlink(missing_ok=True)
            return None
        try:
            process.pidfd = os.pidfd_open(process.pid)
        except OSError:
            sock.close()
            return None
        self._connect(process, sock)
        self._live(process)
        process.send(Adopt())
        return process

    def leftovers(self, known: Iterable[str]) -> list[Path]:
        """Return where hosts can be found whose keys are none of these."""
        paths = {self.rendezvous(key) for key in known}
        return [path for path in sorted(self._runtime.glob("*.sock")) if path not in paths]

    def close(self) -> None:
        """Let the zygote go; hosts that still live end by themselves or are killed by it."""
        self._closing = True
        if self._channel is not None:
            self._channel.send(Stop())
            self._channel.close()
            self._channel = None
        for process in [*self._living.values(), *self._unborn.values()]:
            self._forget(process)
        for _, fd in self._queue:
            os.close(fd)
        self._queue.clear()
        if self._zygote is not None:
            try:
                self._zygote.wait(CLOSE_SECONDS)
            except subprocess.TimeoutExpired:
                self._zygote.kill()
                self._zygote.wait()

    def _connect(self, process: Process, sock: socket.socket) -> None:
        process.channel = Channel(self._loop, sock, lambda message, _fds: process.on_message(message), _nothing)

    def _live(self, process: Process) -> None:
        self._living[process.pid] = process
        self._loop.register(process.pidfd, READ, lambda _events: self._died(process))

    def _message(self, message: Message, fds: list[int]) -> None:
        match message:
            case Spawned():
                process = self._unborn.pop(message.key)
                process.pid, process.pidfd = message.pid, fds[0]
                self._live(process)
                if process.doomed:
                    process.kill()
            case Exited():
                self._statuses[message.pid] = message.status
            case Ready():
                log.debug("the zygote is ready")

    def _died(self, process: Process) -> None:
        # The zygote's word about the status is on its way or here; wait for the former one turn of the loop.
        self._forget(process)
        self._loop.call_later(0.01, self._report, process)

    def _report(self, process: Process) -> None:
        process.on_death(_reason(self._statuses.pop(process.pid, None)))

    def _forget(self, process: Process) -> None:
        self._living.pop(process.pid, None)
        if process.pidfd >= 0:
            self._loop.unregister(process.pidfd)
            os.close(process.pidfd)
            process.pidfd = -1
        if process.channel is not None:
            process.channel.drain()
            process.channel.close()

    def _zygote_died(self) -> None:
        assert self._zygote is not None
        status = self._zygote.wait()
        self._channel = None
        if self._closing:
            return
        log.error("the zygote ended with status %d; workers go on, another one follows", status)
        unborn, self._unborn = self._unborn, {}
        self._loop.call_later(RESTART_DELAY, self.start)
        for process in unborn.values():
            self._forget(process)
            process.on_death("the zygote died before it was born")


def _reason(status: int | None) -> str:
    if status is None:
        return "it ended"
    if os.WIFSIGNALED(status):
        return f"killed by {signal.Signals(os.WTERMSIG(status)).name}"
    code = os.waitstatus_to_exitcode(status)
    return f"it ended with status {code}" if code else "it ended"


def _nothing() -> None:
    pass
