"""Verified load: clients that write and read LUNs all the time, compare, and note whatever else they are told."""

from __future__ import annotations

import random
import socket
import threading

from tcmu_core.iscsi.settings import parse_address
from tcmu_core.scsi.command import Status
from tcmu_core.scsi.words import words_of
from tcmu_core.testing.initiator import Initiator, InitiatorError, Reply, State
from tests.waiting import wait_for

BLOCK = 4096  # bytes that are written and compared at a time
SECTORS = BLOCK // 512
DEPTH = 8  # commands in flight
BLOCKS = 256  # from the beginning of the LUN on: what is added to a LUN, or is not there yet, is not written
ENDED = "the session has ended"
REFUSED = "the login is refused"
PAUSE = 0.05  # seconds before what failed is sent again
THINK = 0.005  # seconds between two rounds: the processors are for others, too
SILENCE = 60.0  # seconds after which a command is lost
_NOTHING = bytes(BLOCK)


class Load:
    """One client of one LUN; `heard` are the things that it was told, each once, other than GOOD and its own data.

    What failed is sent again, after a new login where the session has ended, until it works: as a file system would.
    Data that is not what was written ends it, and so does a login that is refused.
    """

    def __init__(self, disk: str, portal: str, target: str, lun: int) -> None:
        self.disk = disk
        self.lun = lun
        self.heard: list[str] = []
        self.busy = 0  # commands that were answered so: initiators send them again by themselves
        self.rounds = 0
        self.error: BaseException | None = None
        self.portal = portal
        self._initiator = Initiator(f"iqn.2026-01.test:{disk}", target)
        self._target = target
        self._sock: socket.socket | None = None
        self._random = random.Random(disk)
        self._generation = 0
        self._written: dict[int, bytes] = {}
        self._unsure: dict[int, set[bytes]] = {}  # blocks whose write was not answered, and what may be there
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name=disk)

    @property
    def living(self) -> bool:
        """Whether it still writes and reads."""
        return self._thread.is_alive()

    def begin(self) -> Load:
        """Log in, and write every block once, then go on in a thread."""
        self._log_in()
        for at in range(0, BLOCKS, DEPTH):
            self._write(list(range(at, at + DEPTH)))
        self.forget()  # what everybody hears who is new
        self._thread.start()
        return self

    def again(self) -> Load:
        """Return a client of the same LUN that knows what this one, which is over, has written."""
        assert not self.living
        other = Load(self.disk, self.portal, self._target, self.lun)
        other._written, other._unsure, other._generation = self._written, self._unsure, self._generation
        other._log_in()
        other._read(list(range(BLOCKS)))
        other.forget()
        other._thread.start()
        return other

    def forget(self) -> None:
        """Forget what it has heard."""
        self.heard.clear()
        self.busy = 0

    def round(self) -> None:
        """Wait until it has gone round twice from now on: what there was to hear it has heard."""
        goal = self.rounds + 2
        wait_for(lambda: self.rounds >= goal or not self.living, why=lambda: f"{self.disk}: {self.heard}")
        assert self.living, (self.disk, self.heard, self.error)

    def hears(self, wanted: tuple[str, ...]) -> None:
        """Wait until it has heard all of this."""
        wait_for(lambda: set(self.heard) >= set(wanted) or not self.living, why=lambda: f"{self.disk}: {self.heard}")
        assert self.living, (self.disk, self.heard, self.error)

    def end(self) -> None:
        """Stop, compare every block, and raise what has gone wrong."""
        self._over.set()
        self._thread.join()
        try:
            if self.error is None and self._sock is not None:
                self._read(list(range(BLOCKS)))
        finally:
            self._close()
        if self.error is not None:
            raise self.error

    # -- its thread ---------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._over.is_set():
                chosen = self._random.sample(range(BLOCKS), DEPTH)
                if not (self._write(chosen) and self._read(self._random.sample(range(BLOCKS), DEPTH))):
                    break
                self.rounds += 1
                self._over.wait(THINK)
        except BaseException as error:
            self.error = error
            self._close()

    def _write(self, blocks: list[int]) -> bool:
        """Write blocks anew until all are written; False if that can't be any more."""
        self._generation += 1
        data = {at: self._stamp(at) for at in blocks}
        while data:
            for at, stamp in data.items():
                self._unsure.setdefault(at, {self._written.get(at, _NOTHING)}).add(stamp)
            for at, reply in self._send({at: (0x2A, stamp) for at, stamp in data.items()}).items():
                if not reply.status:
                    self._written[at] = data.pop(at)
                    del self._unsure[at]
            if data and not self._go_on():
                return False
        return True

    def _read(self, blocks: list[int]) -> bool:
        """Read blocks and compare them; False if that can't be any more."""
        left = list(blocks)
        while left:
            for at, reply in self._send(dict.fromkeys(left[:DEPTH], (0x28, b""))).items():
                if not reply.status:
                    self._compare(at, reply.data)
                    left.remove(at)
            if left and not self._go_on():
                return False
        return True

    def _compare(self, at: int, data: bytes) -> None:
        allowed = self._unsure.get(at) or {self._written.get(at, _NOTHING)}
        assert data in allowed, f"{self.disk}, block {at}: {data[:64]!r} is there, not {[one[:64] for one in allowed]}"
        if at in self._unsure:  # now it is known which one it is
            self._written[at] = data
            del self._unsure[at]

    def _stamp(self, at: int) -> bytes:
        """Return what a block holds from this write on: nobody else's, nor that of another time."""
        text = f"{self.disk} block {at} generation {self._generation} ".encode()
        return (text * (BLOCK // len(text) + 1))[:BLOCK]

    def _go_on(self) -> bool:
        """Something has failed: be ready to send it again; False if there is no way."""
        if self._over.wait(0 if self._sock is None else PAUSE):
            return False
        if self._sock is None:
            try:
                self._log_in()
            except InitiatorError as error:
                self._note(REFUSED if "status 0201h" in str(error) or "status 0202h" in str(error) else ENDED)
                if self.heard[-1] == REFUSED:
                    return False
                self._over.wait(PAUSE)
            except OSError:
                self._over.wait(PAUSE)
        return True

    def _note(self, what: str) -> None:
        if what not in self.heard:
            self.heard.append(what)

    # -- its session --------------------------------------------------------------------------------------------------

    def _log_in(self) -> None:
        initiator = Initiator(self._initiator.name, self._target)
        sock = socket.create_connection(parse_address(self.portal), SILENCE)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.sendall(initiator.login())
            while initiator.state is not State.FULL_FEATURE:
                self._take(sock, initiator)
        except BaseException:
            sock.close()
            raise
        self._sock, self._initiator = sock, initiator

    def _send(self, commands: dict[int, tuple[int, bytes]]) -> dict[int, Reply]:
        """Send commands by block, all at once, and return how they ended, those that did before the session did."""
        ended: dict[int, Reply] = {}
        if self._sock is None:
            return ended
        tags: dict[int, int] = {}
        try:
            for at, (code, data) in commands.items():
                cdb = bytes([code, 0]) + (at * SECTORS).to_bytes(4, "big") + bytes([0]) + SECTORS.to_bytes(2, "big")
                tag, out = self._initiator.command(cdb + bytes(1), write=data, read=0 if data else BLOCK, lun=self.lun)
                tags[tag] = at
                self._sock.sendall(out)
            while len(ended) < len(commands):
                for reply in self._take(self._sock, self._initiator):
                    ended[tags[reply.tag]] = reply
                    if reply.status == Status.BUSY:
                        self.busy += 1
                    elif reply.status:
                        self._note(words_of(reply.sense) if reply.sense else f"status {reply.status:02X}h")
            if self._initiator.state is State.LOGOUT:  # we are asked to
                self._sock.sendall(self._initiator.logout())
                raise ConnectionResetError
        except TimeoutError:
            raise AssertionError(f"{self.disk}: no answer within {SILENCE:g} s") from None
        except (InitiatorError, OSError):
            self._note(ENDED)
            self._close()
        return ended

    def _take(self, sock: socket.socket, initiator: Initiator) -> list[Reply]:
        data = sock.recv(1 << 18)
        if not data:
            raise ConnectionResetError
        replies = initiator.receive(data)
        out = initiator.outgoing()
        if out:
            sock.sendall(out)
        return replies

    def _close(self) -> None:
        if self._sock is not None:
            self._sock.close()
            self._sock = None
