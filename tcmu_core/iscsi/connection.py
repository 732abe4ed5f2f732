"""A connection without its socket: first its login, then its session. Bytes go in, `outbox.queue` comes out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from tcmu_core.iscsi import pdu as p
from tcmu_core.iscsi.buffers import Inbox, Outbox
from tcmu_core.iscsi.constants import BHS, LoginStatus
from tcmu_core.iscsi.errors import ConnectionEnded, PduError
from tcmu_core.iscsi.login import Directory, Login, Outcome
from tcmu_core.iscsi.pump import Pump
from tcmu_core.iscsi.session import Life, Session, State

LOGIN_SEGMENT = 8192  # MaxRecvDataSegmentLength while nothing was negotiated (RFC 7143 13.12)
LOGIN_BUFFER = 65536
_STALLED, _HEARD = State.STALLED, Life.HEARD
SEGMENTS = 8  # PDUs of the longest data segment that either buffer holds: a queue of large commands in one piece


class Host(Directory, Protocol):
    """What a connection asks of the portal."""

    def serves(self, name: str) -> bool:
        """Return whether there is a target of this name, here or in another process."""

    def open_session(self, connection: Connection, outcome: Outcome) -> Session:
        """Make the session of a login that has succeeded; an older session of the same name gives way to it."""


class Connection:
    """One peer. Receive into `room()`, say `received(n)`; send what `outbox.queue` holds, say `outbox.sent(n)`.

    Call `pump` again when `stalled`, not `blocked`, and the queue is empty. When `ended` is set, send the queue, then
    close.
    """

    def __init__(self, host: Host, notify: Callable[[], object]) -> None:
        limits = host.settings.limits
        self.host = host
        self.notify = notify
        self._size = max(SEGMENTS * (BHS + limits.segment), LOGIN_BUFFER)
        self.inbox = Inbox(LOGIN_BUFFER)
        self.outbox = Outbox(LOGIN_BUFFER, limits.send_queue)
        self.session: Session | None = None
        self.login = Login(host)
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
        self.inbox.end += count
        if self.session is not None:
            self.session.life = _HEARD
        self.pump()

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
        self.inbox.grow(self._size)
        self.outbox.grow(self._size)
        self.session = self.host.open_session(self, outcome)
        self.pump = Pump(self.session).run
        self.pump()
