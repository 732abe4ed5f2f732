"""The metrics: what the hosts count, in the words of Prometheus.

The labels are bounded: disks are what is configured, a host tells 16 initiators of a disk apart and calls the rest
`other`, and so it does with operation codes that have no name.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from tcmu_core.cli.rates import STAGES, total
from tcmu_core.host import control
from tcmu_core.host.messages import DiskStatus, InitiatorCounters, TimesTaken

DISK = ["target", "lun", "disk"]
BOUNDS = range(10, 38, 2)  # powers of two of a nanosecond: from 1 µs to 69 s


class DiskCollector(Collector):
    """Asks the hosts that are found in `directory`, each time it is asked."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def describe(self) -> list[Metric]:
        """Return the metrics without a value."""
        return list(_Families().all())

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics."""
        families = _Families()
        seen: set[tuple[str, ...]] = set()
        for path, status in control.hosts(self._directory):
            families.processes += 1
            for disk in status.disks:
                labels = [status.title, str(disk.lun), disk.name]
                if tuple(labels) not in seen:  # two processes that serve the same would make the whole answer invalid
                    seen.add(tuple(labels))
                    families.add(labels, disk, control.counted(path, disk.lun))
            for missing in status.missing:
                labels = [status.title, str(missing.lun), missing.title.partition("/")[2]]
                if tuple(labels) not in seen:
                    seen.add(tuple(labels))
                    families.up.add_metric(labels, 0)
        yield from families.all()


class _Families:
    """One metric of each kind, to be filled."""

    def __init__(self) -> None:
        self.processes = 0
        self.up = GaugeMetricFamily("tcmu_disk_up", "Whether the disk is served: 0 where it is missing.", labels=DISK)
        self.size = GaugeMetricFamily("tcmu_disk_size", "Size of the disk.", labels=DISK, unit="bytes")
        self.logged_in = GaugeMetricFamily("tcmu_disk_nexuses", "Initiator ports that are logged in.", labels=DISK)
        each = [*DISK, "initiator"]
        self.commands = CounterMetricFamily("tcmu_commands", "Commands that have ended.", labels=[*each, "operation"])
        self.moved = CounterMetricFamily(
            "tcmu_transferred_bytes", "Data to the disk, or from it.", labels=[*each, "operation"]
        )
        self.errors = CounterMetricFamily(
            "tcmu_command_errors",
            "Commands that did not end with GOOD, by sense key or status.",
            labels=[*each, "operation", "error"],
        )
        self.in_flight = GaugeMetricFamily("tcmu_commands_in_flight", "Commands that have not ended.", labels=each)
        self.times = HistogramMetricFamily(
            "tcmu_command_sampled_seconds",
            "Where commands spend their time, of samples: queue, storage, send.",
            labels=[*each, "stage"],
        )

    def all(self) -> Iterator[Metric]:
        """Yield all of them."""
        yield GaugeMetricFamily("tcmu_processes", "Processes that serve disks.", value=self.processes)
        yield from (self.up, self.size, self.logged_in, self.commands, self.moved, self.errors, self.in_flight)
        yield self.times

    def add(self, labels: list[str], disk: DiskStatus, counters: tuple[InitiatorCounters, ...]) -> None:
        """Take the values of a disk."""
        self.up.add_metric(labels, 1)
        self.size.add_metric(labels, disk.size)
        self.logged_in.add_metric(labels, len(disk.initiators))
        for one in counters:
            own = [*labels, one.initiator]
            self.in_flight.add_metric(own, sum(operation.in_flight for operation in one.operations))
            for operation in one.operations:
                self.commands.add_metric([*own, operation.name], operation.commands, created=one.since)
                self.moved.add_metric([*own, operation.name], operation.bytes, created=one.since)
                for error in operation.errors:
                    self.errors.add_metric([*own, operation.name, error.kind], error.count, created=one.since)
            for stage in STAGES:
                taken = total(getattr(operation, stage) for operation in one.operations)
                self.times.add_metric([*own, stage], _buckets(taken), taken.total / 1e9)


def _buckets(taken: TimesTaken) -> list[tuple[str, float]]:
    """Return the counts up to each bound, in seconds."""
    buckets = [(repr(2**power / 1e9), float(sum(taken.counts[: power + 1]))) for power in BOUNDS]
    return [*buckets, ("+Inf", float(sum(taken.counts)))]
