"""The kernel's part: the module, configfs, netlink, uio, and devices that nobody serves."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

from tcmu_core.doctor.finding import Finding, Severity, System
from tcmu_core.errors import TcmuError
from tcmu_core.kernel import abi, uio
from tcmu_core.kernel.configfs import MODULE
from tcmu_core.kernel.netlink import family_version

REPLIES = 2  # the version of the netlink family from which on the kernel takes answers
START = "systemctl start tcmu-runner"


def module(system: System) -> Iterator[Finding]:
    """Look whether the kernel has TCM-user, or can get it."""
    what = f"module {MODULE}"
    if system.path(f"/sys/module/{MODULE}").exists():
        yield Finding(what, Severity.OK, "It is loaded.")
        return
    modules = f"/lib/modules/{system.release}"
    if any(f"/{MODULE}.ko" in system.text(f"{modules}/{name}") for name in ("modules.dep", "modules.builtin")):
        text = "It is not loaded; tcmu-runner loads it when it is started by root."
        yield Finding(what, Severity.NOTE, text, f"modprobe {MODULE}")
        return
    text = f"Kernel {system.release} has no such module here: devices of the kernel can't be served, iSCSI can."
    yield Finding(what, Severity.NOTE, text, f"modprobe {MODULE}  (on the host, where this is a container)")


def configfs(system: System) -> Iterator[Finding]:
    """Look whether LIO's configuration can be reached."""
    loaded = system.path(f"/sys/module/{MODULE}").exists()
    if system.path("/sys/kernel/config/target").is_dir():
        yield Finding("configfs", Severity.OK, "LIO's directory /sys/kernel/config/target is there.")
    elif loaded:
        text = "The module is loaded, and /sys/kernel/config/target is not there: configfs is not mounted."
        yield Finding("configfs", Severity.ERROR, text, "mount -t configfs configfs /sys/kernel/config")
    else:
        yield Finding("configfs", Severity.NOTE, "LIO is not loaded, so there is nothing to configure.")


def netlink(system: System, version: Callable[[], int] = family_version) -> Iterator[Finding]:
    """Ask the kernel for the netlink family, and whether it takes answers to its requests."""
    what = f"netlink {abi.FAMILY}"
    loaded = system.path(f"/sys/module/{MODULE}").exists()
    try:
        found = version()
    except (TcmuError, OSError) as error:
        severity = Severity.ERROR if loaded else Severity.NOTE
        cure = "tcmu doctor  (in the host's own network namespace, where the kernel has this family)" if loaded else ""
        yield Finding(what, severity, f"It can't be asked: {error}", cure)
        return
    if found < REPLIES:
        text = (
            f"Version {found}: this kernel takes no answers, so targetcli does not hear that a device can't be opened."
        )
        yield Finding(what, Severity.WARNING, text, "uname -r  (a newer kernel takes answers)")
    else:
        yield Finding(what, Severity.OK, f"Version {found}: the kernel waits for answers to its requests.")


def devices(system: System) -> Iterator[Finding]:
    """Look at each device of the kernel: whether its node is there, and whether somebody serves it."""
    found = list(uio.devices(system.path("/sys/class/uio")))
    if not found:
        yield Finding("uio", Severity.OK, "The kernel has no TCM-user device.")
    for minor, name in found:
        what = f"device {name.subtype}/{name.device}"
        node = system.path(f"/dev/uio{minor}")
        if not node.exists():
            text = f"/dev/uio{minor} is not there: nobody can serve the device."
            yield Finding(what, Severity.ERROR, text, "udevadm trigger --subsystem-match=uio --action=add")
        elif any(uio.holders(node, system.path("/proc"))):
            yield Finding(what, Severity.OK, "It is served.")
        elif system.euid:
            yield Finding(what, Severity.NOTE, "Only root can see who serves it.", "sudo tcmu doctor")
        else:
            yield _unserved(what, system)


def _unserved(what: str, system: System) -> Finding:
    if system.daemon:
        text = "It is blocked: tcmu-runner is there, and no process serves the device; its log says why."
        return Finding(what, Severity.ERROR, text, f"kill -HUP {system.daemon}")
    text = "It is blocked: no process serves it, and whoever uses it waits."
    start = START if os.path.lexists(system.path("/run/systemd/system")) else "tcmu-runner"
    return Finding(what, Severity.ERROR, text, f"{start}  (tcmu-runner --release lets it fail instead)")
