"""The fixture `tcmu_disk`: disks that fail, for the tests of other programs; and the initiator that reaches them."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tcmu_core.errors import ConfigError, TcmuError
from tcmu_core.recording.file import Recording
from tcmu_core.testing import Client, InitiatorError
from tcmu_core.testing.served import ServedDisk

Serve = Callable[..., ServedDisk]
ROOT = Path(__file__).parents[2]


def read(client: Client, lba: int = 0, blocks: int = 1) -> bytes:
    reply = client.command(b"\x88\0" + lba.to_bytes(8, "big") + blocks.to_bytes(4, "big") + bytes(2), read=blocks * 512)
    assert reply.status == 0, reply.error
    return reply.data


def write(client: Client, data: bytes, lba: int = 0) -> tuple[int, int, int]:
    blocks = len(data) // 512
    cdb = b"\x8a\0" + lba.to_bytes(8, "big") + blocks.to_bytes(4, "big") + bytes(2)
    return client.command(cdb, write=data).error


def test_the_listing_of_the_documentation_works_as_it_stands(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "testing.md").read_text()
    (listing,) = re.findall(r"```python\n# test_backup\.py\n(.*?)```", text, re.DOTALL)
    assert len(listing.strip().splitlines()) <= 12
    (tmp_path / "test_backup.py").write_text(listing)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout


def test_a_disk_is_served_and_gone_afterwards(tcmu_disk: Serve) -> None:
    disk = tcmu_disk("ram", size="8M")
    with Client(disk.uri) as client:
        assert client.capacity() == (16384, 512)
        data = bytes(range(256)) * 2 * 100
        assert write(client, data) == (0, 0, 0)
        assert read(client, 0, 100) == data
    disk.close()
    with pytest.raises(OSError):  # noqa: PT011 - refused, or reset
        Client(disk.uri)


def test_without_a_name_the_handler_is_the_one_of_the_option(tcmu_disk: Serve, tcmu_handler: str) -> None:
    assert tcmu_handler == "ram"
    assert tcmu_disk().uri.startswith("iscsi://127.0.0.1:")


EACH = """
def test_it(tcmu_disk, tcmu_handler):
    from tcmu_core.testing import Client
    with Client(tcmu_disk(size="4M").uri) as client:
        assert client.capacity() == (8192, 512), tcmu_handler
"""


def test_a_test_runs_with_each_handler_that_is_named(tmp_path: Path) -> None:
    (tmp_path / "test_each.py").write_text(EACH)
    words = [
        "-m",
        "pytest",
        "-v",
        "-p",
        "no:cacheprovider",
        "--tcmu-handler",
        "ram",
        "--tcmu-handler",
        "file",
        str(tmp_path),
    ]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert "test_it[ram] PASSED" in done.stdout, done.stdout + done.stderr
    assert "test_it[file] PASSED" in done.stdout


def test_a_mistake_is_told_as_tcmu_serve_tells_it(tcmu_disk: Serve) -> None:
    with pytest.raises(ConfigError, match="filter 'delay': unknown option 'raed'"):
        tcmu_disk(filters=["delay;raed=5ms"])


def test_faults_come_and_go_while_the_disk_is_in_use(tcmu_disk: Serve) -> None:
    disk = tcmu_disk()
    with Client(disk.uri) as client:
        disk.fault("write lba=8-15 -> write-error", "op=INQUIRY -> busy")
        assert write(client, bytes(512), 7) == (0, 0, 0)
        assert write(client, bytes(512), 8) == (3, 0x0C, 0)
        assert client.command(b"\x12\0\0\0\x24\0", read=36).status == 0x08
        assert [each["fired"] for each in disk.faults] == [1, 1]
        disk.clear()
        assert write(client, bytes(512), 8) == (0, 0, 0)
        assert client.command(b"\x12\0\0\0\x24\0", read=36).status == 0
        with pytest.raises(ConfigError, match="'wirte' is no condition"):
            disk.fault("wirte -> busy")


def test_a_write_that_hangs_goes_on_when_it_is_released(tcmu_disk: Serve) -> None:
    disk = tcmu_disk()
    disk.fault("write -> hang")
    with Client(disk.uri) as client:
        ended: list[tuple[int, int, int]] = []
        thread = threading.Thread(target=lambda: ended.append(write(client, b"h" * 512)))
        thread.start()
        while not disk.stats or not disk.tell("fault", action="list")["waiting"]:
            assert thread.is_alive()
        assert not ended
        disk.clear()
        assert disk.release() == 1
        thread.join(60)
        assert ended == [(0, 0, 0)]
        assert read(client) == b"h" * 512


def test_a_dropped_link_breaks_the_connection_and_the_initiator_comes_again(tcmu_disk: Serve) -> None:
    disk = tcmu_disk()
    with Client(disk.uri) as other, Client(disk.uri, name="iqn.2026-01.test:one") as client:
        disk.fault("op=READ_16 initiator=*:one times=1 -> drop")
        with pytest.raises(ConnectionError):
            read(client)
        assert read(other) == bytes(512), "another initiator's link holds"
    with Client(disk.uri, name="iqn.2026-01.test:one") as again:
        assert read(again) == bytes(512)


def test_a_kill_breaks_connections_and_start_serves_again_at_the_same_place(tcmu_disk: Serve) -> None:
    disk = tcmu_disk("file", size="4M")
    uri = disk.uri
    client = Client(uri)
    assert write(client, b"k" * 512) == (0, 0, 0)
    disk.kill()
    with pytest.raises(ConnectionError):
        read(client)
    client.close()
    with pytest.raises(TcmuError, match="is not served now"):
        disk.fault("write -> busy")
    disk.start()
    assert disk.uri == uri
    with Client(uri) as client:
        assert read(client) == b"k" * 512


def test_stats_tell_what_the_handler_has_seen(tcmu_disk: Serve) -> None:
    disk = tcmu_disk()
    with Client(disk.uri) as client:
        for lba in range(5):
            write(client, bytes(1024), lba)
    counted = disk.stats["write"]
    assert (counted["count"], counted["bytes"], counted["errors"]) == (5, 5120, 0)


def test_a_recording_begins_and_ends_while_the_disk_is_in_use(tcmu_disk: Serve, tmp_path: Path) -> None:
    disk = tcmu_disk()
    with Client(disk.uri) as client:
        write(client, bytes(512), 1)
        disk.record(tmp_path / "rec")
        write(client, b"r" * 512, 2)
        disk.pop("record")
        write(client, bytes(512), 3)
    assert [each.offset for each in Recording(tmp_path / "rec")] == [1024]


def test_filters_come_and_go_under_load_without_an_error(tcmu_disk: Serve) -> None:
    disk = tcmu_disk()
    stop = threading.Event()
    problems: list[BaseException] = []
    count = 0

    def load() -> None:
        nonlocal count
        try:
            with Client(disk.uri) as client:
                while not stop.is_set():
                    assert write(client, bytes([count % 256]) * 512) == (0, 0, 0)
                    assert read(client) == bytes([count % 256]) * 512
                    count += 1
        except BaseException as error:
            problems.append(error)

    thread = threading.Thread(target=load)
    thread.start()
    for text in ("delay;all=2ms", "rate;iops=2000;initiator_iops=1000", "log;errors=1", "fault") * 4:
        disk.push(text)
        before = count
        while count < before + 3 and thread.is_alive():
            time.sleep(0.001)
        disk.pop(text.partition(";")[0])
    stop.set()
    thread.join(60)
    assert problems == []


def test_an_initiator_is_told_when_the_login_is_refused(tcmu_disk: Serve) -> None:
    disk = tcmu_disk()
    with pytest.raises(InitiatorError, match="refused the login: status 0203h"):
        Client(disk.uri.replace(disk.iqn, "iqn.2026-01.test:nobody"))
    with pytest.raises(ConfigError, match="is no URL of a disk"):
        Client("http://example.org")
