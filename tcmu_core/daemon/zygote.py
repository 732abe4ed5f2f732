"""The zygote: a process with everything loaded and nothing open, which forks a host when the supervisor asks.

A host shares the interpreter, the engine and the handlers' code with it, page by page, so an idle one costs little
memory of its own and starts in milliseconds. It has one thread, always: forking is safe. Run as
`python -m tcmu_core.daemon.zygote FD [HANDLER-PATH…]`, FD being its end of the supervisor's channel.

It takes `Spawn` with the host's end of a channel, and `Stop`; it says `Ready`, `Spawned` with a pidfd, `Exited`.

When the supervisor goes after `Stop`, hosts that do not end by themselves are killed. Where it went without that word,
it crashed: hosts are left to serve on, and the next supervisor adopts them.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import select
import signal
import socket
import sys
import time
from pathlib import Path

from tcmu_core import channel, stdout
from tcmu_core.codec import CodecError, Message
from tcmu_core.handlers.registry import Registry
from tcmu_core.host.messages import Exited, Job, Ready, Spawn, Spawned, Stop
from tcmu_core.host.process import HostProcess

log = logging.getLogger("tcmu.runner")

# oom_score_adj of a host, proc(5). The service protects the runner (OOMScoreAdjust=-900); a host that inherited
# this would outlive everybody else while its handler leaks. One that is killed is replaced and loses no acknowledged
# write, so it is judged by its size, as any program. Not above 0: each point is a thousandth of all memory, and
# small hosts, whose death frees nothing, would have to go before the program that took too much.
HOSTS_OOM_SCORE = 0
GRACE = 12.0  # seconds that hosts have to end by themselves


def main(arguments: list[str]) -> int:
    """Load, then fork on request until the supervisor goes."""
    control = socket.socket(fileno=int(arguments[0]))
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    stdout.give_up()
    registry = Registry(arguments[1:])
    gc.collect()
    gc.freeze()  # the collector would otherwise touch, and so copy, every page that hosts share
    wake, woken = socket.socketpair()
    for end in (wake, woken):
        end.setblocking(False)
    signal.set_wakeup_fd(woken.fileno(), warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
    _say(control, Ready())
    poll = select.poll()
    poll.register(control, select.POLLIN)
    poll.register(wake, select.POLLIN)
    hosts: set[int] = set()
    stopping = False
    while True:
        poll.poll()
        with contextlib.suppress(BlockingIOError):
            wake.recv(4096)
        for pid, status in _reap():
            hosts.discard(pid)
            _say(control, Exited(pid, status))
        if not select.select([control], [], [], 0)[0]:
            continue
        try:
            got = channel.receive(control)
        except CodecError as error:  # no module that this job needs
            log.error("%s", error)
            continue
        if got is None:
            break
        message, fds = got
        if isinstance(message, Stop):
            stopping = True
        elif isinstance(message, Spawn):
            pid = _spawn(registry, message.job, fds[0], control)
            hosts.add(pid)
            os.close(fds[0])
            pidfd = os.pidfd_open(pid)
            try:
                _say(control, Spawned(message.key, pid), pidfd)
            finally:
                os.close(pidfd)
    if stopping:
        _end(hosts)
    return 0


def _say(control: socket.socket, message: Message, *fds: int) -> None:
    """Tell the supervisor something; one that has gone meanwhile is noticed when it is listened to."""
    with contextlib.suppress(OSError):
        channel.send(control, message, fds)


def _spawn(registry: Registry, job: Job, fd: int, control: socket.socket) -> int:
    """Fork a host; only the parent returns."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        control.close()
        _expose_to_oom_killer()
        status = HostProcess(registry, job, socket.socket(fileno=fd)).run()
    except BaseException:
        log.exception("the worker of %s failed", job.key)
    finally:
        logging.shutdown()
        os._exit(status)


def _expose_to_oom_killer() -> None:
    score = Path("/proc/self/oom_score_adj")
    with contextlib.suppress(OSError):
        if int(score.read_text()) < HOSTS_OOM_SCORE:
            score.write_text(f"{HOSTS_OOM_SCORE}\n")


def _reap() -> list[tuple[int, int]]:
    ended = []
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                break
            ended.append((pid, status))
    return ended


def _end(hosts: set[int]) -> None:
    """Wait for hosts that have to end, which they do by themselves, and kill those that hang."""
    deadline = time.monotonic() + GRACE
    while hosts and time.monotonic() < deadline:
        hosts.difference_update(pid for pid, _ in _reap())
        time.sleep(0.1)
    for pid in hosts:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
