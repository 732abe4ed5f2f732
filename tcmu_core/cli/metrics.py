"""`tcmu metrics`: the counters of every disk of this host for Prometheus, as OpenMetrics over HTTP."""

from __future__ import annotations

import argparse
import importlib
import signal
import threading
from pathlib import Path

from tcmu_core.cli.output import Exit, Output
from tcmu_core.errors import TcmuError
from tcmu_core.state import default_directory

DESCRIPTION = """\
Serve the counters of the disks that `tcmu status` shows to Prometheus, until
interrupted: commands, bytes and errors by disk, initiator and operation, and
samples of where commands spend their time. docs/admin.md lists the metrics.

  tcmu metrics                              at http://127.0.0.1:9287/metrics
  tcmu metrics --listen '[::1]:9100'

Whoever reaches the address can read the names of disks and initiators.
"""
LISTEN = "127.0.0.1:9287"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `tcmu metrics`."""
    parser.add_argument(
        "--listen", metavar="HOST:PORT", type=_address, default=_address(LISTEN), help=f"where ({LISTEN})"
    )
    parser.add_argument("--json", action="store_true", help="print the URL as JSON")
    parser.add_argument(
        "--state-dir",
        metavar="DIR",
        type=Path,
        default=default_directory(),
        help="where `tcmu serve` keeps its state (%(default)s)",
    )


def _address(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isdecimal() or int(port) > 0xFFFF:
        raise argparse.ArgumentTypeError(f"{text!r} is no HOST:PORT, such as {LISTEN}")
    return host.strip("[]"), int(port)


def run(args: argparse.Namespace) -> int:
    """Run `tcmu metrics`."""
    try:
        client = importlib.import_module("prometheus_client")
    except ImportError:
        raise TcmuError(
            "`tcmu metrics` needs prometheus-client: `pip install 'tcmu-core[monitor]'` brings it"
        ) from None
    from tcmu_core.cli.exporter import DiskCollector

    registry = client.CollectorRegistry()
    registry.register(DiskCollector(args.state_dir))
    host, port = args.listen
    over = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: over.set())
    server, thread = client.start_http_server(port, host, registry)
    url = f"http://{f'[{host}]' if ':' in host else host}:{server.server_port}/metrics"
    out = Output()
    if args.json:
        out.json({"url": url}, indent=None)
    else:
        out.line(f"{url}, until Ctrl-C")
    over.wait()
    server.shutdown()
    server.server_close()
    thread.join()
    return Exit.OK
