"""In the virtual machine: a daemon of TCM-user, a local disk that it serves over LIO's loopback fabric, fio."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tests.vm import Machine

CORE = "/sys/kernel/config/target/core"
LOOP = "/sys/kernel/config/target/loopback/naa.5001405000000001"
OURS, THEIRS, LIO = "tcmu", "tcmu-runner (C)", "LIO fileio"


@dataclass(frozen=True, slots=True)
class Job:
    """What fio does: its `rw`, bytes of a transfer, and how many at a time."""

    name: str
    kind: str
    size: int
    depth: int


def prepare(machine: Machine, image: str, size: int) -> None:
    """Start a message bus, load the modules, and make an image of `size` random bytes."""
    machine.run(
        "mkdir -p /run/dbus /etc/target/pr /var/target/pr; dbus-daemon --system --fork;"
        "modprobe -a target_core_user tcm_loop target_core_file;"
        f"dd if=/dev/urandom of={image} bs=1M count={size >> 20} 2> /dev/null",
        check=True,
    )


@contextmanager
def daemon(machine: Machine, who: str) -> Iterator[None]:
    """Run the daemon that serves `who`'s devices, if it needs one."""
    if who == LIO:
        yield
        return
    if who == OURS:
        config = machine.share / "tcmu.conf"
        config.write_text("log_level = 2\n")
        command = [sys.executable, "-m", "tcmu_core.cli.runner", "--config", str(config), "-l", "/tmp"]
    else:
        command = ["/usr/bin/tcmu-runner", "-l", "/tmp"]
    job = machine.spawn(command)
    owner = (
        "dbus-send --system --print-reply --dest=org.freedesktop.DBus / org.freedesktop.DBus.NameHasOwner"
        " string:org.kernel.TCMUService1 | grep -q true"
    )
    machine.run(f"for i in $(seq 300); do {owner} && exit 0; sleep 0.2; done; exit 1", timeout=120, check=True)
    if who == OURS:
        machine.run("for i in $(seq 300); do pgrep -f runner.zygote > /dev/null && exit 0; sleep 0.2; done", check=True)
    try:
        yield
    finally:
        job.terminate()
        job.wait(60)


@contextmanager
def disk(machine: Machine, store: str, control: str) -> Iterator[str]:
    """Yield the local disk of backstore `store` (`user_1/NAME`), made with `control`."""
    store = f"{CORE}/{store}"
    found = machine.run(
        f"set -e; mkdir -p {store}; echo -n {control} > {store}/control; echo -n 1 > {store}/enable;"
        f"mkdir -p {LOOP}/tpgt_1; echo -n naa.5001405000000002 > {LOOP}/tpgt_1/nexus; mkdir {LOOP}/tpgt_1/lun/lun_0;"
        f"ln -s {store} {LOOP}/tpgt_1/lun/lun_0/x; a=$(cat {LOOP}/tpgt_1/address);"
        "for i in $(seq 99); do d=$(ls /sys/class/scsi_device/$a:0/device/block 2> /dev/null) && break; sleep .1; done;"
        "sleep 1; echo none > /sys/block/$d/queue/scheduler; echo /dev/$d",
        timeout=90,
        check=True,
    )
    try:
        yield found.stdout.strip()
    finally:
        machine.run(
            f"rm {LOOP}/tpgt_1/lun/lun_0/x; rmdir {LOOP}/tpgt_1/lun/lun_0 {LOOP}/tpgt_1 {LOOP} {store}", check=True
        )


def fio(machine: Machine, device: str, job: Job, limit: str) -> float:
    """Return transfers a second; `limit` says how long, in fio's words.

    Raises:
        CommandFailed: fio met an error.
    """
    said = machine.run(
        f"fio --name=b --filename={device} --rw={job.kind} --bs={job.size} --iodepth={job.depth} --ioengine=libaio"
        f" --direct=1 {limit} --norandommap --randrepeat=0 --output-format=json",
        timeout=300,
        check=True,
    ).stdout
    part = json.loads(said[said.index("{") :])["jobs"][0]["write" if "write" in job.kind else "read"]
    return float(part["iops"])


def for_seconds(seconds: float) -> str:
    """Return fio's words for a job of a given time."""
    return f"--time_based --runtime={seconds} --ramp_time=0.5"


def versions(machine: Machine) -> dict[str, str]:
    """Return what was measured: the guest's kernel, our own version, Debian's tcmu-runner and fio."""
    from tcmu_core import __version__

    package = ["dpkg-query", "-W", "-f", "${Version}", "tcmu-runner"]
    return {
        "tcmu-core": __version__,
        "tcmu-runner (C)": subprocess.run(package, capture_output=True, text=True, check=True).stdout,
        "fio": machine.run("fio --version", check=True).stdout.strip().removeprefix("fio-"),
        "guest: Linux": machine.run("uname -r", check=True).stdout.strip(),
    }
