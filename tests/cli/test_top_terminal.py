"""`tcmu top` as a person uses it: in a terminal of tmux, which is made smaller, and whose keys are pressed.

With TCMU_PICTURES=docs in the environment the picture of the guide, docs/top.png, is made anew.
"""

from __future__ import annotations

import html
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cli.browser import browser
from tests.cli.conftest import Serving
from tests.waiting import wait_for

Serve = Callable[..., Serving]
PICTURE = "top.png"
STYLE = "body { margin: 0; background: #1e1e1e; color: #e6e6e6 } pre { margin: 12px; font: 14px/1.35 monospace }"


class Tmux:
    """A tmux server of its own, with one window."""

    def __init__(self, socket: Path) -> None:
        self._command = ["tmux", "-S", str(socket), "-f", "/dev/null"]

    def __call__(self, *words: str) -> str:
        done = subprocess.run([*self._command, *words], capture_output=True, text=True, check=False)
        return done.stdout

    def start(self, command: list[str], width: int, height: int) -> None:
        """Run a command in a window of that size."""
        self("new-session", "-d", "-x", str(width), "-y", str(height), shlex.join(command))
        self("set-option", "-g", "status", "off")
        self("resize-window", "-x", str(width), "-y", str(height))

    def lines(self) -> list[str]:
        """Return what is to be seen, nothing when the command has ended."""
        return self("capture-pane", "-p").rstrip("\n").split("\n")


@pytest.fixture
def tmux(tmp_path: Path) -> Iterator[Tmux]:
    made = Tmux(tmp_path / "tmux")
    yield made
    made("kill-server")


def complete(lines: list[str]) -> bool:
    """Whether there is a row for each of three disks, with all times."""
    return sum(line.count(" / ") == 3 for line in lines) == 3


def shot(text: list[str], profile: Path) -> bytes:
    """Return a picture of a terminal with this text, as a browser draws it."""
    first, *others = map(html.escape, text)
    page = profile / "top.html"
    page.write_text(f"<meta charset=utf-8><style>{STYLE}</style><pre><b>{first}</b>\n{chr(10).join(others)}</pre>")
    with browser(profile / "browser") as chromium:
        chromium.open(page.as_uri())
        chromium.resize(1210, 24 + 19 * len(text))
        return chromium.picture()


def test_it_is_read_made_smaller_and_left_in_a_terminal(serve: Serve, tmux: Tmux, tmp_path: Path) -> None:
    """Three disks are read, one of which is slow."""
    disks = [
        serve("ram", "--size", "64M", "--name", name, "--target", f"iqn.2026-01.test:{name}", *options)
        for name, *options in (
            ("fast",),
            ("slow", "--filter", "delay;read=5ms"),
            ("limited", "--filter", "rate;iops=500"),
        )
    ]
    load = ["iscsi-perf", "-m", "8", "-b", "8", "-r", "-i"]
    clients = [
        subprocess.Popen([*load, f"iqn.1993-08.org.debian:01:{name}", disk.uri], stdout=subprocess.DEVNULL)
        for name, disk in zip(("alpha", "beta", "gamma"), disks, strict=True)
    ]
    top = [sys.executable, "-m", "tcmu_core.cli.tcmu", "top", "--interval", "1"]
    top += ["--state-dir", str(tmp_path / "state")]
    path = os.pathsep.join(sys.path)
    try:
        tmux.start(["env", "-u", "COLUMNS", "-u", "LINES", f"PYTHONPATH={path}", *top], 140, 12)
        seen = wait_for(lambda: (now := tmux.lines()) and complete(now) and now, why=tmux.lines)
        titles = "disk initiator IOPS MB/s depth errors/s queue p50/p99 storage p50/p99 send p50/p99"
        assert " ".join(seen[0].split()) == titles
        assert {line.split()[0] for line in seen if " / " in line} == {"fast", "slow", "limited"}
        assert any(line.startswith("bottleneck: ") for line in seen)

        picture = shot(seen, tmp_path)
        assert picture.startswith(b"\x89PNG")
        (Path(os.environ.get("TCMU_PICTURES", tmp_path)) / PICTURE).write_bytes(picture)

        tmux("resize-window", "-x", "80", "-y", "7")
        wait_for(lambda: "errors/s" not in tmux.lines()[0] and "1 more" in tmux.lines(), why=tmux.lines)
        assert all(len(line) <= 80 for line in tmux.lines())
        tmux("send-keys", "q")
        wait_for(lambda: not tmux("list-sessions"))
    finally:
        for client in clients:
            client.kill()
            client.wait()
