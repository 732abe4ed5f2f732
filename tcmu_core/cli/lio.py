"""`tcmu create | delete | resize | export | unexport | devices`: kernel devices and their exports in one line each.

What targetcli does in an interactive shell, over the same library (rtslib-fb), so either sees what the other made.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tcmu_core.cfgstring import split_runner_options
from tcmu_core.cli.arguments import Parser, block_size, count, directory
from tcmu_core.cli.arguments import size as size_argument
from tcmu_core.cli.handlers import absolute, kernel_config
from tcmu_core.cli.output import Exit, Output, human
from tcmu_core.disk.device import Change
from tcmu_core.errors import ConfigError, HandlerError, TcmuError, text_of
from tcmu_core.handlers import Registry
from tcmu_core.host import control
from tcmu_core.host.messages import Missing
from tcmu_core.kernel import uio
from tcmu_core.state import Places, default_directory

DISK_SECONDS = 20.0  # for a local disk to appear after its export
PORT = 3260  # RFC 7143 4.1
# systemd.mount(5): not before, and so at shutdown not after, what restores LIO's configuration; distributions have one
# of these two. _netdev keeps it out of local-fs.target, which itself comes before them.
MOUNT_OPTIONS = "_netdev,x-systemd.after=target.service,x-systemd.after=rtslib-fb-targetctl.service"
_REASONS = {
    errno.ENOENT: "tcmu-runner has no such handler, or the handler found its storage missing",
    errno.EINVAL: "the handler refuses the cfgstring or the size",
    errno.ENOSPC: "there is no space for it",
    errno.EACCES: "the storage may not be opened",
    errno.EAGAIN: "tcmu-runner is just starting: try again",
    errno.EBUSY: "it is in use",
    errno.ETIMEDOUT: "the handler did not answer in time",
    errno.EOPNOTSUPP: "the handler can't do that while the device is open",
    errno.EINTR: "tcmu-runner was restarted meanwhile: try again",
    errno.ECANCELED: "tcmu-runner was stopped meanwhile",
}


def add_commands(subparsers: Any) -> None:
    """Add the commands to `tcmu`'s parser."""
    create = _command(subparsers, "create", _create, "make a kernel device with a handler behind it")
    create.add_argument("name", metavar="NAME", help="what to call it")
    create.add_argument("size", metavar="SIZE", type=size_argument, help="4096, 64M, 1.5G …")
    create.add_argument("handler", metavar="HANDLER", help="a handler's name, as `tcmu handlers` lists it")
    create.add_argument("cfgstring", metavar="CFGSTRING", nargs="?", default="", help="what the handler is to open")
    create.add_argument("--block-size", type=block_size, metavar="BYTES", help="of a logical block (512)")
    create.add_argument("--data-area", type=count, metavar="MIB", help="memory for data in flight (1024)")
    create.add_argument("--serial", help="unit serial number (a random one)")

    delete = _command(subparsers, "delete", _delete, "remove a kernel device; its storage stays")
    delete.add_argument("name", metavar="NAME", help="the device's name, as `tcmu devices` lists it")
    delete.add_argument("--force", action="store_true", help="even if it is exported")

    resize = _command(subparsers, "resize", _resize, "give a disk a new size while it is in use")
    resize.add_argument("name", metavar="NAME", help="the disk's name, as `tcmu serve`, tcmu.conf or targetcli gave it")
    resize.add_argument("size", metavar="SIZE", type=size_argument, help="4096, 64M, 1.5G …")
    resize.add_argument(
        "--state-dir",
        metavar="DIR",
        type=directory,
        default=default_directory(),
        help="where its process keeps its state (%(default)s)",
    )

    export = _command(subparsers, "export", _export, "show a kernel device to this host (loopback) or by iSCSI")
    export.add_argument("name", metavar="NAME", help="the device's name, as `tcmu devices` lists it")
    export.add_argument("--iscsi", action="store_true", help="by LIO's iSCSI target instead of as a local disk")
    export.add_argument("--target", metavar="WWN", help="of the target to make or to add a LUN to (a new one)")
    export.add_argument("--portal", metavar="HOST[:PORT]", default="127.0.0.1", help="where to listen (127.0.0.1)")
    export.add_argument("--acl", metavar="IQN", action="append", default=[], help="let this initiator in, only these")
    export.add_argument("--open", action="store_true", help="let every initiator in, without a password")

    unexport = _command(subparsers, "unexport", _unexport, "take a kernel device from whoever it was shown to")
    unexport.add_argument("name", metavar="NAME", help="the device's name, as `tcmu devices` lists it")

    devices = _command(subparsers, "devices", _devices, "list the kernel devices, their storage and exports")
    devices.add_argument("--json", action="store_true", help="print JSON, for programs")


def _command(
    subparsers: Any, name: str, run: Callable[[argparse.Namespace], int], about: str
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = subparsers.add_parser(
        name, help=about, description=f"{about[0].upper()}{about[1:]}."
    )
    assert isinstance(parser, Parser)
    parser.set_defaults(func=run)
    return parser


# -- commands ---------------------------------------------------------------------------------------------------------


def _create(args: argparse.Namespace) -> int:
    config = _checked(args.handler, args.cfgstring)
    lio = _rtslib()
    _need_runner()
    if any(one.name == args.name for one in _root(lio).storage_objects):
        raise TcmuError(f"there is a device {args.name!r} already")
    control = []
    if args.block_size:
        control.append(f"hw_block_size={args.block_size}")
    if args.data_area:
        control.append(f"max_data_area_mb={args.data_area}")
    with _explained(lio, f"creating {args.name}"):
        lio.UserBackedStorageObject(
            args.name, config=config, size=args.size, wwn=args.serial, control=",".join(control) or None
        )
    Output().line(f"{args.name}: {human(args.size)}, {config}")
    return Exit.OK


def _delete(args: argparse.Namespace) -> int:
    lio = _rtslib()
    store = _find(lio, args.name)
    luns = list(store.attached_luns)
    if luns and not args.force:
        where = ", ".join(_where(lun) for lun in luns)
        raise TcmuError(f"{args.name} is exported: {where}; `tcmu unexport {args.name}` first, or --force")
    with _explained(lio, f"deleting {args.name}"):
        for lun in luns:
            _remove_lun(lun)
        store.delete()
    Output().line(f"{args.name} is deleted; its storage stays")
    return Exit.OK


def _resize(args: argparse.Namespace) -> int:
    missing: list[Missing] = []
    found = control.the_one(args.name, control.disks(args.state_dir, kernel=False, missing=missing))
    if found is not None:
        disk = control.change(*found, Change(size=args.size))
        Output().line(f"{args.name}: {human(disk.size)}")
        return Exit.OK
    control.refuse_missing(args.name, missing)
    try:
        lio = _rtslib()
        store = _find(lio, args.name)
    except _NoLio:
        control.served(args.name, args.state_dir)  # that there is no such disk is what is to be said first
        raise
    with _explained(lio, f"resizing {args.name}"):
        store.set_attribute("dev_size", args.size)
    Output().line(f"{args.name}: {human(args.size)}")
    return Exit.OK


def _export(args: argparse.Namespace) -> int:
    lio = _rtslib()
    store = _find(lio, args.name)
    out = Output()
    with _explained(lio, f"exporting {args.name}"):
        if args.iscsi:
            _export_iscsi(lio, store, args, out)
        else:
            _export_loopback(lio, store, args, out)
    return Exit.OK


def _export_loopback(lio: Any, store: Any, args: argparse.Namespace, out: Output) -> None:
    target = lio.Target(lio.FabricModule("loopback"), args.target)
    tpg = lio.TPG(target, 1)
    lun = lio.LUN(tpg, storage_object=store)
    address = (Path(tpg.path) / "address").read_text().strip()
    disk = _wait_for_disk(f"{address}:{lun.lun}")
    out.line(disk or f"{target.wwn} LUN {lun.lun}: no disk appeared within {DISK_SECONDS:g} s (see dmesg)")
    if disk:
        out.line("For a file system on it, a line of /etc/fstab that has it unmounted before LIO takes the disk away:")
        out.line(f"{_lasting_name(disk)} /mnt auto {MOUNT_OPTIONS} 0 0")


def _export_iscsi(lio: Any, store: Any, args: argparse.Namespace, out: Output) -> None:
    if not args.acl and not args.open:
        raise TcmuError("say who may log in: --acl IQN for each initiator (/etc/iscsi/initiatorname.iscsi), or --open")
    host, port = _portal(args.portal)
    target = lio.Target(lio.FabricModule("iscsi"), args.target)
    tpg = lio.TPG(target, 1)
    tpg.set_attribute("authentication", 0)
    if args.open:
        tpg.set_attribute("generate_node_acls", 1)
        tpg.set_attribute("demo_mode_write_protect", 0)
    lun = lio.LUN(tpg, storage_object=store)
    if not any((one.ip_address.strip("[]"), one.port) == (host, port) for one in tpg.network_portals):
        lio.NetworkPortal(tpg, f"[{host}]" if ":" in host else host, port)
    for iqn in args.acl:
        acl = lio.NodeACL(tpg, iqn)
        if all(mapped.tpg_lun.lun != lun.lun for mapped in acl.mapped_luns):
            lio.MappedLUN(acl, lun.lun, lun.lun)
    tpg.enable = True
    out.line(f"{target.wwn} LUN {lun.lun} at {args.portal}")
    out.line(f"iscsiadm -m discovery -t sendtargets -p {args.portal}")
    out.line(f"iscsiadm -m node -T {target.wwn} -p {args.portal} --login")


def _unexport(args: argparse.Namespace) -> int:
    lio = _rtslib()
    store = _find(lio, args.name)
    luns = list(store.attached_luns)
    if not luns:
        raise TcmuError(f"{args.name} is not exported")
    out = Output()
    for lun in luns:
        where = _where(lun)
        with _explained(lio, f"removing {where}"):
            _remove_lun(lun)
        out.line(f"{where} is gone")
    return Exit.OK


def _devices(args: argparse.Namespace) -> int:
    lio = _rtslib()
    minors = {name.device: minor for minor, name in uio.devices()}
    found = []
    for store in sorted(_stores(lio), key=lambda one: str(one.name)):
        minor = minors.get(store.name)
        found.append(
            {
                "name": store.name,
                "size": store.size,
                "config": store.config,
                "serial": store.wwn,
                "uio": None if minor is None else f"uio{minor}",
                "exports": [_where(lun) for lun in store.attached_luns],
            }
        )
    out = Output()
    if args.json:
        out.json(found)
    elif found:
        rows = [
            [one["name"], human(one["size"]), one["config"], one["uio"] or "-", ", ".join(one["exports"]) or "-"]
            for one in found
        ]
        out.table(["NAME", "SIZE", "CONFIG", "UIO", "EXPORTED AS"], rows)
    return Exit.OK


# -- what they need ---------------------------------------------------------------------------------------------------


class _NoLio(TcmuError):
    """Kernel devices can't be reached from here."""


def _rtslib() -> Any:
    """Return rtslib, which is needed here alone."""
    if os.geteuid():
        raise _NoLio("kernel devices are root's: run it with sudo")
    try:
        import rtslib_fb
    except ModuleNotFoundError as error:
        raise TcmuError(f"this needs {error.name}: `pip install 'tcmu-core[kernel]'` brings it") from error
    except Exception as error:  # it is there, and broken: what it says is what helps
        raise TcmuError(f"rtslib_fb can't be imported: {text_of(error)}") from error
    rtslib_fb.RTSRoot._set_dbroot = _leave_dbroot
    return rtslib_fb


def _root(lio: Any) -> Any:
    """Return all that LIO has; its modules are loaded, and configfs mounted, where that is to be done."""
    try:
        return lio.RTSRoot()
    except (lio.RTSLibError, OSError) as error:
        raise _NoLio(
            f"LIO can't be reached ({text_of(error)}): `tcmu doctor` says what is missing; `tcmu serve` needs no LIO"
        ) from None


def _leave_dbroot(root: Any) -> None:
    """Take the kernel's dbroot as it is.

    Each rtslib would move it to the directory that it was built for, and with it what LIO keeps of reservations and
    port groups; or complain each time that it can't.
    """
    path = Path(root.path) / "dbroot"
    root._dbroot = path.read_text().strip() if path.exists() else root._default_dbroot


def _stores(lio: Any) -> Iterator[Any]:
    return (store for store in _root(lio).storage_objects if store.plugin == "user")


def _find(lio: Any, name: str) -> Any:
    names = []
    for store in _stores(lio):
        if store.name == name:
            return store
        names.append(store.name)
    raise TcmuError(f"there is no device {name!r}; there are: {', '.join(sorted(names)) or 'none'}")


def _checked(name: str, cfgstring: str) -> str:
    """Return the configuration for the kernel, after finding out what is wrong with it before that is asked.

    Raises:
        ConfigError: the cfgstring can't be right, or is none that the kernel could keep.
    """
    cfgstring = absolute(name, cfgstring)
    config = kernel_config(name, cfgstring)
    _, body = split_runner_options(cfgstring)
    try:
        handler = Registry().get(name)
    except HandlerError:
        return config  # tcmu-runner may look in more places than we do: it will say
    handler.check_config(body)
    return config


def _need_runner() -> None:
    """Raise unless a runner holds its lock: without one the kernel would wait, or nobody would serve the device."""
    try:
        fd = os.open(Places.of().lock, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        raise TcmuError("tcmu-runner is not running: `systemctl start tcmu-runner`") from None
    try:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return
    finally:
        os.close(fd)
    raise TcmuError("tcmu-runner is not running: `systemctl start tcmu-runner`")


@contextlib.contextmanager
def _explained(lio: Any, action: str) -> Iterator[None]:
    """Turn what rtslib and the kernel say into one message."""
    try:
        yield
    except (lio.RTSLibError, OSError) as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, OSError):
            cause = cause.__cause__ or cause.__context__
        if not isinstance(cause, OSError) or cause.errno is None:
            raise TcmuError(f"{action}: {error}") from error
        reason = _REASONS.get(cause.errno)
        hint = f": {reason}; tcmu-runner's log says more" if reason else ""
        raise TcmuError(f"{action}: {os.strerror(cause.errno)}{hint}") from error


def _where(lun: Any) -> str:
    target = lun.parent_tpg.parent_target
    return f"{target.fabric_module.name} {target.wwn} LUN {lun.lun}"


def _remove_lun(lun: Any) -> None:
    """Remove a LUN, and its target if that has no other."""
    tpg = lun.parent_tpg
    target = tpg.parent_target
    lun.delete()
    if not list(tpg.luns):
        target.delete()


def _portal(text: str) -> tuple[str, int]:
    if text.startswith("["):
        host, _, rest = text[1:].partition("]")
        port = rest.removeprefix(":")
    else:
        host, _, port = text.partition(":") if text.count(":") == 1 else (text, "", "")
    if port and not port.isdigit():
        raise ConfigError(f"{text!r} is no portal: write HOST, HOST:PORT or [IPV6]:PORT")
    return host, int(port or PORT)


def _lasting_name(disk: str) -> str:
    """Return the name that udev gives a disk after its identity, which is the same at each boot."""
    try:
        wwid = Path("/sys/block", Path(disk).name, "device", "wwid").read_text().strip()
    except OSError:
        return disk
    return f"/dev/disk/by-id/wwn-0x{wwid.removeprefix('naa.')}" if wwid.startswith("naa.") else disk


def _wait_for_disk(address: str) -> str:
    """Return the device node of the SCSI device at `host:channel:target:lun`, empty when none appears."""
    directory = Path("/sys/class/scsi_device") / address / "device" / "block"
    deadline = time.monotonic() + DISK_SECONDS
    while time.monotonic() < deadline:
        if directory.is_dir():
            for entry in directory.iterdir():
                return f"/dev/{entry.name}"
        time.sleep(0.05)
    return ""
