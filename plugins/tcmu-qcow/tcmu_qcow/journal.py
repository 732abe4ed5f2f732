"""Table changes that are not in the image yet, kept where the death of this process doesn't reach them.

Table changes wait in memory for the barrier that has to come before them. When the process is killed, the guest data
that it acknowledged is safe in the page cache, but these changes would be gone, and with them the way to the data; and
the initiator, which lives on, would never know. So each change is also appended to a small file in memory (tmpfs):
after a kill the next process to open the image makes them again and counts the refcounts anew. After a power cut that
file is gone, as it has to be: then only the order on the disk counts.

A record is: offset in the image, number of words, the words before, the words after. They are only made again if the
image still holds one of their known states, and if no cluster turns out to be in use twice: otherwise another program
changed the image.

Room for the records of a command is set aside before it begins. Where there is none (a full /run, no tmpfs of ours),
the tables are written to the image at the end of each command instead: that is slower, and loses as little.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import struct
import sys
import tempfile
from array import array
from collections.abc import Iterator

from tcmu_core import posix
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
AHEAD = 64 << 10  # bytes that are set aside for the records of one command

RUN = "/run"
SHARED_MEMORY = "/dev/shm"
PREFIX = "tcmu-qcow."


def _is_ours(path: str) -> bool:
    """True for a directory that nobody else can have put there or can write to."""
    try:
        info = os.lstat(path)
    except OSError:
        return False
    return stat.S_ISDIR(info.st_mode) and info.st_uid == os.geteuid() and not info.st_mode & 0o022


def _directories(*, make: bool) -> Iterator[str]:
    """Directories in memory that are ours, the best first.

    In /dev/shm, where others can take any name that they can guess, the name is a random one, and found by its owner.
    """
    if os.geteuid() == 0:
        wanted = [f"{RUN}/tcmu-qcow"]
        if make:
            with contextlib.suppress(OSError):
                os.mkdir(wanted[0], 0o700)
    else:
        wanted = [os.environ.get("XDG_RUNTIME_DIR", ""), f"{RUN}/user/{os.geteuid()}"]
    for directory in dict.fromkeys(wanted):
        if _is_ours(directory):
            yield directory
    found = False
    with contextlib.suppress(OSError), os.scandir(SHARED_MEMORY) as entries:
        for path in sorted(entry.path for entry in entries if entry.name.startswith(PREFIX)):
            if _is_ours(path):
                yield path
                found |= os.path.lexists(path)  # whoever used it last may have removed it meanwhile
    if make and not found:
        with contextlib.suppress(OSError):
            yield tempfile.mkdtemp(prefix=PREFIX, dir=SHARED_MEMORY)


def _name(file: HostFile) -> str:
    device, inode = file.identity
    return f"qcow-{device:x}-{inode:x}.{os.geteuid()}"


def journals_of(file: HostFile) -> list[str]:
    """The paths of what earlier processes left for this image; one at most, unless one could not be removed."""
    paths = [os.path.join(directory, _name(file)) for directory in _directories(make=False)]
    return [path for path in paths if os.path.lexists(path)]


def _remove(path: str) -> None:
    """Remove a journal, and the directory that was made for it where it was the last one there."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    directory = os.path.dirname(path)
    if directory.startswith(f"{SHARED_MEMORY}/{PREFIX}"):
        with contextlib.suppress(OSError):
            os.rmdir(directory)


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

    def __init__(self, file: HostFile, log: posix.Log = posix.log) -> None:
        self._file = file
        self._log = log
        self._path = ""
        self._fd = -1  # none while there is no room for one
        self._reserved = 0  # bytes of the file that are set aside
        self._incomplete = False
        self._told = False
        self._reason = OSError()
        self.size = 0
        for path in journals_of(file):
            _remove(path)

    @property
    def full(self) -> bool:
        """True when the changes since the last `clear` are not all in it: the tables have to be written."""
        return self._fd < 0 or self._incomplete

    def reserve(self) -> bool:
        """Set room aside for the records of the next command; False when there is none. All is in the image then."""
        try:
            if self._fd < 0:
                self._open()
            if self._reserved - self.size < AHEAD // 2:
                self._set_aside()
        except OSError as error:
            self._reason = error
            return False
        if self._told:
            self._told = False
            self._log.info("%s: there is room for its journal again", self._file.path)
        return True

    def give_up(self) -> None:
        """Go on without one, until `reserve` finds room again. All that was recorded is in the image."""
        self.close(remove=True)
        if not self._told:
            self._told = True
            self._log.warning(
                "%s: there is no room in memory for the journal of its tables (%s): each change of them is written to "
                "the image at once, which is slower",
                self._file.path,
                self._reason.strerror,
            )

    def _open(self) -> None:
        """Make the file where there is room for it; raises the OSError of the last place."""
        failure = OSError(errno.ENOENT, "no directory in memory is ours alone")
        for directory in _directories(make=True):
            path = os.path.join(directory, _name(self._file))
            try:
                fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            except OSError as error:
                failure = error
                continue
            try:
                self._fd, self._path, self.size, self._incomplete = fd, path, HEAD.size, False
                posix.write_full(fd, 0, [HEAD.pack(MAGIC, _boot_id(), _generation(self._file))])
                self._set_aside()
            except OSError as error:
                self.close(remove=True)
                failure = error
                continue
            return
        raise failure

    def _set_aside(self) -> None:
        try:
            posix.fallocate(self._fd, posix.KEEP_SIZE, self.size, AHEAD)
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:  # then it will be seen when it is written
                raise
        self._reserved = self.size + AHEAD

    def add(self, offset: int, before: array[int], after: array[int]) -> None:
        """Words of the image change. What does not fit is left out, and all that comes after it."""
        if self.full:
            return
        record = RECORD.pack(offset, len(before)) + before.tobytes() + after.tobytes()
        try:
            posix.write_full(self._fd, self.size, [record])
        except OSError:
            self._incomplete = True  # a part of a record at the end is none
            return
        self.size += len(record)

    def clear(self) -> None:
        """All that was recorded is in the image."""
        if self._fd >= 0 and (self.size > HEAD.size or self._incomplete):
            os.ftruncate(self._fd, HEAD.size)
            self.size = self._reserved = HEAD.size
            self._incomplete = False

    def close(self, *, remove: bool) -> None:
        """The image is closed; the records stay for the next one unless they are in it."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            if remove:
                _remove(self._path)


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
    lost = None
    for path in journals_of(file):
        lost = _replay(path, file, header) or lost
        _remove(path)
    return lost


def _replay(path: str, file: HostFile, header: Header) -> str | None:
    known: dict[int, set[int]] = {}
    final: dict[int, int] = {}
    for offset, before, after in _records(path, file):
        for number, (old, new) in enumerate(zip(before, after, strict=True)):
            known.setdefault(offset + 8 * number, {old}).add(new)
            final[offset + 8 * number] = new
    if not final:
        return None
    present = {offset: decode(file.pread(8, offset).ljust(8, b"\0"), 64)[0] for offset in final}
    try:
        if any(present[offset] not in known[offset] for offset in final):
            raise CorruptImage(f"{file.path}: its tables were changed by another program")
        _put(file, final)
        rebuild_refcounts(file, header)
    except CorruptImage as error:
        _put(file, present)
        return f"writes that the previous process had not flushed are lost: {error}"
    return None


def _put(file: HostFile, words: dict[int, int]) -> None:
    for offset, word in words.items():
        file.pwrite(encode(array("Q", [word]), 64), offset)
