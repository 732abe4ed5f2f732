"""A raw file as a disk or as the bottom of a chain: the guest's bytes are the file's."""

from __future__ import annotations

import errno
from collections.abc import Sequence

from tcmu_core import posix
from tcmu_core.posix import ZEROS
from tcmu_qcow import layout as q
from tcmu_qcow.chain import DATA, Node, Run
from tcmu_qcow.errors import ReadOnlyImage
from tcmu_qcow.files import HostFile
from tcmu_qcow.formats import PROBED, foreign_format


class RawImage(Node):
    """One raw file or block device. `probed` when nobody said that it is raw."""

    def __init__(self, file: HostFile, *, read_only: bool, probed: bool) -> None:
        super().__init__(file, file.size)
        self.read_only = read_only
        self._guarded = probed

    def map_range(self, offset: int, length: int, load: bool = True) -> list[Run] | None:
        """Map a range of this layer; see Node.map_range."""
        return [(DATA, offset, length)]

    def read(self, offset: int, buffers: Sequence[memoryview]) -> None:
        """Fill the buffers; what lies past the end reads as zeros."""
        self.file.preadv(buffers, offset)

    def read_nowait(self, offset: int, buffers: Sequence[memoryview], length: int) -> bool:
        """The same if it takes no wait, else False."""
        return self.file.preadv_nowait(buffers, offset, length)

    def write(self, offset: int, buffers: Sequence[memoryview]) -> None:
        """Write every buffer. The range lies within the disk."""
        self._check_writable()
        if self._guarded and (not offset or offset + sum(map(len, buffers)) >= self.file.size):
            self._check_magic(offset, buffers)
        self.file.pwritev(buffers, offset)

    def write_nowait(self, offset: int, buffers: Sequence[memoryview], length: int) -> bool:
        """The same if the page cache takes it without reading first, else False."""
        if not (self.file.in_memory or self.file.takes_at_once(offset, length)):
            return False
        self.write(offset, buffers)
        return True

    def place_to_read(self, offset: int, length: int) -> tuple[HostFile, int] | None:
        """Where the range lies: the file and the offset."""
        return self.file, offset

    def place_to_write(self, offset: int, length: int) -> tuple[HostFile, int] | None:
        """The same for a write; None where it has to be looked at before."""
        return None if self.read_only or (self._guarded and not offset) else (self.file, offset)

    def release_place(self) -> None:
        """What was read or written at a place has ended."""

    def _check_writable(self) -> None:
        if self.read_only:
            raise ReadOnlyImage(f"{self.file.path}: the image is open read-only")

    def _check_magic(self, offset: int, buffers: Sequence[memoryview]) -> None:
        """A guest may not turn a disk whose format was guessed into an image that names other files of the host."""
        length = sum(map(len, buffers))
        start = b"".join(posix.window(buffers, 0, PROBED)) if not offset else b""
        end = b"".join(posix.window(buffers, length - PROBED, PROBED)) if offset + length >= self.file.size else b""
        found = "qcow" if start.startswith(q.MAGIC) else foreign_format(start, end)
        if found is not None:
            raise OSError(
                errno.EPERM,
                f"the guest may not write a {found} header to a disk of guessed format; say format=raw",
                self.file.path,
            )

    def flush(self) -> None:
        """Everything written before is on stable storage when this returns."""
        if not self.read_only:
            self.file.flush()

    def write_zeroes(self, offset: int, length: int) -> None:
        """The range reads as zeros."""
        self._check_writable()
        end = offset + length
        while offset < end:
            n = min(end - offset, len(ZEROS))
            self.file.pwrite(ZEROS[:n], offset)
            offset += n

    def discard(self, offset: int, length: int) -> None:
        """The range reads as zeros, and is given back to the file system where that can be done."""
        self._check_writable()
        if not self.file.punch(offset, length):
            self.write_zeroes(offset, length)

    def extents(self, offset: int, length: int) -> list[tuple[int, int, bool]]:
        """(offset, length, whether there is data) for all of the range, in order."""
        return list(posix.extents(self.file.fd, offset, length))

    def resize(self, size: int) -> None:
        """Set the size of the file."""
        self._check_writable()
        if size > self.size or self.file.can_grow:
            self.file.truncate(size)
        self.size = size

    def close(self) -> None:
        """Flush and close the file."""
        try:
            if not self.read_only and self.file.fd >= 0:
                self.file.flush()
        finally:
            self.file.close()
