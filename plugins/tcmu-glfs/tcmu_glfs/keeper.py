"""Keeper: the thread that opens a disk's file again when its bricks were away, and notices a resize."""

from __future__ import annotations

import errno
import threading

from tcmu_core import Busy, ConfigError, Device
from tcmu_glfs.file import File, open_file

LOOK = 2.0  # seconds between two looks at the file's length
RETRY = 0.5  # between two attempts to open it again
GOODBYE = 60.0  # that closing waits for a volume that does not answer

# What says that this descriptor can't go on: libgfapi connects to bricks again by itself, but it may be stale.
LOST = frozenset((errno.ENOTCONN, errno.EBADF, errno.EBADFD, errno.ESTALE, errno.ETIMEDOUT, errno.ECONNRESET))
CAPACITY_CHANGED = (0x2A, 0x09)  # SPC-4 annex F


class Keeper:
    """Holds the file of a disk: `file` while it is open, otherwise it is being opened again."""

    def __init__(self, device: Device, file: File) -> None:
        self.file: File | None = file
        self._device = device
        self._config = file.config
        self._read_only = file.read_only
        self._guard = threading.Lock()
        self._wake = threading.Event()
        self._ending = False
        self._thread = threading.Thread(target=self._run, name=f"tcmu-glfs-{device.name}", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread and close the file."""
        self._ending = True
        self._wake.set()
        self._thread.join(GOODBYE)
        with self._guard:
            file, self.file = self.file, None
        if file is not None:
            file.close()

    def absent(self) -> Exception:
        """Return what a command hears while the file is not open."""
        return Busy(f"the bricks of {self._config.name} do not answer")

    def failed(self, file: File, code: int) -> Exception:
        """Return what the command hears that failed with an errno, and have the file opened again if it has to be."""
        if code not in LOST:
            return OSError(code, f"{self._config.name}: libgfapi: {errno.errorcode.get(code, code)}")
        with self._guard:
            mine = self.file is file
            if mine:
                self.file = None
        if mine:
            self._device.log.warning("%s: %s: opening it again", self._config.name, errno.errorcode.get(code, code))
            # The other commands in flight end first; closing waits for them, and this may be gluster's own thread.
            threading.Thread(target=file.close, name=f"tcmu-glfs-close-{self._device.name}", daemon=True).start()
            self._wake.set()
        return self.absent()

    def _run(self) -> None:
        while not self._ending:
            file = self.file
            try:
                if file is None:
                    self._open_again()
                else:
                    self._resized(file.size())
            except OSError as error:
                if file is not None:
                    self.failed(file, error.errno or errno.EIO)
            except Exception:
                self._device.log.exception("looking after %s failed", self._config.name)
            self._wake.wait(RETRY if self.file is None else LOOK)
            self._wake.clear()

    def _open_again(self) -> None:
        try:
            file = open_file(self._config, read_only=self._read_only)
        except ConfigError as error:
            self._device.log.debug("%s", error)
            return
        try:
            size = file.size()
        except OSError:
            file.close()
            return
        with self._guard:
            self.file = file
        self._device.log.warning("%s: open again", self._config.name)
        self._resized(size)

    def _resized(self, size: int) -> None:
        device = self._device
        size -= size % device.block_size
        if size != device.size and size and not self._ending:
            device.log.info("%s has %d bytes now", self._config.name, size)
            device.size = size
            device.notify(*CAPACITY_CHANGED)
