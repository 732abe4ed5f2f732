"""`tcmu metrics`: every disk of this host over HTTP: the counters for Prometheus, and a page for people."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import signal
import threading

from tcmu_core.cli.arguments import digits, state_dir
from tcmu_core.cli.output import Exit, Output
from tcmu_core.errors import TcmuError
from tcmu_core.host.observer import Observer

DESCRIPTION = """\
Serve, until interrupted, what is known of the disks that `tcmu status` shows:
at /metrics for Prometheus (commands, bytes and errors by disk, initiator and
operation, and samples of where commands spend their time), at / as a page that
shows them live. docs/admin.md lists the metrics and describes the page.

  tcmu metrics                              at http://127.0.0.1:9287/
  tcmu metrics --listen '[::1]:9100'
  tcmu metrics --log                        the page shows the end of the log too

Nothing can be changed there. Whoever reaches the address can read the names of
disks and initiators, and with --log the log.
"""
LISTEN = "127.0.0.1:9287"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `tcmu metrics`."""
    parser.add_argument(
        "--listen", metavar="HOST:PORT", type=_address, default=_address(LISTEN), help=f"where ({LISTEN})"
    )
    parser.add_argument("--log", action="store_true", help="show the end of the log on the page")
    parser.add_argument("--json", action="store_true", help="print the URLs as JSON")
    state_dir(parser)


def _address(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    try:
        bare.encode("idna")  # as it is looked up: what is no name is no answer of the resolver's
    except UnicodeError:
        bare = ""
    if not colon or not bare or "[" in bare or "]" in bare or not 0 <= digits(port) <= 0xFFFF:
        raise argparse.ArgumentTypeError(f"{text!r} is no HOST:PORT, such as {LISTEN}")
    return bare, digits(port)


def run(args: argparse.Namespace) -> int:
    """Run `tcmu metrics`."""
    try:
        client = importlib.import_module("prometheus_client")
    except ImportError:
        raise TcmuError(
            "`tcmu metrics` needs prometheus-client: `pip install 'tcmu-core[monitor]'` brings it"
        ) from None
    from tcmu_core.cli.exporter import DiskCollector, Metrics
    from tcmu_core.cli.snapshot import Snapshots
    from tcmu_core.cli.web import Server, Site

    registry = client.CollectorRegistry()
    host, port = args.listen
    over = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: over.set())
    with Server(host, port) as server, contextlib.closing(Observer(args.state_dir)) as observer:
        registry.register(DiskCollector(observer))
        snapshots = Snapshots(observer, log=args.log)
        metrics = Metrics(observer, client.make_wsgi_app(registry))
        server.set_app(Site(metrics, snapshots, loopback=server.loopback))
        thread = threading.Thread(target=server.serve_forever)
        page = f"http://{f'[{host}]' if ':' in host else host}:{server.server_port}/"
        thread.start()
        try:
            out = Output()
            if args.json:
                out.json({"url": f"{page}metrics", "page": page}, indent=None)
            else:
                out.line(f"{page}, and {page}metrics for Prometheus, until Ctrl-C")
            over.wait()
        finally:
            server.shutdown()
            thread.join()
    return Exit.OK
