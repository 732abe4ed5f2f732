"""Many devices at once, and what an idle one costs."""

from __future__ import annotations

import pytest

from tests.kernel.host import CORE, Host

pytestmark = [pytest.mark.vm, pytest.mark.soak]  # several minutes where the machine is emulated

COUNT = 64
MIB = 1 << 20
MOST_PRIVATE = 10 * MIB


def test_64_devices_are_made_read_written_and_removed_and_an_idle_one_is_small(host: Host) -> None:
    host.sh(
        f"set -e; for i in $(seq {COUNT}); do d={CORE}/user_$i/many_$i; mkdir -p $d;"
        f"echo -n dev_size={4 * MIB} > $d/control; echo -n dev_config=file//var/tmp/t/many_$i > $d/control;"
        # The kernel's own share is 8 MiB for each ring, which is much for a small machine.
        "echo -n max_data_area_mb=8,cmd_ring_size_mb=1 > $d/control; echo -n 1 > $d/enable; done",
        timeout=600,
    )
    assert host.sh("ps -eo comm | grep -c ^tcmu:").strip() == str(COUNT)
    kib = [
        int(line)
        for line in host.sh(
            "for p in $(ps -eo pid,comm | awk '$2 ~ /^tcmu:/ {print $1}'); do"
            " awk '/^Private_(Clean|Dirty):/ {s += $2} END {print s}' /proc/$p/smaps_rollup; done"
        ).split()
    ]
    print(f"private memory of an idle worker: {min(kib)} to {max(kib)} KiB, {sum(kib) // COUNT} on average")
    assert len(kib) == COUNT
    assert max(kib) * 1024 <= MOST_PRIVATE
    loop = "/sys/kernel/config/target/loopback/naa.5001405000000001"
    # Without the disk driver, which would look at each disk with forty commands: that is not what this is about.
    host.sh(
        f"set -e; rmmod sd_mod; mkdir -p {loop}/tpgt_1; echo -n naa.5001405000000002 > {loop}/tpgt_1/nexus;"
        f"for i in $(seq {COUNT}); do mkdir {loop}/tpgt_1/lun/lun_$i;"
        f" ln -s {CORE}/user_$i/many_$i {loop}/tpgt_1/lun/lun_$i/x; done; ls /dev/sg* > /tmp/sgs;"
        "for d in $(cat /tmp/sgs); do echo $d | dd bs=512 conv=sync of=/tmp/block 2> /dev/null;"
        " sg_dd if=/tmp/block of=$d bs=512 count=1 2> /dev/null;"
        " sg_dd if=$d of=/tmp/back bs=512 count=1 2> /dev/null; cmp /tmp/block /tmp/back; done",
        timeout=600,
    )
    assert host.sh("wc -l < /tmp/sgs").strip() == str(COUNT)
    assert host.sh("grep -l -a ^/dev/sg /var/tmp/t/many_* | wc -l").strip() == str(COUNT)
    host.sh(
        f"set -e; for i in $(seq {COUNT}); do rm {loop}/tpgt_1/lun/lun_$i/x; rmdir {loop}/tpgt_1/lun/lun_$i; done;"
        f"rmdir {loop}/tpgt_1 {loop}; for i in $(seq {COUNT}); do rmdir {CORE}/user_$i/many_$i; done; modprobe sd_mod",
        timeout=600,
    )
    assert host.sh("ps -eo comm | grep -c ^tcmu: || true").strip() == "0"
