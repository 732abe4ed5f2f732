"""The metrics as Prometheus reads them: OpenMetrics, or the text format of before for who does not ask for that."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from tcmu_core.cli.families import EDGES, FAMILIES, Buckets, Family, Value, gathered
from tcmu_core.host.observer import Observer

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

OPENMETRICS = "application/openmetrics-text"
SERIES = 1 << 14  # whose labels are remembered as text: that takes some 15 MB


class DiskCollector(Collector):
    """Looks each time it is asked."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer

    def describe(self) -> list[Metric]:
        """Return the metrics without a value."""
        return [_metric(family, ()) for family in FAMILIES]

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics."""
        for family, samples in gathered(self._observer.look()).items():
            yield _metric(family, samples)


def _metric(family: Family, samples: Iterable[Value | Buckets]) -> Metric:
    if family.kind == "histogram":
        histogram = HistogramMetricFamily(family.name, family.help, labels=family.labels)
        for sample in samples:
            assert isinstance(sample, Buckets)
            histogram.add_metric(sample.labels, list(zip(EDGES, sample.counts, strict=True)), sample.sum)
        return histogram
    counter = CounterMetricFamily(family.name, family.help, labels=family.labels)
    gauge = GaugeMetricFamily(family.name, family.help, labels=family.labels, unit=family.unit)
    for sample in samples:
        assert isinstance(sample, Value)
        if family.kind == "counter":
            counter.add_metric(sample.labels, sample.value, created=sample.since)
        else:
            gauge.add_metric(sample.labels, sample.value)
    return counter if family.kind == "counter" else gauge


class Metrics:
    """The WSGI application: OpenMetrics for who accepts that, and what `other` answers for anybody else."""

    def __init__(self, observer: Observer, other: WSGIApplication) -> None:
        self._observer = observer
        self._other = other

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer a request."""
        if OPENMETRICS not in environ.get("HTTP_ACCEPT", ""):
            return self._other(environ, start_response)
        start_response("200 OK", [("Content-Type", f"{OPENMETRICS}; version=1.0.0; charset=utf-8")])
        return [openmetrics(gathered(self._observer.look()))]


# A scrape is thousands of lines, and one comes every few seconds: they are written here, without an object for each.


def openmetrics(found: dict[Family, list[Value | Buckets]]) -> bytes:
    """Return the samples as OpenMetrics 1.0.0 has them (https://prometheus.io/docs/specs/om/open_metrics_spec/)."""
    lines: list[str] = []
    for family, samples in found.items():
        name = family.name
        lines += [f"# HELP {name} {_escaped(family.help)}", f"# TYPE {name} {family.kind}"]
        if family.unit:
            lines.append(f"# UNIT {name} {family.unit}")
        for sample in samples:
            form = _form(family, sample.labels)
            if isinstance(sample, Buckets):
                lines.append(form % (*sample.counts, sample.counts[-1], sample.sum))
            else:
                lines.append(form % (sample.value if family.kind == "gauge" else (sample.value, sample.since)))
    return "\n".join([*lines, "# EOF", ""]).encode()


@functools.lru_cache(SERIES)
def _form(family: Family, values: tuple[str, ...]) -> str:
    """Return the lines of a sample with these labels, in which its numbers are missing: they are the same each time."""
    name, labels = family.name, _labels(family.labels, values).replace("%", "%%")
    if family.kind == "histogram":
        lines = [f'{name}_bucket{{{labels},le="{edge}"}} %d' for edge in EDGES]
        lines += [f"{name}_count{{{labels}}} %d", f"{name}_sum{{{labels}}} %r"]
    elif family.kind == "counter":
        lines = [f"{name}_total{{{labels}}} %d", f"{name}_created{{{labels}}} %r"]
    else:
        lines = [f"{name}{{{labels}}} %d"]
    return "\n".join(lines)


def _labels(names: tuple[str, ...], values: tuple[str, ...]) -> str:
    return ",".join(f'{name}="{_escaped(value)}"' for name, value in zip(names, values, strict=True))


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')
