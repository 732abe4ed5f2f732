"""The table of checks, each of which has bounded time: what hangs is a finding itself."""

from __future__ import annotations

import queue
import threading

from tcmu_core.doctor import bus_side, conf_side, kernel_side, plugin_side, process_side
from tcmu_core.doctor.finding import Check, Finding, Severity, System
from tcmu_core.errors import text_of

SECONDS = 5.0  # for one check

CHECKS: dict[str, Check] = {
    "the core's version, and the handlers'": plugin_side.versions,
    "handlers": plugin_side.handlers,
    "filters": plugin_side.filters,
    "tcmu.conf": conf_side.configuration,
    "access": conf_side.access,
    "ports": conf_side.ports,
    "images": conf_side.images,
    "directories": process_side.directories,
    "open files": process_side.files,
    "locked memory": process_side.memlock,
    "io_uring": process_side.io_uring,
    "the kernel's module": kernel_side.module,
    "configfs": kernel_side.configfs,
    "netlink": kernel_side.netlink,
    "the kernel's devices": kernel_side.devices,
    "packages for D-Bus": bus_side.packages,
    "the D-Bus policy": bus_side.policy,
    "the D-Bus name": bus_side.name,
}


def examine(system: System, checks: dict[str, Check] = CHECKS, seconds: float = SECONDS) -> list[Finding]:
    """Return what all checks find, in the order of the table."""
    return [finding for title, check in checks.items() for finding in _bounded(title, check, system, seconds)]


def _bounded(title: str, check: Check, system: System, seconds: float) -> list[Finding]:
    """Run one check; it may hang for ever or break, and the others are run all the same."""
    told: queue.SimpleQueue[list[Finding]] = queue.SimpleQueue()

    def look() -> None:
        try:
            told.put(list(check(system)))
        except BaseException as error:
            text = f"This could not be looked at: {text_of(error)}."
            told.put([Finding(title, Severity.WARNING, text, "tcmu doctor -d")])

    threading.Thread(target=look, name=f"tcmu-doctor-{title}", daemon=True).start()
    try:
        return told.get(timeout=seconds)
    except queue.Empty:
        text = f"No answer within {seconds:g} s."
        return [Finding(title, Severity.WARNING, text, "tcmu handlers; dmesg | tail")]
