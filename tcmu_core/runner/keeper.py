"""Keeps the portal of `[targets]` running: starts its worker, again after a crash, anew when its settings change."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Protocol

from tcmu_core.config.settings import Config
from tcmu_core.loop import Loop, Timer
from tcmu_core.runner.channel import Message
from tcmu_core.runner.nursery import WorkerProcess

log = logging.getLogger("tcmu.runner")

STOP_SECONDS = 10.0  # before a worker that does not end is killed
LONGEST_DELAY = 30.0


class Parent(Protocol):
    """What the keeper needs of the supervisor."""

    loop: Loop

    def log_settings(self) -> Message:
        """Return the settings of the log."""

    def spawn(
        self, job: Message, on_message: Callable[[Message], object], on_death: Callable[[str], object]
    ) -> WorkerProcess:
        """Start a worker."""


class PortalKeeper:
    """The portal's worker, as long as there are targets."""

    def __init__(self, parent: Parent) -> None:
        self.parent = parent
        self.worker: WorkerProcess | None = None
        self.addresses: list[str] = []
        self._config = Config()
        self._crashes = 0
        self._timer: Timer | None = None
        self._draining = False
        self._then: Callable[[], object] | None = None

    def configure(self, config: Config) -> None:
        """Serve what `config` asks for from now on."""
        before, self._config = self._config, config
        if (before.targets, before.portal, before.handlers) == (config.targets, config.portal, config.handlers):
            return
        self._crashes = 0
        if self.worker is not None:
            self._drain()  # the next one starts when this one has let go of its devices
        else:
            self._start()

    def stop(self, then: Callable[[], object]) -> None:
        """End the worker, then call `then()`, in bounded time."""
        self._config = Config()
        if self.worker is None:
            then()
            return
        self._then = then
        self._drain()

    def send(self, message: Message) -> None:
        """Tell the worker something."""
        if self.worker is not None:
            self.worker.send(message)

    def _start(self) -> None:
        self._cancel_timer()
        self._draining = False
        if self._config.targets:
            from tcmu_core.runner import portal  # the iSCSI part: no need to load it where there are no targets

            job = portal.job(self._config, self.parent.log_settings())
            self.worker = self.parent.spawn(job, self._message, self._died)

    def _drain(self) -> None:
        assert self.worker is not None
        self._draining = True
        self.worker.send({"op": "drain"})
        self._cancel_timer()
        self._timer = self.parent.loop.call_later(STOP_SECONDS, self.worker.kill)

    def _message(self, message: Message) -> None:
        if "opened" in message:
            self.addresses = message["addresses"]
            log.info("the portal serves %d units at %s", message["units"], ", ".join(self.addresses))
        elif "failed" in message:
            log.error("the portal can't be opened: %s", message["reason"])

    def _died(self, reason: str) -> None:
        self.worker = None
        self.addresses = []
        self._cancel_timer()
        then, self._then = self._then, None
        if then is not None:
            then()
        elif self._draining or not self._config.targets:
            self._start()
        else:
            delay = min(2.0**self._crashes, LONGEST_DELAY)
            self._crashes += 1
            log.error("the portal's worker ended: %s; the next one starts in %g s", reason, delay)
            self._timer = self.parent.loop.call_later(delay, self._start)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
