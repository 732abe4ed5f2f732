"""Drive: the tray, the disc in it, who prevents its removal, and what is going on."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import replace

from tcmu_core import ConfigError, Device, FormatInProgress, MediumRemovalPrevented, Nexus, Status, posix
from tcmu_fbo import modes
from tcmu_fbo.config import Disc
from tcmu_fbo.events import CHANGED, EventClass, Events, MediaEvent
from tcmu_fbo.medium import Medium, open_disc
from tcmu_fbo.profiles import BLOCK, Code, Profile
from tcmu_fbo.sense import TrayClosed, TrayOpen

MEDIUM_MAY_HAVE_CHANGED = (0x28, 0x00)  # SPC-4 annex F
FULL = 0xFFFF  # a progress indication is a fraction of 65536 (SPC-4 4.5.2.4.4)


class Drive:
    """One optical drive. All of it runs on the loop's thread but what `offload` is given.

    `disc` is what lies in the tray, `medium` the disc when the tray is closed and it could be opened.
    """

    def __init__(self, device: Device) -> None:
        self.device = device
        self.engine = posix.engine(device.reactor, device.offload, device.log)
        self.protected = device.read_only  # asked for from outside, of every disc
        self.disc: Disc | None = None
        self.medium: Medium | None = None
        self.tray_open = False
        self.persistent_prevent = False
        self.formatting: FormatInProgress | None = None
        self.events = Events()
        self.modes = modes.ModePages()
        self.modes.current[modes.CACHING]["wce"] = int(device.write_cache)
        self.read_speed = FULL  # kB/s as SET CD SPEED gave it; FFFFh: as fast as the disc allows
        self.write_speed = FULL
        self.position = 0  # the LBA of the last block that was read, sought or written
        self.power = 1  # active: power status of MMC-6, GET EVENT STATUS NOTIFICATION

    # -- what it is ---------------------------------------------------------------------------------------------------

    @property
    def profile(self) -> Profile | None:
        """The current profile: that of the disc."""
        return self.medium.profile if self.medium is not None else None

    @property
    def profile_code(self) -> Code:
        """The current profile's number, 0 without a disc (MMC-6 5.3.1)."""
        return self.medium.profile.code if self.medium is not None else Code.NONE

    def ready(self) -> Medium:
        """Return the disc; raise what keeps the drive from using it."""
        if self.formatting is not None:
            raise FormatInProgress(progress=self.formatting.progress)
        if self.medium is None:
            raise TrayOpen() if self.tray_open else TrayClosed()
        return self.medium

    # -- the disc comes and goes --------------------------------------------------------------------------------------

    def insert(self, disc: Disc | None, size: int = 0) -> None:
        """Put `disc` into the drive in place of the one that is there; None takes that one out and opens the tray.

        Raises:
            MediumRemovalPrevented: an initiator holds the disc; it is asked to let go (an eject request event).
            FormatInProgress, OSError, ConfigError: and nothing has changed.
        """
        if self.formatting is not None:
            raise FormatInProgress("the disc is being formatted", progress=self.formatting.progress)
        if self.medium is not None and (self.device.prevented() or self.persistent_prevent):
            self.events.add(EventClass.MEDIA, MediaEvent.EJECT_REQUEST)
            raise MediumRemovalPrevented("an initiator prevents the removal of the disc; it has been asked to eject it")
        medium = self._open(disc, size) if disc is not None else None
        self._take_out()
        self.disc = disc
        self.tray_open = medium is None
        if medium is not None:
            self._put_in(medium)

    def start(self, disc: Disc | None, size: int) -> None:
        """Begin with `disc` in the closed drive, of which nobody needs to be told; raises as `open_disc`."""
        self.disc = disc
        if disc is not None:
            self._use(self._open(disc, size))
        else:
            self.device.size = 0

    def eject(self) -> None:
        """Open the tray, as an initiator asks for it (LOEJ 1, START 0).

        Raises:
            MediumRemovalPrevented: an initiator prevents it.
        """
        if self.device.prevented():
            raise MediumRemovalPrevented
        self._take_out()
        self.tray_open = True

    def load(self, nexus: Nexus) -> None:
        """Close the tray, as `nexus` asks for it (LOEJ 1, START 1), and use the disc that lies in it.

        It opened and closed the tray, and knows that the disc may be another one: the others are told.

        Raises:
            TrayClosed: its image is missing or can't be used.
        """
        self.tray_open = False
        if self.medium is not None or self.disc is None:
            return
        try:
            medium = self._open(self.disc)
        except (OSError, ConfigError) as error:
            self.device.log.error("the disc can't be loaded: %s", error)
            raise TrayClosed(str(error)) from error
        self._put_in(medium, nexus)

    def _open(self, disc: Disc, size: int = 0) -> Medium:
        return open_disc(
            self.device, self.engine, replace(disc, read_only=True) if self.protected else disc, size, self.medium
        )

    def _put_in(self, medium: Medium, by: Nexus | None = None) -> None:
        self._use(medium)
        self.events.add(EventClass.MEDIA, MediaEvent.NEW_MEDIA)
        self.events.add(EventClass.OPERATIONAL_CHANGE, CHANGED)
        self.device.notify(*MEDIUM_MAY_HAVE_CHANGED, but=by)
        self.device.log.info("disc in: %s, %d blocks", medium.profile.name, medium.blocks)

    def _use(self, medium: Medium) -> None:
        self.medium = medium
        self.device.size = medium.blocks * BLOCK
        self.device.read_only = medium.read_only

    def _take_out(self) -> None:
        medium, self.medium = self.medium, None
        self.device.size = 0
        if medium is not None:
            self._let_go(medium)
            self.events.add(EventClass.MEDIA, MediaEvent.MEDIA_REMOVAL)
            self.events.add(EventClass.OPERATIONAL_CHANGE, CHANGED)
            self.device.log.info("disc out")

    def close(self) -> None:
        """Let go of the disc."""
        self.engine.close()
        medium, self.medium = self.medium, None
        if medium is not None:
            self._let_go(medium)

    def _let_go(self, medium: Medium) -> None:
        try:
            medium.flush()
        except OSError as error:  # the disc goes all the same
            self.device.log.error("the last flush of the disc failed: %s", error)
        medium.close()

    # -- formatting ---------------------------------------------------------------------------------------------------

    def format(self, medium: Medium) -> Future[Status]:
        """Begin to format `medium` and return the future of its end; until then the drive is not ready."""
        self.formatting = FormatInProgress(progress=0)
        return self.device.offload(self._format, medium, self.formatting)

    def _format(self, medium: Medium, state: FormatInProgress) -> Status:
        def progress(done: int, whole: int) -> None:
            state.progress = done * FULL // whole
            self.device.progress(done, whole, "formatting")

        try:
            with medium.used():
                medium.erase(progress)
        except OSError as error:
            self.device.log.error("formatting failed: %s", error)
            raise
        finally:
            self.formatting = None
            self.device.progress(0, 0)
        return Status.GOOD
