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
from collections.abc import Callable, Sequence
from pathlib import Path

import tcmu_core
from tcmu_core import sdnotify, stdout
from tcmu_core.bus import BusService
from tcmu_core.cli.arguments import Parser, directory, whole
from tcmu_core.cli.output import Exit, sentence
from tcmu_core.codec import Message
from tcmu_core.config.check import problems, unknown
from tcmu_core.config.configuration import DEFAULT_PATH, Config
from tcmu_core.config.file import load
from tcmu_core.config.watcher import Watcher
from tcmu_core.daemon.supervisor import Supervisor
from tcmu_core.errors import ConfigError, TcmuError, text_of
from tcmu_core.handlers.registry import Registry, news
from tcmu_core.host.control import ControlSocket
from tcmu_core.host.messages import Ask, LogLevel, SetLevel, Unserved
from tcmu_core.log import Level, Log
from tcmu_core.loop import Loop
from tcmu_core.state import Places

log = logging.getLogger("tcmu.runner")

MIN_FILES, MAX_FILES = 65536, 1048576
JUDGE_SECONDS = 5.0  # for the handlers to look at new settings


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    made = Parser(
        "tcmu-runner",
        description="Serve the kernel's TCM-user devices with handlers, and the [targets] of tcmu.conf by iSCSI.",
        epilog="What tcmu.conf says outranks the options. SIGHUP reopens the logs and looks for handlers; SIGTERM and "
        "SIGINT stop.",
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
        "-l", "--tcmu-log-dir", metavar="DIR", help="directory of tcmu-runner.log (TCMU_LOGDIR, /var/log)"
    )
    made.add_argument(
        "-f",
        "--nofile",
        type=whole(MIN_FILES, MAX_FILES, "a number of files"),
        metavar="N",
        help=f"limit of open files, {MIN_FILES} to {MAX_FILES}",
    )
    made.add_argument("--config", type=Path, metavar="FILE", help=f"default: {DEFAULT_PATH}, if it is there")
    made.add_argument(
        "--check-config",
        action="store_true",
        help="serve nothing: say what is wrong in tcmu.conf, with line numbers; exit status 4 if anything is",
    )
    made.add_argument(
        "--release",
        action="store_true",
        help="serve nothing: have the kernel fail what comes to devices that nobody serves, instead of making it wait "
        "for the next start (the service does so when it is stopped for good)",
    )
    made.add_argument(
        "--state-dir",
        type=directory,
        metavar="DIR",
        help="keep the lock, persistent reservations and all else there (/run and /var/lib/tcmu; who is not root: "
        "$XDG_RUNTIME_DIR and $XDG_STATE_HOME)",
    )
    return made


class Daemon:
    """The daemon from its settings to its end."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.loop = Loop()
        self.places = Places.of(options.state_dir)
        self.watcher = Watcher(
            options.config or DEFAULT_PATH, self._configure, judge=self._judge, must_exist=options.config is not None
        )
        self.registry: Registry | None = None
        self.logs = Log(self._level(self.watcher.config), stderr=True)
        self.supervisor: Supervisor | None = None
        self.bus: BusService | None = None
        self._stopping = False
        self._lock: Lock | None = None
        self._shown = ""
        self._levels: tuple[Level, dict[str, Level]] | None = None  # of tcmu.conf, as they were taken last

    def run(self) -> int:
        """Serve until SIGTERM or SIGINT; returns the exit status."""
        self._apply(self.watcher.config)
        for warning in self.watcher.config.warnings:
            log.warning("%s", warning)
        with stdout.taken(), contextlib.closing(Lock(self.places.lock)) as self._lock:
            return self._run()

    def _run(self) -> int:
        options = self.options
        _raise_file_limit(options.nofile)
        for path in options.handler_path:
            log.debug("handler path: %s", path)
        registry = self.registry = Registry(options.handler_path)
        good = [handler for handler in registry if not handler.error]
        for handler in registry:
            if handler.error:
                log.error("handler %r of %s is broken: %s", handler.name, handler.source, handler.error)
        log.debug("%d runner handlers found", len(good))
        self.supervisor = Supervisor(
            self.loop, registry, self.logs, self.watcher.config,
            runtime=self.places.hosts, state=self.places.state, handler_paths=options.handler_path,
        )  # fmt: skip
        self.supervisor.log_directory = self._directory(self.watcher.config)
        self.supervisor.looked = self._show
        for number in (signal.SIGTERM, signal.SIGINT):
            self.loop.on_signal(number, self._stop)
        self.loop.on_signal(signal.SIGHUP, self._reload)
        try:
            self._serve_devices(self.supervisor)
        except BaseException:
            self.supervisor.stop(self.loop.stop)
            self.loop.run()
            raise
        self.supervisor.serve_targets()
        self.supervisor.begin()
        self.watcher.start(self.loop)
        control = self._listen()
        self.bus = BusService(good, change_medium=self.supervisor.change_medium, post=self.loop.post)
        self.supervisor.bus = self.bus
        threading.Thread(target=self._start_bus, args=(self.bus,), name="tcmu-start", daemon=True).start()
        self.loop.run()
        if control is not None:
            control.close()
        self.bus.stop()
        self.loop.close()
        log.info("tcmu-runner has stopped")
        return 0

    def _serve_devices(self, supervisor: Supervisor) -> None:
        """Serve the kernel's devices where that can be; it can't be done without where there is nothing else to serve.

        Raises:
            TcmuError: it can't be, and tcmu.conf has no targets.
        """
        try:
            if os.geteuid():
                raise TcmuError("kernel devices are root's")
            from tcmu_core.kernel.configfs import load_module  # where nothing of the kernel is served, nothing is here

            log.debug("%s", load_module())
            supervisor.serve_devices()
        except TcmuError as error:
            if not self.watcher.config.targets:
                raise TcmuError(f"{error}; and {self.watcher.path} has no [targets] to serve instead") from error
            what = log.info if os.geteuid() else log.error
            what("kernel devices are not served, the targets of %s are: %s", self.watcher.path, error)

    def _start_bus(self, bus: BusService) -> None:
        """Off the loop: reaching a bus takes a while, and the kernel's requests must not wait for it."""
        bus.start()
        self.loop.post(self._ready)

    def _ready(self) -> None:
        if self.supervisor is not None and not self._stopping:
            self._shown = self.supervisor.summary
            log.info("tcmu-runner %s is ready: %s", tcmu_core.__version__, self._shown)
            sdnotify.ready(self._shown)

    def _show(self) -> None:
        """Let `systemctl status` show what is served; and see that no other daemon begins."""
        if self._lock is not None:
            self._lock.keep()
        if self.supervisor is not None and self._shown and self._shown != self.supervisor.summary:
            self._shown = self.supervisor.summary
            sdnotify.status(self._shown)

    def _stop(self) -> None:
        if self._stopping or self.supervisor is None:
            return
        self._stopping = True
        blocked = "kernel devices are blocked until the next start, " if self.supervisor.devices is not None else ""
        log.info("stopping: %sinitiators of targets log out", blocked)
        sdnotify.stopping()
        self.watcher.stop()
        self.supervisor.stop(self.loop.stop)

    def _reload(self) -> None:
        """Open the logs again, then look for handlers off the loop, whatever their code does, and read tcmu.conf."""
        sdnotify.reloading()
        assert self.supervisor is not None
        assert self.registry is not None
        self._apply(self.watcher.config)  # a log file that could not be opened may be possible by now
        self.supervisor.reopen_logs()
        registry = self.registry
        done = once(self._reload_with)

        def look() -> None:
            found = registry
            try:
                found = registry.renewed()
            except BaseException as error:  # a directory of --handler-path is gone, or what their code raises
                log.error("the handlers stay as they were: %s", text_of(error))
            self.loop.post(done, found)

        def late() -> None:
            if done(registry):
                log.error("looking for handlers has not ended within %g s: they stay as they were", JUDGE_SECONDS)

        threading.Thread(target=look, name="tcmu-look", daemon=True).start()
        self.loop.call_later(JUDGE_SECONDS, late)

    def _reload_with(self, registry: Registry) -> None:
        """Offer these handlers from now on, then take what tcmu.conf says of them, and try again what was given up."""
        if self._stopping or self.supervisor is None or self.registry is None:
            return
        for level, text in news(self.registry, registry):
            log.log(level.number, "%s", text)
        self.registry = registry
        self.supervisor.take_handlers(registry)
        if self.bus is not None:
            self.bus.update(handler for handler in registry if not handler.error)
        self.watcher.reload()
        self.supervisor.retry()
        sdnotify.ready(self._shown)

    # -- what it is asked ---------------------------------------------------------------------------------------------

    def _listen(self) -> ControlSocket | None:
        """Listen to `tcmu set --runner`; what is served does not need that."""
        try:
            return ControlSocket(self.loop, self.places.runner, self)
        except OSError as error:
            log.warning("`tcmu set --runner` can't reach this process: %s", sentence(error))
            return None

    def answer(self, message: Message, _asker: object) -> Message | None:
        """Answer `Ask`: what of tcmu.conf nobody serves; and `SetLevel`: its level, and that of all its processes."""
        if isinstance(message, Ask):
            targets = self.supervisor.targets if self.supervisor is not None else None
            return Unserved(tuple(targets.unserved) if targets is not None and not self._stopping else ())
        if not isinstance(message, SetLevel):
            return None
        if message.level is not None and self.supervisor is not None:
            self.logs.set_level(Level(min(max(message.level, Level.CRIT), Level.DEBUG_SCSI_CMD)))
            self.supervisor.tell_log()
            log.info("logging at level %s now, until tcmu.conf says otherwise", self.logs.level.name)
        return LogLevel(int(self.logs.level))

    def gone(self, _asker: object) -> None:
        """Nothing is kept for who has asked."""

    # -- settings ---------------------------------------------------------------------------------------------------

    def _judge(self, config: Config, verdict: Callable[[list[str]], None]) -> None:
        """Have the handlers look at new settings, off the loop: whatever their code does must not hold it up."""
        assert self.registry is not None
        registry = self.registry

        def look() -> None:
            self.loop.post(verdict, problems(config, registry))

        threading.Thread(target=look, name="tcmu-judge", daemon=True).start()
        late = f"{self.watcher.path}: the handlers have not looked at it within {JUDGE_SECONDS:g} s"
        self.loop.call_later(JUDGE_SECONDS, verdict, [late])

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
            log.error("no log file: %s", sentence(error))
        self.logs.set_syslog(config.syslog)
        levels = (self._level(config), dict(config.log_levels))
        if levels != self._levels:  # else what `tcmu set --runner` said goes on
            self._levels = levels
            self.logs.set_level(*levels)

    def _level(self, config: Config) -> Level:
        if self.options.debug and "log_level" not in config.given:
            return Level.DEBUG_SCSI_CMD
        return config.log_level

    def _directory(self, config: Config) -> str:
        if "log_dir" in config.given:
            return str(config.log_dir)
        return self.options.tcmu_log_dir or os.environ.get("TCMU_LOGDIR") or str(self.places.logs)


def once(fn: Callable[[Registry], object]) -> Callable[[Registry], bool]:
    """Return a function of which the first call alone calls `fn`; it says whether this one was."""
    called = False

    def call(registry: Registry) -> bool:
        nonlocal called
        first, called = not called, True
        if first:
            fn(registry)
        return first

    return call


def release(options: argparse.Namespace) -> int:
    """Release the kernel's devices if that is meant; returns the exit status."""
    from tcmu_core.kernel.release import is_meant, release_all

    with Log(Level.INFO, stderr=True):
        if is_meant():
            with contextlib.closing(Lock(Places.of(options.state_dir).lock)):
                log.info("%d devices answer with an error until tcmu-runner is started again", release_all())
    return 0


def check_config(options: argparse.Namespace) -> int:
    """Say what is wrong in tcmu.conf; returns the exit status."""
    path = options.config or DEFAULT_PATH
    try:
        config = load(path, must_exist=options.config is not None)
        registry = Registry(options.handler_path)
        found = [*problems(config, registry), *unknown(config, registry)]
        for warning in config.warnings:
            print(f"warning: {warning}", file=sys.stderr)
    except ConfigError as error:
        found = str(error).splitlines()
    for line in found:
        print(line, file=sys.stderr)
    if not found:
        print(f"{path}: in order", file=stdout.stream())
    return Exit.BAD_CONFIG if found else Exit.OK


class Lock:
    """The lock at `path` that says who is the daemon.

    Raises:
        TcmuError: there is one.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = self._taken()
        self._told = False  # of the other daemon

    def _taken(self) -> int:
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BaseException as error:
            os.close(fd)
            if isinstance(error, BlockingIOError):
                raise TcmuError(f"tcmu-runner is already running: {self.path} is locked") from None
            raise
        return fd

    def keep(self) -> None:
        """Take it again where the file has been removed, or is another one: it would keep nobody out."""
        try:
            if os.path.samestat(self.path.stat(), os.fstat(self._fd)):
                return
        except OSError:
            pass  # it has gone
        try:
            fd = self._taken()
        except TcmuError:
            if not self._told:
                log.error("%s was removed, and another tcmu-runner holds it now: end one of them", self.path)
            self._told = True
        except OSError as error:
            log.debug("%s: %s", self.path, error)
        else:
            self.close()
            self._fd, self._told = fd, False
            log.warning("%s was removed: it is there again", self.path)

    def close(self) -> None:
        """Let it go."""
        os.close(self._fd)


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
    stdout.see_to_descriptors()
    options = parser().parse_args(argv)
    try:
        if options.check_config:
            with stdout.taken():
                return check_config(options)
        return release(options) if options.release else Daemon(options).run()
    except (TcmuError, OSError) as error:
        with contextlib.suppress(OSError):
            print(f"tcmu-runner: {sentence(error)}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
