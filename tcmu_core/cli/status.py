"""`tcmu status`: every disk that is served here, by whichever process and way in, and what is wrong with it."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from tcmu_core.cli.output import Exit, Output, human
from tcmu_core.host import control
from tcmu_core.host.control import ControlError
from tcmu_core.host.messages import DiskStatus, Missing, Status
from tcmu_core.state import default_directory

DESCRIPTION = """\
Show the disks that are served on this host by processes of yours: those of
`tcmu serve`, of tcmu-runner's targets, and the kernel's devices; a root's
tcmu-runner is shown to root.

  tcmu status             all of them
  tcmu status disk1       one of them; exit status 1 when it is not served

A disk that could not be opened is shown with the reason, and makes the exit
status 1.
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `tcmu status`."""
    parser.add_argument(
        "disk", metavar="DISK", nargs="?", help="its name: of `tcmu serve --name`, tcmu.conf, targetcli"
    )
    parser.add_argument(
        "--state-dir",
        metavar="DIR",
        type=Path,
        default=default_directory(),
        help="where `tcmu serve` keeps its state (%(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")


def run(args: argparse.Namespace) -> int:
    """Run `tcmu status`."""
    hosts = [_only(status, args.disk) for _, status in control.hosts(args.state_dir)]
    hosts = [status for status in hosts if args.disk is None or status.disks or status.missing]
    if args.disk is not None and not hosts:
        raise ControlError(f"no process of yours serves a disk {args.disk!r} (looked in {args.state_dir})")
    out = Output()
    if args.json:
        out.json([dataclasses.asdict(status) for status in hosts])
    elif not hosts:
        out.line("No process of yours serves a disk.")
    else:
        for status in sorted(hosts, key=lambda status: status.title):
            _show(out, status)
    return Exit.FAILED if any(status.missing for status in hosts) else Exit.OK


def _only(status: Status, name: str | None) -> Status:
    """Return the status of one disk alone."""
    if name is None:
        return status
    disks = tuple(disk for disk in status.disks if disk.name == name)
    missing = tuple(one for one in status.missing if one.title.partition("/")[2] == name)
    return dataclasses.replace(status, disks=disks, missing=missing)


def _show(out: Output, status: Status) -> None:
    where = f" at {', '.join(status.addresses)}" if status.addresses else ""
    out.line(f"{out.style(status.title, 'bold')}{where}, process {status.pid}")
    for disk in status.disks:
        out.line(f"  LUN {disk.lun}  {_words(disk)}")
        for initiator in disk.initiators:
            out.line(f"         {out.style(initiator, 'dim')}")
    for one in status.missing:
        out.line(f"  LUN {one.lun}  {_reason(out, one)}")


def _words(disk: DiskStatus) -> str:
    size = human(disk.size) if disk.size or not disk.removable else "no medium"
    parts = [disk.name, size, f"{disk.handler}/{disk.cfgstring}", *disk.filters]
    parts += ["read-only"] if disk.read_only else []
    parts += [f"{disk.in_flight} commands in flight"] if disk.in_flight else []
    return ", ".join(parts)


def _reason(out: Output, missing: Missing) -> str:
    return f"{missing.title.partition('/')[2]} {out.style('is missing', 'red')}: {missing.reason}"
