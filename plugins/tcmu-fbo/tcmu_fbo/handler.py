"""Optical: the handler, which opens the drive and hands it its commands."""

from __future__ import annotations

from concurrent.futures import Future

from tcmu_core import Change, Command, Device, Status, hookimpl
from tcmu_fbo import config, table
from tcmu_fbo.control import MODE_PARAMETERS_CHANGED
from tcmu_fbo.data import writable
from tcmu_fbo.drive import Drive
from tcmu_fbo.modes import CACHING
from tcmu_fbo.profiles import BLOCK

CD_DVD = 0x05  # peripheral device type (SPC-4 6.6.2)


class Optical:
    """An optical drive: `[ro/]/path/to/image[;ro=1][;profile=cd-rom|dvd-rom|bd-rom|dvd-ram][;lock=no]`.

    The image is a file or a block device. One that can be written is a DVD-RAM unless `ro` says otherwise; a
    read-only one is a CD-ROM, DVD-ROM or BD-ROM by its size. Without an image the drive is empty.
    """

    options = config.OPTIONS
    drive: Drive

    @hookimpl
    def check_config(self, cfgstring: str) -> None:
        """Read the cfgstring."""
        config.parse(cfgstring)

    @hookimpl
    def open(self, device: Device) -> None:
        """Open the drive with the disc that the cfgstring names."""
        disc = config.parse(device.cfgstring, device.options)
        device.device_type = CD_DVD
        device.removable = True
        device.block_size = BLOCK
        device.product = "Optical drive"
        device.revision = "0100"
        device.opcodes = table.OPCODES
        self.drive = Drive(device)
        try:
            self.drive.start(disc, device.size or 0)
        except BaseException:
            self.drive.engine.close()
            raise

    @hookimpl
    def close(self) -> None:
        """Let go of the disc."""
        self.drive.close()

    @hookimpl
    def read(self, offset: int, buffers: list[memoryview]) -> None:
        """Read the disc."""
        self.drive.ready().read(offset, buffers)

    @hookimpl
    def write(self, offset: int, buffers: list[memoryview]) -> None:
        """Write the disc."""
        writable(self.drive).write(offset, buffers)

    @hookimpl
    def flush(self) -> None:
        """Flush the disc, if there is one."""
        if self.drive.medium is not None:
            self.drive.medium.flush()

    @hookimpl
    def handle_cmd(self, command: Command) -> Status | Future[Status] | None:
        """Serve what MMC-6 has, or defines in its own way."""
        self.drive.events.greet(command.nexus)
        served = table.find(command.cdb)
        return served.run(self.drive, command) if served is not None else None

    @hookimpl
    def reconfigure(self, device: Device, change: Change) -> None:
        """Change the disc: a new cfgstring puts one in, an empty one takes it out; or switch the write cache."""
        if change.cfgstring is not None:
            self.drive.insert(config.parse(change.cfgstring, device.options))
        elif change.write_cache is not None:
            cached, self.drive.modes.current[CACHING]["wce"] = self.drive.modes.write_cache, int(change.write_cache)
            if cached != change.write_cache:
                device.notify(*MODE_PARAMETERS_CHANGED)
        elif change.size != device.size:
            raise NotImplementedError("a disc keeps its size: insert another one")
