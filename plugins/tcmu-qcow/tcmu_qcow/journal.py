"""Table changes that are not in the image yet, kept where the death of this process doesn't reach them.

Table changes wait in memory for the barrier that has to come before them. When the process is killed, the guest data
that it acknowledged is safe in the page cache, but these changes would be gone, and with them the way to the data; and
the initiator, which lives on, would never know. So each change is also appended to a small file in memory (tmpfs):
after a kill the next process to open the image makes them again and counts the refcounts anew. After a power cut that
file is gone, as it has to be: then only the order on the disk counts.

A record is: offset in the image, number of words, the words before, the words after. They are only made again if the
image still holds one of their known states, and if no cluster turns out to be in use twice: otherwise another program
changed the image.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import struct
import sys
from array import array
from collections.abc import Iterator

from tcmu_qcow.errors import CorruptImage
from tcmu_qcow.files import HostFile
from tcmu_qcow.header import Header
from tcmu_qcow.repair import rebuild_refcounts
from tcmu_qcow.tables import decode, encode

HEAD = struct.Struct("=8s36sQ")  # magic, boot id, generation of the image's inode
RECORD = struct.Struct("=QI")
MAGIC = b"tcmuqcj1"
_FS_IOC_GETVERSION = 0x80087601  # linux/fs.h
LARGEST = 4 << 20  # bytes of records before the tables are written


def _directory() -> str | None:
    """A directory in memory that is ours."""
    wanted = "/run/tcmu-qcow" if os.geteuid() == 0 else os.environ.get("XDG_RUNTIME_DIR", "")
    if not wanted:
        return "/dev/shm" if os.path.isdir("/dev/shm") else None
    with contextlib.suppress(OSError):
        os.makedirs(wanted, mode=0o700, exist_ok=True)
    return wanted if os.access(wanted, os.W_OK) else None


def _path(file: HostFile) -> str | None:
    directory = _directory()
    device, inode = file.identity
    return f"{directory}/qcow-{device:x}-{inode:x}.{os.geteuid()}" if directory else None


def _boot_id() -> bytes:
    with open("/proc/sys/kernel/random/boot_id", "rb") as text:
        return text.read(36)


def _generation(file: HostFile) -> int:
    """What tells a file from an earlier one that had its inode number; 0 where the file system can't say."""
    try:
        return int.from_bytes(fcntl.ioctl(file.fd, _FS_IOC_GETVERSION, bytes(8)), sys.byteorder)
    except OSError:
        return 0


class Journal:
    """The records of one image that is open for writing."""

    def __init__(self, file: HostFile) -> None:
        self._path = _path(file)
        self._fd = -1
        self.size = HEAD.size
        if self._path is not None:
            with contextlib.suppress(OSError):  # without a place for it the image works as well, until a kill
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self._path)
                flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
                self._fd = os.open(self._path, flags, 0o600)
                os.write(self._fd, HEAD.pack(MAGIC, _boot_id(), _generation(file)))

    def add(self, offset: int, before: array[int], after: array[int]) -> None:
        """Words of the image change."""
        if self._fd >= 0:
            record = RECORD.pack(offset, len(before)) + before.tobytes() + after.tobytes()
            os.pwrite(self._fd, record, self.size)
            self.size += len(record)

    def clear(self) -> None:
        """All that was recorded is in the image."""
        if self._fd >= 0 and self.size > HEAD.size:
            os.ftruncate(self._fd, HEAD.size)
            self.size = HEAD.size

    def close(self, *, remove: bool) -> None:
        """The image is closed; the records stay for the next one unless they are in it."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            if remove and self._path is not None:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self._path)


def _records(path: str, file: HostFile) -> Iterator[tuple[int, array[int], array[int]]]:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return
    with open(fd, "rb") as records:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
            return
        data = records.read()
    if len(data) < HEAD.size or HEAD.unpack_from(data) != (MAGIC, _boot_id(), _generation(file)):
        return
    at = HEAD.size
    while at + RECORD.size <= len(data):
        offset, words = RECORD.unpack_from(data, at)
        at += RECORD.size
        if at + 16 * words > len(data):  # killed in the middle of it: the command was not acknowledged
            return
        yield offset, array("Q", data[at : at + 8 * words]), array("Q", data[at + 8 * words : at + 16 * words])
        at += 16 * words


def recover(file: HostFile, header: Header) -> str | None:
    """Make the recorded changes again, under the image's lock. Returns what was lost, if something was."""
    path = _path(file)
    if path is None or not os.path.lexists(path):
        return None
    known: dict[int, set[int]] = {}
    final: dict[int, int] = {}
    for offset, before, after in _records(path, file):
        for number, (old, new) in enumerate(zip(before, after, strict=True)):
            known.setdefault(offset + 8 * number, {old}).add(new)
            final[offset + 8 * number] = new
    lost = None
    if final:
        present = {offset: decode(file.pread(8, offset).ljust(8, b"\0"), 64)[0] for offset in final}
        try:
            if any(present[offset] not in known[offset] for offset in final):
                raise CorruptImage(f"{file.path}: its tables were changed by another program")
            _put(file, final)
            rebuild_refcounts(file, header)
        except CorruptImage as error:
            _put(file, present)
            lost = f"writes that the previous process had not flushed are lost: {error}"
    os.unlink(path)
    return lost


def _put(file: HostFile, words: dict[int, int]) -> None:
    for offset, word in words.items():
        file.pwrite(encode(array("Q", [word]), 64), offset)
