"""The page of `tcmu metrics` in a real browser: what a person sees there, and does with a keyboard.

With TCMU_PICTURES=docs in the environment the picture of the guide, docs/page.png, is made anew.
"""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.browser import DOWN, ENTER, TAB, UP, Browser, browser
from tests.cli.conftest import Serving, Site
from tests.iscsi.initiator import Initiator
from tests.iscsi.served import Client
from tests.waiting import wait_for

Serve = Callable[..., Serving]
Start = Callable[..., Site]
TARGET = "iqn.2026-01.test:"
NAME = "iqn.2026-01.test:one"
HOSTILE = "<img src=x onerror=\"document.title='gotcha'\"><script>gotcha()</script>&amp;"
REVERSED = "a\u202egnp"  # a path may hold what turns the rest of a line round
PICTURE = "page.png"
RESERVE_6 = bytes([0x16, 0, 0, 0, 0, 0])
LARGEST = 150_000  # bytes
BRIGHTNESS = """
    const style = getComputedStyle(document.body);
    return [style.backgroundColor, style.color].map(colour => Number(colour.match(/\\d+/)[0]));
"""  # of the back, and of the text: 0 to 255
FOCUSED = """
    const one = document.activeElement;
    return one.id || one.getAttribute('aria-labelledby') || one.textContent;
"""


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("profile")) as one:
        yield one


@pytest.fixture
def chromium(running: Browser) -> Browser:
    running.open("about:blank")
    running.complaints()
    running.prefer("light")
    running.resize(1280, 860)
    return running


@pytest.fixture
def logs() -> Iterator[Path]:
    """Yield a directory whose name is short enough for a picture."""
    with tempfile.TemporaryDirectory(prefix="tcmu-") as name:
        yield Path(name)


def see(chromium: Browser, script: str, *arguments: object) -> Any:
    """Return the first value of a script that is true."""
    return wait_for(
        lambda: chromium.run(script, *arguments), every=0.2, why=lambda: chromium.run("return document.body.innerText")
    )


def test_names_of_strangers_are_text(serve: Serve, site: Start, chromium: Browser, tmp_path: Path) -> None:
    disk = serve("file", tmp_path / REVERSED, "--size", "1M", "--name", HOSTILE, "--target", TARGET + "d")
    with Client(disk.said["portal"], Initiator("<b>bold</b>", disk.said["target"])) as client:
        client.login({})
        client.ask(client.initiator.command(bytes(6)))
        chromium.open(site().url)
        see(chromium, "return document.querySelector('#sessions tr') && document.querySelector('#rows tr')")
        found = chromium.run("return [...document.querySelectorAll('bdi')].map(one => one.textContent)")
    assert found.count(HOSTILE) >= 3  # in the tree, of a row, of a session
    text = chromium.run("return document.body.textContent")
    assert REVERSED.replace("\u202e", "\\u{202e}") in text
    assert "\u202e" not in text
    assert "<b>bold</b>" in found
    counts = chromium.run("return ['img', 'b', 'script'].map(tag => document.querySelectorAll(tag).length)")
    assert counts == [0, 0, 1]
    assert chromium.run("return document.title") == "tcmu: 1 disk"
    for width in (1280, 800, 400):
        chromium.resize(width, 1000)
        assert chromium.run("return document.documentElement.scrollWidth") <= width
    assert chromium.complaints() == []


def test_the_browser_is_told_to_run_and_fetch_nothing_else(site: Start, chromium: Browser) -> None:
    chromium.open(site().url)
    see(chromium, "return document.title !== 'tcmu'")
    refused = chromium.run("try { document.body.innerHTML = '<p>'; } catch (problem) { return problem.name; }")
    assert refused == "TypeError"
    chromium.run("const one = document.createElement('img'); one.src = '/x.png'; document.body.append(one);")
    chromium.run("const one = document.createElement('style'); one.textContent = '*{}'; document.body.append(one);")
    said = wait_for(lambda: (now := " ".join(chromium.complaints())) and now)
    assert "Content Security Policy" in said


def test_all_of_it_is_reached_by_keyboard_and_the_focus_stays(serve: Serve, site: Start, chromium: Browser) -> None:
    for name in ("first", "second"):
        serve("ram", "--size", "1M", "--name", name, "--target", TARGET + name)
    page = site()
    chromium.open(page.url)
    see(chromium, "return document.querySelectorAll('#tree button').length === 2")
    seen = []
    for _ in range(8):
        chromium.press(TAB)
        seen.append(chromium.run(FOCUSED))
        style = "return getComputedStyle(document.activeElement).outlineStyle"
        assert chromium.run(style) == "solid", seen
    assert seen == ["To the rates", "window", "pause", "all", "first", "second", "now", "who"]

    chromium.run("document.getElementById('all').focus()")
    chromium.press(DOWN, DOWN, ENTER)
    pressed = "return [...document.querySelectorAll('nav button[aria-pressed=true]')].map(one => one.textContent)"
    assert chromium.run(pressed) == ["second"]
    shown = "return document.getElementById('time').textContent"
    before = chromium.run(shown)
    see(chromium, "return document.getElementById('time').textContent !== arguments[0]", before)
    assert chromium.run(FOCUSED) == "second"

    chromium.run("document.getElementById('pause').focus()")
    chromium.press(ENTER)
    assert chromium.run("return document.getElementById('state').textContent") == "paused"
    chromium.press(ENTER)
    see(chromium, "return document.getElementById('state').textContent === 'live'")
    assert chromium.complaints() == []


def test_rates_move_while_somebody_reads_in_the_light_and_in_the_dark(
    serve: Serve, site: Start, chromium: Browser, tmp_path: Path, logs: Path
) -> None:
    with (logs / "disk1.log").open("w") as log:
        disk = serve("ram", "--size", "64M", "--name", "disk1", "--target", TARGET + "disk1", "-v", stderr=log)
    other = serve("ram", "--size", "1G", "--name", "archive", "--target", TARGET + "archive", "--filter", "readonly")
    chromium.open(site("--log").url)
    see(chromium, "return document.getElementById('nobody').textContent")
    chromium.run("document.getElementById('window').focus()")
    chromium.press(UP)
    numbers = "return [...document.querySelectorAll('#rows tr')].map(row => parseFloat(row.cells[2].textContent))"
    command = ["qemu-img", "bench", "-f", "raw", "-s", "4096", "-d", "4", "-c", "10000000", disk.uri]
    with (
        Client(other.said["portal"], Initiator(NAME, other.said["target"])) as client,
        subprocess.Popen(command, stdout=subprocess.DEVNULL) as bench,
    ):
        try:
            client.login({"HeaderDigest": "CRC32C"})
            for _ in range(2):  # the first command hears of a unit attention
                client.ask(client.initiator.command(RESERVE_6))
            line = "return document.querySelector('#iops .s0')?.getAttribute('d').split('L').length"
            points = 24 if "TCMU_PICTURES" in os.environ else 5
            wait_for(lambda: (chromium.run(line) or 0) >= points, every=0.2)
            assert (
                chromium.run("return document.querySelector('#iops text:nth-of-type(4)').textContent") == "\u22121 min"
            )
            assert any(rate > 0 for rate in chromium.run(numbers))
            assert chromium.run("return document.querySelectorAll('#storage rect').length") > 0
            wanted = (NAME, "archive", "header", "LUN 0: RESERVE(6)")
            row = "return [...document.querySelectorAll('#sessions tr')].map(row => row.innerText)"
            assert any(all(word in text for word in wanted) for text in chromium.run(row))
            assert "logged in to" in chromium.run("return document.querySelector('#logs pre').textContent")
            assert "a pipe takes it" in chromium.run("return document.getElementById('reasons').textContent")
            pictures = {}
            colours = {}
            for scheme in ("light", "dark"):
                chromium.prefer(scheme)
                pictures[scheme] = chromium.picture()
                colours[scheme] = chromium.run(BRIGHTNESS)
        finally:
            bench.kill()
    (light_back, light_text), (dark_back, dark_text) = colours["light"], colours["dark"]
    assert light_back - light_text > 150
    assert dark_text - dark_back > 150
    goal = Path(os.environ.get("TCMU_PICTURES", tmp_path))
    for place, name, picture in ((goal, PICTURE, pictures["light"]), (tmp_path, "dark.png", pictures["dark"])):
        assert picture.startswith(b"\x89PNG")
        assert len(picture) < LARGEST
        (place / name).write_bytes(picture)
    wait_for(lambda: all(rate == 0 for rate in chromium.run(numbers)), every=0.2)
    assert chromium.complaints() == []


def test_that_nobody_answers_is_said(site: Start, chromium: Browser) -> None:
    page = site()
    chromium.open(page.url)
    state = "return document.getElementById('state').textContent"
    assert (
        wait_for(lambda: (text := chromium.run(state)) != "looking …" and text) == "no process of yours serves a disk"
    )
    page.process.send_signal(signal.SIGTERM)
    assert page.process.wait(60) == 0
    see(chromium, f"{state}.startsWith('no answer: ')")
    site(listen=f"127.0.0.1:{page.port}")
    see(chromium, f"{state}.startsWith('no process')")
