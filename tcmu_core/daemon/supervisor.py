"""The supervisor: keeps hosts running for its sources, which know what is to be served. It does no I/O for a disk."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from tcmu_core.codec import Message
from tcmu_core.config.configuration import Config
from tcmu_core.daemon.managed import CLOSE_SECONDS, ManagedProcess, State
from tcmu_core.daemon.spawner import Process, Spawner
from tcmu_core.daemon.targets import Targets
from tcmu_core.handlers.registry import Handler
from tcmu_core.host.messages import Drain, Job, LogSettings
from tcmu_core.log import Log
from tcmu_core.loop import Loop

if TYPE_CHECKING:
    from tcmu_core.daemon.devices import Devices

log = logging.getLogger("tcmu.runner")

LOOK_SECONDS = 2.0  # between two looks at what is served, and at the memory that it takes


class Bus(Protocol):
    """What must be known of D-Bus."""

    @property
    def external(self) -> Collection[str]:
        """Return the subtypes that other programs serve."""


class Source(Protocol):
    """Who knows what is to be served: the kernel, or tcmu.conf."""

    @property
    def processes(self) -> Mapping[str, ManagedProcess]:
        """The processes that it has."""

    @property
    def disks(self) -> int:
        """How many disks are served."""

    def configure(self, config: Config) -> None:
        """Take new settings."""

    def hold_to_limits(self, config: Config) -> None:
        """Replace hosts that took more memory than they may."""

    def stop(self, then: Callable[[], object]) -> None:
        """End all processes, then call `then()`, in bounded time."""


class Supervisor:
    """All hosts of this daemon. `runtime` is the directory in which the next daemon finds them."""

    def __init__(
        self,
        loop: Loop,
        handlers: Iterable[Handler],
        logs: Log,
        config: Config,
        *,
        runtime: Path,
        state: Path | None = None,
        handler_paths: Iterable[str] = (),
    ) -> None:
        self.loop = loop
        self.handlers: Mapping[str, Handler] = {handler.name: handler for handler in handlers}
        self.logs = logs
        self.log_directory: str | None = None
        self.log_stderr = True
        self.config = config
        self.bus: Bus | None = None
        self.looked: Callable[[], object] = _nothing  # called after each look at what is served
        self.devices: Devices | None = None
        self.targets: Targets | None = None
        self._state = state
        self._stopping = False
        self._spawner = Spawner(loop, runtime, list(handler_paths))

    # -- start and stop -----------------------------------------------------------------------------------------------

    @property
    def sources(self) -> list[Source]:
        """Who knows what is to be served."""
        return [source for source in (self.devices, self.targets) if source is not None]

    @property
    def summary(self) -> str:
        """Say how many disks are served, and what is not."""
        parts = []
        if self.devices is not None:
            parts.append(_counted(self.devices.disks, "device"))
        if self.targets is not None and self.targets.processes:
            parts.append(f"{_counted(self.targets.disks, 'disk')} of targets")
        given_up = sum(process.state is State.QUARANTINED for process in self._processes())
        if given_up:
            parts.append(f"{given_up} given up")
        return ", ".join(parts) or "nothing to serve"

    def serve_devices(self) -> None:
        """Serve the kernel's devices.

        Raises:
            TcmuError: the kernel's side is missing or refuses us.
        """
        from tcmu_core.daemon.devices import Devices  # where there is no kernel's side, nothing of it is imported

        devices = Devices(self)
        devices.start()
        self.devices = devices

    def serve_targets(self) -> None:
        """Serve the `[targets]` of the configuration by the portal."""
        self.targets = Targets(self, self._state)
        self.targets.configure(self.config)

    def begin(self) -> None:
        """All sources are there: end hosts that an earlier supervisor left and nobody wants, and look after others."""
        wanted = [process.key for source in self.sources for process in source.processes.values()]
        for path in self._spawner.leftovers(wanted):
            self._dismiss(path)
        self._look()

    def _dismiss(self, path: Path) -> None:
        process = self._spawner.adopt(path, _ignore, lambda _reason: late.cancel())
        if process is None:
            return
        log.info("process %d serves what nobody asks for any more: it ends", process.pid)
        process.send(Drain())
        late = self.loop.call_later(CLOSE_SECONDS, self._does_not_end, process)

    def _does_not_end(self, process: Process) -> None:
        log.error("process %d, which nobody asks for any more, does not end: killed", process.pid)
        process.kill()

    def stop(self, then: Callable[[], object]) -> None:
        """Have every host let go, in bounded time, then call `then()`."""
        if self._stopping:
            return
        self._stopping = True
        left = len(self.sources) + 1

        def one_less() -> None:
            nonlocal left
            left -= 1
            if not left:
                self.loop.post(self._stopped, then)

        for source in self.sources:
            source.stop(one_less)
        one_less()

    def _stopped(self, then: Callable[[], object]) -> None:
        self._spawner.close()
        then()

    def _look(self) -> None:
        """Hold hosts to their handlers' limits, from outside: one that leaks may well hang, too."""
        for source in self.sources:
            source.hold_to_limits(self.config)
        self.looked()
        self.loop.call_later(LOOK_SECONDS, self._look)

    # -- for D-Bus and the daemon -------------------------------------------------------------------------------------

    def change_medium(self, subtype: str, name: str, size: int, cfgstring: str) -> Future[tuple[int, str]]:
        """Give a kernel device a new cfgstring; the answer is 0 or a negative errno, and what to tell the person."""
        if self.devices is None:
            raise OSError("kernel devices are not served here")
        return self.devices.change_medium(subtype, name, size, cfgstring)

    def configure(self, config: Config) -> None:
        """Take new settings."""
        self.config = config
        self.tell_log()
        for source in self.sources:
            source.configure(config)

    def take_handlers(self, handlers: Iterable[Handler]) -> None:
        """Serve devices of these handlers from now on; a host that needs a new one looks for it by itself."""
        self.handlers = {handler.name: handler for handler in handlers}

    def reopen_logs(self) -> None:
        """Open log files again, here and in every host."""
        self.logs.reopen()
        self.tell_log()

    def retry(self) -> None:
        """Try again what was given up, and disks that are missing."""
        for process in self._processes():
            process.retry()

    def tell_log(self) -> None:
        """Give every host the settings of the log."""
        settings = self.log_settings()
        for process in self._processes():
            process.send(settings)

    def _processes(self) -> list[ManagedProcess]:
        return [process for source in self.sources for process in source.processes.values()]

    # -- for managed processes ----------------------------------------------------------------------------------------

    def spawn(self, job: Job, on_message: Callable[[Message], object], on_death: Callable[[str], object]) -> Process:
        """Start a process."""
        return self._spawner.spawn(dataclasses.replace(job, log=self.log_settings()), on_message, on_death)

    def adopt(
        self, path: Path, on_message: Callable[[Message], object], on_death: Callable[[str], object]
    ) -> Process | None:
        """Take over the process that an earlier supervisor left at `path`, if there is one."""
        process = self._spawner.adopt(path, on_message, on_death)
        if process is not None:
            process.send(self.log_settings())
        return process

    def rendezvous(self, key: str) -> Path:
        """Return where the process of this key can be found."""
        return self._spawner.rendezvous(key)

    def log_settings(self) -> LogSettings:
        """Return the settings of the log, as hosts take them."""
        return LogSettings(
            level=int(self.logs.level),
            devices={name: int(level) for name, level in self.logs.devices.items()},
            directory=self.log_directory,
            syslog=self.config.syslog,
            stderr=self.log_stderr,
        )


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _ignore(_: object) -> None:
    pass


def _nothing() -> None:
    pass
