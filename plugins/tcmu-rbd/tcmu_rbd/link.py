"""Link: one connection to the cluster with one open image, and the image's exclusive lock."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import threading
from collections.abc import Callable
from typing import Any

from tcmu_core import ConfigError
from tcmu_rbd import owner
from tcmu_rbd.binding import Binding
from tcmu_rbd.config import Config

ATTEMPTS = 3
CONNECT = 30  # seconds that the monitors may take to answer, unless ceph.conf has another limit than Ceph's own
CEPH_CONNECT = 300  # that one (client_mount_timeout)
SLACK = 5  # seconds beyond the time in which a cluster notices that an OSD is gone
FENCED = 3600  # seconds that a connection of ours which was given up stays on the blocklist
SERIAL_DIGITS = 32  # as many as a UUID has
FAST_OBJECTS, SLOW_OBJECTS = 1024, 16  # how many are asked about at once, with and without the object map


class LockedElsewhere(ConfigError):
    """Another client holds the image's exclusive lock."""


def connected(binding: Binding, config: Config, **settings: str) -> Any:
    """Return a connection to the cluster, with settings of Ceph's of its own; raises what librados does."""
    names = {"rados_id": config.id} if config.id else {}
    cluster = binding.rados.Rados(conffile=config.conf, **names)
    cluster.conf_parse_env()
    # What was answered is on the disks of the OSDs: another gateway may go on from there at any time.
    cluster.conf_set("rbd_cache", "false")
    timeout = str(_timeout(cluster, config.osd_op_timeout))
    cluster.conf_set("rados_osd_op_timeout", timeout)
    cluster.conf_set("rados_mon_op_timeout", timeout)
    if int(cluster.conf_get("client_mount_timeout")) == CEPH_CONNECT:
        cluster.conf_set("client_mount_timeout", str(CONNECT))
    for name, value in settings.items():
        cluster.conf_set(name, value)
    cluster.connect()
    return cluster


def _timeout(cluster: Any, wanted: int) -> int:
    """Return the seconds after which an operation is given up: not before an OSD can have been replaced."""
    noticed = int(cluster.conf_get("osd_heartbeat_grace")) + int(cluster.conf_get("osd_heartbeat_interval"))
    return wanted if wanted > noticed else noticed + SLACK


class Link:
    """An open image. Made by `connect`; data goes through `issue`, everything that may wait through `ask`.

    `address` is the connection's own, by which the cluster knows it (and the blocklist names it).
    """

    def __init__(self, binding: Binding, config: Config, *, read_only: bool) -> None:
        self.binding = binding
        self.config = config
        self.read_only = read_only
        self.address = ""
        self._cluster: Any = None
        self._ioctx: Any = None
        self._image: Any = None
        self._closed = False
        # An image may not be closed under a call: the first lock is held for moments only, the other one for as long as
        # the cluster takes.
        self._issuing = threading.Lock()
        self._asking = threading.Lock()

    # -- opening ----------------------------------------------------------------------------------------------------

    @classmethod
    def connect(
        cls,
        binding: Binding,
        config: Config,
        *,
        read_only: bool,
        lost: str = "",
        take: bool = False,
        lock: bool = True,
        shelf: int = 0,
    ) -> Link:
        """Connect and open the image, with its lock unless `read_only` or not `lock`.

        `lost` is the address of a connection of ours that was given up: it is fenced before anything else is done.
        `take` takes the lock from whoever holds it. `shelf` is noted beside it (`owner.note`).

        Raises:
            ConfigError: what is wrong, in words; LockedElsewhere when somebody else has the lock.
        """
        attempts = ATTEMPTS
        while True:
            attempts -= 1
            link = cls(binding, config, read_only=read_only or bool(config.snapshot))
            try:
                link._connect()
                if lost:
                    link._fence(lost)
                link._open()
                if lock and not link.read_only:
                    link._lock(lost, take=take, shelf=shelf)
            except (binding.rados.Error, binding.rbd.Error) as error:
                link.close()
                if getattr(error, "errno", 0) == errno.ESHUTDOWN and attempts:
                    continue  # what tells this connection from others was drawn before, and is on the blocklist
                raise link._explain(error) from error
            except BaseException:
                link.close()
                raise
            return link

    def _connect(self) -> None:
        self._cluster = connected(self.binding, self.config)
        self.address = self._cluster.get_addrs()

    def _open(self) -> None:
        config = self.config
        self._ioctx = self._cluster.open_ioctx(config.pool)
        if config.namespace:
            self._ioctx.set_namespace(config.namespace)
        self._image = self.binding.rbd.Image(
            self._ioctx, config.image, snapshot=config.snapshot or None, read_only=self.read_only
        )

    def _fence(self, address: str) -> None:
        """Make sure that nothing which the connection `address` has sent is carried out from now on."""
        self._cluster.blocklist_add(address, FENCED)
        self._cluster.wait_for_latest_osdmap()  # what we send from now on makes OSDs look at the blocklist first

    def _lock(self, lost: str, *, take: bool, shelf: int) -> None:
        image, rbd = self._image, self.binding.rbd
        if not image.features() & rbd.RBD_FEATURE_EXCLUSIVE_LOCK:
            return
        for holder in self._holders():
            if take or holder == lost or owner.has_died(self._noted(), holder):
                self._break(holder)
            elif self.config.lock == "move":  # to ask for it would take as long as that gateway stands still
                raise self._locked_elsewhere()
        try:
            image.lock_acquire(rbd.RBD_LOCK_MODE_EXCLUSIVE)
        except rbd.ReadOnlyImage as error:
            raise self._locked_elsewhere() from error
        image.metadata_set(owner.KEY, owner.note(self.address, shelf))

    def _break(self, holder: str) -> bool:
        """Take the lock from `holder`, whom librbd puts on the blocklist first; False where that has it no more."""
        rbd = self.binding.rbd
        try:
            self._image.lock_break(rbd.RBD_LOCK_MODE_EXCLUSIVE, holder)
        except (rbd.ImageNotFound, rbd.ImageBusy):  # nobody has it, or somebody else
            return False
        return True

    def _locked_elsewhere(self) -> LockedElsewhere:
        holder = ", ".join(self._holders()) or "another client"
        return LockedElsewhere(
            f"{self.config.name} is in use by {holder}: two writers would destroy each other's data. If that "
            "client has died, its lock ends within 30 seconds; lock=break takes it away at once"
        )

    def _holders(self) -> list[str]:
        rbd = self.binding.rbd
        try:
            return [str(entry["owner"]) for entry in self._image.lock_get_owners()]
        except (rbd.ImageNotFound, rbd.ObjectNotFound):  # nobody holds it
            return []

    def _noted(self) -> str:
        try:
            return str(self._image.metadata_get(owner.KEY))
        except KeyError:
            return ""

    def note_shelf(self, shelf: int) -> None:
        """Note by which connection we hear of reservations, where we have the lock; raises OSError."""
        self._ask(lambda: self._image.metadata_set(owner.KEY, owner.note(self.address, shelf)))

    def locked(self) -> bool:
        """Return whether it is this link that has the lock; raises OSError."""
        return self.address in self._ask(self._holders)

    def fence_unaware(self, aware: set[int]) -> str:
        """Take the lock from who does not hear of reservations by one of these connections; returns its address.

        It is on the blocklist then: nothing that it has on the way is carried out. Raises OSError.
        """
        return str(self._ask(lambda: self._fence_unaware(aware)))

    def _fence_unaware(self, aware: set[int]) -> str:
        fenced = ""
        for holder in self._holders():
            if holder != self.address and owner.shelf_of(self._noted(), holder) not in aware:
                fenced = holder if self._break(holder) else fenced
        return fenced

    def _explain(self, error: Any) -> ConfigError:
        """Say what to do about an error of opening."""
        config = self.config
        rados, rbd = self.binding.rados, self.binding.rbd
        if isinstance(error, rbd.ImageNotFound):
            if config.snapshot:
                return ConfigError(f"{config.name} does not exist: `rbd snap ls` lists an image's snapshots")
            return ConfigError(f"{config.name} does not exist: rbd create --size 10G {config.name}")
        if isinstance(error, rados.ObjectNotFound):
            if not self.address:
                return ConfigError(f"there is no {config.conf or '/etc/ceph/ceph.conf'}, or no keyring: give conf=FILE")
            return ConfigError(f"there is no pool {config.pool!r}: `ceph osd lspools` lists them")
        if getattr(error, "errno", 0) == errno.ETIMEDOUT:
            return ConfigError(
                f"the cluster does not answer ({error}): is it up, and has {config.conf or 'ceph.conf'} its address?"
            )
        if isinstance(error, rados.PermissionDeniedError | rados.PermissionError | rbd.PermissionError):
            return ConfigError(
                f"client.{config.id or 'admin'} may not do this ({error}): `ceph auth get` shows its rights"
            )
        return ConfigError(f"{config.name} can't be opened: {error}")

    # -- using ------------------------------------------------------------------------------------------------------

    def issue(self, name: str, *arguments: Any) -> bool:
        """Start the image's asynchronous call `name`; False if the image is closed already."""
        with self._issuing:
            if self._closed:
                return False
            getattr(self._image, name)(*arguments)
            return True

    def _ask(self, what: Callable[[], Any]) -> Any:
        """Call something that may wait for the cluster; raises OSError."""
        with self._asking:
            if self._closed:
                raise OSError(errno.ENOTCONN, "the image is closed")
            try:
                return what()
            except (self.binding.rados.Error, self.binding.rbd.Error) as error:
                raise OSError(getattr(error, "errno", None) or errno.EIO, str(error)) from error

    def size(self) -> int:
        """Return the image's size in bytes: at once, unless another client has changed the image just now."""
        return int(self._ask(self._size))

    def _size(self) -> int:
        return int(self._image.size())

    def size_anew(self) -> int:
        """Return the size of an image that is open read-only: librbd doesn't watch such a one."""
        return int(self._ask(self._size_anew))

    def _size_anew(self) -> int:
        with self.binding.rbd.Image(self._ioctx, self.config.image, read_only=True) as image:
            return int(image.size())

    def grow(self, size: int) -> None:
        """Give the image more bytes; raises OSError."""
        self._ask(lambda: self._image.resize(size, False))

    def object_size(self) -> int:
        """Return the bytes of one object."""
        return int(self._ask(lambda: self._image.stat()["obj_size"]))

    def settings(self) -> dict[str, str]:
        """Return librbd's settings as they are for this image: it may have some of its own."""
        return {row["name"]: row["value"] for row in self._ask(lambda: list(self._image.config_list()))}

    def features(self) -> tuple[bool, bool]:
        """Return whether the image has an exclusive lock, and whether its object map tells what is allocated."""
        rbd = self.binding.rbd
        found, flags = self._ask(lambda: (self._image.features(), self._image.flags()))
        fast = found & rbd.RBD_FEATURE_FAST_DIFF and not flags & rbd.RBD_FLAG_FAST_DIFF_INVALID
        return bool(found & rbd.RBD_FEATURE_EXCLUSIVE_LOCK), bool(fast)

    def allocated(self, offset: int, length: int, *, fast: bool) -> list[tuple[int, int]]:
        """Return where data is in a range: (offset, length), in bytes and in order; whole objects if `fast`."""
        found: list[tuple[int, int]] = []

        def note(at: int, count: int, exists: bool) -> None:
            if exists:
                found.append((at, count))

        self._ask(lambda: self._image.diff_iterate(offset, length, None, note, True, fast))
        return sorted(found)

    def image_id(self) -> str:
        """Return the image's internal id."""
        return str(self._ask(self._id))

    def serial(self) -> str:
        """Return a unit serial number that the image has at each of its gateways, and no other image has."""
        return str(self._ask(self._serial))

    def _serial(self) -> str:
        place = self._cluster.get_fsid(), str(self._ioctx.get_pool_id()), self.config.namespace, self._id()
        return hashlib.sha256("/".join(place).encode()).hexdigest()[:SERIAL_DIGITS]

    def _id(self) -> str:
        return str(self._image.id())

    def solid_state(self) -> bool | None:
        """Say whether the pool's OSDs are SSDs, by its CRUSH rule; None when that names no class of devices."""
        rule = self._command("osd pool get", pool=self.config.pool, var="crush_rule")["crush_rule"]
        steps = self._command("osd crush rule dump", name=rule)["steps"]
        # A rule that is for one class takes from a shadow tree, which is called root~class.
        classes = {step["item_name"].rpartition("~")[2] for step in steps if "~" in step.get("item_name", "")}
        return bool(classes & {"ssd", "nvme"}) if classes else None

    def _command(self, prefix: str, **words: str) -> Any:
        """Ask a monitor; raises OSError."""
        text = json.dumps({"prefix": prefix, "format": "json", **words})
        code, data, said = self._ask(lambda: self._cluster.mon_command(text, b""))
        if code:
            raise OSError(-code, said)
        return json.loads(data)

    def announce(self, service: str, daemon: str, facts: dict[str, str]) -> None:
        """Register with the cluster's service map; raises OSError."""
        self._ask(lambda: self._cluster.service_daemon_register(service, daemon, facts))

    def publish(self, status: dict[str, str]) -> None:
        """Tell the service map what has changed; raises OSError."""
        self._ask(lambda: self._cluster.service_daemon_update(status))

    def close(self) -> None:
        """Wait for what was issued, let go of lock and connection. Never raises; may take as long as a timeout."""
        with self._issuing:
            closed, self._closed = self._closed, True
        if closed:
            return
        with self._asking:
            for part, end in ((self._image, "close"), (self._ioctx, "close"), (self._cluster, "shutdown")):
                if part is not None:
                    with contextlib.suppress(self.binding.rados.Error, self.binding.rbd.Error):
                        getattr(part, end)()
