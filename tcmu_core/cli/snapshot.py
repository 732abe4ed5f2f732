"""What the page of `tcmu metrics` is told: the status, counters, rates, sessions and logs of this host as JSON."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Iterable
from typing import Any

from tcmu_core.cli import logtail, rates
from tcmu_core.cli.status import as_json
from tcmu_core.codec import plain
from tcmu_core.host import control
from tcmu_core.host.observer import Observer

FRESH = 1.0  # seconds: however many pages are open, the hosts are not asked more often
SILENT = 64  # processes that do not answer: more are not named
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
    """Shows what an observer sees when it is asked, and not too often; for several threads."""

    def __init__(self, observer: Observer, *, log: bool) -> None:
        self._observer = observer
        self._log = log
        self._lock = threading.Lock()
        self._before: rates.Look | None = None
        self._latest = b""

    def latest(self) -> bytes:
        """Return what is so now, as JSON; docs/admin.md describes it."""
        with self._lock:
            if self._before is None or time.monotonic() - self._before.at >= FRESH:
                self._latest = self._look().encode()
            return self._latest

    def _look(self) -> str:
        sight = self._observer.look(FRESH)
        now = rates.look(sight)
        before, self._before = self._before, now
        seconds = None if before is None or now.at - before.at > STALE else now.at - before.at
        rows = rates.rows(before or now, now)
        each = zip(now.counters, rows, strict=True) if seconds is not None else ()
        tails, reasons = logtail.tails([seen.status.pid for seen in sight.hosts]) if self._log else ([], [NOT_ASKED])
        told = {
            "at": time.time(),
            "seconds": seconds,
            "hosts": [as_json(seen.status, seen.counters) for seen in sight.hosts],
            "rows": [{"pid": pid, "lun": lun, **plain(row)} for (pid, lun, _, _), row in each],
            "bottleneck": rates.bottleneck(rows) if seconds is not None else "",
            "silent": [control.silence(pid) for pid in sight.silent],
            "sessions": [{"pid": seen.status.pid, **plain(one)} for seen in sight.hosts for one in seen.sessions],
            "log": {
                "tails": [plain(tail) for tail in tails],
                "reasons": reasons[: logtail.LINES],
            },
            "left_out": {},
        }
        text = json.dumps(told)
        return text if len(text) <= ROOM else json.dumps(_bounded(told))


def _bounded(told: dict[str, Any]) -> dict[str, Any]:
    """Return what is told, as far as there is room."""
    rooms = _Rooms()
    bounded = {
        **told,
        "hosts": [kept for host in told["hosts"] for kept in _host(rooms, host)],
        "rows": rooms.take("rows", told["rows"]),
        "silent": told["silent"][:SILENT],
        "sessions": rooms.take("sessions", told["sessions"]),
    }
    return {**bounded, "left_out": dict(rooms.left_out)}


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
