"""The targets of tcmu.conf as a source of processes: a redirector, which listens, and a host for each target."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping
from pathlib import Path

import tcmu_core
from tcmu_core import channel
from tcmu_core.config.configuration import Config, LunConfig, TargetConfig
from tcmu_core.daemon.managed import ManagedProcess, Parent, State
from tcmu_core.disk.spec import DiskSpec
from tcmu_core.host.messages import MISSING_PORTAL, Job, LogSettings, Missing, Retry, Status
from tcmu_core.iscsi.messages import PORTAL_TITLE, Feed, Link, RedirectorWay, TargetWay

log = logging.getLogger("tcmu.runner")

STOP_SECONDS = 10.0  # before a process that does not end is killed
REDIRECTOR = ""  # its key in the table of processes; the others have their targets' names


class Targets:
    """The portal's processes, as long as there are targets."""

    def __init__(self, parent: Parent, state: Path | None = None) -> None:
        self.parent = parent
        self.state = state
        self.processes: dict[str, ManagedProcess] = {}
        self._jobs: Mapping[str, Job] = {}
        self._limits: dict[str, int] = {}
        self._adopts = True  # at the first configuration: an earlier supervisor may have left hosts
        self._then: Callable[[], object] | None = None

    @property
    def addresses(self) -> list[str]:
        """Where the portal listens."""
        redirector = self.processes.get(REDIRECTOR)
        if redirector is None or not redirector.serving or redirector.status is None:
            return []
        return list(redirector.status.addresses)

    @property
    def disks(self) -> int:
        """How many disks are served."""
        return sum(len(one.status.disks) for one in self.processes.values() if one.serving and one.status is not None)

    @property
    def unserved(self) -> list[Status]:
        """Return what nobody serves by now, with the reason."""
        found = []
        for name, job in self._jobs.items():
            process = self.processes.get(name)
            reason = "what was served before has to end first" if process is None else process.unserved
            if not reason:
                continue
            title = name or PORTAL_TITLE
            missing = [Missing(lun, spec.title, reason) for lun, spec in job.disks.items()]
            if isinstance(job.way, RedirectorWay):
                missing = [Missing(MISSING_PORTAL, f"/{', '.join(job.way.settings.addresses)}", reason)]
            pid = process.process.pid if process is not None and process.process is not None else 0
            found.append(Status(pid, missing=tuple(missing), title=title))
        return found

    def configure(self, config: Config) -> None:
        """Serve what `config` asks for from now on. Targets that are in it as before don't notice."""
        before, self._jobs = self._jobs, jobs(config, self.state)
        self._limits = memory_limits(config)
        for name, process in list(self.processes.items()):
            if process.state is State.ENDING or self._jobs.get(name) == before.get(name):
                continue
            if name in self._jobs:
                process.reassign()
            else:
                process.drain(STOP_SECONDS, self._start_missing)
        self._start_missing()

    def stop(self, then: Callable[[], object]) -> None:
        """End all processes, then call `then()`, in bounded time."""
        self._then = then
        self.configure(Config())
        if not self.processes:
            then()

    def hold_to_limits(self, _config: Config) -> None:
        """Replace hosts that took more memory than their handlers' limits allow."""
        for name, limit in self._limits.items():
            if name in self.processes:
                self.processes[name].hold_to(limit)

    def _start_missing(self) -> None:
        # A disk may have moved to another target: no host starts before the last one has let go of its disks.
        busy = any(one.state is State.ENDING for name, one in self.processes.items() if name != REDIRECTOR)
        for name in self._jobs:
            if name not in self.processes and (name == REDIRECTOR or not busy):
                self._start(name)
        if self._jobs:
            self._adopts = False

    def _start(self, name: str) -> None:
        title = name or "the portal"
        process = ManagedProcess(self.parent, self, key_of(name), title)
        self.processes[name] = process
        process.start(adopt=self._adopts)

    # -- what managed processes ask and tell --------------------------------------------------------------------------

    def _name(self, process: ManagedProcess) -> str:
        return next(name for name, one in self.processes.items() if one is process)

    def job(self, process: ManagedProcess) -> Job:
        """Return the job of a process."""
        return self._jobs[self._name(process)]

    def parked(self, process: ManagedProcess) -> None:
        """Return None: where nobody serves a target, the redirector tells initiators to come again."""

    def opened(self, process: ManagedProcess, *, adopted: bool) -> None:
        """Give the redirector and each target's host the ends of a channel between them."""
        del adopted
        redirector = self.processes.get(REDIRECTOR)
        status = process.status
        assert status is not None
        if process is redirector:
            log.info("the portal listens at %s", ", ".join(status.addresses))
        else:
            luns = ", ".join(str(disk.lun) for disk in status.disks) or "none"
            log.info("%s is served, LUN %s", process.title, luns)
        for one in self.processes.values():
            # A disk may have moved from one target to another: now there may be nobody any more who has it. The target
            # that misses it may be the last to be heard.
            if one.serving and one.status is not None and one.status.missing:
                one.send(Retry())
        for name, one in self.processes.items():
            if redirector is None or one is redirector or process not in (redirector, one):
                continue
            if one.serving and redirector.serving:
                ours, theirs = channel.pair()
                with ours, theirs:
                    redirector.send(Link(name), (ours.fileno(),))
                    one.send(Feed(), (theirs.fileno(),))

    def failed(self, process: ManagedProcess, code: int, reason: str) -> None:
        """Do nothing: nobody waits for an answer."""

    def gone(self, process: ManagedProcess) -> None:
        """A process has ended that was to."""
        del self.processes[self._name(process)]
        if self._then is not None and not self.processes:
            then, self._then = self._then, None
            then()


def key_of(name: str) -> str:
    """Return the key of the host of a target, or of the redirector."""
    return f"target {name}" if name else "redirector"


def jobs(config: Config, state: Path | None = None) -> Mapping[str, Job]:
    """Return the jobs of the processes that serve what the configuration asks for: the redirector and each target."""
    if not config.targets:
        return {}
    names = tuple(target.name for target in config.targets)
    redirector = Job(
        key=key_of(REDIRECTOR),
        title="tcmu-redirector",
        way=RedirectorWay(names, config.portal),
        disks={},
        log=LogSettings(),
        version=tcmu_core.__version__,
    )
    return {REDIRECTOR: redirector, **{target.name: _job(config, target, state) for target in config.targets}}


def _job(config: Config, target: TargetConfig, state: Path | None) -> Job:
    """Return a target's job. It holds what concerns this target alone: another one's changes must not end it."""
    name, general = target.name, config.portal
    alias = general.aliases.get(name)
    settings = dataclasses.replace(
        general,
        addresses=(),
        access=general.access_to(name),
        targets={},
        aliases={name: alias} if alias else {},
        groups={name: general.groups[name]} if name in general.groups else {},
    )
    return Job(
        key=key_of(name),
        title=f"tcmu:{name.rpartition(':')[2]}",
        way=TargetWay(name, settings, state, target.arrangements),
        disks={lun.lun: _disk(config, target, lun) for lun in target.luns},
        log=LogSettings(),
        version=tcmu_core.__version__,
    )


def _disk(config: Config, target: TargetConfig, lun: LunConfig) -> DiskSpec:
    return DiskSpec(
        lun.handler,
        cfgstring=lun.cfgstring,
        name=lun.name or f"{target.name}-{lun.lun}",
        size=lun.size,
        block_size=lun.block_size,
        read_only=lun.read_only,
        filters=lun.filters,
        options=config.handlers.get(lun.handler, {}),
        place=(target.name, str(lun.lun)),
    )


def memory_limits(config: Config) -> dict[str, int]:
    """Return in bytes what the hosts of targets may take: what all their LUNs may together, if each has a limit."""
    found = {}
    for target in config.targets:
        limits = [config.memory_limits.get(lun.handler) for lun in target.luns]
        if limits and None not in limits:
            found[target.name] = sum(limit or 0 for limit in limits)
    return found
