"""The door: a portal without disks, which passes each login on to the process that serves its target.

The door hears a connection out until the first text of its login is complete, and so names the target. Then the socket
goes to the target's process, together with all that was received from it: what the door heard is heard there again, and
what the door has answered is not sent again (nothing, but where the text came in parts: RFC 7143 6.2). Discovery, and
logins that lead nowhere, are answered at the door as by any portal.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

from tcmu_core.iscsi import pdu as p
from tcmu_core.iscsi.connection import LOGIN_BUFFER, Connection
from tcmu_core.iscsi.constants import BHS, CONTINUE, LoginStatus
from tcmu_core.iscsi.errors import LoginError, TextError
from tcmu_core.iscsi.portal import Peer, Portal
from tcmu_core.iscsi.settings import PortalSettings
from tcmu_core.iscsi.text import parse_text
from tcmu_core.loop import Loop
from tcmu_core.scsi.target import Target

log = logging.getLogger("tcmu.iscsi")

# (target, file descriptor, what was received, bytes of the answer that were sent) -> whether somebody took it
PassOn = Callable[[str, int, bytes, int], bool]


class Door(Portal):
    """Listens for the targets of these names, which other processes serve."""

    def __init__(self, loop: Loop, settings: PortalSettings, targets: Iterable[str], pass_on: PassOn) -> None:
        super().__init__(loop, settings, {name: Target(name, {}) for name in targets})
        self.pass_on = pass_on

    def connect(self, peer: Peer) -> Connection:
        """Return the connection of a new peer."""
        return Visit(self, peer)

    def has_target(self, name: str) -> bool:
        """Return False: nobody logs in to a target here.

        Raises:
            LoginError: there is this target, but its process did not take the login.
        """
        if super().has_target(name):
            raise LoginError(LoginStatus.SERVICE_UNAVAILABLE, f"{name} is not served now")
        return False


class Visit(Connection):
    """A connection at the door."""

    def __init__(self, door: Door, peer: Peer) -> None:
        super().__init__(door, peer.notify)
        self._door = door
        self._peer = peer
        self._heard = bytearray()
        self._text = bytearray()
        self._answered = 0  # requests whose text went on
        self._undecided = True  # where it wants to

    def received(self, count: int) -> None:
        """Take the next `count` bytes, which lie in `room()`."""
        if self._undecided:
            end = self.inbox.end
            self._heard += self.inbox.memory.view[end : end + count]
            if len(self._heard) > LOGIN_BUFFER:
                self._ended = "a login that does not say where it wants to"
                return
        super().received(count)

    def _login(self, request: p.LoginRequest) -> bool:
        if self._undecided:
            self._text += request.data
            if request.flags & CONTINUE:
                self._answered += 1
            else:
                self._undecided = False
                target = self._target()
                if target is not None and self._leave(target):
                    return False
        return super()._login(request)

    def _target(self) -> str | None:
        """Return the target that the text asks for, if there is one."""
        try:
            pairs = parse_text(self._text)
        except TextError:
            return None  # the login will say so
        name = pairs.get("TargetName", "") if pairs.get("SessionType", "Normal") == "Normal" else ""
        return name if name in self._door.targets else None

    def _leave(self, target: str) -> bool:
        self.outbox.close_run()
        told = self._answered * BHS - self.outbox.queued  # the answer to text that goes on is a header alone
        if not self._door.pass_on(target, self._peer.sock.fileno(), bytes(self._heard), told):
            return False
        log.debug("%s: goes to the worker of %s", self._peer.address, target)
        self._peer.release()
        return True
