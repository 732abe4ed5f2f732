"""`tcmu replay` and `tcmu crash` say how far they are, and leave nothing half made when they are stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tcmu_core.cli.tcmu import main
from tcmu_core.filters.record import Record as Recorder
from tcmu_core.recording import images
from tcmu_core.recording.crash import epochs
from tcmu_core.recording.file import Recording
from tests.filters.conftest import given, upon
from tests.waiting import wait_for

WRITES = 10
HANDLER = '''
import pathlib
import time

from tcmu_core import hookimpl

HERE = pathlib.Path(__file__).parent


class Slow:
    """The first write begins with the file `began`, and ends when there is `go`."""

    @hookimpl
    def open(self, device):
        pass

    @hookimpl
    def close(self):
        (HERE / "closed").touch()

    @hookimpl
    def read(self, buffers):
        pass

    @hookimpl
    def write(self, buffers):
        (HERE / "began").touch()
        while not (HERE / "go").exists():
            time.sleep(0.01)

    @hookimpl
    def flush(self):
        pass
'''
Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    path = tmp_path / "recording"
    with upon(given(Recorder(), file=path), size=1 << 17) as disk:
        for number in range(WRITES):
            disk.write(number * 512, b"%d" % number * 512)
            disk.flush()
    return path


@pytest.fixture
def command() -> Iterator[Start]:
    started: list[subprocess.Popen[str]] = []

    def start(*argv: object) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "tcmu_core.cli.tcmu", *map(str, argv)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        started.append(process)
        return process

    yield start
    for process in started:
        with process:
            process.kill()


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the log told of everything."""
    monkeypatch.setattr("tcmu_core.progress.FIRST_SECONDS", 0.0)
    monkeypatch.setattr("tcmu_core.progress.AGAIN_SECONDS", 0.0)


@pytest.mark.parametrize(
    ("words", "what"), [(["replay"], "replaying"), (["crash", "--check", "true", "--limit", "4"], "checking images")]
)
@pytest.mark.usefixtures("often")
def test_the_log_has_how_far_it_is_and_stdout_the_result_alone(
    recording: Path, capsys: pytest.CaptureFixture[str], words: list[str], what: str
) -> None:
    words = [words[0], str(recording), *(["ram"] if words[0] == "replay" else []), *words[1:]]
    assert main(words) == 0
    quiet = capsys.readouterr()
    assert quiet.err == ""
    assert main([*words, "-v"]) == 0
    said = capsys.readouterr()
    assert said.out == quiet.out
    told = [int(line.split()[-2]) for line in said.err.splitlines() if f"{what}, " in line]
    assert len(told) > WRITES // 2
    assert told == sorted(told)
    assert told[-1] >= 90
    assert "reading the recording, " in said.err
    assert main([*words, "--json"]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert json.loads(said.out)


def test_a_replay_that_is_stopped_ends_its_operation_and_closes_the_disk(
    recording: Path, command: Start, tmp_path: Path
) -> None:
    (tmp_path / "handler_slow.py").write_text(HANDLER)
    process = command("replay", recording, "slow", "--handler-path", tmp_path)
    wait_for((tmp_path / "began").exists)
    process.send_signal(signal.SIGINT)
    (tmp_path / "go").touch()
    out, err = process.communicate()
    assert (process.returncode, out) == (128 + signal.SIGINT, "")
    assert err == f"tcmu: stopped: 1 of {2 * WRITES} operations were done, and are on the disk\n"
    assert (tmp_path / "closed").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_crash_that_is_stopped_leaves_no_images(
    recording: Path, command: Start, tmp_path: Path, number: signal.Signals
) -> None:
    (tmp_path / "images").mkdir()
    check = f"touch {tmp_path}/began; exec sleep 1000"
    process = command("crash", recording, "--check", check, "--directory", tmp_path / "images")
    wait_for((tmp_path / "began").exists)
    assert os.listdir(tmp_path / "images")
    process.send_signal(number)
    assert process.communicate() == ("", "")
    assert process.returncode == 128 + number
    assert os.listdir(tmp_path / "images") == []


def test_an_image_that_is_kept_is_whole_or_not_there(
    recording: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = images.Image(tmp_path / "image", 1 << 17, 512)
    epoch = next(epochs(Recording(recording)))
    image.build(epoch, next(epoch.states(512, 1, 0)))
    image.keep(tmp_path / "whole")
    assert (tmp_path / "whole").read_bytes()[:512] == b"0" * 512

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(images, "_copy", interrupted)
    with pytest.raises(KeyboardInterrupt):
        image.keep(tmp_path / "half")
    image.close()
    assert not (tmp_path / "half").exists()
