"""`tcmu-runner`: the daemon. Options as the C runner has them, and --config."""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import logging
import os
import resource
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import tcmu_core
from tcmu_core import sdnotify
from tcmu_core.bus import BusService
from tcmu_core.config.configuration import DEFAULT_PATH, Config
from tcmu_core.config.watcher import Watcher
from tcmu_core.errors import TcmuError
from tcmu_core.handlers.registry import Registry
from tcmu_core.kernel.configfs import load_module
from tcmu_core.log import Level, Log
from tcmu_core.loop import Loop

if TYPE_CHECKING:
    from tcmu_core.daemon.supervisor import Supervisor

log = logging.getLogger("tcmu.runner")

LOCK = Path("/run/tcmu.lock")
LOG_DIR = "/var/log"
MIN_FILES, MAX_FILES = 65536, 1048576
_KERNEL_EXTRA = "`pip install 'tcmu-core[kernel]'` brings it"


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    made = argparse.ArgumentParser(
        "tcmu-runner",
        description="Serve the kernel's TCM-user devices with handlers, and those that targetcli creates.",
        epilog="What tcmu.conf says outranks the options. SIGHUP reopens the logs, SIGTERM and SIGINT stop.",
    )
    made.add_argument("-V", "--version", action="version", version=f"tcmu-runner {tcmu_core.__version__}")
    made.add_argument("-d", "--debug", action="store_true", help="log all, each SCSI command by name too")
    made.add_argument(
        "--handler-path",
        action="append",
        default=[],
        metavar="DIR",
        help="look for handlers here too: handler_NAME.py files and what `pip install --target` put there",
    )
    made.add_argument(
        "-l", "--tcmu-log-dir", metavar="DIR", help=f"directory of tcmu-runner.log (TCMU_LOGDIR, {LOG_DIR})"
    )
    made.add_argument(
        "-f", "--nofile", type=_nofile, metavar="N", help=f"limit of open files, {MIN_FILES} to {MAX_FILES}"
    )
    made.add_argument("--config", type=Path, default=DEFAULT_PATH, metavar="FILE", help=f"default: {DEFAULT_PATH}")
    return made


def _nofile(text: str) -> int:
    number = int(text)
    if not MIN_FILES <= number <= MAX_FILES:
        raise argparse.ArgumentTypeError(f"must be from {MIN_FILES} to {MAX_FILES}")
    return number


class Daemon:
    """The daemon from its settings to its end."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.loop = Loop()
        self.watcher = Watcher(options.config, self._configure)
        self.logs = Log(self._level(self.watcher.config), stderr=True)
        self.supervisor: Supervisor | None = None
        self.bus: BusService | None = None
        self._lock = -1
        self._stopping = False

    def run(self) -> int:
        """Serve until SIGTERM or SIGINT; returns the exit status."""
        options = self.options
        self._apply(self.watcher.config)
        for warning in self.watcher.config.warnings:
            log.warning("%s", warning)
        self._take_lock()
        _raise_file_limit(options.nofile)
        for path in options.handler_path:
            log.debug("handler path: %s", path)
        registry = Registry(options.handler_path)
        good = [handler for handler in registry if not handler.error]
        for handler in registry:
            if handler.error:
                log.error("handler %r of %s is broken: %s", handler.name, handler.source, handler.error)
        log.debug("%d runner handlers found", len(good))
        self.supervisor = _supervisor_class()(
            self.loop, registry, self.logs, self.watcher.config, handler_paths=options.handler_path
        )
        self.supervisor.log_directory = self._directory(self.watcher.config)
        for number in (signal.SIGTERM, signal.SIGINT):
            self.loop.on_signal(number, self._stop)
        self.loop.on_signal(signal.SIGHUP, self._reload)
        try:
            log.debug("%s", load_module())
            self.supervisor.start()
        except BaseException as error:
            if not isinstance(error, TcmuError) or not self.watcher.config.targets:
                self.supervisor.stop(self.loop.stop)
                self.loop.run()
                raise
            log.error("kernel devices are not served, the targets of %s are: %s", options.config, error)
        self.supervisor.serve_targets()
        self.watcher.start(self.loop)
        self.bus = BusService(good, change_medium=self.supervisor.change_medium, post=self.loop.post)
        self.supervisor.bus = self.bus
        threading.Thread(target=self._start_bus, args=(self.bus,), name="tcmu-start", daemon=True).start()
        self.loop.run()
        self.bus.stop()
        self.loop.close()
        log.info("tcmu-runner has stopped")
        return 0

    def _start_bus(self, bus: BusService) -> None:
        """Off the loop: reaching a bus takes a while, and the kernel's requests must not wait for it."""
        bus.start()
        self.loop.post(self._ready)

    def _ready(self) -> None:
        if self.supervisor is not None and not self._stopping:
            count = len(self.supervisor.devices)
            log.info("tcmu-runner %s is ready: %d devices", tcmu_core.__version__, count)
            sdnotify.ready(f"{count} devices")

    def _stop(self) -> None:
        if self._stopping or self.supervisor is None:
            return
        self._stopping = True
        log.info("stopping: devices are blocked until the next start")
        sdnotify.stopping()
        self.watcher.stop()
        self.supervisor.stop(self.loop.stop)

    def _reload(self) -> None:
        sdnotify.reloading()
        self.watcher.reload()
        if self.supervisor is not None:
            self.supervisor.reopen_logs()
        sdnotify.ready()

    # -- settings ---------------------------------------------------------------------------------------------------

    def _configure(self, config: Config) -> None:
        self._apply(config)
        if self.supervisor is not None:
            self.supervisor.log_directory = self._directory(config)
            self.supervisor.configure(config)

    def _apply(self, config: Config) -> None:
        """Give the log its settings."""
        try:
            self.logs.set_directory(self._directory(config))
        except OSError as error:
            log.error("no log file: %s", error)
        self.logs.set_syslog(config.syslog)
        self.logs.set_level(self._level(config), config.log_levels)

    def _level(self, config: Config) -> Level:
        if self.options.debug and "log_level" not in config.given:
            return Level.DEBUG_SCSI_CMD
        return config.log_level

    def _directory(self, config: Config) -> str:
        if "log_dir" in config.given:
            return str(config.log_dir)
        return self.options.tcmu_log_dir or os.environ.get("TCMU_LOGDIR") or LOG_DIR

    def _take_lock(self) -> None:
        self._lock = os.open(LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise TcmuError(f"tcmu-runner is already running: {LOCK} is locked") from None


def _supervisor_class() -> type[Supervisor]:
    try:
        from tcmu_core.daemon.supervisor import Supervisor
    except ImportError as error:
        raise TcmuError(f"kernel devices need {error.name}: {_KERNEL_EXTRA}") from error
    return Supervisor


def _raise_file_limit(wanted: int | None) -> None:
    """Raise the limit of open files to what was asked for, else as far as it goes without asking."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    target = wanted or min(hard, MIN_FILES)
    if target <= soft:
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (target, max(target, hard)))
    except (OSError, ValueError) as error:
        raise TcmuError(f"the limit of open files can't be raised from {soft} to {target}: {error}") from None


def main(argv: Sequence[str] | None = None) -> int:
    """Run the daemon; returns its exit status."""
    options = parser().parse_args(argv)
    try:
        return Daemon(options).run()
    except (TcmuError, OSError) as error:
        with contextlib.suppress(OSError):
            print(f"tcmu-runner: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
