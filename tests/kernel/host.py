"""A host with a real kernel, our runner on it, and the few things that tests do to it."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from tests.vm import Job, Machine, Result
from tests.waiting import wait_for

START_SECONDS = 240.0  # emulated, from a cold cache, on a busy machine
CORE = "/sys/kernel/config/target/core"
LOOPBACK = "/sys/kernel/config/target/loopback"
INITIATOR = "iqn.1993-08.org.debian:01:ef2e26bf3a9e"
HANDLERS = Path(__file__).parent / "handlers"


class Host:
    """Runs commands in the machine; `runner` is the daemon while it runs."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.share = machine.share
        self.runner: Job | None = None
        self.config = self.share / "tcmu.conf"
        self.log_dir = self.share / "log"
        self.log_dir.mkdir()
        self.configure()
        self.sh(
            "mkdir -p /run/dbus /etc/target/pr /var/target/pr /etc/rtslib-fb-target/pr; dbus-daemon --system --fork;"
            "modprobe target_core_mod; echo -n /etc/rtslib-fb-target > /sys/kernel/config/target/dbroot;"
            "modprobe -a target_core_user tcm_loop iscsi_target_mod target_core_file iscsi_tcp;"
            f"echo InitiatorName={INITIATOR} > /etc/iscsi/initiatorname.iscsi; iscsid;"
            "mkdir -p /var/tmp/t"
        )

    def configure(self, text: str = "log_level = 4\n") -> None:
        self.config.write_text(text)

    def sh(self, script: str, *, timeout: float = 120.0, check: bool = True) -> str:
        """Run a shell script; returns its output."""
        result = self.run(script, timeout=timeout)
        if check:
            result.check()
        return result.stdout

    def run(self, command: Any, *, timeout: float = 120.0, stdin: str = "") -> Result:
        return self.machine.run(command, timeout=timeout, stdin=stdin, cwd="/tmp")

    # -- the daemon -------------------------------------------------------------------------------------------------

    def runs(self) -> bool:
        """Tell whether the daemon runs."""
        return self.runner is not None and self.runner.poll() is None

    def start(self) -> Job:
        """Start the daemon and wait until it is ready."""
        self.runner = self.machine.spawn(
            [
                sys.executable, "-m", "tcmu_core.cli.runner", "--config", self.config,
                "--tcmu-log-dir", self.log_dir, "--handler-path", HANDLERS,
            ],
            cwd="/tmp",
        )  # fmt: skip
        self.wait(lambda: "is ready" in self.log(), START_SECONDS, "the runner is ready")
        return self.runner

    def log(self) -> str:
        """Return what the current daemon and its workers have logged."""
        assert self.runner is not None
        return self.runner.stderr

    def stop(self, timeout: float = 40.0) -> Result:
        assert self.runner is not None
        self.runner.terminate()
        result = self.runner.wait(timeout)
        self.runner = None
        return result

    def wait(self, condition: Any, seconds: float, what: str) -> Any:
        """Wait until `condition()` is true; returns its value."""

        def over() -> Any:
            if self.runner is not None and self.runner.poll() is not None:
                raise AssertionError(f"the runner ended:\n{self.log()[-5000:]}")
            return condition()

        log = self.log if self.runner is not None else str
        return wait_for(over, seconds, every=0.1, why=lambda: f"not within {seconds:g} s: {what}\n{log()[-5000:]}")

    def worker(self, name: str) -> int:
        """Return the pid of the worker that serves a device."""
        found = re.findall(rf"/{name}: .* is served (?:on )?by process (\d+)$", self.log(), re.MULTILINE)
        return int(found[-1])

    # -- devices, by configfs alone ---------------------------------------------------------------------------------

    def create(self, name: str, size: int, config: str, *, hba: int = 1, extra: str = "", then: str = "") -> Result:
        """Make a backstore as the walkthrough's script does; the result is that of enabling it."""
        directory = f"{CORE}/user_{hba}/{name}"
        return self.run(
            f"mkdir -p {directory} && cd {directory} && echo -n dev_size={size} > control &&"
            f"echo -n 'dev_config={config}' > control && {extra or ':'} &&"
            f"{{ echo -n 1 > enable || {{ s=$?; cd /; rmdir {directory}; exit $s; }} }} && {then or ':'}"
        )

    def remove(self, name: str, *, hba: int = 1) -> Result:
        return self.run(f"rmdir {CORE}/user_{hba}/{name}")

    def plug(self, name: str, *, hba: int = 1, number: int = 1) -> str:
        """Export a backstore as a local disk; returns its device node."""
        target = f"{LOOPBACK}/naa.50014050000{number:05x}"
        output = self.sh(
            f"ls /sys/block > /tmp/before; mkdir -p {target}/tpgt_1;"
            f"echo -n naa.50014051000{number:05x} > {target}/tpgt_1/nexus; mkdir -p {target}/tpgt_1/lun/lun_0;"
            f"ln -s {CORE}/user_{hba}/{name} {target}/tpgt_1/lun/lun_0/x;"
            "for i in $(seq 300); do"
            " d=$(ls /sys/block | grep -vxFf /tmp/before | grep -E '^s[dr]');"
            ' [ -n "$d" ] && [ -b /dev/$d ] && [ "$(cat /sys/block/$d/size)" != 0 ] && break; sleep 0.1; done; echo $d'
        )
        disk = output.strip()
        assert disk, f"no disk for {name}"
        return f"/dev/{disk}"

    def unplug(self, *, number: int = 1) -> None:
        target = f"{LOOPBACK}/naa.50014050000{number:05x}"
        self.sh(
            f"if [ -d {target} ]; then rm -f {target}/tpgt_1/lun/lun_0/x; rmdir {target}/tpgt_1/lun/lun_0"
            f" {target}/tpgt_1 {target}; fi"
        )
