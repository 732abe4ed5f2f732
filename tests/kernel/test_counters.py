"""Counters on a real kernel: what `tcmu status`, the metrics and the page say is what fio has done, to the command."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.kernel.host import Host
from tests.vm import Job

pytestmark = pytest.mark.vm

MIB = 1 << 20
TCMU = [sys.executable, "-m", "tcmu_core.cli.tcmu"]
READS, WRITES, PER_FLUSH = 600, 400, 40
# Nothing but what fio asks for: no merging of neighbours, no reading ahead. Both jobs know how much they do.
FIO = (
    "echo none > /sys/block/{name}/queue/scheduler; echo 2 > /sys/block/{name}/queue/nomerges;"
    "fio --output-format=json --filename=/dev/{name} --bs=4k --direct=1 --ioengine=libaio --size=8M"
    f" --name=reads --rw=randread --iodepth=16 --number_ios={READS}"
    f" --name=writes --stonewall --rw=randwrite --iodepth=1 --number_ios={WRITES} --fsync={PER_FLUSH}"
)
GET = "import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1], timeout=60).read().decode())"


def fio(host: Host, disk: str) -> dict[str, int]:
    """Read and write; return how many operations of each kind fio says that it did, and how many bytes."""
    said = host.run(FIO.format(name=disk.removeprefix("/dev/")), timeout=200).check()
    reads, writes = json.loads(said.stdout[said.stdout.index("{") :])["jobs"]
    return {
        "read": reads["read"]["total_ios"],
        "read bytes": reads["read"]["io_bytes"],
        "write": writes["write"]["total_ios"],
        "write bytes": writes["write"]["io_bytes"],
        "synchronize": writes["sync"]["total_ios"],
    }


def counted(operations: list[dict[str, Any]]) -> dict[str, int]:
    """Return the same of operations as `tcmu status --json` has them."""
    found: dict[str, int] = {}
    for one in operations:
        kind = one["name"].split("_")[0]
        if kind in ("read", "write", "synchronize") and one["name"] != "read_capacity_10":
            found[kind] = found.get(kind, 0) + one["commands"]
            if kind != "synchronize":
                found[f"{kind} bytes"] = found.get(f"{kind} bytes", 0) + one["bytes"]
    return found


def status(host: Host, name: str, *more: str) -> list[dict[str, Any]]:
    """Return the operations of the one initiator of a disk."""
    said = host.run([*TCMU, "status", name, "--json", *more], timeout=200).check()
    ((served,),) = [one["disks"] for one in json.loads(said.stdout)]
    assert len(served["counters"]) == 1, served
    operations: list[dict[str, Any]] = served["counters"][0]["operations"]
    return operations


def gained(before: dict[str, int], after: dict[str, int]) -> dict[str, int]:
    return {name: count - before.get(name, 0) for name, count in after.items()}


@contextmanager
def site(host: Host) -> Iterator[str]:
    """Have `tcmu metrics` while the context lasts; yields where its page is."""
    process: Job = host.machine.spawn([*TCMU, "metrics", "--listen", "127.0.0.1:0", "--json"], cwd="/tmp")
    try:
        host.wait(lambda: process.stdout.strip(), 200.0, "the metrics are served")  # noqa: PLW0108  # it grows
        yield json.loads(process.stdout)["page"]
    finally:
        process.terminate()
        process.wait(60)


def get(host: Host, url: str) -> str:
    return host.run([sys.executable, "-c", GET, url], timeout=200).check().stdout


def scraped(text: str, disk: str) -> dict[str, int]:
    """Return what a scrape says of a disk, as `counted` does."""
    found = re.findall(r"^(tcmu_commands|tcmu_transferred_bytes)_total\{(.*)\} (\S+)$", text, re.MULTILINE)
    by_name: dict[str, dict[str, Any]] = {}
    for metric, labels, value in found:
        said = dict(re.findall(r'(\w+)="([^"]*)"', labels))
        if said["disk"] == disk:
            one = by_name.setdefault(said["operation"], {"name": said["operation"]})
            one["commands" if metric == "tcmu_commands" else "bytes"] = int(float(value))
    return counted(list(by_name.values()))


def test_what_fio_does_to_a_kernel_device_is_what_is_counted_and_shown(host: Host) -> None:
    assert host.create("counted", 8 * MIB, "file//var/tmp/t/counted.img").returncode == 0
    disk = host.plug("counted")
    status(host, "counted")  # from now on it counts
    with site(host) as page:
        before = counted(status(host, "counted"))
        get(host, f"{page}status.json")
        done = fio(host, disk)
        assert (done["read"], done["write"]) == (READS, WRITES)
        after = counted(status(host, "counted"))
        assert gained(before, after) == done
        assert scraped(get(host, f"{page}metrics"), "counted") == after
        told = json.loads(get(host, f"{page}status.json"))
    (shown,) = [one for served in told["hosts"] for one in served["disks"]]
    (initiator,) = shown["counters"]
    assert counted(initiator["operations"]) == after
    (row,) = told["rows"]
    assert (row["disk"], row["initiator"]) == ("counted", "kernel")
    assert round(row["iops"] * told["seconds"]) >= sum(done[kind] for kind in ("read", "write", "synchronize"))
    assert round(row["bytes"] * told["seconds"]) >= done["read bytes"] + done["write bytes"]
    assert sum(row["storage"]["counts"]) == row["storage"]["samples"] > 0


def test_what_fio_does_to_a_disk_of_the_portal_is_what_is_counted(host: Host) -> None:
    """By open-iscsi: one session, whose commands are those of the kernel's SCSI disk driver."""
    serving = host.machine.spawn(
        [*TCMU, "serve", "ram", "--size", "8M", "--name", "far", "--portal", "127.0.0.1:3299", "--json"], cwd="/tmp"
    )
    target = "iqn.2025-01.local.tcmu:far"
    try:
        host.wait(lambda: "uri" in serving.stdout, 200.0, "the disk is served")
        host.sh(
            "ls /sys/block > /tmp/before; iscsiadm -m discovery -t st -p 127.0.0.1:3299 > /dev/null;"
            f"iscsiadm -m node -T {target} -l > /dev/null",
            timeout=200,
        )
        name = host.sh(
            "for i in $(seq 300); do d=$(ls /sys/block | grep -vxFf /tmp/before | grep ^sd);"
            ' [ -n "$d" ] && [ -b /dev/$d ] && [ "$(cat /sys/block/$d/size)" != 0 ] && break; sleep 0.1; done; echo $d'
        ).strip()
        before = counted(status(host, "far"))
        done = fio(host, name)
        assert gained(before, counted(status(host, "far"))) == done
    finally:
        host.sh("iscsiadm -m node -u; iscsiadm -m node -o delete; true")
        serving.terminate()
        serving.wait(60)
