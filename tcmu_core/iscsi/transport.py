"""iSCSI as a way in: a target's portal, and the redirector that listens for the targets of several processes.

Between the redirector and each target's host there is a channel of their own; the supervisor gives them its two ends,
and new ones when one of them is replaced. So neither the supervisor nor another target has a part in a login.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from tcmu_core.channel import Channel
from tcmu_core.codec import Message
from tcmu_core.disk.device import StateStore
from tcmu_core.disk.spec import DiskSpec
from tcmu_core.host.messages import Logout, SessionStatus, WayIn
from tcmu_core.host.transport import Served
from tcmu_core.iscsi.messages import PORTAL_TITLE, Feed, Link, RedirectorWay, TargetWay, Visitor
from tcmu_core.iscsi.portal import Portal
from tcmu_core.iscsi.redirector import Redirector
from tcmu_core.iscsi.roster import dismiss, roster
from tcmu_core.scsi.engine import Engine
from tcmu_core.scsi.target import Target
from tcmu_core.scsi.transition import Transition
from tcmu_core.state import aptpl_file, default_directory

if TYPE_CHECKING:
    from tcmu_core.disk.disk import Disk

log = logging.getLogger("tcmu.iscsi")


class TargetTransport:
    """Serves the units of its host as the LUNs of one target."""

    needs_all = False
    passes_on: tuple[str, ...] = ()

    def __init__(self, way: TargetWay, served: Served) -> None:
        self.way = way
        self.title = way.name
        self.served = served
        self.target = Target(way.name, {})
        self.portal = Portal(served.loop, way.settings, {})
        self._feed: Channel | None = None
        self._leaving: list[Engine] = []  # taken away, with commands in flight
        self._before = 0  # commands of those that have left
        self._draining = False

    def prepare(self, disks: Mapping[int, DiskSpec], *, takes_over: bool) -> Mapping[int, DiskSpec]:
        """Return the specs as they are: all that there is to know stands in them."""
        del takes_over
        return disks

    def store(self, _lun: int, disk: Disk) -> StateStore:
        """Return where the disk's persistent reservations lie: where its handler says, or in a file."""
        if disk.device.reservations is not None:
            return disk.device.reservations
        spec = disk.spec
        directory = self.way.state or default_directory()
        identity = spec.handler, disk.device.serial, self.way.name
        return aptpl_file(directory, spec.name, *identity, later=self.served.loop.call_later)

    def start(self) -> None:
        """Listen where the settings say, if they do; raises `OSError`."""
        self.target = Target(self.way.name, self.served.engines, self.way.arrangements)
        for engine in self.served.engines.values():
            self._link(engine)
        self.portal.add_target(self.target)
        self.portal.listen()

    def add(self, lun: int, engine: Engine) -> None:
        """Serve one more LUN, of which initiators hear."""
        self._link(engine)
        self.target.add(lun, engine)

    def remove(self, lun: int, then: Callable[[], object], *, comes_back: bool) -> None:
        """Take a LUN away; initiators hear of it unless it comes back, and those of other LUNs go on."""

        def left() -> None:
            self._leaving.remove(engine)
            self._before += engine.unit.tallies.commands
            then()

        engine = self.target.luns[lun]
        self._leaving.append(engine)
        self.target.remove(lun, left, comes_back=comes_back)

    def give_up(self, lun: int) -> None:
        """Have initiators hear that a LUN does not come back."""
        self.target.give_up(lun)

    def reassign(self, way: WayIn) -> None:
        """Take new settings: limits in time for the sessions that there are, all else for the next login."""
        assert isinstance(way, TargetWay)
        self.way = way
        self.portal.configure(way.settings)
        self.target.arrange(way.arrangements, self._moving)

    def _moving(self, lun: int, transition: Transition) -> None:
        """Have an end to the time that groups take to another state."""
        seconds = self.way.arrangements[lun].transition_time if lun in self.way.arrangements else 0
        if seconds:
            self.served.loop.call_later(seconds, self._give_up, lun, transition)

    def _give_up(self, lun: int, transition: Transition) -> None:
        if transition.give_up():
            log.error("LUN %d: the groups stay as they were: what is in flight through them does not end", lun)

    def _link(self, engine: Engine) -> None:
        """Let the disk break the connections that its commands come by."""
        name = self.way.name
        engine.device.dropped = lambda initiator: self.served.loop.post(self.portal.drop, name, initiator)

    @property
    def addresses(self) -> tuple[str, ...]:
        """Return where the portal listens."""
        return tuple(self.portal.addresses)

    @property
    def counters(self) -> tuple[int, int]:
        """Return the commands taken since the start, and those in flight now."""
        engines = (*self.served.engines.values(), *self._leaving)
        in_flight = sum(len(engine.unit.tasks.active) for engine in engines)
        return self._before + sum(engine.unit.tallies.commands for engine in engines) + in_flight, in_flight

    def message(self, message: Message, fds: list[int]) -> bool:
        """Take the end of a channel to the redirector."""
        if not isinstance(message, Feed):
            return False
        if self._feed is not None:
            self._feed.drain()  # the last that the redirector before has passed on
        self._close_feed()
        for fd in fds:
            self._feed = Channel(self.served.loop, fd, self._visit, _nothing)
        if self._draining:
            self._close_feed()
        return True

    def _visit(self, message: Message, fds: list[int]) -> None:
        if isinstance(message, Visitor):
            for fd in fds:
                self.portal.take(fd, message.heard, message.told)

    def sessions(self) -> tuple[SessionStatus, ...]:
        """Return the sessions of the target."""
        return roster(self.portal)

    def log_out(self, wanted: Logout) -> int:
        """Ask initiators to log out; what is left of their sessions is closed when the time is over."""
        return dismiss(self.portal, wanted.initiator, wanted.target, wanted.seconds)

    def watched(self, _lun: int) -> None:
        """Do nothing: what comes by sessions is counted always."""

    def ping(self) -> None:
        """Do nothing: sessions look after themselves."""

    def changed(self, _lun: int) -> None:
        """Do nothing: the unit tells its initiators."""

    def drain(self, seconds: float, then: Callable[[], object]) -> None:
        """Ask initiators to log out, close the connections of those that don't; who comes now is told to come again."""
        self._draining = True
        self._close_feed()
        self.portal.shutdown(seconds, then)

    def _close_feed(self) -> None:
        if self._feed is not None:
            self._feed.close()
            self._feed = None

    def close(self) -> None:
        """Close every connection, now."""
        self._close_feed()
        self.portal.close()


class RedirectorTransport:
    """Listens, and passes each login on. It serves no disk and runs no handler's code."""

    needs_all = True
    title = PORTAL_TITLE

    def __init__(self, way: RedirectorWay, served: Served) -> None:
        self.portal = Redirector(served.loop, way.settings, way.targets, self._pass_on)
        self._served = served
        self._links: dict[str, Channel] = {}  # to the targets' hosts

    def prepare(self, disks: Mapping[int, DiskSpec], *, takes_over: bool) -> Mapping[int, DiskSpec]:
        """Return no disks."""
        del disks, takes_over
        return {}

    def store(self, _lun: int, _disk: Disk) -> None:
        """Return None: there are no disks."""

    def start(self) -> None:
        """Listen; raises `OSError` that names the address."""
        self.portal.listen()

    def add(self, lun: int, engine: Engine) -> None:
        """Refuse: there are no disks."""
        raise NotImplementedError

    def remove(self, lun: int, then: Callable[[], object], *, comes_back: bool) -> None:
        """Refuse: there are no disks."""
        raise NotImplementedError

    def give_up(self, lun: int) -> None:
        """Refuse: there are no disks."""
        raise NotImplementedError

    def reassign(self, way: WayIn) -> None:
        """Listen for other targets, or elsewhere; raises `OSError` when an address can't be had."""
        assert isinstance(way, RedirectorWay)
        self.portal.expect(way.targets)
        for name in self._links.keys() - set(way.targets):
            self._links.pop(name).close()
        self.portal.configure(way.settings)

    @property
    def passes_on(self) -> tuple[str, ...]:
        """Return the targets whose processes are there."""
        return tuple(sorted(name for name, link in self._links.items() if not link.closed))

    @property
    def addresses(self) -> tuple[str, ...]:
        """Return where it listens."""
        return tuple(self.portal.addresses)

    @property
    def counters(self) -> tuple[int, int]:
        """Return zeros: there are no commands."""
        return 0, 0

    def message(self, message: Message, fds: list[int]) -> bool:
        """Take the end of a channel to a target's host."""
        if not isinstance(message, Link):
            return False
        old = self._links.pop(message.target, None)
        if old is not None:
            old.close()
        for fd in fds:
            self._links[message.target] = Channel(self._served.loop, fd, _ignore, _nothing)
        return True

    def _pass_on(self, target: str, fd: int, heard: bytes, told: int) -> bool:
        link = self._links.get(target)
        if link is None or link.closed or link.busy:  # it has died, or is so busy that those before still wait
            return False
        link.send(Visitor(heard, told), [fd])
        return True

    def sessions(self) -> tuple[SessionStatus, ...]:
        """Return none: they are the targets'."""
        return ()

    def log_out(self, _wanted: Logout) -> int:
        """Send nobody away: sessions are the targets'."""
        return 0

    def watched(self, _lun: int) -> None:
        """Do nothing: there are no disks."""

    def ping(self) -> None:
        """Do nothing."""

    def changed(self, _lun: int) -> None:
        """Do nothing: there are no disks."""

    def drain(self, seconds: float, then: Callable[[], object]) -> None:
        """Close every connection that has not been passed on."""
        self.portal.shutdown(seconds, then)

    def close(self) -> None:
        """Listen no more."""
        for link in self._links.values():
            link.close()
        self._links.clear()
        self.portal.close()


def _ignore(_message: Message, _fds: list[int]) -> None:
    pass


def _nothing() -> None:
    pass
