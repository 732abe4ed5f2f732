"""ext4 on a recorded disk: no power cut leaves a file system that its journal does not mend, unless the disk lies."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tcmu_core.cli.tcmu import main
from tcmu_core.recording.crash import epochs
from tcmu_core.recording.file import Recording
from tcmu_core.testing.served import ServedDisk
from tests.vm import Machine

pytestmark = [pytest.mark.vm, pytest.mark.soak]

# What is done to files with a journal to mend it: names that come and go, data that is synced, links, a full directory.
WORKLOAD = """
set -e
cd /mnt
for round in 1 2 3; do
    mkdir dir$round
    for name in a b c d e f g h; do
        head -c 5000 /dev/urandom > dir$round/$name
        mv dir$round/$name dir$round/$name.moved
    done
    sync
    ln dir$round/a.moved link$round
    ln -s dir$round/b.moved symbolic$round
    rm dir$round/c.moved dir$round/d.moved
    head -c 300000 /dev/zero | tr '\\0' x > large$round
    sync large$round
    rm -r dir$round
    sync
done
"""
MAKE = "mkfs.ext4 -q -b 1024 -J size=1 /dev/vda && mkdir -p /mnt && mount /dev/vda /mnt && sync"
CHECK = "e2fsck -yE journal_only $image > /dev/null 2>&1; e2fsck -fn $image"


def record(disk: ServedDisk, recording: Path, *rules: str) -> int:
    """Make a file system on the disk and use it, with these faults; return the number of the epoch of its making."""
    with Machine(cpus=2, memory="1G", disks=[disk.uri]) as machine:
        machine.modprobe("virtio_blk", "ext4")
        machine.run(MAKE, check=True)
        made = sum(1 for _ in epochs(Recording(recording))) - 1
        if rules:
            disk.fault(*rules)
        machine.run(WORKLOAD, check=True, timeout=300)
        machine.run("umount /mnt", check=True)
    return made


def test_no_cut_breaks_it_on_a_disk_that_keeps_its_word(
    tcmu_disk: Callable[..., ServedDisk], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recording = tmp_path / "rec"
    disk = tcmu_disk("ram", size="24M", filters=[f"record;file={recording}"])
    made = record(disk, recording)
    # ext4 relies on its superblock, two blocks of this disk, being written whole.
    words = ["--check", CHECK, "--atomic", "1K", "--from", str(made), "--limit", "12"]
    status = main(["crash", str(recording), *words])
    said = capsys.readouterr().out
    assert status == 0, said
    count = re.search(r"^(\d+) images, 0 failures$", said, re.MULTILINE)
    assert count is not None
    assert int(count[1]) > 50


def test_a_cut_breaks_it_on_a_disk_whose_flush_lies(
    tcmu_disk: Callable[..., ServedDisk], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recording = tmp_path / "rec"
    disk = tcmu_disk("ram", size="24M", filters=[f"record;file={recording}"])
    made = record(disk, recording, "flush -> lose")
    assert main(["crash", str(recording), "--check", CHECK, "--from", str(made), "--limit", "150"]) == 1
    assert "writes since the last flush are there" in capsys.readouterr().out
