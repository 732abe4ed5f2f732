"""The command lines of the README, on a volume."""

from __future__ import annotations

import shlex
from pathlib import Path

from tests.clusters.gluster import Gluster
from tests.clusters.serving import serving
from tests.release.lines import commands


def test_its_command_lines_work(gluster: Gluster, tmp_path: Path) -> None:
    lines = [shlex.split(line, comments=True) for line in commands(Path(__file__).parents[1] / "README.md")]
    (words,) = (words[2:] for words in lines if words[:2] == ["tcmu", "serve"])
    with serving(tmp_path, *(word.replace("server1", gluster.host) for word in words)) as disk:
        assert disk.uri.startswith("iscsi://")
    disk_img = gluster.brick / "disk.img"
    assert disk_img.stat().st_size == 10 << 30
    disk_img.unlink()
