"""What systemd is told about a service (sd_notify(3)): datagrams to the socket in NOTIFY_SOCKET."""

from __future__ import annotations

import os
import socket
import time


def notify(*assignments: str) -> bool:
    """Send `READY=1`, `STATUS=…` and the like; returns whether there was somebody to tell.

    A supervisor that can't be reached is no reason to fail, so nothing is raised.
    """
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path.startswith(("/", "@")):
        return False
    address = "\0" + path[1:] if path.startswith("@") else path  # "@" is an abstract socket's leading NUL
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            sock.connect(address)
            sock.sendall("\n".join(assignments).encode())
    except OSError:
        return False
    return True


def ready(status: str = "") -> bool:
    """Say that the service is up, and for `systemctl status` what it is doing."""
    return notify("READY=1", *_status(status), f"MAINPID={os.getpid()}")


def status(text: str) -> bool:
    """Set the line that `systemctl status` shows."""
    return notify(*_status(text))


def reloading() -> bool:
    """Say that the configuration is being read again; `ready` ends it."""
    return notify("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")


def stopping() -> bool:
    """Say that the service is going down on purpose."""
    return notify("STOPPING=1")


def _status(text: str) -> list[str]:
    return [f"STATUS={' '.join(text.split())}"] if text else []
