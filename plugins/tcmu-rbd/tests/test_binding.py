"""Ceph's Python modules are found where the system has them, and nothing else from there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tcmu_core import ConfigError
from tcmu_rbd import binding


def test_only_the_two_modules_come_from_the_system() -> None:
    program = "import sys; before = list(sys.path); from tcmu_rbd import binding; found = binding.load()\n"
    program += "assert sys.path == before; print(found.rados.__file__, found.rbd.Image.__name__)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.endswith(" Image\n")


def test_they_are_loaded_once() -> None:
    assert binding.load() == binding.load()


def test_without_them_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(binding, "DIRECTORIES", (tmp_path,))
    with pytest.raises(ConfigError, match="apt-get install python3-rados python3-rbd"):
        binding._load("radosgarden")


def test_modules_for_another_python_are_told_from_missing_ones(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "radosgarden.cpython-27-x86_64-linux-gnu.so").touch()
    monkeypatch.setattr(binding, "DIRECTORIES", (tmp_path,))
    with pytest.raises(ConfigError, match="for another Python"):
        binding._load("radosgarden")


def test_a_module_that_cannot_be_loaded_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / ("radosgarden" + binding.EXTENSION_SUFFIXES[0])).write_bytes(b"no ELF file")
    monkeypatch.setattr(binding, "DIRECTORIES", (tmp_path,))
    with pytest.raises(ConfigError, match="can't be loaded"):
        binding._load("radosgarden")
    assert "radosgarden" not in sys.modules
