"""Portal: the sockets of the iSCSI target on a worker's loop; the only socket code of this package."""

from __future__ import annotations

import ipaddress
import logging
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial

from tcmu_core.iscsi.admission import Full, Rank, Standing, enter, leaves_too_much, log_in
from tcmu_core.iscsi.budget import Budget
from tcmu_core.iscsi.connection import Connection
from tcmu_core.iscsi.constants import LoginStatus
from tcmu_core.iscsi.errors import LoginError
from tcmu_core.iscsi.interfaces import own_addresses
from tcmu_core.iscsi.login import Claim, Outcome
from tcmu_core.iscsi.noise import Noise
from tcmu_core.iscsi.session import Attachment, Life, Session
from tcmu_core.iscsi.settings import Limits, PortalSettings, format_address, parse_address, parse_advertised
from tcmu_core.loop import READ, WRITE, Loop, Timer
from tcmu_core.scsi.command import Initiator
from tcmu_core.scsi.reservations import same_transport_id
from tcmu_core.scsi.target import Target

log = logging.getLogger("tcmu.iscsi")

PIECES = 256  # of one sendmsg; the kernel takes 1024
BACKLOG = 64
ACCEPT_PAUSE = 1.0  # seconds


def transport_id(initiator: str, isid: bytes) -> bytes:
    """Return the iSCSI TransportID of an initiator port (SPC-4 7.6.4.6): format 01b, protocol 5, name and ISID."""
    name = f"{initiator},i,0x{isid.hex()}".encode() + b"\0"
    return same_transport_id(b"\x45\x00" + len(name).to_bytes(2, "big") + name)


class Peer:
    """One accepted socket and the connection that lives on it."""

    def __init__(self, portal: Portal, sock: socket.socket, address: str) -> None:
        self.portal = portal
        self.loop = portal.loop
        self.sock = sock
        self.address = address
        self.local: tuple[str, int] = sock.getsockname()[:2]
        self.connection = portal.connect(self)
        self.outbox = self.connection.outbox
        self.host = address.rpartition(":")[0]
        self.closed = False
        self.since = time.time()  # when it came
        self._events = READ
        self._posted = False
        self._recv_into = sock.recv_into
        self._send = sock.send
        self._timer: Timer = self.loop.call_later(portal.settings.limits.login_timeout, self._login_timeout)
        self.loop.register(sock.fileno(), READ, self._ready)

    def __str__(self) -> str:
        return f"{self.connection.login.initiator or 'unknown initiator'} ({self.address})"

    @property
    def standing(self) -> Standing:
        """What it stands for when there is little room."""
        session = self.connection.session
        if session is None:
            return Standing(Rank.LOGGING_IN, self.host)
        return _standing(session.outcome.claim, self.host)

    def notify(self) -> None:
        """Send soon: several commands that end together share one send."""
        if not self._posted:
            self._posted = True
            self.loop.call_soon(self._flush_posted)

    def _guarded(self, fn: Callable[..., None], *args: int) -> None:
        """Run part of the connection; a fault of ours costs this peer its connection, and nobody else anything."""
        try:
            fn(*args)
        except Exception as error:
            log.exception("%s: internal error", self)
            self.close(f"internal error: {error!r}")

    def _received(self, count: int) -> None:
        self.connection.received(count)
        if self.connection.session is None:
            self.portal.heard(self)

    def _flush_posted(self) -> None:
        self._posted = False
        self._flush()

    def _ready(self, events: int) -> None:
        connection = self.connection
        choked = False  # no memory to receive into, until commands end
        if events & ~WRITE:  # data, or an error that recv tells
            room = connection.room() or connection.squeeze()
            choked = not room
            if room:
                try:
                    count = self._recv_into(room)
                except BlockingIOError:
                    return
                except OSError as error:
                    self.close(str(error))
                    return
                if not count:
                    self.close("the peer has closed the connection")
                    return
                self._guarded(self._received, count)
            elif events & ~(READ | WRITE):
                self.close("the connection broke")
                return
        self._flush(choked)

    def _flush(self, choked: bool = False) -> None:
        """Send what is queued; let the session go on if it waited for that; wait for the socket if need be."""
        outbox = self.outbox
        if self.closed:
            return
        try:
            while outbox.queue:
                queue = outbox.queue
                if len(queue) == 1:
                    count = self._send(queue[0])
                else:
                    count = self.sock.sendmsg([part for part, _ in zip(queue, range(PIECES), strict=False)])
                outbox.sent(count)
        except BlockingIOError:
            pass
        except OSError as error:
            self.close(str(error))
            return
        connection = self.connection
        if connection.ended is not None and not outbox.queue:
            self.close(connection.ended)
            return
        stalled = connection.stalled
        if stalled and not outbox.queue and not connection.blocked:
            self.notify_pump()
        events = WRITE if outbox.queue else 0
        if not stalled and not choked and connection.ended is None and outbox.queued <= outbox.limit:
            events |= READ
        if events != self._events:
            self._events = events
            self.loop.modify(self.sock.fileno(), events)

    def notify_pump(self) -> None:
        """Go on with input that waits, after the other connections had their turn."""
        if not self._posted:
            self._posted = True
            self.loop.post(self._pump_posted)

    def _pump_posted(self) -> None:
        self._posted = False
        if not self.closed:
            self._guarded(self.connection.pump)
            self._flush()

    def resume(self, heard: bytes, told: int) -> None:
        """Go on for another process, which has received `heard` and sent the first `told` bytes of our answer to it."""
        self.connection.room()[: len(heard)] = heard
        self._guarded(self._received, len(heard))
        self.outbox.sent(min(told, self.outbox.queued))
        self._flush()

    def _login_timeout(self) -> None:
        if self.connection.session is None:
            self.close("no login in time")

    def logged_in(self, session: Session) -> None:
        """The login is over: from now on the peer shows that it lives."""
        self._timer.cancel()
        self._timer = self.loop.call_later(session.limits.nop_interval, self._check_alive, session)

    def keep_time(self, session: Session, limits: Limits) -> None:
        """Take the times of new limits, and count from now on by them."""
        before = session.limits
        session.keep_time(limits)
        if session.limits != before:
            self._timer.cancel()
            self._timer = self.loop.call_later(session.patience, self._check_alive, session)

    def _check_alive(self, session: Session) -> None:
        if session.life is Life.SILENT and session.attachment is None:
            self.close("an idle discovery")
            return
        delay = session.check_alive()
        if delay is None:
            self.close("the peer does not answer")
            return
        self._timer = self.loop.call_later(delay, self._check_alive, session)
        self._flush()
        self.connection.shrink()

    def close(self, reason: str) -> None:
        """Close the socket and leave the target."""
        if not self.closed:
            # A login that failed is what somebody may be looking for; that a port was only looked at is not.
            failed = self.connection.login.failed is not None
            level = logging.WARNING if failed else logging.INFO
            if self.connection.session is None:
                self.portal.noise.log(level, self.host, "%s: closed: %s", self, reason)
            else:
                log.log(level, "%s: closed: %s", self, reason)
            self.release()

    def release(self) -> None:
        """Let go of the socket: its last owner closes the connection."""
        self.closed = True
        self._timer.cancel()
        self.loop.unregister(self.sock.fileno())
        self.sock.close()
        session = self.connection.session
        if session is not None and session.attachment is not None:
            session.left = self.portal.leaves(self.host)
        self.connection.close()
        self.portal.forget(self)


class Portal:
    """Serves `targets` (by name) on the addresses of `settings`. All on the loop's thread."""

    def __init__(self, loop: Loop, settings: PortalSettings, targets: Mapping[str, Target]) -> None:
        self.loop = loop
        self.settings = settings
        self.budget = Budget(settings.limits.total)
        self.noise = Noise(loop.clock)
        self.targets = dict(targets)
        self.peers: dict[Peer, None] = {}  # in the order in which they came
        self._by_connection: dict[Connection, Peer] = {}
        self._listeners: list[socket.socket] = []
        self._left: Counter[str] = Counter()  # sessions that have gone and whose commands have not ended, by host
        self._tsih = 0
        self._closing: Callable[[], object] | None = None

    # -- listening ----------------------------------------------------------------------------------------------------

    def listen(self) -> list[str]:
        """Listen on every address, and return them with the ports that they got.

        Raises:
            OSError: an address can't be had; then none is listened on.
        """
        try:
            for text in self.settings.addresses:
                host, port = parse_address(text)
                family = _family(host)
                sock = socket.socket(family, socket.SOCK_STREAM)
                self._listeners.append(sock)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                try:
                    sock.bind((host, port))
                except OSError as error:
                    raise OSError(error.errno, f"portal {text}: {error.strerror}") from None
                sock.listen(BACKLOG)
                sock.setblocking(False)
                self.loop.register(sock.fileno(), READ, partial(self._accept, sock))
        except OSError:
            self._stop_listening()
            raise
        return self.addresses

    def configure(self, settings: PortalSettings) -> None:
        """Take new settings: sessions that there are keep what they have agreed on, and follow the times alone.

        Raises:
            OSError: an address can't be had; then it listens where it did.
        """
        before, self.settings = self.settings, settings
        for peer in self.peers:
            if peer.connection.session is not None:
                peer.keep_time(peer.connection.session, settings.limits)
        self._close_strangers()
        if settings.addresses == before.addresses:
            return
        old, self._listeners = self._listeners, []
        kept = {text: sock for text, sock in zip(before.addresses, old, strict=True) if text in settings.addresses}
        self.settings = replace(settings, addresses=tuple(text for text in settings.addresses if text not in kept))
        try:
            self.listen()
        except OSError:
            self._listeners, self.settings = old, replace(settings, addresses=before.addresses)
            raise
        new = dict(zip(self.settings.addresses, self._listeners, strict=True))
        self.settings = settings
        self._listeners = [kept.get(text) or new[text] for text in settings.addresses]
        for sock in old:
            if sock not in self._listeners:
                self.loop.unregister(sock.fileno())
                sock.close()

    def _close_strangers(self) -> None:
        """Close the sessions of initiators that have come by a portal of another group than it is in now."""
        for peer in list(self.peers):
            outcome = peer.connection.login.outcome
            if outcome is None or outcome.target is None:
                continue
            if self.settings.group_of(outcome.target, peer.local) != outcome.group:
                peer.close("its portal is in another group now")

    @property
    def addresses(self) -> list[str]:
        """The addresses that are listened on."""
        return [format_address(*sock.getsockname()[:2]) for sock in self._listeners]

    def _stop_listening(self) -> None:
        for sock in self._listeners:
            self.loop.unregister(sock.fileno())
            sock.close()
        self._listeners.clear()

    def _accept(self, listener: socket.socket, _events: int) -> None:
        try:
            sock, address = listener.accept()
        except BlockingIOError:
            return
        except OSError as error:  # out of descriptors: the connection waits, and must not keep us busy meanwhile
            log.warning("accept: %s", error)
            self.loop.modify(listener.fileno(), 0)
            self.loop.call_later(ACCEPT_PAUSE, self._accept_again, listener)
            return
        self._admit(sock, address)

    def take(self, fd: int, heard: bytes, told: int) -> None:
        """Serve a connection that another process has accepted; see `Peer.resume`."""
        sock = socket.socket(fileno=fd)
        try:
            address = sock.getpeername()
        except OSError:  # the peer has gone meanwhile
            sock.close()
            return
        peer = self._admit(sock, address)
        if peer is not None:
            peer.resume(heard, told)

    def _admit(self, sock: socket.socket, address: tuple[str, int]) -> Peer | None:
        """Have a peer on a new connection, unless there are too many already."""
        text = format_address(*address[:2])
        try:
            victim = enter(self.peers, text.rpartition(":")[0], self.settings.limits)
        except Full as error:
            self.noise.log(logging.WARNING, text.rpartition(":")[0], "%s: refused: %s", text, error)
            sock.close()
            return None
        if victim is not None:
            victim.close("others want to log in")
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        peer = Peer(self, sock, text)
        self.peers[peer] = None
        self._by_connection[peer.connection] = peer
        return peer

    def connect(self, peer: Peer) -> Connection:
        """Return the connection of a new peer."""
        return Connection(self, peer.notify, peer.local)

    def heard(self, peer: Peer) -> None:
        """A peer that has not logged in yet has said something."""

    def _accept_again(self, listener: socket.socket) -> None:
        if listener in self._listeners:
            self.loop.modify(listener.fileno(), READ)

    # -- what connections ask (connection.Host) -----------------------------------------------------------------------

    def serves(self, name: str) -> bool:
        """Return whether there is a target of this name, here or in another process."""
        return name in self.targets

    def has_target(self, name: str) -> bool:
        """Return whether there is a target of this name to log in to."""
        return self.serves(name)

    def has_session(self, tsih: int) -> bool:
        """Return whether there is a session of this handle."""
        return any(session.outcome.tsih == tsih for session in self.sessions())

    def new_tsih(self) -> int:
        """Return a session handle that is not in use."""
        while True:
            self._tsih = self._tsih % 0xFFFF + 1
            if not self.has_session(self._tsih):
                return self._tsih

    def admit(self, connection: Connection, claim: Claim) -> None:
        """Have room for a session; the one that it takes the place of ends (RFC 7143 6.3.5).

        Raises:
            LoginError: there is no room, or another user has a session of this initiator port.
        """
        own = self._by_connection[connection]
        others = [peer for peer in self.peers if peer is not own]
        left = self._left[own.host]
        if claim.target is not None and leaves_too_much(left, self.settings.limits):
            text = f"{own.host} has left {left} sessions whose commands have not ended yet"
            raise LoginError(LoginStatus.OUT_OF_RESOURCES, text)
        for peer in others:
            session = peer.connection.session
            if claim.target is not None and session is not None and session.outcome.claim.same_port(claim):
                if session.outcome.user != claim.user:
                    raise LoginError(LoginStatus.FORBIDDEN, f"{claim.initiator!r} is logged in as another user")
                peer.close("its initiator has logged in again")
                return
        try:
            victim = log_in(others, _standing(claim, own.host), self.settings.limits)
        except Full as error:
            raise LoginError(LoginStatus.OUT_OF_RESOURCES, str(error)) from None
        if victim is not None:
            victim.close("others want to log in")

    def open_session(self, connection: Connection, outcome: Outcome) -> Session:
        """Make the session of a login that was admitted."""
        attachment = None
        if outcome.target is not None:
            target = self.targets[outcome.target]
            name, isid = outcome.initiator, outcome.isid
            initiator = Initiator(name, transport_id(name, isid), outcome.group)
            attachment = Attachment(target, target.connect(initiator))
        peer = self._by_connection[connection]
        log.info("%s: logged in to %s", peer, outcome.target or "discovery")
        session = Session(
            self.settings,
            outcome,
            connection.inbox,
            connection.outbox,
            attachment,
            lambda name: self._listing(name, peer.local),
            connection.notify,
            self._reset_target,
            self.loop.clock,
        )
        peer.logged_in(session)
        return session

    def _listing(self, initiator: str, local: tuple[str, int]) -> Iterable[tuple[str, list[str]]]:
        """List the targets that an initiator may see, at every address that it can reach them at (appendix C)."""
        group = self.settings.portal_group
        addresses = [f"{format_address(host, port)},{group}" for host, port in self._reachable(*local)]
        for name in sorted(self.targets):
            if self.settings.access_to(name).allows(initiator):
                groups = self.settings.groups.get(name)
                yield name, addresses if groups is None else [f"{one},{tag}" for one, tag in groups.items()]

    def _reachable(self, host: str, port: int) -> Iterable[tuple[str, int]]:
        """Return the addresses to tell a client that came to this one, that one first where it is among them."""
        if self.settings.advertise:
            return [parse_advertised(text) for text in self.settings.advertise]
        here = (host, port)
        found = {here: None}
        for sock in self._listeners:
            listening, number = sock.getsockname()[:2]
            if not ipaddress.ip_address(listening).is_unspecified:
                found[listening, number] = None
            elif sock.family != _family(host) or number != port:
                found |= {(own, number): None for own in own_addresses(sock.family == socket.AF_INET6)}
        return found

    def _reset_target(self, target: Target) -> None:
        """TARGET COLD RESET: end every session of the target, once what is queued was sent."""
        for peer in self.peers:
            session = peer.connection.session
            if session is not None and session.attachment is not None and session.attachment.target is target:
                session.end("target cold reset")
                peer.notify()

    # -- the portal's own life ----------------------------------------------------------------------------------------

    def sessions(self) -> list[Session]:
        """Return the sessions that are open."""
        return [peer.connection.session for peer in self.peers if peer.connection.session is not None]

    def add_target(self, target: Target) -> None:
        """Serve one more target."""
        self.targets[target.name] = target

    def remove_target(self, name: str) -> None:
        """Stop serving a target, and drop its sessions."""
        self.targets.pop(name, None)
        for peer in list(self.peers):
            login = peer.connection.login
            if login.target == name:
                peer.close(f"target {name} is removed")

    def drop(self, target: str, initiator: str = "") -> None:
        """Break the connections of an initiator, or of all of them, to a target: without a word, as a cable would."""
        for peer in list(self.peers):
            login = peer.connection.login
            if login.target == target and initiator.lower() in ("", login.initiator.lower()):
                peer.close("its link was dropped")

    def leaves(self, host: str) -> Callable[[], object]:
        """A session of a host goes; returns what to call when its commands have ended."""
        self._left[host] += 1

        def left() -> None:
            self._left[host] -= 1
            if not self._left[host]:
                del self._left[host]

        return left

    def forget(self, peer: Peer) -> None:
        """A peer has closed."""
        self.peers.pop(peer, None)
        self._by_connection.pop(peer.connection, None)
        if not self.peers and self._closing is not None:
            then, self._closing = self._closing, None
            then()

    def shutdown(self, grace: float, then: Callable[[], object]) -> None:
        """Ask every initiator to log out, close what is left after `grace` seconds, then call `then()`."""
        self._stop_listening()
        timer = self.loop.call_later(grace, self.close)

        def ended() -> None:
            timer.cancel()
            then()

        self._closing = ended
        for peer in list(self.peers):
            session = peer.connection.session
            if session is None or session.outcome.target is None:
                peer.close("the portal shuts down")
            else:
                session.ask_logout(int(grace))
                peer.notify()
        if not self.peers:
            self._closing = None
            ended()

    def close(self) -> None:
        """Stop listening and close every connection, now."""
        self._stop_listening()
        for peer in list(self.peers):
            peer.close("the portal closes")


def _family(host: str) -> int:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _standing(claim: Claim, host: str) -> Standing:
    if claim.target is None:
        return Standing(Rank.DISCOVERY, host, claim.user)
    return Standing(Rank.OPEN if claim.user is None else Rank.PROVED, host, claim.user)
