"""Kernel devices, side by side in one boot: tcmu-runner in Python, Debian's tcmu-runner in C, LIO's own fileio.

    python benchmarks/kernel.py [--seconds 5] [--rounds 2] [--json]

The same raw image in the guest's memory stands behind each: our `file` handler, the C runner's `qcow` handler (it
serves raw images; Debian's package has no file handler), `fileio` with buffered I/O. Each is a local disk over LIO's
loopback fabric, with the same limit on one transfer, and gets the same fio jobs. Rounds alternate between them. Under
emulation (no /dev/kvm) only the ratios mean anything.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.vm import Machine

CORE = "/sys/kernel/config/target/core"
LOOP = "/sys/kernel/config/target/loopback/naa.5001405000000001"
IMAGE = "/tmp/bench.img"
SIZE = 256 << 20
MAX_SECTORS = 2048
JOBS = {  # name: fio's rw, block size, depth
    "4k randread qd1": ("randread", "4k", 1),
    "4k randwrite qd1": ("randwrite", "4k", 1),
    "4k randread qd32": ("randread", "4k", 32),
    "4k randwrite qd32": ("randwrite", "4k", 32),
    "256k read qd8": ("read", "256k", 8),
    "256k write qd8": ("write", "256k", 8),
}
OURS, THEIRS, LIO = "tcmu", "tcmu-runner (C)", "LIO fileio"


@contextmanager
def daemon(machine: Machine, who: str) -> Iterator[None]:
    """Run the daemon that serves `who`'s device, if it needs one."""
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
def disk(machine: Machine, who: str) -> Iterator[str]:
    """Yield the local disk of `who`'s device on the image."""
    if who == LIO:
        store = f"{CORE}/fileio_0/bench"
        control = f"fd_dev_name={IMAGE},fd_dev_size={SIZE},fd_buffered_io=1"
    else:
        store = f"{CORE}/user_1/bench"
        subtype = "file" if who == OURS else "qcow"
        control = f"dev_config={subtype}/{IMAGE},dev_size={SIZE},hw_max_sectors={MAX_SECTORS}"
    found = machine.run(
        f"set -e; mkdir -p {store}; echo -n {control} > {store}/control; echo -n 1 > {store}/enable;"
        f"mkdir -p {LOOP}/tpgt_1; echo -n naa.5001405000000002 > {LOOP}/tpgt_1/nexus; mkdir {LOOP}/tpgt_1/lun/lun_0;"
        f"ln -s {store} {LOOP}/tpgt_1/lun/lun_0/x; a=$(cat {LOOP}/tpgt_1/address);"
        "for i in $(seq 99); do d=$(ls /sys/class/scsi_device/$a:0/device/block 2> /dev/null) && break; sleep .1; done;"
        "sleep 1; echo none > /sys/block/$d/queue/scheduler; cat /sys/block/$d/queue/max_sectors_kb >&2; echo /dev/$d",
        timeout=90,
    ).check()
    try:
        yield found.stdout.strip()
    finally:
        machine.run(
            f"rm {LOOP}/tpgt_1/lun/lun_0/x; rmdir {LOOP}/tpgt_1/lun/lun_0 {LOOP}/tpgt_1 {LOOP} {store}", check=True
        )


def measure(machine: Machine, device: str, job: str, seconds: float) -> float:
    """Return operations a second."""
    kind, size, depth = JOBS[job]
    said = machine.run(
        f"fio --name=b --filename={device} --rw={kind} --bs={size} --iodepth={depth} --ioengine=libaio --direct=1"
        f" --time_based --runtime={seconds} --ramp_time=0.5 --norandommap --randrepeat=0 --output-format=json",
        timeout=seconds + 60,
        check=True,
    ).stdout
    part = json.loads(said[said.index("{") :])["jobs"][0]["write" if "write" in kind else "read"]
    return float(part["iops"])


def main() -> int:
    """Run all and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--only", choices=[OURS, THEIRS, LIO], action="append")
    parser.add_argument("--jobs", help="only those whose name has this in it", default="")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    peers = args.only or [OURS, THEIRS, LIO]
    jobs = [name for name in JOBS if args.jobs in name]
    results: dict[str, dict[str, list[float]]] = {job: {who: [] for who in peers} for job in jobs}
    with Machine(cpus=2, memory="2G") as machine:
        machine.run(
            "mkdir -p /run/dbus /etc/target/pr /var/target/pr; dbus-daemon --system --fork;"
            "modprobe -a target_core_user tcm_loop target_core_file;"
            f"dd if=/dev/urandom of={IMAGE} bs=1M count={SIZE >> 20} 2> /dev/null",
            check=True,
        )
        for number in range(args.rounds):
            for who in peers if number % 2 == 0 else reversed(peers):
                began = time.monotonic()
                with daemon(machine, who), disk(machine, who) as device:
                    for job in jobs:
                        results[job][who].append(measure(machine, device, job, args.seconds))
                print(f"round {number + 1}: {who}: {time.monotonic() - began:.0f} s", file=sys.stderr)
    if args.json:
        print(json.dumps(results, indent=2))
        return 0
    show(results, peers)
    return 0


def show(results: dict[str, dict[str, list[float]]], peers: list[str]) -> None:
    """Print operations a second, and how many times as many we do as each peer."""
    print("operations a second, and ours as a multiple of each peer's".ljust(20))
    print(" " * 20 + "".join(f"{who:>18}" for who in peers))
    ratios: dict[str, list[float]] = {who: [] for who in peers}
    for job, row in results.items():
        mean = {who: statistics.mean(values) for who, values in row.items()}
        cells = ""
        for who in peers:
            ratio = mean[OURS] / mean[who] if OURS in mean else math.nan
            ratios[who].append(ratio)
            cells += f"{mean[who]:>10.0f} {ratio:>5.2f}x "
        print(f"{job:<20}{cells}")
    print("geometric mean".ljust(20) + "".join(f"{statistics.geometric_mean(ratios[who]):>16.2f}x " for who in peers))


if __name__ == "__main__":
    sys.exit(main())
