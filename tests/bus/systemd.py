"""systemd as process 1 of a PID namespace in the guest, with the service's files installed."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from tests import waiting
from tests.vm import Machine

PATIENCE = 120.0

# What a guest without udev and journal has no use for; without them systemd is up in seconds under emulation.
MASKED = (
    "systemd-udevd.service",
    "systemd-udevd-kernel.socket",
    "systemd-udevd-control.socket",
    "systemd-udev-trigger.service",
    "systemd-journald.service",
    "systemd-journald.socket",
    "systemd-journald-dev-log.socket",
    "systemd-journald-audit.socket",
    "systemd-journal-flush.service",
    "systemd-binfmt.service",
    "systemd-sysctl.service",
    "systemd-modules-load.service",
    "kmod-static-nodes.service",
    "systemd-tmpfiles-setup-dev.service",
    "systemd-random-seed.service",
    "systemd-update-utmp.service",
    "apparmor.service",
)


class Systemd:
    """Runs commands in systemd's namespaces; `script` is what the service starts."""

    def __init__(self, vm: Machine, script: str) -> None:
        self.vm = vm
        self.program = vm.share / "tcmu-runner"
        self.signals = vm.share / "signals"
        self.program.write_text(script)
        self.program.chmod(0o755)
        vm.modprobe("loop")
        vm.run(
            "mkdir -p /run/systemd/system; cd /run/systemd/system; "
            f"for unit in {' '.join(MASKED)}; do ln -s /dev/null $unit; done; "
            "printf '[Unit]\\nRequires=dbus.service\\nAfter=dbus.service\\n' > bus.target",
            check=True,
        )
        # A control group with nobody else in it, so that systemd can hand its controllers on.
        vm.run("echo +memory > /sys/fs/cgroup/cgroup.subtree_control; mkdir /sys/fs/cgroup/systemd", check=True)
        self.job = vm.spawn(
            "exec unshare --pid --fork --mount --mount-proc --kill-child"
            " sh -c 'echo $$ > /sys/fs/cgroup/systemd/cgroup.procs; exec env -i container=test PATH=$PATH"
            " /lib/systemd/systemd --system --unit=bus.target --log-target=console'"
        )
        wait_for(lambda: self.run("systemctl", "is-active", "--quiet", "bus.target").returncode == 0)
        install = ("install-service", "--force", "--exec", str(self.program))
        self.installed = self.run(sys.executable, "-m", "tcmu_core.cli.tcmu", *install)

    def run(self, *command: str) -> Any:
        """Run a command in systemd's namespaces."""
        inside = "exec nsenter --target $(pgrep --full '^/lib/systemd/systemd --system') --pid --mount "
        quoted = " ".join("'" + word.replace("'", "'\\''") + "'" for word in command)
        return self.vm.run(inside + quoted, timeout=PATIENCE)

    def show(self, name: str) -> str:
        """Return a property of the service's unit."""
        return str(self.run("systemctl", "show", "--value", "--property", name, "tcmu-runner").stdout.strip())


def wait_for(condition: Callable[[], bool]) -> None:
    waiting.wait_for(condition, PATIENCE, every=0.5)
