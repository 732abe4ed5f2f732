"""What stands on files does all that it does where the kernel lets it have no io_uring."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# What is tried, and what takes long and is about the order of writes, not about how they are made.
PLUGINS = {
    "tcmu-file": [],
    "tcmu-fbo": [],
    "tcmu-qcow": ["test_power_cut.py", "test_matrix.py"],
}
FORBIDDEN = [sys.executable, "-m", "tests.posix.without_uring", sys.executable]

READ = """
import tempfile
from concurrent.futures import ThreadPoolExecutor
from tcmu_core.loop import Loop
from tcmu_core.posix import engine
loop = Loop()
with ThreadPoolExecutor(1) as pool, tempfile.TemporaryFile() as file:
    file.write(b"x" * 10)
    file.flush()
    room = bytearray(10)
    one = engine(loop, pool.submit)
    one.read(file.fileno(), 0, [memoryview(room)]).result(60)
    print(type(one).__name__, room.decode())
"""


def test_where_it_is_forbidden_there_are_threads() -> None:
    done = subprocess.run([*FORBIDDEN, "-c", READ], cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert done.stdout == "ThreadEngine xxxxxxxxxx\n", done.stderr


@pytest.mark.soak
@pytest.mark.parametrize("plugin", PLUGINS)
def test_the_tests_of_a_handler_pass_on_threads(plugin: str, tmp_path: Path) -> None:
    words = ["-m", "pytest", "-q", "-p", "no:cacheprovider", f"--basetemp={tmp_path / 'own'}"]
    words += ["-m", "not soak and not vm and not uring", f"plugins/{plugin}/tests"]
    words += [f"--ignore=plugins/{plugin}/tests/{name}" for name in PLUGINS[plugin]]
    done = subprocess.run([*FORBIDDEN, *words], cwd=ROOT, capture_output=True, text=True, check=False, timeout=3000)
    assert not done.returncode, done.stdout[-20_000:] + done.stderr[-2000:]
    counts = re.search(r"^(\d+) passed(?:, \d+ deselected)? in", done.stdout, re.MULTILINE)
    assert counts is not None, done.stdout[-2000:]
    assert int(counts[1]) > 50
