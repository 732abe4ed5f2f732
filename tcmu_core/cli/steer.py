"""`tcmu set`: what can be changed of a disk that is in use, and of how the processes log."""

from __future__ import annotations

import argparse
import difflib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tcmu_core.cli.arguments import state_dir
from tcmu_core.cli.output import Exit, Output
from tcmu_core.disk.device import Change
from tcmu_core.errors import ConfigError
from tcmu_core.host import control
from tcmu_core.host.control import ControlError, NoSuchDisk
from tcmu_core.host.messages import Ask, DiskStatus, FilterAnswer, FilterCommand, LogLevel, SetLevel, Status
from tcmu_core.kernel import configfs
from tcmu_core.kernel.configfs import ConfigfsError
from tcmu_core.log import Level
from tcmu_core.state import Places, default_directory

DESCRIPTION = """\
Change a disk while it is in use, whichever process serves it: `tcmu serve`,
tcmu-runner for a target, or for the kernel. Without KEY=VALUE it shows what can
be set, and what is in force.

  tcmu set disk write_cache=off            initiators are told; what is cached is
                                           written before this returns
  tcmu set disk log_level=debug            of the process that serves the disk
  tcmu set disk rate.iops=500 rate.burst=2 an option of a filter that is on it
  tcmu set --runner log_level=debug        of tcmu-runner and all its processes

Several are set in the order in which they stand; the first that fails ends it, and
what was set before stays. What is set lasts until the process ends; a log level
also goes when tcmu.conf gives another one. To keep it, write it into tcmu.conf;
`targetcli saveconfig` keeps the write cache of a kernel device.
"""
KEYS = ("write_cache", "log_level")
_ANEW = "the disk opened anew: "
_SERVE = f"{_ANEW}stop `tcmu serve` and start it with another %s"
_TARGET = f"{_ANEW}change it in tcmu.conf, and the LUN is opened anew"
_KERNEL = f"{_ANEW}delete the device and create it again; its storage stays"
# What else a person may want to change, and what that is of `tcmu serve`.
_NOT_LIVE = {
    "cfgstring": "CFGSTRING", "block_size": "--block-size", "read_only": "--read-only", "serial": "--serial",
    "name": "--name", "filters": "--filter", "handler": "HANDLER",
}  # fmt: skip


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `tcmu set`."""
    parser.add_argument(
        "disk", metavar="DISK", nargs="?", help="its name: of `tcmu serve --name`, tcmu.conf or targetcli"
    )
    parser.add_argument(
        "settings", metavar="KEY=VALUE", nargs="*", help="write_cache=on|off, log_level=LEVEL, FILTER.OPTION=VALUE"
    )
    parser.add_argument("--runner", action="store_true", help="of tcmu-runner itself: log_level alone")
    state_dir(parser, "its process")
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")


def run(args: argparse.Namespace) -> int:
    """Run `tcmu set`."""
    words = [args.disk, *args.settings] if args.runner and args.disk else args.settings
    if args.runner:
        wanted = _wanted(words, ("log_level",))
        _show(args, "tcmu-runner", {"log_level": _runner_level(args.state_dir, wanted.get("log_level"))})
        return Exit.OK
    if not args.disk:
        raise ConfigError("no disk: `tcmu set DISK KEY=VALUE`, or --runner for tcmu-runner itself")
    path, disk = _served(args.disk, args.state_dir)
    knobs = _Knobs(path, disk)
    if not words:
        _show(args, disk.name, knobs.in_force())
        return Exit.OK
    wanted = _wanted(words, KEYS, knobs)
    done = {}
    try:
        for key, value in wanted.items():
            done[key] = knobs.set(key, value)
    finally:
        if done:  # what was set before something failed stays set
            _show(args, disk.name, done)
    return Exit.OK


def _served(name: str, directory: Path) -> tuple[Path, DiskStatus]:
    """Return the disk of that name as `control.served` does; what the kernel alone knows of one is said."""
    try:
        return control.served(name, directory)
    except NoSuchDisk:
        if configfs.device_called(name) is None:
            raise
        raise ControlError(f"nobody serves the kernel's device {name!r} that you may ask: is tcmu-runner running, "
                           "and are you root?") from None  # fmt: skip


def _show(args: argparse.Namespace, name: str, values: Mapping[str, Any]) -> None:
    out = Output()
    if args.json:
        out.json(dict(values))
        return
    for key, value in values.items():
        out.line(f"{name}: {key}={_text(value)}")


def _text(value: Any) -> str:
    """Return a value as it can be given again."""
    if isinstance(value, bool):
        return ("off", "on")[value]
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


class _Knobs:
    """What can be set of one disk, at the process that serves it."""

    def __init__(self, path: Path, disk: DiskStatus) -> None:
        self.path = path
        self.disk = disk

    def in_force(self) -> dict[str, Any]:
        """Return all that can be set, as it is."""
        found: dict[str, Any] = {"write_cache": self.disk.write_cache, "log_level": set_level(self.path, None)}
        for name, options in self._filters({"do": "settings"}).items():
            found |= {f"{name}.{option}": value for option, value in options.items()}
        return found

    def refuse(self, key: str) -> str:
        """Return why a key can't be set, and what would be needed."""
        if key == "size":
            return f"`tcmu resize {self.disk.name} SIZE` sets the size"
        if key == "cfgstring" and self.disk.removable:
            return f"`tcmu insert {self.disk.name} CFGSTRING` puts another disc in"
        if key in _NOT_LIVE:
            if self._of_kernel():
                needed = _KERNEL
            else:
                needed = _SERVE % _NOT_LIVE[key] if self.path.name.startswith("serve-") else _TARGET
            return f"{key} can't be set while the disk is in use; what is needed: {needed}"
        known = [*KEYS, "size", *_NOT_LIVE]
        close = difflib.get_close_matches(key, known, 1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        return f"there is no {key!r} to be set: {hint}there are {', '.join(KEYS)} and FILTER.OPTION"

    def set(self, key: str, value: Any) -> Any:
        """Set one thing; returns what is in force then, and raises what the process says."""
        if key == "log_level":
            return set_level(self.path, value)
        if key == "write_cache":
            return self._set_write_cache(value)
        name, _, option = key.partition(".")
        answer = self._filters({"do": "set", "name": name, "options": {option: value}})
        return answer.get(option, value)

    def _set_write_cache(self, on: bool) -> bool:
        if not self._of_kernel():
            return control.change(self.path, self.disk, Change(write_cache=on)).write_cache
        # The kernel has it in an attribute, asks tcmu-runner about a change, and has initiators see what it has.
        store = configfs.device_called(self.disk.name)
        if store is None:
            raise ControlError(f"{self.disk.name}: configfs does not show the device")
        try:
            store.write("attrib/emulate_write_cache", int(on))
        except ConfigfsError as error:
            raise ControlError(f"{self.disk.name}: {error}; tcmu-runner's log says more") from error
        if self._status().write_cache is not on:  # the kernel has it so already, and an initiator has chosen otherwise
            return control.change(self.path, self.disk, Change(write_cache=on)).write_cache
        return on

    def _status(self) -> DiskStatus:
        status = control.ask(self.path, Ask())
        for disk in status.disks if isinstance(status, Status) else ():
            if disk.lun == self.disk.lun:
                return disk
        raise ControlError(f"{self.disk.name}: its process serves it no more")

    def _of_kernel(self) -> bool:
        status = control.ask(self.path, Ask())
        return isinstance(status, Status) and any(address.startswith("/dev/") for address in status.addresses)

    def _filters(self, message: dict[str, Any]) -> dict[str, Any]:
        answer = control.ask(self.path, FilterCommand(json.dumps(message), self.disk.lun))
        if not isinstance(answer, FilterAnswer):
            raise ControlError(f"{self.disk.name}: the process that serves it is of another version")
        if answer.mistaken:
            raise ConfigError(answer.error)
        if answer.error:
            raise ControlError(f"{self.disk.name}: {answer.error}")
        told: dict[str, Any] = json.loads(answer.answer)["answer"]
        return told


def _wanted(words: list[str], keys: tuple[str, ...], knobs: _Knobs | None = None) -> dict[str, Any]:
    """Return what is to be set; nothing is set before all of it has been read. Raises `ConfigError`."""
    found: dict[str, Any] = {}
    for word in words:
        key, sep, text = word.partition("=")
        if not sep:
            raise ConfigError(f"{word!r} sets nothing: write KEY=VALUE")
        if key in found:
            raise ConfigError(f"{key} is given twice")
        if key in keys:
            found[key] = _READ[key](text)
        elif knobs is not None and "." in key:
            found[key] = text  # its filter knows what it means
        elif knobs is not None:
            raise ConfigError(knobs.refuse(key))
        else:
            raise ConfigError(f"{key!r} is nothing of tcmu-runner's: there is {', '.join(keys)}")
    return found


def _level(text: str) -> Level:
    name = text.upper()
    if name in Level.__members__:
        return Level[name]
    for level in Level:
        if text == str(level.value):
            return level
    raise ConfigError(f"{text!r} is no level: {', '.join(f'{one.value} {one.name.lower()}' for one in Level)}")


def _switch(text: str) -> bool:
    if text not in ("on", "off"):
        raise ConfigError(f"{text!r} is neither on nor off")
    return text == "on"


_READ: Mapping[str, Callable[[str], Any]] = {"write_cache": _switch, "log_level": _level}


def set_level(path: Path, level: Level | None) -> str:
    """Have the process at `path` log at a level, or ask for the one that it has; returns its name."""
    answer = control.ask(path, SetLevel(None if level is None else int(level)))
    if not isinstance(answer, LogLevel):
        raise ControlError("the process is of another version")
    return Level(answer.level).name.lower()


def _runner_level(directory: Path, level: Level | None) -> str:
    """Do what `set_level` does, of tcmu-runner; raises `ControlError` where there is none."""
    path = Places.of(None if directory == default_directory() else directory).runner
    try:
        return set_level(path, level)
    except (FileNotFoundError, ConnectionRefusedError):
        raise ControlError(f"tcmu-runner is not running, or it is somebody else's (nobody listens at {path})") from None
