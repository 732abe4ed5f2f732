"""The hooks. What tables and data in memory can answer is done at once, the rest on the device's threads."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from concurrent.futures import Future
from time import monotonic

from tcmu_core import Change, ConfigError, Device, Extent, WriteProtected, hookimpl, posix
from tcmu_qcow.chain import chain_extents
from tcmu_qcow.config import OPTIONS, Config, parse
from tcmu_qcow.create import create_image
from tcmu_qcow.opening import Image, open_image
from tcmu_qcow.qcow1 import Qcow1Image
from tcmu_qcow.raw import RawImage
from tcmu_qcow.resize import resize_image
from tcmu_qcow.write import WritableQcow2

STALL = 0.010  # a write into the page cache that took longer (seconds) was held back by the kernel
BACK_OFF = 10  # the writes after it go to the threads for so many times as long
PAGE = 4096


class Handler:
    """QEMU images. Options: format, ro, snapshot, l2_cache, lock, repair, block_size, create, size and more."""

    options = OPTIONS

    # -- opening and closing -----------------------------------------------------------------------------------------

    @hookimpl
    def check_config(self, cfgstring: str) -> None:
        """Say what is wrong with the cfgstring itself."""
        parse(cfgstring)

    @hookimpl
    def open(self, device: Device) -> None:
        """Open or create the image and all that it stands on; lock it; tell what is known about it."""
        config = parse(device.cfgstring, device.options)
        if config.size and device.size not in (None, config.size):
            raise ConfigError(
                f"the device has {device.size} bytes, the cfgstring says size={config.size}: leave it out"
            )
        wanted = device.size or config.size
        device.block_size = config.block_size or device.block_size
        created = config.creation is not None and not os.path.lexists(config.path)
        self._image = _open(config, wanted, device)
        try:
            self._describe(device, config, wanted)
        except BaseException:
            self._close()
            if created:
                os.unlink(config.path)
            raise
        if isinstance(self._image, WritableQcow2) and self._image.lost:
            device.log.error("%s", self._image.lost)
        in_memory = all(layer.data_file.in_memory for layer in self._image.layers())
        self._engine = posix.engine(None if in_memory else device.reactor, device.offload, device.log)
        self._writable = None if isinstance(self._image, Qcow1Image) else self._image
        self._threads_until = 0.0  # writes go to the threads until then (monotonic)

    def _describe(self, device: Device, config: Config, wanted: int | None) -> None:
        image = self._image
        device.read_only = device.read_only or image.read_only
        if wanted is not None and wanted != image.size:
            raise ConfigError(f"{config.path} is a disk of {image.size} bytes, not {wanted}: leave the size out")
        if image.size % device.block_size and not device.read_only:
            raise ConfigError(
                f"{config.path} has {image.size} bytes, which are not whole blocks of {device.block_size}: "
                "make it larger with qemu-img resize, or add ro=1"
            )
        device.size = -(-image.size // device.block_size) * device.block_size
        unit = max(device.block_size, image.cluster_size)
        if unit >= PAGE and not device.size % PAGE:
            device.physical_block_size = max(PAGE, device.block_size)
        device.discard_granularity = max(unit, PAGE if isinstance(image, RawImage) else 0)
        device.thin = True

    @hookimpl
    def close(self, device: Device) -> None:
        """Bring everything to the disk and let go of all files."""
        self._engine.close()
        self._close()

    def _close(self) -> None:
        layers = list(self._image.layers())
        try:
            layers[0].close()
        finally:
            for layer in layers[1:]:
                layer.close()

    @hookimpl
    def reconfigure(self, device: Device, change: Change) -> None:
        """Take a new size or write-cache mode."""
        if change.cfgstring not in (None, device.cfgstring):
            raise ConfigError("the cfgstring of an open device can't change: delete the device and create it again")
        if change.write_cache is not None:
            device.write_cache = change.write_cache
        if change.size is not None and change.size != device.size:
            image = self._image
            if device.read_only or isinstance(image, Qcow1Image):
                raise WriteProtected("a read-only image keeps its size")
            if change.size % device.block_size:
                raise ConfigError(f"{change.size} bytes are not whole blocks of {device.block_size}")
            self._engine.drain()  # who frees clusters holds the lock and waits for those that are read
            if isinstance(image, WritableQcow2):
                resize_image(image, change.size)
            else:
                image.resize(change.size)
            device.size = change.size

    # -- data --------------------------------------------------------------------------------------------------------

    @hookimpl
    def read(self, device: Device, offset: int, buffers: list[memoryview]) -> Future[None] | None:
        """Read at once if the tables and the data are in memory."""
        length = len(buffers[0]) if len(buffers) == 1 else sum(map(len, buffers))
        image = self._image
        if offset + length <= image.size and image.read_nowait(offset, buffers, length):
            return None
        if offset + length <= image.size and not isinstance(image, Qcow1Image):
            place = image.place_to_read(offset, length)
            if place is not None:
                file, host = place
                return self._moving(image, self._engine.read(file.fd, host, buffers))
        return device.offload(image.read, offset, buffers)

    @hookimpl
    def write(self, device: Device, offset: int, buffers: list[memoryview]) -> Future[None] | None:
        """Write at once if the clusters are in place and the page cache takes data without delay."""
        image = self._writable
        if image is None:
            raise WriteProtected("a version 1 image is read-only")
        length = len(buffers[0]) if len(buffers) == 1 else sum(map(len, buffers))
        if image.data_file.in_memory:
            if image.write_nowait(offset, buffers, length):
                return None
        elif (started := monotonic()) >= self._threads_until:
            done = image.write_nowait(offset, buffers, length)
            if (ended := monotonic()) - started > STALL:
                self._threads_until = ended + (ended - started) * BACK_OFF
            if done:
                return None
        place = image.place_to_write(offset, length)
        if place is not None:
            file, host = place
            return self._moving(image, self._engine.write(file.fd, host, buffers))
        return device.offload(image.write, offset, buffers)

    @staticmethod
    def _moving(image: WritableQcow2 | RawImage, future: Future[None]) -> Future[None]:
        """Let go of the place when what moves there has ended."""
        future.add_done_callback(lambda _done: image.release_place())
        return future

    @hookimpl
    def flush(self, device: Device) -> Future[None] | None:
        """Bring what was written to the disk, tables included, in the order that keeps the image valid."""
        image = self._image
        if isinstance(image, Qcow1Image) or device.read_only:
            return None
        return device.offload(image.flush)

    # -- space -------------------------------------------------------------------------------------------------------

    @hookimpl
    def discard(self, device: Device, offset: int, length: int) -> Future[None] | None:
        """Free whole clusters; zero what is left of the range."""
        image = self._writable
        if image is None:
            raise WriteProtected("a version 1 image is read-only")
        return device.offload(image.discard, offset, length)

    @hookimpl
    def write_zeroes(self, device: Device, offset: int, length: int) -> Future[None] | None:
        """Mark whole clusters as zeros, in place; zero what is left of the range."""
        image = self._writable
        if image is None:
            raise WriteProtected("a version 1 image is read-only")
        return device.offload(image.write_zeroes, offset, length)

    @hookimpl
    def extents(self, device: Device, offset: int, length: int) -> Iterator[Extent]:
        """Say which ranges have data in some layer of the chain."""
        image = self._image
        self._engine.drain()  # who frees clusters holds the lock and waits for those that are read
        found = image.extents(offset, length) if isinstance(image, RawImage) else chain_extents(image, offset, length)
        for start, n, mapped in found:
            yield Extent(start, n, mapped)
            self._engine.drain()


def _open(config: Config, wanted: int | None, device: Device) -> Image:
    """The image, made if it is not there and the configuration says so."""
    path = config.path
    read_only = config.opening.read_only or device.read_only
    options = dataclasses.replace(config.opening, read_only=read_only, log=device.log)
    if config.creation is not None and not os.path.lexists(path):
        if read_only:
            raise ConfigError(f"{path} does not exist, and read-only nothing is created")
        create_image(path, dataclasses.replace(config.creation, size=wanted), device.progress)
    try:
        return open_image(path, options)
    except FileNotFoundError as error:
        raise ConfigError(f"{path} does not exist: add create=1;size=10G to make it") from error
    except IsADirectoryError as error:
        raise ConfigError(f"{path} is a directory, not an image") from error
    except PermissionError as error:
        if options.read_only:
            raise
        raise ConfigError(
            f"{path} can't be opened for writing ({error.strerror}): add ro=1 for a read-only disk"
        ) from error
