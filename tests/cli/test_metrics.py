"""`tcmu metrics`: what Prometheus reads is what was counted, and what conf/ has for it names what there is."""

from __future__ import annotations

import json
import re
import signal
import socket
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics.exposition import generate_latest
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from tcmu_core.cli.exporter import DiskCollector, openmetrics
from tcmu_core.cli.families import gathered
from tcmu_core.host.messages import (
    DiskStatus,
    ErrorCount,
    InitiatorCounters,
    Missing,
    OperationCounters,
    Status,
    TimesTaken,
)
from tcmu_core.host.observer import Observer, Seen, Sight
from tcmu_core.testing.client import Client
from tests.cli.conftest import Call, Serving, Start

Serve = Callable[..., Serving]
NAME = "iqn.2026-01.test:one"
CONF = Path(__file__).parents[2] / "conf"
OPENMETRICS = "application/openmetrics-text; version=1.0.0"


def scrape(url: str) -> list[Sample]:
    request = urllib.request.Request(url, headers={"Accept": OPENMETRICS})
    with urllib.request.urlopen(request, timeout=60) as answer:
        assert answer.headers["Content-Type"].startswith("application/openmetrics-text")
        text = answer.read().decode()
    return [sample for family in text_string_to_metric_families(text) for sample in family.samples]


def test_what_is_scraped_is_what_was_sent(serve: Serve, command: Start, tmp_path: Path) -> None:
    begun = time.time()
    disk = serve("ram", "--size", "1M", "--name", "one")
    process = command("metrics", "--listen", "127.0.0.1:0", "--json", "--state-dir", tmp_path / "state")
    assert process.stdout is not None
    url = json.loads(process.stdout.readline())["url"]
    with Client(disk.uri, name=NAME) as client:
        for _ in range(9):
            client.command(b"\x28" + bytes(7) + b"\x08\0", read=4096)
        client.command(b"\xff" + bytes(15))
        samples = scrape(url)
    where = {"target": "iqn.2025-01.local.tcmu:one", "lun": "0", "disk": "one"}
    own = {**where, "initiator": NAME}
    found = {(one.name, *sorted(one.labels.items())): one.value for one in samples}

    def value(name: str, **labels: str) -> float | None:
        return found.get((name, *sorted(labels.items())))

    assert (value("tcmu_processes"), value("tcmu_processes_silent")) == (1, 0)
    assert value("tcmu_disk_up", **where) == 1
    assert value("tcmu_disk_size_bytes", **where) == 1 << 20
    assert value("tcmu_commands_total", **own, operation="read_10") == 9
    assert value("tcmu_transferred_bytes_total", **own, operation="read_10") == 9 * 4096
    created = value("tcmu_commands_created", **own, operation="read_10")
    assert created is not None
    assert begun <= created <= time.time()
    assert value("tcmu_command_errors_total", **own, operation="other", error="illegal_request") == 1
    assert value("tcmu_commands_in_flight", **own) == 0
    count = value("tcmu_command_sampled_seconds_count", **own, stage="storage")
    assert count is not None
    assert 0 < count <= 12
    assert value("tcmu_command_sampled_seconds_bucket", **own, stage="storage", le="+Inf") == count
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0


def test_what_is_written_here_is_what_the_library_would_write() -> None:
    """In OpenMetrics, with names that need escapes, errors, an empty histogram and a disk that is missing."""
    taken = TimesTaken((0, 3) + (0,) * 20 + (2,), 9_000_000)
    read = OperationCounters(0x28, "read_10", 5, 1 << 40, 1, (ErrorCount("busy", 2),), taken, taken)
    counters = InitiatorCounters('a\\"b\nc', (read,), 1.5)
    disk = DiskStatus(0, "ram", 'quoted "one"', "", 1 << 20, 512, False, True, False, initiators=("x", "y"))
    status = Status(1, (disk,), (Missing(1, "file/gone", "no such file"),), title="iqn.x")
    sight = Sight(0.0, (Seen(status, {0: (counters,)}), Seen(status, {0: ()})))
    registry = CollectorRegistry()
    registry.register(DiskCollector(SimpleNamespace(look=lambda: sight)))  # type: ignore[arg-type]
    ours, theirs = openmetrics(gathered(sight)).decode(), generate_latest(registry).decode()

    def parsed(text: str) -> set[tuple[str, str, str, frozenset[tuple[str, str]], float]]:
        return {
            (family.name, family.type, sample.name, frozenset(sample.labels.items()), sample.value)
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    assert parsed(ours) == parsed(theirs)
    assert ("tcmu_command_sampled_seconds", "histogram", "tcmu_command_sampled_seconds_bucket") in {
        one[:3] for one in parsed(ours)
    }


@pytest.mark.parametrize("name", ["tcmu.grafana.json", "tcmu.rules.yml"])
def test_what_conf_has_for_it_names_what_there_is(name: str, tmp_path: Path) -> None:
    known = set()
    for metric in DiskCollector(Observer(tmp_path)).describe():
        endings = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}[metric.type]
        known |= {metric.name + ending for ending in endings}
    text = (CONF / name).read_text()
    expressions: list[str] = []
    if name.endswith(".json"):
        dashboard = json.loads(text)
        expressions += [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
        expressions += [one["query"] for one in dashboard["templating"]["list"]]
    else:
        groups = yaml.safe_load(text)["groups"]
        expressions += [rule["expr"] for group in groups for rule in group["rules"]]
    used = {word for expression in expressions for word in re.findall(r"\btcmu_\w+", expression)}
    assert used
    assert used <= known


def test_an_address_that_is_none_is_wrong_usage(call: Call) -> None:
    said = call("metrics", "--listen", "9287")
    assert said.status == 2
    assert "is no HOST:PORT" in said.err


def test_an_address_that_can_not_be_had_is_named(call: Call, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = call("metrics", "--listen", f"127.0.0.1:{port}", "--state-dir", tmp_path)
    assert said.status == 1
    assert said.err == f"tcmu: can't listen at 127.0.0.1, port {port}: Address already in use\n"
