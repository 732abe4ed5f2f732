"""State on disk: what is saved is there again, whole, whatever happens in between."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from tcmu_core.state import AptplFile, aptpl_file, default_directory


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    store = AptplFile(tmp_path / "dir" / "lun.aptpl")
    store.save(b"one")
    store.save(b"two")
    assert AptplFile(store.path).load() == b"two"


def test_nothing_saved_is_none(tmp_path: Path) -> None:
    assert AptplFile(tmp_path / "dir" / "lun.aptpl").load() is None


def test_saving_nothing_removes_the_file(tmp_path: Path) -> None:
    store = AptplFile(tmp_path / "lun.aptpl")
    store.save(b"one")
    store.save(b"")
    store.save(b"")
    assert not list(tmp_path.iterdir())


def test_a_failed_save_keeps_the_old_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = AptplFile(tmp_path / "lun.aptpl")
    store.save(b"one")

    def fails(_fd: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(OSError, match="disk full"):
        store.save(b"two")
    assert store.load() == b"one"
    assert [path.name for path in tmp_path.iterdir()] == ["lun.aptpl"]


def test_reservations_are_private(tmp_path: Path) -> None:
    store = AptplFile(tmp_path / "dir" / "lun.aptpl")
    store.save(b"one")
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
