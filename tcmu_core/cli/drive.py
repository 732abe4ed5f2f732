"""`tcmu eject` and `tcmu insert`: change the disc of a drive that a running `tcmu serve`, or tcmu-runner, has."""

from __future__ import annotations

import argparse
import errno
from pathlib import Path

from tcmu_core.cli.arguments import state_dir
from tcmu_core.cli.handlers import absolute, kernel_config
from tcmu_core.cli.output import Exit, Output
from tcmu_core.disk.device import Change
from tcmu_core.errors import ConfigError
from tcmu_core.host import control
from tcmu_core.host.control import ControlError
from tcmu_core.host.messages import Missing
from tcmu_core.kernel import configfs
from tcmu_core.kernel.configfs import Backstore, ConfigfsError

EJECT_DESCRIPTION = """\
Take the disc out of a drive that `tcmu serve` or tcmu-runner serves, to clients
of the portal or as a device of the kernel.

  tcmu serve fbo ro//srv/one.iso --name cd &
  tcmu eject cd

An initiator that has mounted the disc holds it. Then it is asked to let go, as
by the button of a real drive, and the disc stays until it does.
"""
INSERT_DESCRIPTION = """\
Put a disc into a drive that `tcmu serve` or tcmu-runner serves, in place of the
one in it. The initiators notice by themselves.

  tcmu insert cd ro//srv/two.iso

CFGSTRING is the handler's own: `tcmu handlers` tells what it takes.
"""


def _common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="its name, as `tcmu serve --name`, tcmu.conf or targetcli gave it")
    state_dir(parser, "its process")


def eject_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `tcmu eject`."""
    _common(parser)


def insert_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `tcmu insert`."""
    _common(parser)
    parser.add_argument("cfgstring", metavar="CFGSTRING", help="the disc, such as the path of an image")


def eject_run(args: argparse.Namespace) -> int:
    """Run `tcmu eject`."""
    change(args.state_dir, args.name, "")
    Output().line(f"{args.name}: the disc is out")
    return Exit.OK


def insert_run(args: argparse.Namespace) -> int:
    """Run `tcmu insert`."""
    if not args.cfgstring:
        raise ConfigError("no disc: `tcmu eject` takes the one out that is in")
    change(args.state_dir, args.name, args.cfgstring)
    Output().line(f"{args.name}: the disc is in")
    return Exit.OK


def change(directory: Path, name: str, cfgstring: str) -> None:
    """Give the drive called `name` another disc, or none for an empty cfgstring; raises what its host says."""
    silent: list[int] = []
    missing: list[Missing] = []
    disks = control.disks(directory, silent, kernel=False, missing=missing)
    drives = [(path, disk) for path, disk in disks if disk.removable]
    found = control.the_one(name, drives)
    if found is not None:
        path, disk = found
        control.change(path, disk, Change(cfgstring=absolute(disk.handler, cfgstring)))
        return
    control.refuse_missing(name, missing)
    store = configfs.device_called(name)
    if store is None:
        if any(disk.name == name for _, disk in disks):
            raise ControlError(f"{name!r} is no drive: its handler has no medium that could be changed")
        names = ", ".join(sorted({disk.name for _, disk in drives}))
        hint = f"served here: {names}" if names else f"no process of yours has a drive (looked in {directory})"
        raise ControlError(f"there is no drive {name!r}: {hint}{control.unheard(silent)}")
    _change_kernel_device(store, cfgstring)


def _change_kernel_device(store: Backstore, cfgstring: str) -> None:
    """Write the new configuration where the kernel asks tcmu-runner about it, and waits for its answer."""
    handler = store.read("attrib/dev_config").partition("/")[0]
    try:
        store.write("attrib/dev_config", kernel_config(handler, absolute(handler, cfgstring)))
    except ConfigfsError as error:
        if error.errno != errno.EBUSY:
            raise
        raise ControlError(f"{store.name}: an initiator holds the disc; it has been asked to eject it") from error
