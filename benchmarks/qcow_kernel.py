"""qcow2 on kernel devices, side by side in one boot: tcmu-qcow, and the qcow handler of the tcmu-runner in C.

    python -m benchmarks.qcow_kernel [--seconds 4] [--rounds 2]

Each daemon serves a qcow2 image of its own (version 2, 64 KiB clusters, in the guest's memory) as a local disk over
LIO's loopback fabric, and gets the same fio jobs; rounds alternate. “First write” fills an image that has no clusters
yet. Under emulation (no /dev/kvm) only the ratios mean anything.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.kernel import CORE, LOOP, MAX_SECTORS, OURS, THEIRS, daemon
from tests.vm import CommandFailed, Machine

SIZE = 192 << 20
JOBS = {  # name: fio's rw, block size, depth
    "4k randread qd1": ("randread", "4k", 1),
    "4k randread qd32": ("randread", "4k", 32),
    "4k randwrite qd1": ("randwrite", "4k", 1),
    "4k randwrite qd32": ("randwrite", "4k", 32),
    "256k read qd8": ("read", "256k", 8),
}
FIRST = "256k first write qd8"
PEERS = [OURS, THEIRS]


@contextmanager
def disk(machine: Machine, image: str) -> Iterator[str]:
    """Yield the local disk that the running daemon's qcow handler makes of an image."""
    store = f"{CORE}/user_1/bench"
    control = f"dev_config=qcow/{image},dev_size={SIZE},hw_max_sectors={MAX_SECTORS}"
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


def fio(machine: Machine, device: str, job: tuple[str, str, int], *limits: str) -> float:
    """Return operations a second."""
    kind, size, depth = job
    said = machine.run(
        f"fio --name=b --filename={device} --rw={kind} --bs={size} --iodepth={depth} --ioengine=libaio --direct=1"
        f" {' '.join(limits)} --norandommap --randrepeat=0 --output-format=json",
        timeout=300,
        check=True,
    ).stdout
    part = json.loads(said[said.index("{") :])["jobs"][0]["write" if "write" in kind else "read"]
    return float(part["iops"])


def turn(machine: Machine, who: str, seconds: float) -> Iterator[tuple[str, float]]:
    """Run every job on one daemon; yields (job, operations a second)."""
    full, fresh = "/tmp/full.qcow2", "/tmp/fresh.qcow2"
    machine.run(
        f"rm -f {full} {fresh}; qemu-img convert -f raw -O qcow2 -o compat=0.10 /tmp/data.raw {full};"
        f"qemu-img create -q -f qcow2 -o compat=0.10 {fresh} {SIZE}",
        check=True,
    )
    with daemon(machine, who):
        with disk(machine, full) as device:
            for name, job in JOBS.items():
                yield name, fio(machine, device, job, f"--time_based --runtime={seconds} --ramp_time=0.5")
        with disk(machine, fresh) as device:
            try:
                yield FIRST, fio(machine, device, ("write", "256k", 8), f"--size={SIZE}")
            except CommandFailed as error:
                print(f"{who}: {FIRST}: {error.result.stderr.splitlines()[0]}", file=sys.stderr)
    for image in (full, fresh):
        checked = machine.run(f"qemu-img check {image}").returncode
        print(f"{who}: qemu-img check {image}: {'clean' if not checked else f'exit {checked}'}", file=sys.stderr)


def main() -> None:
    """Run all and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--rounds", type=int, default=2)
    args = parser.parse_args()
    results: dict[str, dict[str, list[float]]] = {name: {who: [] for who in PEERS} for name in [*JOBS, FIRST]}
    with Machine(cpus=2, memory="3G") as machine:
        machine.run(
            "mkdir -p /run/dbus /etc/target/pr /var/target/pr; dbus-daemon --system --fork;"
            "modprobe -a target_core_user tcm_loop;"
            f"dd if=/dev/urandom of=/tmp/data.raw bs=1M count={SIZE >> 20} 2> /dev/null",
            check=True,
        )
        for number in range(args.rounds):
            for who in PEERS if number % 2 == 0 else reversed(PEERS):
                for name, rate in turn(machine, who, args.seconds):
                    results[name][who].append(rate)
    print(f"{'operations a second':22}" + "".join(f"{who:>18}" for who in PEERS) + f"{'ratio':>8}")
    for name, row in results.items():
        ours, theirs = (statistics.mean(row[who] or [math.nan]) for who in PEERS)
        print(f"{name:22}{ours:>18,.0f}{theirs:>18,.0f}{ours / theirs:>8.2f}")


if __name__ == "__main__":
    main()
