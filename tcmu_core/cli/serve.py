"""`tcmu serve`: one device behind the built-in iSCSI portal, in this process."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import logging
import os
import re
from pathlib import Path

from tcmu_core.cfgstring import split_runner_options
from tcmu_core.cli import options
from tcmu_core.cli.handlers import absolute, path_arguments
from tcmu_core.config.configuration import DEFAULT_PATH, Config
from tcmu_core.config.file import iscsi_name, load
from tcmu_core.disk.backend import Backend
from tcmu_core.disk.device import Device
from tcmu_core.errors import HandlerError, TcmuError
from tcmu_core.handlers import Handler, Registry
from tcmu_core.iscsi.settings import PORT
from tcmu_core.loop import Loop, spin_time
from tcmu_core.state import default_directory

log = logging.getLogger("tcmu.serve")

DESCRIPTION = """\
Serve a disk over iSCSI until Ctrl-C. It needs no kernel module and no root.

  tcmu serve file ./disk.img --size 1G         the file is made if it is missing
  tcmu serve ram --size 64M                    a disk in memory
  tcmu serve file a.img --run 'qemu-img info $uri'
                                               serve it while that command runs
  tcmu serve mine --handler-path . --size 1G   with your own ./handler_mine.py

CFGSTRING is the handler's own: `tcmu handlers` tells what each one takes.
Commands to reach the disk are printed; paste them into a second terminal.
"""
IQN_PREFIX = "iqn.2025-01.local.tcmu:"
_NOT_IN_IQN = re.compile(r"[^a-z0-9.:-]+")


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `tcmu serve`."""
    parser.add_argument("handler", metavar="HANDLER", help="a handler's name, as `tcmu handlers` lists it")
    parser.add_argument(
        "cfgstring", metavar="CFGSTRING", nargs="?", default="", help="what the handler opens, such as a path"
    )
    disk = parser.add_argument_group("the disk")
    path_arguments(disk)  # type: ignore[arg-type]  # a group adds arguments as a parser does
    disk.add_argument("--size", metavar="SIZE", type=options.size, help="its size: 64M, 1.5G; for what is made anew")
    disk.add_argument("--block-size", metavar="N", type=options.block_size, help="bytes of a block: 512 … 65536")
    disk.add_argument("--read-only", action="store_true", help="refuse every write")
    disk.add_argument("--name", metavar="NAME", default="disk", help="its name, in logs and identifiers (disk)")
    disk.add_argument(
        "--serial", metavar="TEXT", help="unit serial number; made from host, name and CFGSTRING if not given"
    )
    disk.add_argument(
        "--config",
        metavar="FILE",
        type=Path,
        help=f"take the handler's defaults from there ({DEFAULT_PATH} if it can be read)",
    )
    disk.add_argument(
        "--state-dir", metavar="DIR", type=Path, help=f"keeps persistent reservations ({default_directory()})"
    )
    net = parser.add_argument_group("the network")
    net.add_argument("--target", metavar="IQN", help=f"the target's name ({IQN_PREFIX}NAME)")
    net.add_argument(
        "--portal",
        metavar="HOST:PORT",
        type=options.address,
        help=f"listen there (127.0.0.1:{PORT}; with --run a free port of 127.0.0.1); port 0 is a free one",
    )
    chap = net.add_mutually_exclusive_group()
    chap.add_argument(
        "--chap", metavar="USER:PASSWORD", type=options.credentials, help="ask for this login; `ps` shows it to all"
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
        help="run CMD by the shell with $uri, $portal, $iqn and $lun set, stop when it ends, exit with its status",
    )
    does.add_argument("--json", action="store_true", help="say what is served as one line of JSON, for programs")


def run(args: argparse.Namespace) -> int:
    """Run `tcmu serve`."""
    from tcmu_core.cli.server import Server  # the engine and the portal: no other command needs them

    handler = Registry(args.handler_path).get(args.handler)
    users = _users(args)
    target = iscsi_name(args.target or IQN_PREFIX + _NOT_IN_IQN.sub("-", args.name.lower()))
    device = make_device(args, handler, target)
    with contextlib.closing(Loop(spin_time())) as loop:
        backend = open_device(handler, device)
        server = Server(args, loop, backend, target, users)
        try:
            server.start(handler)
            loop.run()
        finally:
            server.close()
        return server.status


def open_device(handler: Handler, device: Device) -> Backend:
    """Open the device; raises `HandlerError` for an exception that a handler should not raise."""
    try:
        return handler.open(device)
    except (TcmuError, OSError):
        raise
    except Exception as error:
        raise HandlerError(f"handler {handler.name!r} of {handler.source} broke while it opened the device") from error


def make_device(args: argparse.Namespace, handler: Handler, target: str) -> Device:
    """Return the device that the arguments describe, still to be opened.

    Raises:
        ConfigError: the runner's part of the cfgstring, or tcmu.conf, is wrong.
    """
    ignored, cfgstring = split_runner_options(absolute(handler.name, args.cfgstring))
    for name in ignored:
        log.warning("%s means nothing here: it is for devices of the kernel", name)
    device = Device(
        name=args.name,
        handler=handler.name,
        cfgstring=cfgstring,
        size=args.size,
        read_only=args.read_only,
        options=_config(args.config).handlers.get(handler.name, {}),
        serial=args.serial or _serial(handler.name, cfgstring, target),
    )
    if args.block_size:
        device.block_size = args.block_size
    return device


def _serial(*identity: str) -> str:
    """Return a serial number that stays, and that no other host or disk has: by it initiators tell disks apart."""
    return hashlib.sha256("\0".join((os.uname().nodename, *identity)).encode()).hexdigest()[:32]


def _config(path: Path | None) -> Config:
    if path is not None:
        return load(path, must_exist=True)
    return load(DEFAULT_PATH) if os.access(DEFAULT_PATH, os.R_OK) else Config()


def _users(args: argparse.Namespace) -> dict[str, str]:
    if args.chap_file:
        return options.credentials_file(args.chap_file)
    return dict([args.chap]) if args.chap else {}
