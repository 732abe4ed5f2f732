"""The command lines of the README, on a cluster."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from tests.clusters.ceph import Ceph
from tests.clusters.serving import serving
from tests.release.lines import commands


def test_its_command_lines_work(ceph: Ceph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CEPH_CONF", str(ceph.conf))
    lines = [shlex.split(line, comments=True) for line in commands(Path(__file__).parents[1] / "README.md")]
    (create,) = (words for words in lines if words[0] == "rbd")
    ceph.rbd(*create[1:])
    ceph.rbd("snap", "create", "rbd/disk@monday")
    served = [words[2:] for words in lines if words[:2] == ["tcmu", "serve"]]
    assert len(served) == 2
    for words in served:
        with serving(tmp_path, *words) as disk:
            assert disk.uri.startswith("iscsi://")
    ceph.rbd("snap", "purge", "rbd/disk")
    ceph.rbd("rm", "rbd/disk")
