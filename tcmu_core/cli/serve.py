"""`tcmu serve`: disks behind the built-in iSCSI portal, in this process."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import gc
import logging
import os
import re
import shlex
from pathlib import Path
from typing import NoReturn

from tcmu_core.cli import arguments as convert
from tcmu_core.cli.handlers import path_arguments
from tcmu_core.config.configuration import DEFAULT_PATH, Config
from tcmu_core.config.file import iscsi_name, load
from tcmu_core.disk.spec import DiskSpec
from tcmu_core.errors import ConfigError
from tcmu_core.handlers import Handler, Registry
from tcmu_core.iscsi.settings import MIN_SECRET, PORT
from tcmu_core.loop import Loop, spin_time
from tcmu_core.scsi.identity import Identity
from tcmu_core.state import default_directory

log = logging.getLogger("tcmu.serve")

DEFAULT_BLOCK = 512  # bytes
DESCRIPTION = """\
Serve a disk over iSCSI until Ctrl-C. It needs no kernel module and no root.

  tcmu serve file ./disk.img --size 1G         the file is made if it is missing
  tcmu serve ram --size 64M                    a disk in memory
  tcmu serve file a.img --run 'qemu-img info $uri'
                                               serve it while that command runs
  tcmu serve file a.img --lun 'file b.img --size 2G' --lun 'ram --size 64M'
                                               a.img is LUN 0, the others 1 and 2
  tcmu serve mine --handler-path . --size 1G   with your own ./handler_mine.py

CFGSTRING is the handler's own: `tcmu handlers` tells what each one takes.
Commands to reach the disk are printed; paste them into a second terminal.
"""
IQN_PREFIX = "iqn.2025-01.local.tcmu:"
_NOT_IN_IQN = re.compile(r"[^a-z0-9.:-]+")


class _LunParser(convert.Parser):
    """What stands in one `--lun`."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong as part of what is said of `--lun`."""
        raise ConfigError(message)


def _disk_arguments(parser: argparse.ArgumentParser, disk: argparse._ActionsContainer) -> None:
    """Add the arguments that each disk has of its own."""
    parser.add_argument("handler", metavar="HANDLER", help="a handler's name, as `tcmu handlers` lists it")
    parser.add_argument(
        "cfgstring", metavar="CFGSTRING", nargs="?", default="", help="what the handler opens, such as a path"
    )
    disk.add_argument("--size", metavar="SIZE", type=convert.size, help="its size: 64M, 1.5G; for what is made anew")
    disk.add_argument("--block-size", metavar="N", type=convert.block_size, help="bytes of a block: 512 … 65536")
    disk.add_argument("--read-only", action="store_true", help="refuse every write")
    disk.add_argument(
        "--filter",
        metavar="NAME[;OPTION=VALUE…]",
        dest="filters",
        action="append",
        default=[],
        help="put a filter on it, such as 'delay;read=5ms'; may be given again, the last is on top (tcmu filters)",
    )
    disk.add_argument(
        "--name", metavar="NAME", type=convert.name, help="its name, in logs and identifiers (disk; disk1 … with --lun)"
    )
    disk.add_argument(
        "--serial",
        metavar="TEXT",
        help="unit serial number; made of host, target and CFGSTRING if not given, where that names a storage",
    )


@convert.converter
def _lun(text: str) -> argparse.Namespace:
    """Return the arguments of one `--lun`."""
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise ConfigError(f"{text!r}: {error}") from None
    parser = _LunParser("--lun", add_help=False, allow_abbrev=False)
    _disk_arguments(parser, parser)
    return parser.parse_args(words)


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `tcmu serve`."""
    disk = parser.add_argument_group("the disk")
    path_arguments(disk)  # type: ignore[arg-type]  # a group adds arguments as a parser does
    _disk_arguments(parser, disk)
    disk.add_argument(
        "--lun",
        metavar="'HANDLER [CFGSTRING] [OPTIONS]'",
        dest="luns",
        type=_lun,
        action="append",
        default=[],
        help="serve one more disk by the same target, as LUN 1, 2 …, with its own --size, --block-size, --read-only, "
        "--filter, --name and --serial; may be given again",
    )
    disk.add_argument(
        "--config",
        metavar="FILE",
        type=Path,
        help=f"take the handler's defaults from there ({DEFAULT_PATH} if it can be read)",
    )
    disk.add_argument(
        "--state-dir",
        metavar="DIR",
        type=convert.directory,
        help=f"keeps persistent reservations ({default_directory()})",
    )
    net = parser.add_argument_group("the network")
    net.add_argument("--target", metavar="IQN", help=f"the target's name ({IQN_PREFIX}NAME)")
    net.add_argument(
        "--portal",
        metavar="HOST:PORT",
        type=convert.address,
        action="append",
        default=[],
        help=f"listen there (127.0.0.1:{PORT}; with --run a free port of 127.0.0.1); port 0 is a free one; "
        "may be given again",
    )
    net.add_argument(
        "--advertise",
        metavar="HOST:PORT",
        type=convert.advertised,
        action="append",
        default=[],
        help="tell clients this address instead, in front of a port mapping; HOST may be a name; may be given again",
    )
    chap = net.add_mutually_exclusive_group()
    chap.add_argument(
        "--chap",
        metavar="USER:PASSWORD",
        type=convert.credentials,
        action="append",
        default=[],
        help="ask for this login, or another one of several; `ps` shows it to all",
    )
    chap.add_argument(
        "--chap-file", metavar="FILE", type=Path, help="ask for a login; a USER:PASSWORD a line, in a file of mode 600"
    )
    net.add_argument(
        "--acl",
        metavar="PATTERN",
        action="append",
        default=[],
        help="let in initiators whose name fits, such as 'iqn.1993-08.org.debian:*'; may be given again",
    )
    net.add_argument(
        "--insecure", action="store_true", help="allow an address that others can reach, without login or --acl"
    )
    does = parser.add_argument_group("what it does")
    does.add_argument(
        "--run",
        dest="shell_command",
        metavar="CMD",
        type=convert.command,
        help="run CMD by the shell with $uri, $portal, $iqn and $lun set, stop when it ends, exit with its status",
    )
    does.add_argument("--json", action="store_true", help="say what is served as one line of JSON, for programs")


def run(args: argparse.Namespace) -> int:
    """Run `tcmu serve`."""
    from tcmu_core.cli.server import Server  # the engine and the portal: no other command needs them

    registry, config = Registry(args.handler_path), _config(args.config)
    disks = dict(enumerate([args, *args.luns]))
    for lun, disk in disks.items():
        disk.name = disk.name or (f"disk{lun}" if lun else "disk")
    if len({disk.name for disk in disks.values()}) < len(disks):
        raise ConfigError("two disks have the same name: give each a --name of its own")
    serials = [disk.serial for disk in disks.values() if disk.serial]
    if len({Identity.of(serial).naa for serial in serials}) < len(serials):
        raise ConfigError(
            "two disks have the same --serial, or UUIDs that begin alike: an initiator would take them for one"
        )
    handlers = {lun: registry.get(disk.handler) for lun, disk in disks.items()}
    users = _users(args)
    target = iscsi_name(args.target or IQN_PREFIX + _NOT_IN_IQN.sub("-", args.name.lower()))
    specs = {lun: make_spec(disk, handlers[lun], target, config) for lun, disk in disks.items()}
    with contextlib.closing(Loop(spin_time())) as loop:
        server = Server(args, loop, {one.name: one for one in handlers.values()}, specs, target, users)
        try:
            server.start()
            gc.collect()
            gc.freeze()  # a look at all that stays would take the collector tens of milliseconds
            loop.run()
        finally:
            server.close()
        return server.status


def make_spec(args: argparse.Namespace, handler: Handler, target: str, config: Config) -> DiskSpec:
    """Return the disk that the arguments describe, still to be opened; its cfgstring is whole.

    Raises:
        ConfigError: the runner's part of the cfgstring is wrong.
    """
    cfgstring = handler.absolute(args.cfgstring, Path.cwd())
    spec = DiskSpec(
        handler.name,
        cfgstring=cfgstring,
        name=args.name,
        size=args.size,
        block_size=args.block_size or DEFAULT_BLOCK,
        read_only=args.read_only,
        serial=args.serial or "",
        options=config.handlers.get(handler.name, {}),
        filters=tuple(args.filters),
    )
    storage = spec.configured(cfgstring).cfgstring
    if not handler.names_storage(storage):
        return spec  # it is another disk each time, though its target may be called as another process's
    # The storage tells it from what other processes serve, by the same target's name perhaps; so a drive keeps its
    # identity when its disc is changed, and has another one when it is served anew with another disc.
    return dataclasses.replace(spec, place=(target, storage.partition(";")[0]))


def _config(path: Path | None) -> Config:
    if path is not None:
        return load(path, must_exist=True)
    return load(DEFAULT_PATH) if os.access(DEFAULT_PATH, os.R_OK) else Config()


def _users(args: argparse.Namespace) -> dict[str, str]:
    users = convert.credentials_file(args.chap_file) if args.chap_file else convert.logins(args.chap)
    for user, password in users.items():
        if len(password.encode()) < MIN_SECRET:
            log.warning("the password of %s is shorter than %d characters: it can be guessed", user, MIN_SECRET)
    return users
