"""What the page of `tcmu metrics` is told: the status, counters, rates, sessions and logs of this host as JSON."""

from __future__ import annotations

import dataclasses
import json
import threading
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tcmu_core.cli import logtail, rates, sessions
from tcmu_core.cli.status import as_json
from tcmu_core.host import control
from tcmu_core.host.messages import InitiatorCounters

FRESH = 1.0  # seconds: however many pages are open, the hosts are not asked more often
STALE = 60.0  # seconds: what happened since an older look is no rate of now
ROOM = 512 << 10  # bytes of JSON for each kind of thing: what has no room is left out, and counted
NOT_ASKED = "The log is not shown: whoever reaches this page could read it. `tcmu metrics --log` shows it."


class _Rooms:
    """Takes values of each kind as long as there is room for them."""

    def __init__(self) -> None:
        self._taken: Counter[str] = Counter()
        self.left_out: Counter[str] = Counter()

    def take(self, kind: str, values: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return those of the values that have room."""
        kept = []
        for value in values:
            size = len(json.dumps(value))
            if self._taken[kind] + size > ROOM:
                self.left_out[kind] += 1
            else:
                self._taken[kind] += size
                kept.append(value)
        return kept


class Snapshots:
    """Looks at the hosts that are found in `directory` when it is asked, and not too often; for several threads."""

    def __init__(self, directory: Path, *, log: bool) -> None:
        self._directory = directory
        self._log = log
        self._lock = threading.Lock()
        self._before: rates.Look | None = None
        self._latest = b""

    def latest(self) -> bytes:
        """Return what is so now, as JSON; docs/admin.md describes it."""
        with self._lock:
            if self._before is None or time.monotonic() - self._before.at >= FRESH:
                self._latest = json.dumps(self._look()).encode()
            return self._latest

    def _look(self) -> dict[str, Any]:
        rooms = _Rooms()
        hosts: list[dict[str, Any]] = []
        logins: list[dict[str, Any]] = []
        counters: dict[rates.Key, InitiatorCounters] = {}
        pids = []
        for path, status in control.hosts(self._directory):
            pids.append(status.pid)
            counted = {disk.lun: control.counted(path, disk.lun) for disk in status.disks}
            for disk in status.disks:
                counters |= rates.keyed(status, disk, counted[disk.lun])
            hosts += _host(rooms, as_json(status, counted))
            found = ({"pid": status.pid, **dataclasses.asdict(one)} for one in sessions.of(path))
            logins += rooms.take("sessions", found)
        now = rates.Look(time.monotonic(), counters)
        before, self._before = self._before, now
        seconds = None if before is None or now.at - before.at > STALE else now.at - before.at
        rows = rates.rows(before or now, now)
        each = (
            {"pid": pid, "lun": lun, **dataclasses.asdict(row)}
            for (pid, lun, _, _), row in zip(counters, rows, strict=True)
        )
        tails, reasons = logtail.tails(pids) if self._log else ([], [NOT_ASKED])
        return {
            "at": time.time(),
            "seconds": seconds,
            "hosts": hosts,
            "rows": rooms.take("rows", each) if seconds is not None else [],
            "bottleneck": rates.bottleneck(rows) if seconds is not None else "",
            "sessions": logins,
            "log": {
                "tails": [dataclasses.asdict(tail) for tail in tails],
                "reasons": reasons[: logtail.LINES],
            },
            "left_out": dict(rooms.left_out),
        }


def _host(rooms: _Rooms, told: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what is told of a host, as far as there is room."""
    disks, missing = told.pop("disks"), told.pop("missing")
    for host in rooms.take("hosts", [told]):
        counters = {disk["lun"]: disk.pop("counters") for disk in disks}
        host["disks"] = rooms.take("disks", disks)
        for disk in host["disks"]:
            disk["counters"] = rooms.take("counters", counters[disk["lun"]])
        host["missing"] = rooms.take("missing", missing)
        return [host]
    return []
