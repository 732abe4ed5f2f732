"""Watching files that are served: what happens to them is said once, and what their user does himself is not."""

import os
import tempfile
import threading
from pathlib import Path

import pytest

from tcmu_core.posix import Watch


@pytest.fixture
def path():
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        file = Path(name) / "disk"
        file.write_bytes(bytes(8192))
        yield file


@pytest.fixture
def watch(path):
    fd = os.open(path, os.O_RDWR)
    watch = Watch(fd, str(path))
    yield watch
    watch.close()
    os.close(fd)


def test_nothing_is_said_of_a_file_to_which_nothing_happens(path, watch, caplog):
    with path.open("ab") as file:
        file.write(b"x" * 4096)
    watch.look()
    assert not caplog.messages


def test_a_truncation_is_said_once_and_one_after_growth_again(path, watch, caplog):
    os.truncate(path, 4096)
    watch.look()
    watch.look()
    assert len(caplog.messages) == 1
    assert f"{path} was truncated while it is served, from 8192 to 4096 bytes" in caplog.text
    os.truncate(path, 16384)
    watch.look()
    os.truncate(path, 0)
    watch.look()
    assert "from 16384 to 0 bytes" in caplog.text


def test_what_its_user_cuts_off_himself_is_not_said(path, watch, caplog):
    watch.truncate(4096)
    assert path.stat().st_size == 4096
    watch.look()
    assert not caplog.messages


@pytest.mark.parametrize("what", ["deleted or moved", "replaced by another file"])
def test_a_name_that_leads_elsewhere_is_said_until_it_leads_back(path, watch, caplog, what):
    aside = path.with_name("aside")
    path.rename(aside)
    if "replaced" in what:
        path.write_bytes(b"another")
    watch.look()
    watch.look()
    assert len(caplog.messages) == 1
    assert f"{path} was {what} while it is served" in caplog.text
    aside.rename(path)
    watch.look()
    path.unlink()
    watch.look()
    assert len(caplog.messages) == 2


def test_a_thread_looks_as_long_as_there_is_something_to_look_at(path, caplog, monkeypatch):
    monkeypatch.setattr("tcmu_core.posix.watch.INTERVAL", 0.01)
    fd = os.open(path, os.O_RDONLY)
    looked = threading.Event()
    watch = Watch(fd, str(path))
    monkeypatch.setattr(watch, "look", looked.set)
    assert looked.wait(60)
    (thread,) = [thread for thread in threading.enumerate() if thread.name == "tcmu-watch"]
    watch.close()
    watch.close()
    os.close(fd)
    thread.join(60)
    assert not thread.is_alive()


def test_a_watch_that_was_closed_looks_no_more(path, watch, caplog):
    watch.close()
    path.unlink()
    watch.look()
    assert not caplog.messages
