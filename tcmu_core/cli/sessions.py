"""`tcmu sessions` and `tcmu logout`: who is logged in to what is served here, and sending one of them away."""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Iterator
from datetime import datetime
from fnmatch import fnmatchcase
from pathlib import Path

from tcmu_core.cli.arguments import state_dir, whole
from tcmu_core.cli.output import Exit, Output
from tcmu_core.codec import CodecError
from tcmu_core.host import control
from tcmu_core.host.control import FIND_SECONDS, ControlError
from tcmu_core.host.messages import Logout, SessionList, Sessions, SessionStatus, Status

SESSIONS_DESCRIPTION = """\
Show who is logged in to the targets of `tcmu serve` and of tcmu-runner: from
where, since when, as which user, with which digests, and what it has reserved.

  tcmu sessions            all of them
  tcmu sessions disk1      those that reach that disk

What the kernel's own target serves has its sessions in the kernel: there
`targetcli sessions` shows them.
"""
LOGOUT_DESCRIPTION = """\
Ask an initiator to log out of the targets of `tcmu serve` and of tcmu-runner,
and end what is left of its sessions when the time is over.

  tcmu logout iqn.1993-08.org.debian:01:a
  tcmu logout 'iqn.1993-08.org.debian:*' --target iqn.2025-01.local.tcmu:disk1

Many initiators log in again by themselves: who is to stay out has to fit no
`--acl` of `tcmu serve` any more, or no `acl` of tcmu.conf, before.
"""
SECONDS = 10
POLL = 0.05
LATE = 5.0  # seconds that a host may be late with ending a session


def sessions_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `tcmu sessions`."""
    parser.add_argument(
        "disk", metavar="DISK", nargs="?", help="a disk's name: of `tcmu serve --name`, or of tcmu.conf"
    )
    state_dir(parser)
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")


def logout_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `tcmu logout`."""
    parser.add_argument("initiator", metavar="INITIATOR", help="its name, or a pattern that fits it")
    parser.add_argument("--target", metavar="IQN", default="", help="from that target alone")
    parser.add_argument(
        "--within",
        metavar="SECONDS",
        type=whole(1, 0xFFFF, "whole seconds"),  # a field of the message has two bytes (RFC 7143 11.9)
        default=SECONDS,
        help="time for it to go (%(default)s)",
    )
    state_dir(parser)


def found(directory: Path, silent: list[int] | None = None) -> Iterator[tuple[Path, Status, SessionStatus]]:
    """Yield the sessions with all targets that can be found, each with its host; `silent` is as in `control.hosts`."""
    for path, status in control.hosts(directory, silent):
        yield from ((path, status, one) for one in of(path))


def of(path: Path) -> tuple[SessionStatus, ...]:
    """Return the sessions with the host at `path`; none where that has gone meanwhile."""
    try:
        answer = control.ask(path, Sessions(), FIND_SECONDS)
    except (OSError, CodecError):
        return ()
    return answer.sessions if isinstance(answer, SessionList) else ()


def sessions_run(args: argparse.Namespace) -> int:
    """Run `tcmu sessions`."""
    disk = None if args.disk is None else control.served(args.disk, args.state_dir)
    silent: list[int] = []
    shown = [
        (status, one)
        for path, status, one in found(args.state_dir, silent)
        if disk is None or (path == disk[0] and disk[1].lun in one.luns)
    ]
    out = Output()
    if args.json:
        out.json([dataclasses.asdict(one) for _, one in shown])
    elif not shown:
        out.line(f"Nobody is logged in{control.unheard(silent)}.")
    for status, one in () if args.json else shown:
        names = {disk.lun: disk.name for disk in status.disks}
        out.line(out.style(one.initiator, "bold"))
        since = datetime.fromtimestamp(one.since).astimezone()
        out.line(f"  at {one.address} since {since:%Y-%m-%d %H:%M:%S}, {_how(one)}")
        luns = ", ".join(f"LUN {lun} {names.get(lun, '')}".rstrip() for lun in one.luns)
        out.line(f"  {one.target}: {luns or 'no LUN'}")
        for text in one.reservations:
            out.line(f"  holds {text}")
    return Exit.OK


def _how(one: SessionStatus) -> str:
    digests = [name for name, on in (("header", one.header_digest), ("data", one.data_digest)) if on]
    parts = [f"as {one.user}" if one.user is not None else "without a login"]
    parts.append(f"{' and '.join(digests)} digest" if digests else "no digest")
    parts += [f"{one.in_flight} commands in flight"] if one.in_flight else []
    return ", ".join(parts)


def logout_run(args: argparse.Namespace) -> int:
    """Run `tcmu logout`."""
    silent: list[int] = []
    meant = {
        (path, one.target, one.tsih)
        for path, _, one in found(args.state_dir, silent)
        if fnmatchcase(one.initiator.lower(), args.initiator.lower())
        and args.target.lower() in ("", one.target.lower())
    }
    if not meant:
        where = f" to {args.target}" if args.target else ""
        raise ControlError(
            f"no {args.initiator!r} is logged in{where} (looked in {args.state_dir}){control.unheard(silent)}"
        )
    for path in {path for path, _, _ in meant}:
        control.ask(path, Logout(args.initiator, args.target, args.within), FIND_SECONDS)
    until = time.monotonic() + args.within + LATE
    while left := meant & {(path, one.target, one.tsih) for path, _, one in found(args.state_dir)}:
        if time.monotonic() > until:
            raise ControlError(f"{len(left)} of {len(meant)} sessions have not ended")
        time.sleep(POLL)
    Output().line(f"{len(meant)} session{'s' if len(meant) > 1 else ''} ended")
    return Exit.OK
