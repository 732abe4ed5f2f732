"""Keeper: the thread that keeps a disk connected, notices a resize, and tells the cluster how the disk is."""

from __future__ import annotations

import contextlib
import errno
import socket
import threading
import time
from dataclasses import dataclass

from tcmu_core import Busy, ConfigError, Device, NotReady
from tcmu_rbd.binding import Binding
from tcmu_rbd.config import Config
from tcmu_rbd.link import Link, LockedElsewhere
from tcmu_rbd.shelf import Shelf

LOOK = 1.0  # seconds between two looks at the image
LOOK_ANEW = 5.0  # at one that is open read-only: it has to be opened for that
SETTLE = 10.0  # seconds for a gateway that has lost the lock to stand by
FENCE_ATTEMPTS = 3
GOODBYE = 60.0  # seconds that closing waits for a cluster that does not answer

# What says that this connection can't go on: on the blocklist, without the lock, timed out.
LOCK_LOST = frozenset((errno.ESHUTDOWN, errno.EROFS))
LOST = LOCK_LOST | frozenset((errno.ETIMEDOUT, errno.ENOTCONN))
SERVICE = "tcmu-runner"  # by which the dashboard knows such gateways
CAPACITY_CHANGED = (0x2A, 0x09)  # SPC-4 annex F


class Standby(NotReady):
    """The disk is another gateway's, or can be reached by another alone: the target port is in the standby state."""

    of_storage = False  # the log has it once, and not for each command
    ascq = 0x0B


@dataclass(slots=True)
class Counts:
    """What went wrong since the disk was opened."""

    lock_lost: int = 0
    connection_lost: int = 0
    timed_out: int = 0


class Keeper:
    """Holds the link of a disk: `link` while there is one, otherwise it is being made anew."""

    def __init__(
        self, device: Device, binding: Binding, config: Config, link: Link, shelf: Shelf | None, *, standing_by: bool
    ) -> None:
        self.link: Link | None = None if standing_by else link
        self._standby = link if standing_by else None  # open, without the lock
        self._shelf = shelf
        self._moves = config.lock == "move"
        self._wanted = False  # whether a command needs the lock that another gateway has
        self._untaken = False  # whether the cluster did not answer when it was to be taken
        self._device = device
        self._binding = binding
        self._config = config
        self._read_only = link.read_only
        self._counts = Counts()
        self._lost: tuple[Link, int] | None = None
        self._elsewhere = standing_by  # whether another client has the lock
        self._look_at = 0.0
        self._published: dict[str, str] = {}
        self._guard = threading.Lock()
        self._wake = threading.Event()
        self._settled = threading.Event()  # there is a link, or we stand by
        self._settled.set()
        self._ending = False
        self._thread = threading.Thread(target=self._run, name=f"tcmu-rbd-{device.name}", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        if self._shelf is not None and self._moves:
            self._shelf.fence = self._fence
        self._thread.start()

    def stop(self) -> None:
        """End the thread and close the link."""
        self._ending = True
        self._wake.set()
        self._thread.join(GOODBYE)
        with self._guard:
            links = self.link, self._standby
            self.link = self._standby = None
        for link in links:
            if link is not None:
                link.close()
        if self._shelf is not None:
            self._shelf.close()

    # -- what the data hooks say ------------------------------------------------------------------------------------

    def absent(self) -> Exception:
        """Return what a command hears while there is no link."""
        if self._elsewhere and self._moves:
            self._wanted = True
            self._wake.set()
            if self._untaken:
                return Standby(f"{self._config.name} can't be taken from another gateway")
            return Busy(f"{self._config.name} is being taken from another gateway")
        if self._elsewhere or (self._moves and self._lost is not None and self._lost[1] in LOCK_LOST):
            return Standby(f"another client has {self._config.name}")
        if self._moves and self._lost is not None:  # it may be us alone whom the cluster does not answer
            return Standby(f"the connection to {self._config.name} is lost")
        return Busy(f"the connection to {self._config.name} is being made anew")

    def failed(self, link: Link, code: int) -> Exception:
        """Return what the command hears that `link` failed with an errno, and give the link up if that can't go on."""
        if code not in LOST or (code == errno.EROFS and link.read_only):
            return OSError(code, f"{self._config.name}: librbd: {errno.errorcode.get(code, code)}")
        self._give_up(link, code)
        return self.absent()

    def _give_up(self, link: Link, code: int, *, drop: bool = True) -> None:
        with self._guard:
            if self.link is not link:
                return
            self.link = None
            self._lost = (link, code)
            self._settled.clear()
        if code == errno.ETIMEDOUT:
            self._counts.timed_out += 1
        elif code:
            self._counts.lock_lost += 1
        self._counts.connection_lost += 1
        if drop and self._moves and code in LOCK_LOST:
            # What is on its way to us was meant for who had the lock; initiators that come again know better.
            self._device.drop_link()
        self._wake.set()

    # -- the thread -------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._ending:
            try:
                shelf, link = self._shelf, self.link
                if shelf is not None and shelf.tend() and link is not None and self._moves:
                    link.note_shelf(shelf.instance)
                if self._lost is not None:
                    self._recover(*self._lost)
                elif self._wanted and self.link is None:
                    self._take()
                elif self.link is not None:
                    self._look(self.link)
                    self._publish(self.link)
                elif self._standby is not None:
                    self._resized(self._standby.size())
            except OSError as error:  # the cluster does not answer just now; the commands in flight find out the same
                self._untaken = self._untaken or self._wanted
                self._device.log.debug("looking at %s: %s", self._config.name, error)
            except Exception:
                self._device.log.exception("looking after %s failed", self._config.name)
            self._wake.wait(LOOK)
            self._wake.clear()

    def _recover(self, old: Link, code: int) -> None:
        """Make a new link in place of `old`, which failed with `code`."""
        log, name = self._device.log, self._config.name
        why = f"{errno.errorcode.get(code, code)}" if code else "its size has changed"
        log.warning("%s: the connection is given up (%s) and made anew", name, why)
        # It ends when the last command that it has not answered has: not before a timeout, perhaps.
        threading.Thread(target=old.close, name=f"tcmu-rbd-close-{self._device.name}", daemon=True).start()
        # Nothing that the old connection sent may be carried out behind the back of the new one.
        fence = "" if self._read_only else old.address
        told = ""
        while not self._ending:
            try:
                link = self._connect(lost=fence)
            except ConfigError as error:
                elsewhere = isinstance(error, LockedElsewhere)
                if elsewhere and self._moves and self._stands_by(fence):
                    return
                self._elsewhere = elsewhere and not self._moves
                if str(error) != told:
                    log.error("%s", error)
                    told = str(error)
                self._wake.wait(LOOK)
                continue
            self._has(link)
            log.warning("%s: connected again", name)
            return

    def _connect(self, *, lost: str = "", take: bool = False) -> Link:
        """Return a link with the lock, at which the reservations are those of all gateways; raises ConfigError."""
        shelf = self._shelf
        number = shelf.instance if shelf is not None else 0
        link = Link.connect(self._binding, self._config, read_only=self._read_only, lost=lost, take=take, shelf=number)
        try:
            if shelf is not None:
                shelf.refresh()
        except OSError as error:
            link.close()
            raise ConfigError(f"{self._config.name}: its reservations are not known: {error}") from error
        return link

    def _has(self, link: Link) -> None:
        with self._guard:
            self._lost = None
            self._elsewhere = self._wanted = self._untaken = False
            self.link = link
            self._settled.set()
        self._published = {}
        self._resized(link.size())

    def _stands_by(self, fence: str) -> bool:
        """Open the image without the lock, until a command needs that; False where it can't be done now."""
        try:
            link = Link.connect(self._binding, self._config, read_only=False, lost=fence, lock=False)
            if self._shelf is not None:
                self._shelf.refresh()  # the loop has broken the old connections when this returns
        except (ConfigError, OSError) as error:
            self._device.log.debug("%s: %s", self._config.name, error)
            return False
        with self._guard:
            self._standby, self._lost, self._wanted, self._elsewhere = link, None, False, True
            self._settled.set()
        self._device.log.warning("%s: another gateway has the lock: standing by", self._config.name)
        return True

    def _take(self) -> None:
        """Take the lock from the gateway that has it: it is on the blocklist before we write."""
        self._wanted = False
        try:
            link = self._connect(take=True)
        except ConfigError as error:
            self._untaken = not isinstance(error, LockedElsewhere)
            self._device.log.error("%s", error)
            return
        standby, self._standby = self._standby, None
        if standby is not None:
            standby.close()
        self._has(link)
        self._device.log.warning("%s: has the lock now", self._config.name)

    def _fence(self, aware: set[int]) -> None:
        """Take the lock from a gateway that does not know of a change of the reservations; raises OSError."""
        for attempts in reversed(range(FENCE_ATTEMPTS)):
            try:
                fenced = self._fence_once(aware)
            except OSError as error:  # what we had has become something else meanwhile: the lock has moved
                if error.errno not in LOST or not attempts:
                    raise
            else:
                break
        if fenced:
            self._device.log.warning(
                "%s: %s has lost the lock: it did not take a change of reservations", self._config.name, fenced
            )

    def _fence_once(self, aware: set[int]) -> str:
        link = self.link
        if link is not None:
            if self._has_lock(link):
                return ""
            # Whoever asks to have others fenced is no late comer: its connection is not broken.
            self._give_up(link, errno.ESHUTDOWN, drop=False)
        if not self._settled.wait(SETTLE):
            raise OSError(errno.EBUSY, f"{self._config.name}: who has the lock is not known now")
        standby = self._standby
        if standby is None:
            return ""  # we have the lock again, and hold initiators to what is stored
        return standby.fence_unaware(aware)

    def _has_lock(self, link: Link) -> bool:
        try:
            return link.locked()
        except OSError as error:
            if error.errno not in LOST:
                raise
            return False

    def _look(self, link: Link) -> None:
        if not link.read_only:
            self._resized(link.size())
        elif not self._config.snapshot and time.monotonic() >= self._look_at:
            self._look_at = time.monotonic() + LOOK_ANEW
            if link.size_anew() != link.size():
                self._give_up(link, 0)

    def _resized(self, size: int) -> None:
        device = self._device
        size -= size % device.block_size
        if size != device.size and size and not self._ending:
            device.log.info("%s has %d bytes now", self._config.name, size)
            device.size = size
            device.notify(*CAPACITY_CHANGED)

    def _publish(self, link: Link) -> None:
        """Tell the cluster's service map of this disk, as `ceph service status` shows it."""
        counts = self._counts
        status = {
            "lock_owner": "false" if link.read_only else "true",
            "lock_lost_cnt": str(counts.lock_lost),
            "conn_lost_cnt": str(counts.connection_lost),
            "cmd_timed_out_cnt": str(counts.timed_out),
        }
        if status == self._published:
            return
        if not self._published:
            config = self._config
            facts = {"pool_name": config.pool, "image_name": config.image, "image_id": link.image_id()}
            host = socket.gethostname()
            facts |= {"daemon_type": "portal", "daemon_prefix": f"{host}:{config.pool}"}
            with contextlib.suppress(OSError):  # a client without the right to register serves its disk all the same
                link.announce(SERVICE, f"{host}:{config.name}", facts)
        link.publish(status)
        self._published = status
