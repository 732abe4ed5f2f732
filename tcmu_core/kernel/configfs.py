"""LIO's configfs: the directory of a TCM-user backstore, and the parameters of the kernel module."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tcmu_core.errors import TcmuError

CORE = Path("/sys/kernel/config/target/core")
MODULE = "target_core_user"
PARAMETERS = Path("/sys/module") / MODULE / "parameters"
DEFAULT_MAX_SECTORS = 128  # what the kernel puts where nobody set hw_max_sectors
DEFAULT_TIME_OUT = 30  # seconds: what the kernel puts into cmd_time_out where nobody set it
TIME_OUT = 300  # seconds: time for a person to read that a worker hangs, and to replace it
RESET_BUSY = "1"  # reset_ring: commands in flight end with BUSY, so initiators try again; "2" is CHECK CONDITION

_HINTS = {
    errno.ENOENT: "the device or this kernel's TCM-user does not have it",
    errno.EACCES: "only root may do that",
    errno.EPERM: "only root may do that",
    errno.EOPNOTSUPP: "the handler does not support it",
    errno.EBUSY: "another change is under way, or the device is exported",
    errno.EAGAIN: "tcmu-runner is starting: try again",
    errno.EINTR: "tcmu-runner was restarted meanwhile: try again",
    errno.ECANCELED: "tcmu-runner was stopped meanwhile",
    errno.EINVAL: "the kernel refuses the value, or the device is not enabled",
}


class ConfigfsError(TcmuError):
    """Reading or writing configfs failed; `errno` says how."""

    def __init__(self, action: str, error: OSError) -> None:
        self.errno = error.errno or errno.EIO
        hint = _HINTS.get(self.errno)
        super().__init__(f"{action}: {os.strerror(self.errno)}" + (f" ({hint})" if hint else ""))


@dataclass(frozen=True, slots=True)
class Backstore:
    """A directory `user_<hba>/<name>` of configfs."""

    hba: int
    name: str
    core: Path = CORE

    @property
    def path(self) -> Path:
        """Return the directory."""
        return self.core / f"user_{self.hba}" / self.name

    def read(self, attribute: str) -> str:
        """Return an attribute such as `attrib/hw_block_size`, without white space around it."""
        try:
            return (self.path / attribute).read_text(errors="replace").strip()
        except OSError as error:
            raise ConfigfsError(f"reading {self.path / attribute}", error) from None

    def write(self, attribute: str, value: str | int) -> None:
        """Write an attribute; an exception carries what the kernel, or the handler behind it, said."""
        write(self.path / attribute, str(value))

    def has(self, attribute: str) -> bool:
        """Return whether this kernel has the attribute."""
        return (self.path / attribute).exists()

    @property
    def block_size(self) -> int:
        """Return the logical block size in bytes."""
        return int(self.read("attrib/hw_block_size"))

    @property
    def size(self) -> int:
        """Return the configured size in bytes."""
        return int(self.read("attrib/dev_size"))

    @property
    def max_transfer(self) -> int:
        """Return the limit of one transfer in bytes, 0 where nobody set one."""
        sectors = int(self.read("attrib/hw_max_sectors"))
        return 0 if sectors == DEFAULT_MAX_SECTORS else sectors * self.block_size

    @property
    def data_area(self) -> int:
        """Return in bytes what the data area holds: the kernel refuses a command that moves more."""
        return int(self.read("attrib/max_data_area_mb")) << 20

    @property
    def serial(self) -> str:
        """Return the unit serial number that the administrator (or rtslib) gave, empty before that."""
        return self.read("wwn/vpd_unit_serial").rpartition(":")[2].strip()

    def keep_commands(self) -> None:
        """Have commands wait long enough for a worker to be replaced, unless the administrator chose how long.

        The kernel ends what has no answer after `cmd_time_out` seconds with an error; it takes another value only while
        the device is not exported.
        """
        with contextlib.suppress(ConfigfsError):
            if int(self.read("attrib/cmd_time_out")) == DEFAULT_TIME_OUT:
                self.write("attrib/cmd_time_out", TIME_OUT)

    def show(self, size: int | None, config: str, write_cache: bool) -> None:
        """Have the attributes that differ show a size in bytes, `handler/cfgstring` and whether writes are cached.

        Of a device that is enabled the kernel asks the daemon whether each is so, and the writer waits for its answer.
        """
        if size is not None and size != self.size:
            self.write("attrib/dev_size", size)
        if self.read("attrib/dev_config") != config:
            self.write("attrib/dev_config", config)
        if bool(int(self.read("attrib/emulate_write_cache"))) != write_cache:
            self.write("attrib/emulate_write_cache", int(write_cache))

    @property
    def info(self) -> str:
        """Return the kernel's own line about the device."""
        return self.read("info")

    def block(self) -> None:
        """Let the kernel answer BUSY from now on; what we had answered is completed first."""
        self.write("action/block_dev", 1)

    def unblock(self) -> None:
        """Let commands into the ring again."""
        self.write("action/block_dev", 0)

    def reset_ring(self) -> None:
        """Empty the ring: what was in flight ends with BUSY. Only while nobody serves it."""
        self.write("action/reset_ring", RESET_BUSY)


def device_called(name: str) -> Backstore | None:
    """Return the device of that name, None when there is none; raises `TcmuError` where there are several."""
    found = [path.parent for path in CORE.glob("user_*/*/enable") if path.parent.name == name]
    if len(found) > 1:
        raise TcmuError(f"{len(found)} devices of the kernel are called {name!r}")
    return Backstore(int(found[0].parent.name.removeprefix("user_")), name, CORE) if found else None


def write(path: Path, value: str) -> None:
    """Write one value in one system call."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, value.encode())
        finally:
            os.close(fd)
    except OSError as error:
        raise ConfigfsError(f"writing {value!r} to {path}", error) from None


def set_parameter(name: str, value: int, parameters: Path = PARAMETERS) -> bool:
    """Set a parameter of the kernel module; False where this kernel has no such parameter."""
    path = parameters / name
    if not path.exists():
        return False
    write(path, str(value))
    return True


def load_module() -> str:
    """Load target_core_user; returns what to log.

    Raises:
        TcmuError: it can't be loaded; the message says what to do.
    """
    if PARAMETERS.parent.exists():
        return f"Module {MODULE!r} is already loaded"
    release = os.uname().release
    advice = f"load it on the host: modprobe {MODULE}"
    if not Path("/lib/modules", release).is_dir():
        raise TcmuError(f"the kernel module {MODULE} is not loaded, and /lib/modules/{release} is not here; {advice}")
    try:
        done = subprocess.run(
            ["modprobe", "-b", MODULE], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
        )
    except FileNotFoundError:
        raise TcmuError(f"the kernel module {MODULE} is not loaded and there is no modprobe here; {advice}") from None
    if done.returncode or not PARAMETERS.parent.exists():
        reason = done.stderr.strip() or "is it on a modprobe blacklist?"
        raise TcmuError(f"the kernel module {MODULE} can't be loaded: {reason}; {advice}")
    return f"Module {MODULE!r} is loaded"
