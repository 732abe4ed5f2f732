"""`tcmu status`: every disk that is served here, by whichever process and way in, and what is wrong with it."""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tcmu_core.cli.arguments import state_dir
from tcmu_core.cli.output import Exit, Output, human
from tcmu_core.codec import plain
from tcmu_core.host import control
from tcmu_core.host.control import ControlError
from tcmu_core.host.messages import MISSING_PORTAL, OPENING, DiskStatus, InitiatorCounters, Missing, Status

DESCRIPTION = """\
Show the disks that are served on this host by processes of yours: those of
`tcmu serve`, of tcmu-runner's targets, and the kernel's devices; a root's
tcmu-runner is shown to root.

  tcmu status             all of them
  tcmu status disk1       one of them, and what each initiator has had it do;
                          exit status 1 when it is not served

A disk that could not be opened is shown with the reason, one that its handler
is about to open as being opened. Either makes the exit status 1, and so does a
process that does not answer; with --check nothing that is served does, too.
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `tcmu status`."""
    parser.add_argument(
        "disk", metavar="DISK", nargs="?", help="its name: of `tcmu serve --name`, tcmu.conf, targetcli"
    )
    state_dir(parser)
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")
    parser.add_argument("--check", action="store_true", help="exit status 1 when nothing is served: for a health check")


def run(args: argparse.Namespace) -> int:
    """Run `tcmu status`."""
    silent: list[int] = []
    found = list(control.hosts(args.state_dir, silent))
    places = {status.pid: path for path, status in found}
    hosts = [_only(status, args.disk) for status in _with_unserved(args.state_dir, [one for _, one in found], silent)]
    hosts = [status for status in hosts if args.disk is None or status.disks or status.missing]
    if args.disk is not None and not hosts:
        where = f"(looked in {args.state_dir}){control.unheard(silent)}"
        raise ControlError(f"no process of yours serves a disk {args.disk!r} {where}")
    out = Output()
    if args.json:
        out.json([as_json(status, _counted(status, places.get(status.pid))) for status in hosts])
    elif not hosts:
        out.line("No process of yours serves a disk.")
    else:
        for status in sorted(hosts, key=lambda status: status.title):
            _show(out, status)
            if args.disk is not None:
                for disk in status.disks:
                    _show_counters(out, control.counted(places[status.pid], disk.lun))
    for pid in silent:
        Output(sys.stderr).line(f"tcmu: {control.silence(pid)}")
    wrong = silent or any(status.missing for status in hosts)
    nothing = args.check and not any(status.disks for status in hosts)
    return Exit.FAILED if wrong or nothing else Exit.OK


def _with_unserved(directory: Path, found: list[Status], silent: list[int]) -> list[Status]:
    """Return what each host serves, and what none does that is to: where its process has ended, for example."""
    known = {status.pid for status in found} | set(silent)
    missing = control.unserved(directory, silent)
    portals = {one.title for one in missing if any(part.lun == MISSING_PORTAL for part in one.missing)}
    served = [status for status in found if status.title not in portals]
    return served + [one for one in missing if one.title in portals or one.pid not in known]


def _only(status: Status, name: str | None) -> Status:
    """Return the status of one disk alone."""
    if name is None:
        return status
    disks = tuple(disk for disk in status.disks if disk.name == name)
    missing = tuple(one for one in status.missing if one.name == name)
    return dataclasses.replace(status, disks=disks, missing=missing)


def _show(out: Output, status: Status) -> None:
    where = f" at {', '.join(status.addresses)}" if status.addresses else ""
    process = f", process {status.pid}" if status.pid else ""
    out.line(f"{out.style(status.title, 'bold')}{where}{process}")
    for disk in status.disks:
        out.line(f"  LUN {disk.lun}  {_words(disk)}")
        for initiator in disk.initiators:
            out.line(f"         {out.style(initiator, 'dim')}")
    for one in status.missing:
        out.line(f"  {'' if one.lun == MISSING_PORTAL else f'LUN {one.lun}  '}{_reason(out, one)}")
    if status.passes_on:
        out.line(f"  passes logins on to {', '.join(status.passes_on)}")


def _counted(status: Status, path: Path | None) -> dict[int, tuple[InitiatorCounters, ...]]:
    return {} if path is None else {disk.lun: control.counted(path, disk.lun) for disk in status.disks}


def as_json(status: Status, counters: Mapping[int, tuple[InitiatorCounters, ...]]) -> dict[str, Any]:
    """Return a status with the counters of its disks, by LUN."""
    told: dict[str, Any] = plain(status)
    for disk in told["disks"]:
        disk["counters"] = [plain(one) for one in counters[disk["lun"]]]
    return told


def _show_counters(out: Output, counters: tuple[InitiatorCounters, ...]) -> None:
    for one in counters:
        commands = sum(operation.commands for operation in one.operations)
        moved = sum(operation.bytes for operation in one.operations)
        errors = Counter[str]()
        for operation in one.operations:
            errors.update({error.kind: error.count for error in operation.errors})
        wrong = ", ".join(f"{count} {kind.replace('_', ' ')}" for kind, count in errors.most_common()) or "no errors"
        out.line(f"  {one.initiator}: {commands} commands, {human(moved)}, {wrong}, since {_date(one.since)}")
        for operation in one.operations:
            amount = f", {human(operation.bytes)}" if operation.bytes else ""
            out.line(f"    {operation.name:<24} {operation.commands}{amount}")


def _date(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def _words(disk: DiskStatus) -> str:
    size = human(disk.size) if disk.size or not disk.removable else "no medium"
    parts = [disk.name, size, f"{disk.handler}/{disk.cfgstring}", *disk.filters]
    parts += ["read-only"] if disk.read_only else []
    parts += [f"{disk.in_flight} commands in flight"] if disk.in_flight else []
    parts += [str(disk.progress)] if disk.progress is not None else []
    return ", ".join(parts)


def _reason(out: Output, missing: Missing) -> str:
    far = f": {missing.progress}" if missing.progress is not None else ""
    if missing.reason == OPENING:
        return f"{missing.title.partition('/')[2]} {out.style('is being opened', 'yellow')}{far}"
    return f"{missing.title.partition('/')[2]} {out.style('is missing', 'red')}: {missing.reason}{far}"
