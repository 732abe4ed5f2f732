"""State on disk: what is saved is there again, whole, whatever happens in between."""

from __future__ import annotations

import errno
import os
import re
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tcmu_core.errors import StaleVersion
from tcmu_core.state import AptplFile, aptpl_file, default_directory


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    store = AptplFile(tmp_path / "dir" / "lun.aptpl")
    version = store.replace(b"two", store.replace(b"one", ""))
    assert AptplFile(store.path).load() == (b"two", version)


def test_nothing_saved_is_nothing(tmp_path: Path) -> None:
    store = AptplFile(tmp_path / "dir" / "lun.aptpl")
    assert store.load() == (b"", "")
    assert store.replace(b"", "") == ""
    assert not list(tmp_path.iterdir())


def test_saving_nothing_removes_the_file(tmp_path: Path) -> None:
    store = AptplFile(tmp_path / "lun.aptpl")
    store.replace(b"", store.replace(b"", store.replace(b"one", "")))
    assert not list(tmp_path.iterdir())


def test_what_another_one_has_replaced_stays(tmp_path: Path) -> None:
    first, second = AptplFile(tmp_path / "lun.aptpl"), AptplFile(tmp_path / "lun.aptpl")
    version = first.replace(b"one", "")
    with pytest.raises(StaleVersion):
        second.replace(b"two", "")
    assert second.load() == (b"one", version)
    second.replace(b"two", version)
    with pytest.raises(StaleVersion):
        first.replace(b"", version)
    assert first.load()[0] == b"two"


PARTAKE = """
import sys
from tcmu_core.errors import StaleVersion
from tcmu_core.errors import StaleVersion
from tcmu_core.state import AptplFile

store, lost = AptplFile(sys.argv[1]), 0
for _ in range(int(sys.argv[2])):
    while True:
        data, version = store.load()
        try:
            store.replace(str(int(data or b"0") + 1).encode(), version)
            break
        except StaleVersion:
            lost += 1
"""


def test_no_change_of_two_processes_is_lost(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PARTAKE, str(tmp_path / "lun.aptpl"), "100"]
    both = [subprocess.Popen(command) for _ in range(2)]
    assert [one.wait(60) for one in both] == [0, 0]
    assert AptplFile(tmp_path / "lun.aptpl").load()[0] == b"200"


class Clock:
    """Calls what is due when it is told to."""

    def __init__(self) -> None:
        self.due: list[Callable[[], object]] = []

    def later(self, _seconds: float, fn: Callable[[], object]) -> Clock:
        self.due = [fn]
        return self

    def cancel(self) -> None:
        self.due = []

    def tick(self) -> None:
        for fn in list(self.due):
            fn()


def test_who_watches_hears_of_what_others_replace_and_of_nothing_else(tmp_path: Path) -> None:
    clock, heard = Clock(), list[int]()
    store, other = AptplFile(tmp_path / "lun.aptpl", clock.later), AptplFile(tmp_path / "lun.aptpl")
    stop = store.watch(lambda: heard.append(1))
    version = store.replace(b"ours", "")
    clock.tick()
    assert heard == []
    version = other.replace(b"theirs", version)
    clock.tick()
    assert heard == [1]
    clock.tick()
    assert heard == [1]
    other.replace(b"", version)
    clock.tick()
    assert heard == [1, 1]
    stop()
    assert clock.due == []


def test_a_failed_save_keeps_the_old_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = AptplFile(tmp_path / "lun.aptpl")
    version = store.replace(b"one", "")

    def fails(_fd: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(OSError, match="disk full"):
        store.replace(b"two", version)
    assert store.load() == (b"one", version)
    assert [path.name for path in tmp_path.iterdir()] == ["lun.aptpl"]


def test_no_room_is_said_of_the_file_that_had_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_fd: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    store = AptplFile(tmp_path / "lun.aptpl")
    with pytest.raises(OSError, match=re.escape(str(store.path))):
        store.replace(b"one", "")


def test_reservations_are_private(tmp_path: Path) -> None:
    store = AptplFile(tmp_path / "dir" / "lun.aptpl")
    store.replace(b"one", "")
    assert stat.S_IMODE(store.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(store.path.parent.stat().st_mode) == 0o700


def test_another_disk_of_the_same_name_has_another_file(tmp_path: Path) -> None:
    first = aptpl_file(tmp_path, "disk", "file", "/a", "iqn.x").path
    assert first != aptpl_file(tmp_path, "disk", "file", "/b", "iqn.x").path
    assert first == aptpl_file(tmp_path, "disk", "file", "/a", "iqn.x").path


def test_a_name_can_t_leave_the_directory(tmp_path: Path) -> None:
    assert aptpl_file(tmp_path, "../../etc/passwd", "file").path.parent == tmp_path


@pytest.mark.parametrize(
    ("uid", "home", "directory"),
    [
        (0, "/ignored", Path("/var/lib/tcmu")),
        (1000, "/state", Path("/state/tcmu")),
        (1000, "", Path("/home/u/.local/state/tcmu")),
        (1000, "relative", Path("/home/u/.local/state/tcmu")),
    ],
)
def test_the_default_directory_is_the_systems_or_the_users(
    monkeypatch: pytest.MonkeyPatch, uid: int, home: str, directory: Path
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    monkeypatch.setenv("HOME", "/home/u")
    monkeypatch.setenv("XDG_STATE_HOME", home)
    assert default_directory() == directory


def test_who_has_neither_home_nor_name_has_a_place_too(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOME", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "geteuid", lambda: 4242)
    monkeypatch.setattr(os, "getuid", lambda: 4242)
    assert default_directory() == Path("/run/user/4242/tcmu")


def test_a_file_that_was_removed_under_a_running_process_counts_as_it_was(tmp_path: Path) -> None:
    store = AptplFile(tmp_path / "disk.aptpl")
    version = store.replace(b"one", store.load()[1])
    store.path.unlink()
    assert store.load() == (b"one", version)
    store.replace(b"two", version)
    assert store.path.read_bytes() == b"two"
