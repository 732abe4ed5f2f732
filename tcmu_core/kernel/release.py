"""Letting go of devices for good: initiators of one that nobody will serve get an error, instead of waiting.

A worker that ends leaves its device blocked: the kernel says BUSY, and initiators try again until the next one
is there. Where no next one will come, that has no end: whoever flushes or removes such a disk hangs for as long.
The kernel itself has a state for a device that can't be served: that of a ring which is broken. Commands end at
once, with LOGICAL UNIT COMMUNICATION FAILURE; the worker that comes one day all the same starts with an empty ring,
and it is whole again.
"""

from __future__ import annotations

import logging
import os
import subprocess
from collections.abc import Mapping

from tcmu_core.errors import TcmuError
from tcmu_core.kernel import abi, uio
from tcmu_core.kernel.configfs import Backstore
from tcmu_core.kernel.uio import UioDevice

log = logging.getLogger("tcmu.kernel")

ENTRY = 8  # bytes: the shortest length that an entry can have
SYSTEMCTL_SECONDS = 10.0
UNIT = "tcmu-runner.service"
STARTING = ("restart", "start")  # types of systemd's jobs that begin a unit, in `systemctl list-jobs`


def release_all() -> int:
    """Release every device that nobody serves; returns how many."""
    released = 0
    for minor, name in uio.devices():
        try:
            device = UioDevice(minor)
        except (TcmuError, OSError) as error:
            log.info("uio%d: %s", minor, error)
            continue
        try:
            release(device, Backstore(name.hba, name.device))
            released += 1
        except (TcmuError, OSError) as error:
            log.error("uio%d (%s): %s", minor, name.device, error)
        finally:
            device.close()
    return released


def release(device: UioDevice, store: Backstore) -> None:
    """Have the kernel fail what comes to a device, until somebody serves it again.

    Raises:
        ConfigfsError, OSError: the device is going away.
    """
    store.block()
    store.reset_ring()
    break_ring(device)
    store.unblock()


def break_ring(device: UioDevice) -> None:
    """Give the kernel an answer to a command that there is not: command ids begin with 1."""
    _, _, start, _ = abi.MAILBOX.unpack_from(device.memory, 0)
    with memoryview(device.memory) as view, view[: start + ENTRY].cast("I") as words:
        words[start >> 2] = ENTRY | abi.EntryOp.CMD
        words[(start >> 2) + 1] = 0  # cmd_id and flags
        words[abi.CMD_TAIL >> 2] = ENTRY
    device.ring_doorbell()


def is_meant(environment: Mapping[str, str] = os.environ) -> bool:
    """Return whether nobody comes back: not where systemd starts the service again, for it is restarted or has failed.

    Outside of a systemd service (systemd.exec(5), $SERVICE_RESULT) it is meant: somebody asked for it.
    """
    result = environment.get("SERVICE_RESULT")
    if result is None:
        return True
    if result != "success":  # Restart=on-failure
        return False
    try:
        listed = subprocess.run(
            ["systemctl", "list-jobs", "--no-legend", "--plain"],
            capture_output=True, text=True, check=False, timeout=SYSTEMCTL_SECONDS, stdin=subprocess.DEVNULL,
        ).stdout  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        log.warning("systemctl list-jobs: %s", error)
        return True
    jobs = [line.split() for line in listed.splitlines()]
    return not any(job[1] == UNIT and job[2] in STARTING for job in jobs if len(job) > 2)
