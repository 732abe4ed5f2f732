"""RbdHandler: the hooks. Data goes through librbd's asynchronous calls; its threads complete the futures."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from typing import Any

from tcmu_core import Busy, Change, ConfigError, Device, Extent, hookimpl
from tcmu_rbd import binding
from tcmu_rbd.config import OPTIONS, parse
from tcmu_rbd.keeper import Keeper
from tcmu_rbd.link import FAST_OBJECTS, SLOW_OBJECTS, Link, LockedElsewhere
from tcmu_rbd.shelf import Shelf

MAX_TRANSFER = 16 << 20  # bytes of one command, however large the objects are
OBJECTS_OF_A_TRANSFER = 4
OBJECTS_OF_A_DISCARD = 64  # librbd sends the parts of one call all at once
PATIENCE = 5.0  # seconds that the loop waits to hear what is allocated


class RbdHandler:
    """POOL/IMAGE of a Ceph cluster; options: conf, id, namespace, snapshot, osd_op_timeout, lock."""

    options = OPTIONS

    # -- opening and closing ----------------------------------------------------------------------------------------

    @hookimpl
    def check_config(self, cfgstring: str) -> None:
        """Say what is wrong with the cfgstring itself."""
        parse(cfgstring)

    @hookimpl
    def open(self, device: Device) -> Future[None]:
        """Connect, open the image and take its lock."""
        return device.offload(self._open, device)

    def _open(self, device: Device) -> None:
        config = parse(device.cfgstring, device.options)
        modules = binding.load()
        device.read_only = device.read_only or bool(config.snapshot)
        standing_by, shelf = False, None
        try:
            link = Link.connect(modules, config, read_only=device.read_only, take=config.lock == "break")
        except LockedElsewhere:
            if config.lock != "move":
                raise
            standing_by = True
            link = Link.connect(modules, config, read_only=False, lock=False)
        try:
            self._describe(device, link)
            if not link.read_only:
                shelf = device.reservations = Shelf(device, modules, config, link.image_id())
                if not standing_by and config.lock == "move":
                    link.note_shelf(shelf.instance)
        except BaseException:
            link.close()
            if shelf is not None:
                shelf.close()
            raise
        self._thick = modules.rbd.RBD_WRITE_ZEROES_FLAG_THICK_PROVISION
        self._name = config.name
        self._keeper = Keeper(device, modules, config, link, shelf, standing_by=standing_by)
        self._keeper.start()

    def _describe(self, device: Device, link: Link) -> None:
        """Settle the size, and tell what is known of the image."""
        size = link.size()
        size -= size % device.block_size
        if device.size not in (None, size):
            raise ConfigError(
                f"{link.config.name} has {size} bytes, the device {device.size}: leave the size out, or "
                f"rbd resize --size {device.size}B {link.config.name}"
            )
        device.size = size
        settings = link.settings()
        if settings.get("rbd_cache") == "true" and not link.read_only:
            # Without a flush hook the engine promises that what was answered is stable.
            raise ConfigError(
                f"{link.config.name} has its own setting for a cache, which would lose acknowledged writes: "
                f"rbd config image set {link.config.name} rbd_cache false"
            )
        granularity = int(settings.get("rbd_discard_granularity_bytes") or 0) or link.object_size()
        unit = self._object_size = link.object_size()
        locked, self._fast_diff = link.features()
        if not locked and link.config.lock == "move":
            raise ConfigError(
                f"{link.config.name} has no exclusive lock that could move between gateways: "
                f"rbd feature enable {link.config.name} exclusive-lock"
            )
        if not locked and not link.read_only:
            device.log.warning(
                "%s has no exclusive lock, so nothing keeps two gateways from writing to it at once: "
                "rbd feature enable %s exclusive-lock",
                link.config.name,
                link.config.name,
            )
        if link.config.lock == "move":  # initiators are to see one disk, by whatever gateway
            device.serial = device.serial or link.serial()
        most = min(OBJECTS_OF_A_TRANSFER * unit, device.max_transfer_length or MAX_TRANSFER)
        device.max_transfer_length = max(most, device.block_size)
        device.optimal_transfer_length = min(unit, device.max_transfer_length)
        device.max_discard_length = OBJECTS_OF_A_DISCARD * unit
        device.discard_granularity = max(min(granularity, unit), device.block_size)
        device.thin = True
        try:
            device.solid_state = link.solid_state() is not False
        except OSError as error:  # a client that may not ask the monitors such things
            device.log.debug("%s: whether it lies on SSDs is not known: %s", link.config.name, error)

    @hookimpl
    def close(self, device: Device) -> None:
        """Wait for what is in flight, and let go of the lock."""
        self._keeper.stop()

    @hookimpl
    def reconfigure(self, device: Device, change: Change) -> None:
        """Grow the image, or take the size that it was given by other means."""
        if change.cfgstring not in (None, device.cfgstring):
            raise ConfigError("the cfgstring of an open device can't change: delete the device and create it again")
        if change.write_cache:
            raise ConfigError("there is no write cache: each write is stable when it is answered")
        if change.size is not None and change.size != device.size:
            self._resize(device, change.size)

    def _resize(self, device: Device, size: int) -> None:
        link = self._keeper.link
        if link is None:
            raise Busy(str(self._keeper.absent()))
        now = link.size()
        if size < now - now % device.block_size:
            raise ConfigError(
                f"{self._name} has {now} bytes, and what is cut off is lost: `rbd resize --allow-shrink` does it, "
                "and the disk follows"
            )
        before, device.size = device.size, size
        try:
            if size > now:
                link.grow(size)
        except BaseException:
            device.size = before
            raise

    # -- data -------------------------------------------------------------------------------------------------------

    @hookimpl
    def read(self, buffers: list[memoryview], offset: int) -> Future[None]:
        """Read into librbd's memory, and copy that into the buffers when it is there."""
        length = len(buffers[0]) if len(buffers) == 1 else sum(map(len, buffers))

        def take(data: bytes) -> None:
            view, at = memoryview(data), 0
            for buffer in buffers:
                end = at + len(buffer)
                buffer[:] = view[at:end]
                at = end

        return self._issue("aio_read", offset, length, take=take)

    @hookimpl
    def write(self, buffers: list[memoryview], offset: int) -> Future[None]:
        """Write; it is on the OSDs' disks when the future is done."""
        return self._issue("aio_write", b"".join(buffers), offset)

    @hookimpl
    def discard(self, offset: int, length: int) -> Future[None]:
        """Free whole objects and the ends of others, and zero the rest: librbd's own discard leaves that as it is."""
        return self._issue("aio_write_zeroes", offset, length)

    @hookimpl
    def write_zeroes(self, offset: int, length: int) -> Future[None]:
        """Write zeros that take up space."""
        return self._issue("aio_write_zeroes", offset, length, after=(self._thick,))

    def _issue(
        self, name: str, *arguments: Any, after: tuple[int, ...] = (), take: Callable[[bytes], None] | None = None
    ) -> Future[None]:
        """Start an asynchronous call of librbd's, whose completion stands between its arguments and those `after`."""
        keeper = self._keeper
        link = keeper.link
        if link is None:
            raise keeper.absent()
        future: Future[None] = Future()
        future.set_running_or_notify_cancel()  # librbd can't be stopped
        if not link.issue(name, *arguments, functools.partial(self._ended, link, future, take), *after):
            raise keeper.absent()
        return future

    def _ended(
        self,
        link: Link,
        future: Future[None],
        take: Callable[[bytes], None] | None,
        completion: Any,
        data: bytes | None = None,
    ) -> None:
        """Complete a future; called on one of librbd's threads."""
        try:
            result = completion.get_return_value()
            if result >= 0:
                if take is not None:
                    assert data is not None
                    take(data)
                future.set_result(None)
                return
            future.set_exception(self._keeper.failed(link, -result))
        except BaseException as error:  # nobody else would ever hear of it
            if not future.done():
                future.set_exception(error)

    # -- space ------------------------------------------------------------------------------------------------------

    @hookimpl
    def extents(self, device: Device, offset: int, length: int) -> Future[Iterable[Extent]]:
        """Say where the image, or what it was cloned from, has data: by the object map if there is a valid one."""
        return device.offload(self._begin_extents, device, offset, offset + length)

    def _begin_extents(self, device: Device, offset: int, end: int) -> Iterable[Extent]:
        """Ask about the first objects; about the others only when somebody wants to know of them."""
        stop, found = self._allocated(offset, end)
        return itertools.chain(found, self._more_extents(device, stop, end))

    def _more_extents(self, device: Device, offset: int, end: int) -> Iterator[Extent]:
        while offset < end:
            try:
                offset, found = device.offload(self._allocated, offset, end).result(PATIENCE)
            except TimeoutError as error:
                raise Busy(f"{self._name}: the cluster takes long to say what is allocated") from error
            yield from found

    def _allocated(self, offset: int, end: int) -> tuple[int, list[Extent]]:
        """Return how far was asked at once, and the extents up to there."""
        link = self._keeper.link
        if link is None:
            raise self._keeper.absent()
        step = self._object_size * (FAST_OBJECTS if self._fast_diff else SLOW_OBJECTS)
        stop = min(end, offset - offset % step + step)
        extents: list[Extent] = []
        for at, count in link.allocated(offset, stop - offset, fast=self._fast_diff):
            at, after = max(at, offset), min(at + count, stop)
            if at > offset:
                extents.append(Extent(offset, at - offset, False))
            if after > at:
                extents.append(Extent(at, after - at, True))
                offset = after
        if offset < stop:
            extents.append(Extent(offset, stop - offset, False))
        return stop, extents
