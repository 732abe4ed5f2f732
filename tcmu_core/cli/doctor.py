"""`tcmu doctor`: what is wrong with this host, and the command that cures it."""

from __future__ import annotations

import argparse
from pathlib import Path

from tcmu_core.cli.arguments import directory
from tcmu_core.cli.output import Exit, Output
from tcmu_core.config.configuration import DEFAULT_PATH
from tcmu_core.doctor.examine import examine
from tcmu_core.doctor.finding import Finding, Severity, System
from tcmu_core.state import Places

DESCRIPTION = """\
Look at all that serving disks stands on: the kernel's module, configfs,
netlink and uio; devices that nobody serves; D-Bus; handlers and filters;
tcmu.conf, who may log in from where, ports, permissions; limits, io_uring,
versions. It changes nothing, and waits 5 s at most for each answer.

Shown is what is not as it should be, each with what cures it; with --all what
is right too. As root it sees more.

Exit status: 0 nothing but notes, 5 warnings, 1 errors.
"""

_COLOURS = {Severity.OK: "green", Severity.NOTE: "cyan", Severity.WARNING: "yellow", Severity.ERROR: "red"}


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `tcmu doctor`."""
    parser.add_argument("--config", metavar="FILE", type=Path, help=f"the tcmu.conf to look at ({DEFAULT_PATH})")
    parser.add_argument(
        "--handler-path", action="append", default=[], metavar="DIR", type=Path, help="look for handlers here too"
    )
    parser.add_argument(
        "--state-dir", metavar="DIR", type=directory, help="that of tcmu-runner, where it was given one"
    )
    parser.add_argument("--all", action="store_true", help="show what is right too")
    parser.add_argument("--json", action="store_true", help="print every finding as JSON, for programs")


def run(args: argparse.Namespace) -> int:
    """Run `tcmu doctor`."""
    system = System(
        config=args.config or DEFAULT_PATH,
        config_must_exist=args.config is not None,
        handler_paths=tuple(args.handler_path),
        places=Places.of(args.state_dir),
    )
    findings = examine(system)
    out = Output()
    if args.json:
        out.json(
            [
                {"looked_at": one.looked_at, "severity": one.severity.name.lower(), "text": one.text, "cure": one.cure}
                for one in findings
            ]
        )
    else:
        _show(out, findings, everything=args.all)
    return status(findings)


def status(findings: list[Finding]) -> Exit:
    """Return the exit status that the worst finding means."""
    worst = max((one.severity for one in findings), default=Severity.OK)
    return {Severity.ERROR: Exit.FAILED, Severity.WARNING: Exit.WARNED}.get(worst, Exit.OK)


def _show(out: Output, findings: list[Finding], *, everything: bool) -> None:
    for one in sorted(findings, key=lambda one: -one.severity):
        if one.severity is Severity.OK and not everything:
            continue
        out.line(f"{out.style(one.severity.name.lower(), _COLOURS[one.severity])}: {out.style(one.looked_at, 'bold')}")
        out.paragraph(one.text)
        if one.cure:
            out.line(f"    {one.cure}")
    counts = [sum(one.severity is level for one in findings) for level in sorted(Severity, reverse=True)]
    out.line("{} errors, {} warnings, {} notes, {} in order.".format(*counts))
