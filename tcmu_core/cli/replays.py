"""`tcmu replay` and `tcmu crash`: what a recording does to another disk, and what a power cut would have left."""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tcmu_core.cli import arguments
from tcmu_core.cli.bar import Teller
from tcmu_core.cli.handlers import absolute, path_arguments
from tcmu_core.cli.output import Exit, Output
from tcmu_core.cli.signals import Stopped, interrupting
from tcmu_core.disk.spec import DiskSpec
from tcmu_core.errors import ConfigError, TcmuError
from tcmu_core.handlers import Registry
from tcmu_core.progress import progress
from tcmu_core.recording.crash import epochs
from tcmu_core.recording.file import Record, Recording
from tcmu_core.recording.images import Failure, Image, check_goal, shell_check, shrink
from tcmu_core.recording.layout import CHECKSUM, RECORD
from tcmu_core.recording.replay import Difference, Goal, replay
from tcmu_core.testing.client import Client
from tcmu_core.testing.goals import IscsiGoal, LocalGoal

REPLAY_DESCRIPTION = """\
Do to another disk what a recording (`tcmu record`) did, and report where it
answers otherwise: statuses, sense data, and what is read.

  tcmu replay disk.rec ram                     a disk of ours: HANDLER [CFGSTRING]
  tcmu replay disk.rec file /tmp/copy.img
  tcmu replay disk.rec iscsi://10.0.0.1:3260/iqn.2026-01.example:target/0

What is on that disk is overwritten. Exit status 0: no difference, 1: there are.
"""
CRASH_DESCRIPTION = """\
Build the images that a power cut could have left of a recorded disk: writes
since the last flush in any subset, torn, FUA honoured. Run a check on each.

  tcmu crash disk.rec --check 'e2fsck -fn $image' --from 3

A check that fails is run on ever smaller sets of writes until the fewest that
it fails with are known. Exit status 0: none failed, 1: one did.
"""
MOST_SHOWN = 20


def replay_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `tcmu replay`."""
    parser.add_argument("file", metavar="FILE", type=Path, help="the recording")
    parser.add_argument("target", metavar="TARGET", help="an iscsi:// URL, or a handler's name")
    parser.add_argument("cfgstring", metavar="CFGSTRING", nargs="?", default="", help="what the handler opens")
    path_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")


def replay_run(args: argparse.Namespace) -> int:
    """Run `tcmu replay`."""
    recording = Recording(args.file)
    out = Output()
    differences: list[Difference] = []
    count = whole = 0
    with (
        interrupting(patient=True) as check_stop,
        Teller("replay", programs=args.json) as teller,
        _goal(args, recording, teller) as goal,
    ):

        def far(done: int, total: int) -> None:
            nonlocal whole
            whole = total
            teller(progress(done, total, "replaying"))
            check_stop()

        try:
            for found in replay(_read(recording, teller, check_stop), goal, far):
                count += 1
                if found is not None:
                    differences.append(found)
                    if not args.json and len(differences) <= MOST_SHOWN:
                        teller.above()
                        out.line(str(found))
        except Stopped:
            teller.above()
            text = f"stopped: {count} of {whole} operations were done, and are on the disk" if count else "stopped"
            print(f"tcmu: {text}", file=sys.stderr, flush=True)
            raise
    if args.json:
        out.json({"operations": count, "differences": [_as_json(each) for each in differences],
                  "cut_short": recording.cut_short})  # fmt: skip
    else:
        _warn_of_cut(out, recording)
        out.line(f"{count} operations, {len(differences)} differences")
    return Exit.FAILED if differences else Exit.OK


def _as_json(found: Difference) -> dict[str, Any]:
    record = found.record
    return {
        "record": found.number,
        "kind": record.kind.name.lower(),
        "offset": record.offset,
        "length": record.length,
        "recorded": str(record.outcome),
        "now": str(found.outcome),
        "data": found.data,
    }


def _read(recording: Recording, teller: Teller, check_stop: Callable[[], None]) -> Iterator[Record]:
    """Yield the records, telling how much of the file is read."""
    at, size = 0, recording.path.stat().st_size
    for record in recording:
        check_stop()
        at += RECORD.size + len(record.stored) + CHECKSUM.size
        teller(progress(at, size, "reading the recording"))
        yield record


@contextlib.contextmanager
def _goal(args: argparse.Namespace, recording: Recording, teller: Teller) -> Iterator[Goal]:
    if args.target.startswith("iscsi://"):
        try:
            client = Client(args.target)
        except OSError as error:
            raise TcmuError(f"{args.target} can't be reached: {error.strerror or error}") from None
        with client:
            goal = IscsiGoal(client)
            _check_shape(recording, goal.blocks * goal.block_size, goal.block_size)
            yield goal
        return
    handler = Registry(args.handler_path).get(args.target)
    spec = DiskSpec(handler.name, size=recording.size, block_size=recording.block_size, name="replay")
    disk = handler.disk(spec.configured(absolute(handler.name, args.cfgstring)))
    disk.device.reported = teller
    with interrupting():
        disk.open()
    try:
        _check_shape(recording, disk.device.size or 0, disk.device.block_size)
        yield LocalGoal(disk)
    finally:
        disk.close()


def _check_shape(recording: Recording, size: int, block: int) -> None:
    if size < recording.size or block != recording.block_size:
        raise ConfigError(
            f"the recording is of a disk of {recording.size} bytes in blocks of {recording.block_size}, "
            f"this one has {size} bytes in blocks of {block}"
        )


def _warn_of_cut(out: Output, recording: Recording) -> None:
    if recording.cut_short:
        begin = recording.path.stat().st_size - recording.cut_short
        out.line(
            f"{recording.path}: byte {begin}: the recording is cut short: its last {recording.cut_short} bytes are no "
            "whole record; all before them was taken"
        )


def crash_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `tcmu crash`."""
    parser.add_argument("file", metavar="FILE", type=Path, help="the recording")
    parser.add_argument(
        "--check", metavar="CMD", required=True, help="a shell command with $image; it fails with any status but 0"
    )
    parser.add_argument("--base", metavar="IMAGE", type=Path, help="what was on the disk before (zeros)")
    parser.add_argument("--from", metavar="N", dest="first", type=arguments.ordinal, default=0,
                        help="the first flush after which cuts are tried, and not before (0)")  # fmt: skip
    parser.add_argument("--atomic", metavar="SIZE", type=arguments.size,
                        help="a torn write has whole pieces of this size (the disk's block size)")  # fmt: skip
    parser.add_argument(
        "--limit", metavar="N", type=arguments.count, default=100, help="states from one flush to the next (100)"
    )
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="for those that are chosen by chance (0)")
    parser.add_argument(
        "--timeout", metavar="S", type=arguments.seconds, default=60.0, help="seconds for one check (60)"
    )
    parser.add_argument("--all", action="store_true", help="go on after a failure, to the end")
    parser.add_argument("--keep", metavar="IMAGE", type=Path, help="keep the image that the last failure is of")
    parser.add_argument(
        "--directory", metavar="DIR", type=arguments.directory, help="build the images there, on a fast file system"
    )
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")


def crash_run(args: argparse.Namespace) -> int:
    """Run `tcmu crash`."""
    recording = Recording(args.file)
    out = Output()
    failures: list[Failure] = []
    count = last = 0
    not_kept: OSError | None = None
    if args.keep:
        check_goal(args.keep)  # before all the work
    check = shell_check(args.check, args.timeout)
    block = max(recording.block_size, args.atomic or 0)
    with (
        interrupting() as check_stop,
        Teller("crash", programs=args.json) as teller,
        tempfile.TemporaryDirectory(prefix="tcmu-crash-", dir=args.directory) as directory,
    ):
        done, total = 0, 1

        def far(at: int, of: int) -> None:
            nonlocal done, total
            done, total = at, of + 1  # what follows the last record is an epoch too

        image = Image(Path(directory) / "image", recording.size, block, args.base)
        for epoch in epochs(_read(recording, teller, check_stop), far):
            image.settle(epoch)
            last = epoch.number
            if epoch.number < args.first:
                continue
            for number, state in enumerate(epoch.states(block, args.limit, args.seed)):
                teller(progress(done * args.limit + number, total * args.limit, "checking images"))
                image.build(epoch, state)
                count += 1
                status, output = check(image.path)
                if status:
                    failures.append(shrink(image, Failure(epoch, state, status, output), check))
                    break  # the others of this epoch have the same cause, as a rule
            if failures and not args.all:
                break
        if failures and args.keep:
            image.build(failures[-1].epoch, failures[-1].state)
            try:
                image.keep(args.keep)
            except OSError as error:  # what was found, after hours perhaps, is said all the same
                not_kept = error
    if not count:
        raise ConfigError(f"--from {args.first}: the recording ends after flush {last}, so nothing was checked")
    if args.json:
        out.json({"images": count, "failures": [_failure_json(each) for each in failures],
                  "cut_short": recording.cut_short})  # fmt: skip
    else:
        _warn_of_cut(out, recording)
        for failure in failures:
            for line in failure.lines():
                out.line(line)
            out.paragraph(failure.output.strip(), "    ")
        out.line(f"{count} images, {len(failures)} failures")
    if not_kept is not None:
        raise not_kept
    return Exit.FAILED if failures else Exit.OK


def _failure_json(failure: Failure) -> dict[str, Any]:
    present = dict(failure.state)
    return {
        "epoch": failure.epoch.number,
        "status": failure.status,
        "output": failure.output,
        "writes": [
            {"record": write.number, "offset": write.offset, "length": write.length,
             "state": present[position].value if position in present else "missing"}
            for position, write in enumerate(failure.epoch.pending)
        ],
    }  # fmt: skip
