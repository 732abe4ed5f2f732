"""A host with a supervisor: a forked process with one job. It serves on without the supervisor, and can be adopted."""

from __future__ import annotations

import dataclasses
import logging
import os
import signal
import socket
from pathlib import Path

from tcmu_core.channel import Channel, Rendezvous, send
from tcmu_core.codec import Message
from tcmu_core.disk.disk import Disk
from tcmu_core.disk.spec import DiskSpec
from tcmu_core.errors import HandlerError, TcmuError
from tcmu_core.handlers.registry import Registry
from tcmu_core.host.host import RETRY_SECONDS, Host, errno_of, reason_of
from tcmu_core.host.messages import Adopt, Close, Drain, Failed, Job, LogSettings, Opened, Reassign, Retry
from tcmu_core.host.standin import StandIn
from tcmu_core.log import Level, Log
from tcmu_core.loop import Loop, Timer, spin_time

log = logging.getLogger("tcmu.host")

LOGOUT_SECONDS = 1.0  # for initiators to log out when we stop
DRAIN_SECONDS = 7.0  # for commands in flight


class HostProcess:
    """Does one job to its end; `control` is the supervisor's channel."""

    def __init__(self, registry: Registry, job: Job, control: socket.socket) -> None:
        self.registry = registry
        self.job = job
        self.control = control
        self.loop: Loop
        self.log: Log
        self.host: Host
        self._supervisor: Channel | None = None
        self._guests: set[Channel] = set()
        self._rendezvous: Rendezvous | None = None
        self._draining = False
        self._look_again = True  # for handlers, should one be missing; once for each time that somebody asks
        self._levels: tuple[int, dict[str, int]] | None = None  # as the supervisor told them last
        self._wanted: Job | None = None  # whose way in can't be: an address is taken, say
        self._why = ""
        self._retry_timer: Timer | None = None

    def run(self) -> int:
        """Serve until told to stop; returns the exit status."""
        job = self.job
        Path("/proc/self/comm").write_bytes(job.title.encode()[:15])  # prctl(2), PR_SET_NAME
        self.log = Log(Level(job.log.level), stderr=job.log.stderr)
        self._set_log(job.log)
        self.loop = Loop(spin_time())
        try:
            self.host = Host(self.loop, self._disk, job.way)
            self.host.log_by(self.log)
            self.host.altered = self._tell
            if job.rendezvous:
                rendezvous = self._rendezvous = Rendezvous(self.loop, Path(job.rendezvous), self._welcome)
                self.host.standing_in = lambda: StandIn(rendezvous, self.host.answer)
            self.host.open(job.disks, takes_over=job.takes_over, delay=job.delay)
        except Exception as error:
            if not isinstance(error, TcmuError | OSError):
                log.exception("%s can't be served", job.key)
            send(self.control, Failed(errno_of(error), reason_of(error)))
            self._leave()
            return 0
        if self.host.ended:
            self._leave()
            return 0
        self.loop.on_signal(signal.SIGTERM, self._drain)
        self._supervisor = self._channel(self.control)
        self._supervisor.send(self._opened())
        self.loop.run()
        self._leave()
        self.host.close()
        return 0

    def _leave(self) -> None:
        """Be found by nobody any more."""
        if self._rendezvous is not None:
            self._rendezvous.close()

    def _disk(self, spec: DiskSpec) -> Disk:
        try:
            handler = self.registry.get(spec.handler)
        except HandlerError:
            if not self._look_again:
                raise
            self._look_again = False
            self.registry = self.registry.renewed()  # it may have been installed since the zygote looked
            handler = self.registry.get(spec.handler)
        return handler.disk(spec, self.loop)

    def _opened(self) -> Opened:
        return Opened(dataclasses.replace(self.job, disks=dict(self.host.specs)), self.host.status())

    def _tell(self) -> None:
        """Tell the supervisor what is served by now."""
        if self._supervisor is not None:
            self._supervisor.send(self._opened())

    # -- who speaks to it ---------------------------------------------------------------------------------------------

    def _channel(self, sock: socket.socket) -> Channel:
        channel: Channel
        channel = Channel(
            self.loop,
            sock,
            lambda message, fds: self._message(channel, message, fds),
            lambda: self._gone(channel),
        )
        return channel

    def _welcome(self, sock: socket.socket) -> None:
        self._guests.add(self._channel(sock))

    def _gone(self, channel: Channel) -> None:
        self._guests.discard(channel)
        self.host.gone(channel)
        if channel is self._supervisor:
            self._supervisor = None
            if not self._draining:
                log.warning("the supervisor has gone: %s serves on until the next one comes", self.job.key)

    def _message(self, channel: Channel, message: Message, fds: list[int]) -> None:
        if isinstance(message, Reassign | Retry):
            self._look_again = True
        if isinstance(message, Retry):
            self._retry_way()
        match message:
            case Adopt():
                if self._supervisor is not None:
                    self._supervisor.close()
                self._guests.discard(channel)
                self._supervisor = channel
                channel.send(self._opened())
            case Reassign():
                self._reassign(message.job)
                channel.send(self._opened())
            case Drain():
                self._drain()
            case Close():
                self.host.stop()
            case LogSettings():
                self._set_log(message)
            case _ if self.host.transport.message(message, fds):
                return
            case _:
                answer = self.host.answer(message, channel)
                if answer is not None:
                    channel.send(answer)
        for fd in fds:
            os.close(fd)

    def _reassign(self, job: Job) -> None:
        """Do another job from now on; what of it can't be is said in the log, and stays as it was."""
        before = self.job
        self.job = dataclasses.replace(
            job, takes_over=before.takes_over, delay=before.delay, rendezvous=before.rendezvous
        )
        self._wanted, self._why = None, ""
        try:
            self.host.reassign(job.disks, job.way)
        except OSError as error:
            self.job = dataclasses.replace(self.job, way=before.way)
            self._can_not_be(job, error)

    def _can_not_be(self, job: Job, error: OSError) -> None:
        """Say that the way in stays as it was, each reason once, and try again later."""
        if self._why != reason_of(error):
            log.error("%s: %s; it stays as it was, and is tried again every %g s", job.key, reason_of(error),
                      RETRY_SECONDS)  # fmt: skip
        self._wanted, self._why = job, reason_of(error)
        if self._retry_timer is not None:
            self._retry_timer.cancel()
        self._retry_timer = self.loop.call_later(RETRY_SECONDS, self._retry_way)

    def _retry_way(self) -> None:
        """Try again to have the way in as it is asked for."""
        job = self._wanted
        if job is None or self._draining:
            return
        try:
            self.host.transport.reassign(job.way)
        except OSError as error:
            self._can_not_be(job, error)
            return
        self._wanted, self._why = None, ""
        self.job = dataclasses.replace(self.job, way=job.way)
        log.info("%s is as it is asked for by now", job.key)
        self._tell()

    def _set_log(self, told: LogSettings) -> None:
        try:
            self.log.set_directory(told.directory)
        except OSError as error:  # the disks are served all the same
            log.error("no log file: %s", reason_of(error))
        self.log.set_syslog(told.syslog)
        levels = (told.level, dict(told.devices))
        if levels != self._levels:  # else the file is opened anew, say, and what `tcmu set` said goes on
            self._levels = levels
            self.log.set_level(Level(told.level), {name: Level(level) for name, level in told.devices.items()})
        self.log.reopen()
        if hasattr(self, "host"):
            self.host.log_by(self.log)

    # -- its end ------------------------------------------------------------------------------------------------------

    def _drain(self) -> None:
        """Answer what is in flight, take nothing new, then end."""
        if not self._draining:
            self._draining = True
            self.host.drain(LOGOUT_SECONDS, DRAIN_SECONDS, self._drained)

    def _drained(self, idle: bool) -> None:
        if not idle:
            log.error("%d commands of %s did not end in time", self.host.transport.counters[1], self.job.key)
            logging.shutdown()
            os._exit(1)
        self.loop.stop()
