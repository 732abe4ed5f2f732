"""Who holds an image's lock: a note in the image's metadata, by which a process knows that its predecessor has died.

A process that is killed can't let its lock go, and the cluster needs half a minute to notice. The one that replaces it
on the same host does not have to wait: the note tells which process had the lock, and the kernel that it is gone.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

KEY = "tcmu_lock_owner"
_BOOT = Path("/proc/sys/kernel/random/boot_id")
_STARTED = 19  # field 22 of /proc/PID/stat, counted from behind the name: when it started, in ticks since boot


def note(address: str, shelf: int = 0) -> str:
    """Return what this process writes down when it has taken the lock with the connection `address`.

    `shelf` is the number of the connection by which it hears of reservations.
    """
    pid = os.getpid()
    return json.dumps({"address": address, "shelf": shelf, "pid": pid, "started": _started(pid), **_place()})


def has_died(noted: str, holder: str) -> bool:
    """Say whether the process that wrote the note had the connection `holder`, ran on this host, and is gone."""
    try:
        told = json.loads(noted)
        same = told["address"] == holder and {name: told[name] for name in ("boot", "namespace")} == _place()
        return bool(same and _started(int(told["pid"])) != told["started"])
    except (ValueError, KeyError, TypeError):
        return False


def shelf_of(noted: str, holder: str) -> int:
    """Return by which connection the process that has the lock with `holder` hears of reservations; 0 if unknown."""
    try:
        told = json.loads(noted)
        return int(told["shelf"]) if told["address"] == holder else 0
    except (ValueError, KeyError, TypeError):
        return 0


def _place() -> dict[str, str]:
    """Return where a process id means something: since this boot, in this namespace of process ids."""
    return {"boot": _BOOT.read_text().strip(), "namespace": os.readlink("/proc/self/ns/pid")}


def _started(pid: int) -> str:
    """Return when a process started; empty if there is none, or only its remains (a zombie)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in ("Z", "X") else fields[_STARTED]
