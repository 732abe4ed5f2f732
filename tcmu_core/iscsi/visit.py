"""A visit: a connection that is heard out until the text of its login names a target, and so a process to go to."""

from __future__ import annotations

from collections.abc import Callable

from tcmu_core.iscsi import pdu as p
from tcmu_core.iscsi.connection import LOGIN_BUFFER, Connection, Host
from tcmu_core.iscsi.constants import BHS, CONTINUE
from tcmu_core.iscsi.errors import TextError
from tcmu_core.iscsi.text import parse_text


class Visit(Connection):
    """A connection to a redirector. `wanted` is the target that it goes to, once it has said so.

    Then it waits: somebody takes over what it has `heard`, and has been `told`, or `stay` answers it here.
    """

    def __init__(self, host: Host, notify: Callable[[], object], local: tuple[str, int] = ("", 0)) -> None:
        super().__init__(host, notify, local)
        self.wanted: str | None = None
        self.heard = bytearray()
        self._text = bytearray()
        self._answered = 0  # requests whose text went on
        self._undecided = True  # where it wants to
        self._request: p.LoginRequest | None = None  # that waits for an answer

    @property
    def told(self) -> int:
        """How many bytes of the answer were sent: that to text that goes on is a header alone."""
        self.outbox.close_run()
        return self._answered * BHS - self.outbox.queued

    def received(self, count: int) -> None:
        """Take the next `count` bytes, which lie in `room()`."""
        if self._undecided:
            end = self.inbox.end
            self.heard += self.inbox.memory.view[end : end + count]
            if len(self.heard) > LOGIN_BUFFER:
                self._ended = "a login that does not say where it wants to"
                return
        super().received(count)

    def stay(self) -> None:
        """Answer here, since nobody has taken the visit over."""
        self.wanted, request = None, self._request
        if request is not None and super()._login(request):
            self.pump()
        self.outbox.close_run()

    def _login(self, request: p.LoginRequest) -> bool:
        if self._undecided:
            self._text += request.data
            if request.flags & CONTINUE:
                self._answered += 1
            else:
                self._undecided = False
                self.wanted = self._target()
                if self.wanted is not None:
                    self._request = request
                    return False
        return super()._login(request)

    def _target(self) -> str | None:
        """Return the target that the text asks for, if there is one."""
        try:
            pairs = parse_text(self._text)
        except TextError:
            return None  # the login will say so
        name = pairs.get("TargetName", "") if pairs.get("SessionType", "Normal") == "Normal" else ""
        return name if self.host.serves(name) else None
