"""`tcmu doctor` on a real kernel: what it says of devices that are served, that nobody serves, and after its cure."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest

from tests.kernel.host import Host

pytestmark = [pytest.mark.vm, pytest.mark.soak]

DOCTOR = [sys.executable, "-m", "tcmu_core.cli.tcmu", "doctor", "--json"]


def looked_at(host: Host) -> dict[str, Any]:
    return {one["looked_at"]: one for one in json.loads(host.run(DOCTOR).stdout)}


def test_a_device_that_nobody_serves_is_blocked_until_the_cure_is_done(host: Host) -> None:
    assert host.create("sick", 8 << 20, "ram/").returncode == 0
    worker = host.worker("sick")
    assert host.runner is not None
    host.runner.kill()
    host.runner.wait(60)
    host.runner = None
    host.sh(f"kill -9 {worker}; while [ -e /proc/{worker}/exe ]; do sleep 0.1; done", timeout=60)
    found = looked_at(host)
    assert found["device ram/sick"]["severity"] == "error"
    assert "blocked" in found["device ram/sick"]["text"]
    assert found["device ram/sick"]["cure"].startswith("tcmu-runner ")
    host.start()
    found = looked_at(host)
    for what in ("module target_core_user", "configfs", "netlink TCM-USER", "device ram/sick"):
        assert found[what]["severity"] == "ok", found[what]
