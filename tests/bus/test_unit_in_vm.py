"""The installed service files under a real systemd, dbus-daemon and kernel."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.vm import Machine

pytestmark = [pytest.mark.vm, pytest.mark.soak]

PATIENCE = 120.0
SCRIPT = Path(__file__).with_name("sandboxed.py")

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
    """systemd as process 1 of a PID namespace in the guest, with our service's files installed."""

    def __init__(self, vm: Machine) -> None:
        self.vm = vm
        self.program = vm.share / "tcmu-runner"
        self.report = vm.share / "report.json"
        self.signals = vm.share / "signals"
        self.program.write_text(f"#!/bin/sh\nexec {sys.executable} {SCRIPT} {self.report} {self.signals}\n")
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
        self._job = vm.spawn(
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

    def noted(self) -> list[str]:
        """Return the signals that the service has had."""
        return self.signals.read_text().split() if self.signals.exists() else []


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.5)


@pytest.fixture(scope="module")
def systemd() -> Iterator[Systemd]:
    with Machine() as machine:
        yield Systemd(machine)


@pytest.fixture
def service(systemd: Systemd) -> Systemd:
    """The service, started if it was not."""
    started = systemd.run("systemctl", "start", "tcmu-runner")
    assert (started.returncode, started.stderr) == (0, "")
    return systemd


def test_install_tells_systemd_and_the_bus(systemd: Systemd) -> None:
    assert systemd.installed.returncode == 0, systemd.installed.stderr
    lines = systemd.installed.stdout.splitlines()
    assert lines[-3:] == [
        "run        systemctl daemon-reload",
        "run        systemctl reload dbus.service",
        "Start it, now and at every boot: systemctl enable --now tcmu-runner",
    ]


def test_a_call_on_the_bus_starts_the_service(systemd: Systemd) -> None:
    call = (
        "busctl", "call", "--timeout=100", "org.kernel.TCMUService1", "/org/kernel/TCMUService1",
        "org.freedesktop.DBus.ObjectManager", "GetManagedObjects",
    )  # fmt: skip
    called = systemd.run(*call)
    if "service_start_timeout" in called.stderr:  # the bus waits 25 s, in which a slow machine may not get through
        wait_for(lambda: systemd.show("ActiveState") == "active")
        called = systemd.run(*call)
    assert (called.stdout, called.stderr) == ("a{oa{sa{sv}}} 0\n", "")
    wait_for(lambda: systemd.show("ActiveState") == "active")


def test_readiness_and_status_reach_systemd(service: Systemd) -> None:
    assert service.show("StatusText") == "probing"
    assert service.show("SubState") == "running"


def test_the_sandbox_allows_what_the_runner_does(service: Systemd) -> None:
    outcomes = json.loads(service.report.read_text())
    allowed = ("bus", "device", "block device", "tcp", "/srv", "/home", "/root", "/var/lib", "/var/log", "/tmp", "/run")
    assert {name: outcomes[name] for name in allowed} == dict.fromkeys(allowed, "done") | {"bus": True}
    assert outcomes["files"] == 1048576
    assert outcomes["umask"] == 0o077
    assert outcomes["holders"] == [outcomes["worker"]]


def test_the_sandbox_refuses_what_it_never_does(service: Systemd) -> None:
    outcomes = json.loads(service.report.read_text())
    refused = {
        "/usr/lib": "EROFS",
        "/etc": "EROFS",
        "/boot": "EROFS",
        "memory device": "EPERM",
        "namespaces": "EPERM",
        "raw packets": "EAFNOSUPPORT",
    }
    assert {name: outcomes[name] for name in refused} == refused


def test_logrotate_has_the_log_opened_again(service: Systemd) -> None:
    before = service.noted().count("SIGHUP")
    rotate = "echo line > /var/log/tcmu-runner.log; logrotate --force /etc/logrotate.d/tcmu-runner; ls /var/log"
    assert "tcmu-runner.log.1.gz" in service.run("sh", "-c", rotate).stdout
    wait_for(lambda: service.noted().count("SIGHUP") == before + 1)


def test_a_killed_service_is_started_again_and_its_workers_live_on(service: Systemd) -> None:
    pid = service.show("MainPID")
    worker = str(json.loads(service.report.read_text())["worker"])
    service.run("kill", "-9", pid)
    wait_for(lambda: service.show("ActiveState") == "active" and service.show("MainPID") not in {pid, "0"})
    assert service.run("cat", f"/proc/{worker}/comm").stdout == "sleep\n"
    service.run("kill", worker)


def test_the_service_outlives_a_worker_that_is_killed_for_memory(service: Systemd) -> None:
    pid = service.show("MainPID")
    group = f"/sys/fs/cgroup{service.show('ControlGroup')}"
    service.run("systemctl", "set-property", "--runtime", "tcmu-runner", "MemoryMax=200M", "MemorySwapMax=0")
    # systemd hears of it from the kernel, at its own time; with OOMPolicy=stop it would end the service.
    service.run("sh", "-c", f"echo $$ > {group}/cgroup.procs; exec {sys.executable} -c 'x = bytes(1) * (1 << 30)'")
    wait_for(lambda: "oom_kill 1" in service.run("cat", f"{group}/memory.events").stdout)
    wait_for(lambda: "killed by the OOM killer" in service.vm.console())
    service.run("systemctl", "set-property", "--runtime", "tcmu-runner", "MemoryMax=infinity")
    assert (service.show("ActiveState"), service.show("MainPID")) == ("active", pid)


def test_stop_is_clean_and_final(service: Systemd) -> None:
    assert service.run("systemctl", "stop", "tcmu-runner").returncode == 0
    assert (service.show("ActiveState"), service.show("Result")) == ("inactive", "success")
    assert service.noted()[-1] == "SIGTERM"
