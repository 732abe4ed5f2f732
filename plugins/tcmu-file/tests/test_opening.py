import os
import re
import select
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tcmu_core import ConfigError, WriteProtected
from tcmu_core.testing import open_device
from tcmu_file import FileHandler

MIB = 1 << 20


def opened(cfgstring, size=None, **attributes):
    return open_device(FileHandler, str(cfgstring), size=size, **attributes)


def make(path: Path, data: bytes = b"", size: int | None = None) -> Path:
    with path.open("wb") as file:
        file.write(data)
        if size is not None:
            file.truncate(size)
    return path


# -- the size -------------------------------------------------------------------------------------------------------


def test_a_missing_file_is_made_sparse_and_private(disk_dir):
    path = disk_dir / "disk"
    with opened(path, 64 * MIB) as disk:
        assert disk.size == 64 * MIB
    info = path.stat()
    assert (info.st_size, info.st_blocks, stat.S_IMODE(info.st_mode)) == (64 * MIB, 0, 0o600)


def test_the_cfgstring_can_give_the_size(disk_dir):
    with opened(f"{disk_dir}/disk;size=3M") as disk:
        assert disk.size == 3 * MIB


@pytest.mark.parametrize(
    ("option", "size", "message"),
    [
        ("size=100", None, "size=100: these are not whole blocks of 512 bytes"),
        ("size=1025;block_size=1024", None, "not whole blocks of 1024"),
        ("block_size=4096", 1536, "not whole blocks of 4096"),
        ("size=8E", None, "no file can be so large"),
    ],
)
@pytest.mark.parametrize("there", [False, True])
def test_a_size_that_no_disk_can_have_makes_no_file_so_long(disk_dir, option, size, message, there):
    path = make(disk_dir / "disk") if there else disk_dir / "disk"
    with pytest.raises(ConfigError, match=message), opened(f"{path};{option}", size):
        pass
    assert path.exists() == there
    assert not there or path.stat().st_size == 0


def test_an_existing_file_gives_the_size_itself(disk_dir):
    with opened(make(disk_dir / "disk", size=5 * MIB)) as disk:
        assert disk.size == 5 * MIB


@pytest.mark.parametrize("how", ["device", "cfgstring"])
def test_a_file_shorter_than_the_device_has_its_size_when_it_is_open(disk_dir, how):
    path = make(disk_dir / "disk", b"a" * 1000)
    size, option = (MIB, "") if how == "device" else (None, ";size=1M")
    with opened(f"{path}{option}", size) as disk:
        assert path.stat().st_size == MIB
        assert disk.read(0, 2048) == b"a" * 1000 + bytes(1048)
        assert disk.read(MIB - 512, 512) == bytes(512)
        disk.write(4096, b"b" * 512)
    assert path.stat().st_blocks < 64
    with opened(path) as disk:
        assert disk.size == MIB


def test_an_empty_file_is_extended(disk_dir):
    path = make(disk_dir / "disk")
    with opened(path, MIB) as disk:
        disk.write(4096, b"b" * 4096)
    with opened(path) as disk:
        assert disk.size == MIB


def test_a_file_that_may_not_be_written_is_refused_where_it_is_shorter_than_the_device(disk_dir):
    path = make(disk_dir / "disk", b"a" * 1000)
    with pytest.raises(ConfigError, match="has 1000 bytes: read-only"), opened(path, MIB, read_only=True):
        pass
    with opened(path, 1024, read_only=True) as disk:
        assert disk.read(0, 1024) == b"a" * 1000 + bytes(24)
        with pytest.raises(ConfigError, match="has 1000 bytes: read-only"):
            disk.reconfigure(size=MIB)
        assert disk.size == 1024
    assert path.stat().st_size == 1000


def test_a_file_longer_than_the_device_keeps_its_tail(disk_dir):
    path = make(disk_dir / "disk", b"t" * 2 * MIB)
    with opened(path, MIB) as disk:
        assert disk.size == MIB
        disk.discard(0, MIB)
    assert path.read_bytes() == bytes(MIB) + b"t" * MIB


@pytest.mark.parametrize("direct", ["", ";direct=1"])
def test_the_last_bytes_of_a_file_that_is_no_whole_number_of_blocks_can_be_read(disk_dir, direct):
    path = make(disk_dir / "disk", b"a" * 5000)
    with opened(f"{path}{direct}") as disk:
        assert disk.size == 5120
        assert disk.read(4096, 1024) == b"a" * 904 + bytes(120)


def test_growing_extends_the_file_and_shrinking_leaves_it_alone(disk_dir):
    path = disk_dir / "disk"
    with opened(path, MIB) as disk:
        disk.write(MIB - 512, b"z" * 512)
        disk.reconfigure(size=2 * MIB)
        assert (disk.size, path.stat().st_size) == (2 * MIB, 2 * MIB)
        disk.write(2 * MIB - 512, b"y" * 512)
        disk.reconfigure(size=MIB)
        assert (disk.size, path.stat().st_size) == (MIB, 2 * MIB)
        disk.reconfigure(size=2 * MIB)
        assert disk.read(2 * MIB - 512, 512) == b"y" * 512


def test_the_cfgstring_of_an_open_device_stays(disk_dir):
    with opened(disk_dir / "disk", MIB) as disk, pytest.raises(ConfigError, match="can't change"):
        disk.reconfigure(cfgstring=f"{disk_dir}/other")


# -- modes ----------------------------------------------------------------------------------------------------------


def test_a_read_only_disk_is_opened_for_reading_alone(disk_dir):
    path = make(disk_dir / "disk", b"r" * 4096)
    path.chmod(0o400)
    with opened(f"{path};ro=1") as disk:
        assert disk.device.read_only
        assert disk.read(512, 512) == b"r" * 512
        disk.flush()
        with pytest.raises(OSError, match="Bad file descriptor"):
            disk.write(0, b"w" * 512)
    with opened(path, read_only=True) as disk, pytest.raises(WriteProtected):
        disk.write(0, b"w" * 512)


def test_sync_and_the_write_cache_mode_take_effect(disk_dir):
    with opened(f"{disk_dir}/disk;sync=1", MIB) as disk:
        assert not disk.device.write_cache
        disk.reconfigure(write_cache=True)
        assert disk.device.write_cache


def test_options_of_tcmu_conf_are_defaults(disk_dir):
    with opened(f"{disk_dir}/disk;sync=0", MIB, options={"sync": "yes", "block_size": "4096"}) as disk:
        assert disk.device.write_cache
        assert disk.device.block_size == 4096


def test_what_the_file_system_is_good_at_is_announced(disk_dir):
    with opened(disk_dir / "disk", MIB) as disk:
        assert disk.device.thin
        assert disk.device.discard_granularity == 4096
        assert disk.device.discard_granularity == 4096


# -- what happens to the file while it is served ---------------------------------------------------------------------


@pytest.fixture
def looks_often(monkeypatch):
    monkeypatch.setattr("tcmu_core.posix.watch.INTERVAL", 0.01)


HAPPENS = {
    "truncated": (lambda path: os.truncate(path, 4096), "was truncated while it is served, from 1048576 to 4096 bytes"),
    "deleted": (Path.unlink, "was deleted or moved while it is served"),
    "moved": (lambda path: path.rename(f"{path}.old"), "was deleted or moved while it is served"),
    "replaced": (lambda path: make(path.with_suffix(".new")).replace(path), "was replaced by another file while"),
}


@pytest.mark.parametrize("what", HAPPENS)
def test_what_happens_to_a_file_that_is_served_is_mentioned_once(disk_dir, looks_often, caplog, what):
    happen, text = HAPPENS[what]
    path = disk_dir / "disk"
    with opened(path, MIB):
        happen(path)
        wait_until(lambda: text in caplog.text)
    assert caplog.text.count("while it is served") == 1
    assert str(path) in caplog.text


def wait_until(condition):
    until = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until, "it did not come to that"
        time.sleep(0.01)


# -- one writer -----------------------------------------------------------------------------------------------------

HOLD = """
import sys
from tcmu_core.testing import open_device
from tcmu_file import FileHandler
with open_device(FileHandler, sys.argv[1], size=1 << 20):
    print("open", flush=True)
    sys.stdin.read()
"""


def test_a_second_writer_is_refused_by_the_name_of_the_first_until_that_is_gone(disk_dir):
    path = disk_dir / "disk"
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "open\n"
            for cfgstring in (path, f"{path};ro=1"):
                with pytest.raises(ConfigError, match=rf"in use by process {holder.pid} \(python"), opened(cfgstring):
                    pass
        finally:
            holder.kill()
    with opened(path) as disk:
        assert disk.size == MIB


def test_two_devices_of_one_process_are_refused_too(disk_dir):
    path = disk_dir / "disk"
    with opened(path, MIB) as disk:
        with pytest.raises(ConfigError, match=f"in use by process {os.getpid()} "), opened(path):
            pass
        disk.write(0, b"1" * 512)


def test_readers_share(disk_dir):
    path = make(disk_dir / "disk", b"r" * 4096)
    with opened(f"{path};ro=1") as one, opened(f"{path};ro=1") as two:
        assert one.read(0, 512) == two.read(0, 512)
        with pytest.raises(ConfigError, match="is in use"), opened(path):
            pass


def test_qemu_may_look_and_not_write(disk_dir):
    path = disk_dir / "disk"
    with opened(path, MIB) as disk:
        disk.write(0, b"q" * 4096)
        write = ["qemu-io", "-f", "raw", "-c", "write 0 512", str(path)]
        refused = subprocess.run(write, capture_output=True, text=True, check=False)
        assert "Is another process using the image" in refused.stderr
        subprocess.run(["qemu-img", "map", "-f", "raw", str(path)], check=True, capture_output=True)
        assert disk.read(0, 512) == b"q" * 512
    subprocess.run(write, check=True, capture_output=True)


def test_what_qemu_may_write_to_is_refused(disk_dir):
    path, pid = make(disk_dir / "disk", size=MIB), disk_dir / "pid"
    subprocess.run(
        ["qemu-nbd", "--fork", "-t", "-f", "raw", "-k", disk_dir / "nbd", "--pid-file", pid, path], check=True
    )
    number = int(pid.read_text())
    process = os.pidfd_open(number)
    try:
        with pytest.raises(ConfigError, match=rf"in use by process {number} \(qemu-nbd\)"), opened(path):
            pass
    finally:
        signal.pidfd_send_signal(process, signal.SIGTERM)
        select.select([process], [], [])  # it has ended
        os.close(process)
    with opened(path):
        pass


# -- what a person gets for a mistake ------------------------------------------------------------------------------

BAD_CFGSTRINGS = {
    "": "no path",
    ";direct=1": "no path",
    "/disk;dirct=1": "unknown option 'dirct': did you mean 'direct'",
    "/disk;direct=maybe": "option 'direct': 'maybe' is neither yes nor no",
    "/disk;size=big": "option 'size': 'big' is no size",
    "/disk;ro=1;ro=0": "option 'ro' is given twice",
    "/disk;block_size=520": "block_size=520: it may be 512, 1024, 2048 or 4096",
    "/disk;block_size=1M": "block_size=1048576",
    "/di\0sk": "NUL",
}


@pytest.mark.parametrize(("cfgstring", "message"), BAD_CFGSTRINGS.items())
def test_a_bad_cfgstring_is_refused_with_a_reason_and_opens_nothing(cfgstring, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        FileHandler().check_config(cfgstring)
    with pytest.raises(ConfigError, match=re.escape(message)), opened(cfgstring, MIB):
        pass


def test_check_config_looks_at_no_file():
    FileHandler().check_config("/no/such/directory/disk;size=1G")


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as end:
        end.bind(str(path))


BAD_STORAGE = {
    "directory": (Path.mkdir, "", "is a directory: a disk needs"),
    "directory, read-only": (Path.mkdir, ";ro=1", "is a directory: a disk needs"),
    "FIFO": (os.mkfifo, "", "is a FIFO: a disk needs"),
    "FIFO, read-only": (os.mkfifo, ";ro=1", "is a FIFO: a disk needs"),
    "socket": (_socket, "", "is a socket or FIFO: a disk needs"),
    "character device": (lambda path: path.symlink_to("/dev/null"), "", "is a character device: a disk needs"),
    "missing": (lambda path: None, "", "does not exist: give a size (size=1G) to create it"),
    "missing, read-only": (lambda path: None, ";ro=1;size=1G", "does not exist, and read-only nothing is created"),
    "missing directory": (lambda path: None, "/x/y;size=1G", "the directory"),
    "empty": (Path.touch, "", "is empty: give a size"),
    "too large to make": (lambda path: None, ";size=7E", "can't make"),
    "attribute that can't be written": (
        lambda path: path.symlink_to("/sys/kernel/uevent_seqnum"),
        "",
        "can't be opened for writing (Permission denied): add ro=1",
    ),
    "dangling link": (
        lambda path: path.symlink_to("nowhere"),
        ";size=1M",
        "is a symbolic link to a file that does not exist",
    ),
}


@pytest.mark.parametrize("what", BAD_STORAGE)
def test_storage_that_is_no_disk_is_refused_with_a_reason(disk_dir, what):
    prepare, rest, message = BAD_STORAGE[what]
    path = disk_dir / "it"
    prepare(path)
    before = sorted(disk_dir.rglob("*"))
    with pytest.raises(ConfigError, match=re.escape(message)), opened(f"{path}{rest}"):
        pass
    assert sorted(disk_dir.rglob("*")) == before, "something was left behind"


def test_two_sizes_that_differ_are_refused(disk_dir):
    with pytest.raises(ConfigError, match="leave that out"), opened(f"{disk_dir}/disk;size=1M", 2 * MIB):
        pass


def test_no_descriptor_stays_open_whatever_happened(disk_dir):
    before = len(os.listdir("/proc/self/fd"))
    path = make(disk_dir / "disk")
    for cfgstring in (path, disk_dir, f"{path};size=1M;ro=1"):
        with pytest.raises((ConfigError, OSError)), opened(cfgstring) as disk:
            raise OSError(disk.size)
    assert len(os.listdir("/proc/self/fd")) == before
