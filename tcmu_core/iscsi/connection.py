"""A connection without its socket: first its login, then its session. Bytes go in, `outbox.queue` comes out."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Protocol

from tcmu_core.iscsi import pdu as p
from tcmu_core.iscsi.budget import Budget
from tcmu_core.iscsi.buffers import MIN_ROOM, SMALL, Inbox, Outbox
from tcmu_core.iscsi.constants import BHS, LoginStatus
from tcmu_core.iscsi.errors import ConnectionEnded, PduError
from tcmu_core.iscsi.login import Claim, Login, Outcome
from tcmu_core.iscsi.pump import Pump
from tcmu_core.iscsi.session import Life, Session, State
from tcmu_core.iscsi.settings import PortalSettings

LOGIN_SEGMENT = 8192  # MaxRecvDataSegmentLength while nothing was negotiated (RFC 7143 13.12)
LOGIN_BUFFER = SMALL
_STALLED, _HEARD = State.STALLED, Life.HEARD
SEGMENTS = 8  # PDUs of the longest data segment that either buffer grows to: a queue of large commands in one piece
GUARANTEED = 4  # ... and that a connection always has memory for


class Host(Protocol):
    """What a connection asks of the portal."""

    settings: PortalSettings

    budget: Budget

    def serves(self, name: str) -> bool:
        """Return whether there is a target of this name, here or in another process."""

    def has_target(self, name: str) -> bool:
        """Return whether there is a target of this name to log in to; raises LoginError if it is busy."""

    def has_session(self, tsih: int) -> bool:
        """Return whether there is a session of this handle."""

    def new_tsih(self) -> int:
        """Return a session handle that is not in use, not 0."""

    def admit(self, connection: Connection, claim: Claim) -> None:
        """Have room for a session; raises LoginError if there is none, or the initiator port is somebody else's."""

    def open_session(self, connection: Connection, outcome: Outcome) -> Session:
        """Make the session of a login that has succeeded; an older session of the same name gives way to it."""


class Connection:
    """One peer. Receive into `room()`, say `received(n)`; send what `outbox.queue` holds, say `outbox.sent(n)`.

    Call `pump` again when `stalled`, not `blocked`, and the queue is empty. When `ended` is set, send the queue, then
    close.
    """

    def __init__(self, host: Host, notify: Callable[[], object], local: tuple[str, int] = ("", 0)) -> None:
        limits = host.settings.limits
        self.host = host
        self.notify = notify
        most = max(SEGMENTS * (BHS + limits.segment), SMALL)
        longest = max(BHS + limits.segment, SMALL)
        account = host.budget.account(limits.memory, GUARANTEED * longest, longest + MIN_ROOM)
        self.inbox = Inbox(account, most)
        self.outbox = Outbox(account, most, limits.send_queue)
        self.session: Session | None = None
        self.login = Login(host, partial(host.admit, self), local)
        self.pump: Callable[[], None] = self._pump_login
        self._ended: str | None = None
        self.room = self.inbox.room

    @property
    def ended(self) -> str | None:
        """Why the connection is over, None while it is not."""
        return self._ended if self.session is None else self.session.ended

    @property
    def stalled(self) -> bool:
        """Whether `pump` has input that waits."""
        return self.session is not None and self.session.state is _STALLED

    @property
    def blocked(self) -> bool:
        """Whether it waits for a command to end, rather than for output to be sent."""
        return self.session is not None and self.session.blocked

    def received(self, count: int) -> None:
        """Take the next `count` bytes, which lie in `room()`."""
        inbox = self.inbox
        inbox.end += count
        if inbox.end == inbox.memory.size:
            inbox.filled()
        if self.session is not None:
            self.session.life = _HEARD
        self.pump()

    def squeeze(self) -> memoryview:
        """Return where to receive where `room` has nothing left: data that came is packed together for that."""
        if self.session is not None:
            for transfer in self.session.transfers.values():
                transfer.pack()
                room = self.inbox.room()
                if room:
                    return room
        return self.inbox.room()

    def shrink(self) -> None:
        """Give back memory that an idle connection has no need of."""
        self.inbox.shrink()
        self.outbox.shrink()

    def close(self) -> None:
        """The socket is gone, and so are the buffers, at once: a session is full of circles, found who knows when."""
        if self.session is not None:
            self.session.close()
        self.inbox.clear()
        self.outbox.clear()

    def _pump_login(self) -> None:
        inbox = self.inbox
        framing = p.Framing()
        while self._ended is None and inbox.end - inbox.start >= BHS:
            view = inbox.memory.view
            if p.LENGTHS.unpack_from(view, inbox.start)[0] & 0xFFFFFF > LOGIN_SEGMENT:
                self._ended = "a login request longer than 8192 bytes"
                break
            size = framing.size(view, inbox.start)
            if inbox.end - inbox.start < size:
                inbox.need = size
                break
            try:
                request = framing.decode(view, inbox.start)
            except (PduError, ConnectionEnded) as error:
                self._ended = str(error)
                break
            inbox.start += size
            if not isinstance(request, p.LoginRequest):  # 6.3: nothing else before the login has ended
                self._refuse(request)
                break
            if not self._login(request):
                return
        else:
            inbox.need = BHS
        self.outbox.close_run()

    def _login(self, request: p.LoginRequest) -> bool:
        """Answer a login request; False when what follows it in the inbox is not the login's any more."""
        self.outbox.append(p.Framing().encode(self.login.answer(request)))
        if self.login.failed is not None:
            self._ended = f"login failed: {self.login.failed}"
        elif self.login.outcome is not None:
            self._begin(self.login.outcome)
            return False
        return True

    def _refuse(self, request: p.Pdu) -> None:
        response = p.LoginResponse(itt=getattr(request, "itt", 0), status=LoginStatus.INVALID_REQUEST)
        self.outbox.append(p.Framing().encode(response))
        self._ended = f"{request.OPCODE.name} before the login"

    def _begin(self, outcome: Outcome) -> None:
        self.session = self.host.open_session(self, outcome)
        self.pump = Pump(self.session).run
        self.pump()
