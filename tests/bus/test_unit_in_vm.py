"""The installed service files under a real systemd, dbus-daemon and kernel."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bus.systemd import Systemd, wait_for
from tests.vm import Machine

pytestmark = [pytest.mark.vm, pytest.mark.soak]

SCRIPT = Path(__file__).with_name("sandboxed.py")


class Probe(Systemd):
    """A service that tries what the runner does, and notes it."""

    def __init__(self, vm: Machine) -> None:
        self.report = vm.share / "report.json"
        super().__init__(vm, f"#!/bin/sh\nexec {sys.executable} {SCRIPT} {self.report} {vm.share / 'signals'} $*\n")

    def noted(self) -> list[str]:
        """Return the signals that the service has had."""
        return self.signals.read_text().split() if self.signals.exists() else []


@pytest.fixture(scope="module")
def systemd() -> Iterator[Probe]:
    with Machine() as machine:
        yield Probe(machine)


@pytest.fixture
def service(systemd: Probe) -> Probe:
    """The service, started if it was not."""
    started = systemd.run("systemctl", "start", "tcmu-runner")
    assert (started.returncode, started.stderr) == (0, "")
    return systemd


def test_install_tells_systemd_and_the_bus(systemd: Probe) -> None:
    assert systemd.installed.returncode == 0, systemd.installed.stderr
    lines = systemd.installed.stdout.splitlines()
    assert lines[-3:] == [
        "run        systemctl daemon-reload",
        "run        systemctl reload dbus.service",
        "Start it, now and at every boot: systemctl enable --now tcmu-runner",
    ]


def test_a_call_on_the_bus_starts_the_service(systemd: Probe) -> None:
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


def test_readiness_and_status_reach_systemd(service: Probe) -> None:
    assert service.show("StatusText") == "probing"
    assert service.show("SubState") == "running"


def test_the_sandbox_allows_what_the_runner_does(service: Probe) -> None:
    outcomes = json.loads(service.report.read_text())
    allowed = ("bus", "device", "block device", "tcp", "/srv", "/home", "/root", "/var/lib", "/var/log", "/tmp", "/run")
    assert {name: outcomes[name] for name in allowed} == dict.fromkeys(allowed, "done") | {"bus": True}
    assert outcomes["files"] == 1048576
    assert outcomes["umask"] == 0o077
    assert outcomes["holders"] == [outcomes["worker"]]


def test_the_sandbox_refuses_what_it_never_does(service: Probe) -> None:
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


def test_logrotate_has_the_log_opened_again(service: Probe) -> None:
    before = service.noted().count("SIGHUP")
    rotate = "echo line > /var/log/tcmu-runner.log; logrotate --force /etc/logrotate.d/tcmu-runner; ls /var/log"
    assert "tcmu-runner.log.1.gz" in service.run("sh", "-c", rotate).stdout
    wait_for(lambda: service.noted().count("SIGHUP") == before + 1)


def test_a_killed_service_is_started_again_and_its_workers_live_on(service: Probe) -> None:
    pid = service.show("MainPID")
    worker = str(json.loads(service.report.read_text())["worker"])
    service.run("kill", "-9", pid)
    wait_for(lambda: service.show("ActiveState") == "active" and service.show("MainPID") not in {pid, "0"})
    assert service.run("cat", f"/proc/{worker}/comm").stdout == "sleep\n"
    service.run("kill", worker)


def test_the_service_outlives_a_worker_that_is_killed_for_memory(service: Probe) -> None:
    pid = service.show("MainPID")
    group = f"/sys/fs/cgroup{service.show('ControlGroup')}"
    service.run("systemctl", "set-property", "--runtime", "tcmu-runner", "MemoryMax=200M", "MemorySwapMax=0")
    # systemd hears of it from the kernel, at its own time; with OOMPolicy=stop it would end the service.
    service.run("sh", "-c", f"echo $$ > {group}/cgroup.procs; exec {sys.executable} -c 'x = bytes(1) * (1 << 30)'")
    wait_for(lambda: "oom_kill 1" in service.run("cat", f"{group}/memory.events").stdout)
    wait_for(lambda: "killed by the OOM killer" in service.vm.console())
    service.run("systemctl", "set-property", "--runtime", "tcmu-runner", "MemoryMax=infinity")
    assert (service.show("ActiveState"), service.show("MainPID")) == ("active", pid)


def test_stop_is_clean_and_final(service: Probe) -> None:
    assert service.run("systemctl", "stop", "tcmu-runner").returncode == 0
    assert (service.show("ActiveState"), service.show("Result")) == ("inactive", "success")
    assert service.noted()[-2:] == ["SIGTERM", "released:success:True"]


def test_a_restart_is_not_taken_for_a_stop_that_is_meant(service: Probe) -> None:
    assert service.run("systemctl", "restart", "tcmu-runner").returncode == 0
    assert service.noted()[-2:] == ["SIGTERM", "released:success:False"]
