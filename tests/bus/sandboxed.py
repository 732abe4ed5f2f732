"""Stands in for tcmu-runner under its systemd unit: tries everything that the runner does, and what it must not.

argv[1] is where the outcomes go as JSON; the signals that come are noted in argv[2].
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from tcmu_core import sdnotify
from tcmu_core.bus import BusService
from tcmu_core.kernel.configfs import Backstore, set_parameter
from tcmu_core.kernel.netlink import NetlinkSocket
from tcmu_core.kernel.release import is_meant
from tcmu_core.kernel.uio import UioDevice, holders
from tcmu_core.loop import Loop

CLONE_NEWUTS = 0x04000000  # linux/sched.h
outcomes: dict[str, object] = {}


def attempt(what: str, fn: Callable[[], object]) -> None:
    """Note the result of `fn`, or the name of the errno that it failed with."""
    try:
        outcomes[what] = fn() or "done"
    except OSError as error:
        outcomes[what] = errno.errorcode.get(error.errno or 0, str(error))
    except Exception as error:
        outcomes[what] = repr(error)


def use_a_device() -> None:
    """Have the kernel make a device, answering its requests, then open it, block it, and remove it."""
    set_parameter("block_netlink", 1)
    set_parameter("block_netlink", 0)
    netlink = NetlinkSocket()
    netlink.set_features()
    minors: list[int] = []

    def answer(count: int) -> None:
        while count:
            select.select([netlink], [], [], 60)
            for request in netlink.receive():
                minors.append(request.minor)
                netlink.reply(request, 0)
                count -= 1

    thread = threading.Thread(target=answer, args=(2,), daemon=True)
    thread.start()
    store = Backstore(77, "probe")
    store.path.mkdir(parents=True)
    store.write("control", "dev_size=4096")
    store.write("control", "dev_config=probe/x")
    store.write("enable", "1")
    device = UioDevice(minors[0])
    device.ring_doorbell()
    store.block()
    store.unblock()
    device.close()
    store.path.rmdir()
    store.path.parent.rmdir()
    thread.join(60)
    netlink.close()


def start_a_worker(held: Path) -> subprocess.Popen[bytes]:
    """Start a process that has a file open, and find it by that."""
    with held.open("w") as file:
        worker = subprocess.Popen(["sleep", "7200"], stdin=file, start_new_session=True)
    outcomes["worker"] = worker.pid
    outcomes["holders"] = list(holders(held))
    return worker


def write_file(path: Path) -> None:
    """Write a file and take it away."""
    path.write_bytes(b"x")
    path.unlink()


def leave_namespace() -> None:
    """Ask for a host name of our own."""
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWUTS):
        raise OSError(ctypes.get_errno(), "unshare")


def main() -> None:
    """Try all, say that we are ready, and note signals until SIGTERM."""
    report, signals = Path(sys.argv[1]), Path(sys.argv[2])
    if "--release" in sys.argv:  # ExecStopPost
        with signals.open("a") as file:
            file.write(f"released:{os.environ['SERVICE_RESULT']}:{is_meant()}\n")
        return
    loop = Loop()
    threading.Thread(target=loop.run, daemon=True).start()
    bus = BusService([], change_medium=lambda *_: (0, ""), post=loop.post)
    attempt("bus", bus.start)
    attempt("device", use_a_device)
    for directory in ("/srv", "/home", "/root", "/var/lib", "/var/log", "/tmp", "/run", "/usr/lib", "/etc", "/boot"):
        attempt(directory, lambda directory=directory: write_file(Path(directory, ".tcmu-probe")))  # type: ignore[misc]
    attempt("block device", lambda: os.close(os.open("/dev/loop0", os.O_RDWR)))
    attempt("memory device", lambda: os.close(os.open("/dev/mem", os.O_RDONLY)))
    attempt("namespaces", leave_namespace)
    attempt("raw packets", lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW).close())
    attempt("tcp", lambda: socket.create_server(("127.0.0.1", 3260)).close())
    attempt("files", lambda: resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    attempt("umask", lambda: os.umask(0o077))
    worker = start_a_worker(Path("/run/tcmu-probe-held"))
    report.write_text(json.dumps(outcomes))
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP, signal.SIGTERM})
    sdnotify.ready("probing")
    while True:
        number = signal.sigwait({signal.SIGHUP, signal.SIGTERM})
        with signals.open("a") as file:
            file.write(f"{signal.Signals(number).name}\n")
        if number == signal.SIGTERM:
            sdnotify.stopping()
            bus.stop()
            worker.kill()
            worker.wait()
            sys.exit(0)


if __name__ == "__main__":
    main()
