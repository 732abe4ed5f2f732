"""A real browser without a screen: Chromium, driven by the WebDriver protocol (https://www.w3.org/TR/webdriver2/)."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
# It looks for nothing but what it is told to.
FLAGS += ["--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update"]
FLAGS += ["--disable-sync", "--hide-scrollbars", "--disable-lcd-text"]
TAB, ENTER, UP, DOWN = "\ue004", "\ue007", "\ue013", "\ue015"  # 17.4.2, keyboard actions
PATIENCE = 120.0


class Browser:
    """A session with a driver; what the driver refuses is an AssertionError with its words."""

    def __init__(self, port: int, profile: Path) -> None:
        self._port = port
        self._session = ""
        options = {"binary": "/usr/bin/chromium", "args": [*FLAGS, f"--user-data-dir={profile}"]}
        wanted = {"browserName": "chrome", "goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        self._session = "/session/" + self._ask("POST", "/session", capabilities={"alwaysMatch": wanted})["sessionId"]

    def _ask(self, method: str, path: str, **words: Any) -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=PATIENCE)
        with contextlib.closing(connection):
            connection.request(method, self._session + path, json.dumps(words) if method == "POST" else None)
            answer = connection.getresponse()
            value = json.load(answer)["value"]
        assert answer.status == 200, value
        return value

    def open(self, url: str) -> None:
        self._ask("POST", "/url", url=url)

    def run(self, script: str, *arguments: object) -> Any:
        """Return what a function of that body returns."""
        return self._ask("POST", "/execute/sync", script=script, args=arguments)

    def press(self, *keys: str) -> None:
        actions = [{"type": kind, "value": key} for key in keys for kind in ("keyDown", "keyUp")]
        self._ask("POST", "/actions", actions=[{"type": "key", "id": "keyboard", "actions": actions}])

    def prefer(self, scheme: str) -> None:
        """Have the person prefer `dark` or `light`."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self._ask("POST", "/goog/cdp/execute", cmd="Emulation.setEmulatedMedia", params={"features": features})

    def resize(self, width: int, height: int) -> None:
        """Have what the page is shown in so large, in CSS pixels."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self._ask("POST", "/goog/cdp/execute", cmd="Emulation.setDeviceMetricsOverride", params=size)

    def picture(self) -> bytes:
        """Return what is to be seen, as PNG."""
        return base64.b64decode(self._ask("GET", "/screenshot"))

    def complaints(self) -> list[str]:
        """Return what the console has said since it was asked last: errors of scripts, what a policy stopped."""
        return [entry["message"] for entry in self._ask("POST", "/se/log", type="browser")]

    def close(self) -> None:
        self._ask("DELETE", "")


@contextlib.contextmanager
def browser(profile: Path) -> Iterator[Browser]:
    """Start a driver and a browser of its own, which are gone afterwards."""
    command = ["/usr/bin/chromedriver", "--port=0"]
    pipe, home = subprocess.PIPE, {name: str(profile) for name in ("HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME")}
    with subprocess.Popen(
        command, stdout=pipe, stderr=subprocess.STDOUT, text=True, env={**os.environ, **home}
    ) as driver:
        try:
            assert driver.stdout is not None
            port = next(
                int(found[1]) for line in driver.stdout if (found := re.search(r"on port (\d+)\.$", line.rstrip()))
            )
            with contextlib.closing(Browser(port, profile)) as one:
                yield one
        finally:
            driver.terminate()
