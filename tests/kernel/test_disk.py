"""A kernel device as a local disk: file systems, data that stays, trimming, growing, changes of its configuration."""

from __future__ import annotations

import errno

import pytest

from tests.kernel.host import CORE, Host

pytestmark = pytest.mark.vm

MIB = 1 << 20
FIO_VERIFY = (
    "fio --name=v --filename={file} --rw=randwrite --bs=4k --size={size} --verify=crc32c --verify_fatal=1"
    " --ioengine=libaio --direct=1 --iodepth=16 --do_verify=1 --minimal > /dev/null"
)


def test_a_file_system_lives_on_it(host: Host) -> None:
    assert host.create("fs", 256 * MIB, "file//var/tmp/t/fs.img").returncode == 0
    disk = host.plug("fs")
    verify = FIO_VERIFY.format(file="/mnt/fs/v", size="8M")
    host.sh(
        f"set -e; mkfs.ext4 -q {disk}; mkdir -p /mnt/fs; mount {disk} /mnt/fs; {verify};"
        "dd if=/dev/urandom of=/mnt/fs/big bs=1M count=64 2> /dev/null; sync",
        timeout=200,
    )
    before = int(host.sh("stat -c %b /var/tmp/t/fs.img"))
    host.sh("set -e; rm /mnt/fs/big; sync; fstrim /mnt/fs; umount /mnt/fs", timeout=100)
    after = int(host.sh("stat -c %b /var/tmp/t/fs.img"))
    assert before - after > 60 * MIB // 512
    assert host.run(f"e2fsck -fn {disk}").returncode == 0


def test_it_grows_while_it_is_used_and_the_initiator_sees_it(host: Host) -> None:
    assert host.create("grow", 32 * MIB, "ram/").returncode == 0
    disk = host.plug("grow")
    name = disk.removeprefix("/dev/")
    assert host.sh(f"cat /sys/block/{name}/size").strip() == str(32 * MIB // 512)
    host.sh(f"echo -n {64 * MIB} > {CORE}/user_1/grow/attrib/dev_size")
    # The first command after the change gets CAPACITY DATA HAS CHANGED, which the kernel logs and retries.
    host.sh(f"dd if={disk} of=/dev/null bs=4k count=1 iflag=direct 2> /dev/null")
    host.sh(f"echo 1 > /sys/block/{name}/device/rescan")
    assert host.sh(f"cat /sys/block/{name}/size").strip() == str(64 * MIB // 512)
    host.sh(f"echo tail | dd of={disk} bs=512 seek={64 * MIB // 512 - 1} oflag=direct conv=sync 2> /dev/null")


def test_a_unit_attention_tells_of_the_new_size(host: Host) -> None:
    assert host.create("attentive", 32 * MIB, "ram/").returncode == 0
    disk = host.plug("attentive")
    host.sh(f"echo -n {64 * MIB} > {CORE}/user_1/attentive/attrib/dev_size")
    said = host.run(f"sg_turs -v {disk}")
    assert "Capacity data has changed" in said.stdout + said.stderr
    assert host.run(f"sg_turs {disk}").returncode == 0


def test_values_that_do_not_change_are_accepted(host: Host) -> None:
    assert host.create("same", 32 * MIB, "moody/plain").returncode == 0
    host.sh(
        f"set -e; cd {CORE}/user_1/same/attrib; for a in dev_size dev_config emulate_write_cache; do"
        " v=$(cat $a); echo -n $v > $a; done"
    )


@pytest.mark.parametrize(
    ("attribute", "value", "says"),
    [
        ("dev_size", str(64 * MIB), errno.EOPNOTSUPP),
        ("dev_size", "12345", errno.EINVAL),
        ("dev_config", "moody/other", errno.EOPNOTSUPP),
        ("dev_config", "ram/", errno.EINVAL),
        ("emulate_write_cache", "0", errno.EOPNOTSUPP),
    ],
)
def test_a_change_that_the_handler_refuses_gives_its_errno(host: Host, attribute: str, value: str, says: int) -> None:
    assert host.create("stiff", 32 * MIB, "moody/plain").returncode == 0
    path = f"{CORE}/user_1/stiff/attrib/{attribute}"
    before = host.sh(f"cat {path}")
    script = (
        f"import os\ntry:\n os.write(os.open({path!r}, os.O_WRONLY), {value!r}.encode())\n"
        "except OSError as e:\n print(e.errno)"
    )
    assert host.run(["/usr/bin/python3", "-c", script]).stdout.strip() == str(says)
    assert host.sh(f"cat {path}") == before


def test_configfs_shows_what_the_handler_made_of_the_device(host: Host) -> None:
    assert host.create("shown", 32 * MIB, "ram/").returncode == 0
    assert host.sh(f"cat {CORE}/user_1/shown/attrib/emulate_write_cache").strip() in ("0", "1")
    disk = host.plug("shown")
    cached = host.sh(f"cat /sys/class/scsi_disk/*/cache_type; sg_modes --page=8 {disk} > /dev/null; true").strip()
    assert (cached == "write back") == (host.sh(f"cat {CORE}/user_1/shown/attrib/emulate_write_cache").strip() == "1")


def test_the_serial_number_is_the_one_in_configfs(host: Host) -> None:
    assert host.create("named", 32 * MIB, "ram/").returncode == 0
    host.sh(f"echo -n 0c5b0b8e-1111-4222-8333-444455556666 > {CORE}/user_1/named/wwn/vpd_unit_serial")
    disk = host.plug("named")
    assert "0c5b0b8e-1111-4222-8333-444455556666" in host.sh(f"sg_vpd --page=sn {disk}")
    assert "0x60014050c5b0b8e1" in host.sh(f"sg_vpd --page=di {disk}")


def test_a_block_size_of_4096(host: Host) -> None:
    assert host.create("big", 32 * MIB, "ram/", extra="echo -n hw_block_size=4096 > control").returncode == 0
    disk = host.plug("big")
    assert host.sh(f"blockdev --getss {disk}").strip() == "4096"
    host.sh(f"dd if=/dev/zero of={disk} bs=4096 count=10 oflag=direct 2> /dev/null")


def test_a_vendor_command_is_answered(host: Host) -> None:
    assert host.create("vendor", 32 * MIB, "ram/").returncode == 0
    disk = host.plug("vendor")
    for cdb in ("c1" + " 00" * 9, "ff" + " 00" * 9, "7f 00 00 00 00 00 00 18" + " 00" * 24):
        said = host.run(f"timeout 10 sg_raw --cmdset=1 {disk} {cdb}", timeout=30)
        assert "Illegal Request" in said.stdout + said.stderr
    assert host.run(f"sg_turs {disk}").returncode == 0


def test_a_short_answer_has_a_residual(host: Host) -> None:
    assert host.create("short", 32 * MIB, "ram/").returncode == 0
    disk = host.plug("short")
    said = host.run(f"sg_raw -v -r 512 {disk} 12 00 00 02 00 00")
    assert "residual" in (said.stdout + said.stderr).lower() or "Received 96 bytes" in said.stdout + said.stderr
