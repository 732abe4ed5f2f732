"""A channel between two processes: messages as packets of a Unix socket, with descriptors; and where to find one."""

from __future__ import annotations

import array
import contextlib
import errno
import logging
import os
import socket
import stat
import struct
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from tcmu_core.codec import CodecError, Message, decode, encode
from tcmu_core.loop import READ, WRITE, Loop

log = logging.getLogger("tcmu.channel")

PACKET = 1 << 16  # bytes of a message that is a packet itself; a socket takes some more
LARGEST = 1 << 26  # bytes of any message: that of a target with thousands of logical units has some hundred thousand
MAX_FDS = 5
_ELSEWHERE = b"\0"  # a packet that is no message: it brings a descriptor of the memory in which that lies
BACKLOG = 4096  # who asks a process that hangs, and gives up, stays in the queue of its socket (listen(2))
LOOK_SECONDS = 5.0  # between two looks whether a socket is still where others look for it
CONNECT_SECONDS = 3.0  # for a process to take a connection, where it does not take those before
_TIMEVAL = struct.Struct("@ll")  # struct timeval: seconds, microseconds (socket(7), SO_SNDTIMEO)
_CREDENTIALS = struct.Struct("3i")  # struct ucred: pid, uid, gid (unix(7), SO_PEERCRED)
_INT = array.array("i").itemsize


def pair() -> tuple[socket.socket, socket.socket]:
    """Return the two ends of a new channel."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)


def send(sock: socket.socket, message: Message, fds: Iterable[int] = ()) -> None:
    """Send one message; blocks where the socket does."""
    data = encode(message)
    if len(data) <= PACKET:
        _send(sock, data, fds)
        return
    memory = os.memfd_create("tcmu-message")
    try:
        with open(memory, "wb", closefd=False) as file:
            file.write(data)
        _send(sock, _ELSEWHERE, (memory, *fds))
    finally:
        os.close(memory)


def _send(sock: socket.socket, packet: bytes, fds: Iterable[int]) -> None:
    rights = array.array("i", fds)
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)] if rights else []
    sock.sendmsg([packet], ancillary)


def receive(sock: socket.socket) -> tuple[Message, list[int]] | None:
    """Return one message and the descriptors that came with it; None when the other end is closed.

    Raises:
        CodecError: what came is no message; its descriptors are closed.
    """
    try:
        data, ancillary, _, _ = sock.recvmsg(2 * PACKET, socket.CMSG_LEN(MAX_FDS * _INT), socket.MSG_CMSG_CLOEXEC)
    except ConnectionError:
        return None
    fds = array.array("i")
    for level, kind, rights in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(rights[: len(rights) - len(rights) % _INT])
    if not data:
        _close_all(fds)
        return None
    try:
        if data == _ELSEWHERE:
            data = _fetched(fds.pop(0) if fds else -1)
        return decode(data), list(fds)
    except CodecError:
        _close_all(fds)
        raise


def _fetched(memory: int) -> bytes:
    """Return the message that lies in memory, and close its descriptor.

    Raises:
        CodecError: there is none: somebody else's descriptor must not keep us waiting, or fill us up.
    """
    if memory < 0:
        raise CodecError("a message that lies elsewhere, and nobody says where")
    try:
        info = os.fstat(memory)
        if not stat.S_ISREG(info.st_mode) or info.st_size > LARGEST:
            raise CodecError(f"a message that lies elsewhere, of {info.st_size} bytes, or in no memory")
        return os.pread(memory, info.st_size, 0)
    except OSError as error:
        raise CodecError(f"a message that lies elsewhere can't be read: {error}") from None
    finally:
        os.close(memory)


class Channel:
    """One end of a channel on a loop.

    `on_message(message, fds)` is called for each message, `on_close()` once when the other end is gone. What can't be
    sent at once is kept; nothing here ever blocks.
    """

    def __init__(
        self,
        loop: Loop,
        sock: socket.socket | int,
        on_message: Callable[[Message, list[int]], object],
        on_close: Callable[[], object],
    ) -> None:
        if isinstance(sock, int):
            sock = socket.socket(fileno=sock)
        sock.setblocking(False)
        self._loop = loop
        self._sock = sock
        self._on_message = on_message
        self._on_close = on_close
        self._waiting: deque[tuple[Message, list[int]]] = deque()
        self.closed = False
        loop.register(sock.fileno(), READ, self._ready)

    def send(self, message: Message, fds: Iterable[int] = ()) -> None:
        """Send a message, now or soon; `fds` are duplicated for the time being. After the end it does nothing."""
        if self.closed:
            return
        if not self._waiting:
            try:
                send(self._sock, message, fds)
                return
            except BlockingIOError:
                self._loop.modify(self._sock.fileno(), READ | WRITE)
            except OSError:
                return  # the other end is gone: the loop is about to find out
        self._waiting.append((message, [os.dup(fd) for fd in fds]))

    @property
    def busy(self) -> bool:
        """Whether messages wait here, because the other end does not read."""
        return bool(self._waiting)

    def drain(self) -> None:
        """Handle the messages that have arrived."""
        if not self.closed:
            self._read()

    def close(self) -> None:
        """Close this end; `on_close` is not called."""
        if self.closed:
            return
        self.closed = True
        self._loop.unregister(self._sock.fileno())
        self._sock.close()
        while self._waiting:
            _close_all(self._waiting.popleft()[1])

    def _ready(self, events: int) -> None:
        if events & WRITE:
            self._flush()
        if events & ~WRITE:
            self._read()

    def _flush(self) -> None:
        while self._waiting:
            message, fds = self._waiting[0]
            try:
                send(self._sock, message, fds)
            except BlockingIOError:
                return
            except OSError:
                pass
            self._waiting.popleft()
            _close_all(fds)
        self._loop.modify(self._sock.fileno(), READ)

    def _read(self) -> None:
        while not self.closed:
            try:
                got = receive(self._sock)
            except BlockingIOError:
                return
            except CodecError as error:
                log.error("%s", error)  # of another version, say: what follows may be understood
                continue
            if got is None:
                self.close()
                self._on_close()
                return
            self._on_message(*got)


class Rendezvous:
    """A socket at `path`, where processes of the same user, and root's, find this one.

    `on_channel(sock)` is called on the loop for each that has come. One that somebody has removed, with its directory
    perhaps (logind takes /run/user/UID away when a user's last session ends), is made again.
    """

    def __init__(self, loop: Loop, path: Path, on_channel: Callable[[socket.socket], object]) -> None:
        self.path = path
        self._loop = loop
        self._on_channel = on_channel
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.unlink(missing_ok=True)  # of an earlier process
        self._sock, self._identity = self._listening()
        loop.register(self._sock.fileno(), READ, self._accept)
        self._timer = loop.call_later(LOOK_SECONDS, self._look)

    def _listening(self) -> tuple[socket.socket, int]:
        """Return a socket that listens at the path, and its inode; raises `OSError`."""
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        sock = _unix_socket()
        try:
            with _short(self.path) as name:
                sock.bind(name)
            self.path.chmod(stat.S_IRUSR | stat.S_IWUSR)
            sock.listen(BACKLOG)
            sock.setblocking(False)
            return sock, self.path.stat().st_ino
        except BaseException:
            sock.close()
            raise

    def _look(self) -> None:
        """Make the socket again if it has been removed, and look again later whether it is there."""
        self._timer = self._loop.call_later(LOOK_SECONDS, self._look)
        if os.path.lexists(self.path):
            return
        try:
            sock, identity = self._listening()
        except OSError:  # the directory can't be made yet, or another process was faster
            return
        self._loop.unregister(self._sock.fileno())
        self._sock.close()
        self._sock, self._identity = sock, identity
        self._loop.register(sock.fileno(), READ, self._accept)
        log.warning("%s was removed: it is there again", self.path)

    def fileno(self) -> int:
        """Return the descriptor that is readable when somebody comes."""
        return self._sock.fileno()

    def accept(self) -> socket.socket | None:
        """Return the socket of one that has come; None where there is none, or one that may not."""
        try:
            sock, _ = self._sock.accept()
        except BlockingIOError:
            return None
        if _credentials(sock)[1] in (0, os.geteuid()):
            return sock
        sock.close()
        return None

    def welcome(self, sock: socket.socket) -> None:
        """Have the loop look after one that was accepted."""
        self._on_channel(sock)

    def _accept(self, _events: int) -> None:
        sock = self.accept()
        if sock is not None:
            self.welcome(sock)

    def close(self) -> None:
        """Close the socket and take it out of the directory, unless another process has put its own there."""
        self._timer.cancel()
        self._loop.unregister(self._sock.fileno())
        self._sock.close()
        with contextlib.suppress(FileNotFoundError):
            if self.path.stat().st_ino == self._identity:
                self.path.unlink()


def connect(path: Path) -> tuple[socket.socket, int]:
    """Return a socket to the process that is to be found at `path`, and that process's id.

    Raises:
        ConnectionRefusedError: the process has gone without a word; OSError: it can't be reached;
        TimeoutError: it hangs, and so many wait for it that no more may.
    """
    sock = _unix_socket()
    try:
        _limit(sock, CONNECT_SECONDS)
        with _short(path) as name:
            sock.connect(name)
        _limit(sock, 0.0)
        return sock, _credentials(sock)[0]
    except BlockingIOError:
        sock.close()
        raise TimeoutError(errno.ETIMEDOUT, f"{path}: it takes no connection") from None
    except BaseException:
        sock.close()
        raise


def _limit(sock: socket.socket, seconds: float) -> None:
    """Let connect(2), which blocks, take no longer; 0 for no limit. Python's own timeout would not wait at all."""
    whole = int(seconds)
    value = _TIMEVAL.pack(whole, int((seconds - whole) * 1e6))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, value)


def ask(path: Path, message: Message, seconds: float) -> Message:
    """Send one message to the process at `path` and return its answer; raises `OSError`, `CodecError`."""
    sock, _ = connect(path)
    with sock:
        sock.settimeout(seconds)
        send(sock, message)
        got = receive(sock)
    if got is None:
        raise ConnectionResetError(f"{path} did not answer")
    return got[0]


def _unix_socket() -> socket.socket:
    return socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)


def _credentials(sock: socket.socket) -> tuple[int, int, int]:
    raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, gid = _CREDENTIALS.unpack(raw)
    return pid, uid, gid


@contextlib.contextmanager
def _short(path: Path) -> Iterator[str]:
    """Give a name for `path` that fits into a socket address (108 bytes, unix(7)), however long the path is."""
    fd = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}/{path.name}"
    finally:
        os.close(fd)


def _close_all(fds: Iterable[int]) -> None:
    for fd in fds:
        os.close(fd)
