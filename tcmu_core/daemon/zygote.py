"""The zygote: a process with everything loaded and nothing open, which forks a worker when the supervisor asks.

A worker shares the interpreter, the engine and the handlers' code with it, page by page, so an idle one costs little
memory of its own and starts in milliseconds. It has one thread, always: forking is safe. Run as
`python -m tcmu_core.daemon.zygote FD [HANDLER-PATH…]`, FD being its end of the supervisor's channel.

Messages to it: {"spawn": key, "job": …} with the worker's end of a channel; {"stop": true}. From it: {"ready": true};
{"spawned": key, "pid": …} with a pidfd; {"exited": pid, "status": wait status}.

When the supervisor goes, workers that do not end by themselves are killed. But where it went without saying `stop`, it
crashed: workers of kernel devices are left to serve on, and the next supervisor's ask them to hand over.
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
from tcmu_core.handlers.registry import Registry
from tcmu_core.host.target import DoorWorker, TargetWorker
from tcmu_core.host.worker import Worker

log = logging.getLogger("tcmu.runner")

KINDS: dict[str, type[DoorWorker | TargetWorker]] = {"door": DoorWorker, "target": TargetWorker}
# oom_score_adj of a worker, proc(5). The service protects the runner (OOMScoreAdjust=-900); a worker that inherited
# this would outlive everybody else while its handler leaks. One that is killed is replaced and loses no acknowledged
# write, so it is judged by its size, as any program. Not above 0: each point is a thousandth of all memory, and
# small workers, whose death frees nothing, would have to go before the program that took too much.
WORKERS_OOM_SCORE = 0
GRACE = 12.0  # seconds that workers have to end by themselves


def main(arguments: list[str]) -> int:
    """Load, then fork on request until the supervisor goes."""
    control = socket.socket(fileno=int(arguments[0]))
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    stdout.give_up()
    registry = Registry(arguments[1:])
    gc.collect()
    gc.freeze()  # the collector would otherwise touch, and so copy, every page that workers share
    wake, woken = socket.socketpair()
    for end in (wake, woken):
        end.setblocking(False)
    signal.set_wakeup_fd(woken.fileno(), warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
    channel.send(control, {"ready": True})
    poll = select.poll()
    poll.register(control, select.POLLIN)
    poll.register(wake, select.POLLIN)
    workers: dict[int, str] = {}  # their kinds by pid
    stopping = False
    while True:
        poll.poll()
        with contextlib.suppress(BlockingIOError):
            wake.recv(4096)
        for pid, status in _reap():
            workers.pop(pid, None)
            with contextlib.suppress(OSError):
                channel.send(control, {"exited": pid, "status": status})
        if not select.select([control], [], [], 0)[0]:
            continue
        got = channel.receive(control)
        if got is None:
            break
        message, fds = got
        if "stop" in message:
            stopping = True
            continue
        pid = _spawn(registry, message["job"], fds[0], control)
        workers[pid] = message["job"].get("kind", "")
        os.close(fds[0])
        pidfd = os.pidfd_open(pid)
        try:
            channel.send(control, {"spawned": message["spawn"], "pid": pid}, [pidfd])
        finally:
            os.close(pidfd)
    _end({pid for pid, kind in workers.items() if stopping or kind})
    return 0


def _spawn(registry: Registry, job: channel.Message, fd: int, control: socket.socket) -> int:
    """Fork a worker; only the parent returns."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        control.close()
        _expose_to_oom_killer()
        status = KINDS.get(job.get("kind", ""), Worker)(registry, job, socket.socket(fileno=fd)).run()
    except BaseException:
        log.exception("a worker failed")
    finally:
        logging.shutdown()
        os._exit(status)


def _expose_to_oom_killer() -> None:
    score = Path("/proc/self/oom_score_adj")
    with contextlib.suppress(OSError):
        if int(score.read_text()) < WORKERS_OOM_SCORE:
            score.write_text(f"{WORKERS_OOM_SCORE}\n")


def _reap() -> list[tuple[int, int]]:
    ended = []
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                break
            ended.append((pid, status))
    return ended


def _end(workers: set[int]) -> None:
    """Wait for workers that have to end, which they do by themselves, and kill those that hang."""
    deadline = time.monotonic() + GRACE
    while workers and time.monotonic() < deadline:
        workers.difference_update(pid for pid, _ in _reap())
        time.sleep(0.1)
    for pid in workers:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
