"""The redirector: a portal without disks, which passes each login on to the process that serves its target.

It hears a connection out until the first text of its login is complete, and so names the target. Then the socket goes
to the target's process, together with all that was received from it: what was heard here is heard there again, and
what was answered here is not sent again (nothing, but where the text came in parts: RFC 7143 6.2). Discovery, and
logins that lead nowhere, are answered here as by any portal.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

from tcmu_core.iscsi.constants import LoginStatus
from tcmu_core.iscsi.errors import LoginError
from tcmu_core.iscsi.portal import Peer, Portal
from tcmu_core.iscsi.settings import PortalSettings
from tcmu_core.iscsi.visit import Visit
from tcmu_core.loop import Loop
from tcmu_core.scsi.target import Target

log = logging.getLogger("tcmu.iscsi")

# (target, file descriptor, what was received, bytes of the answer that were sent) -> whether somebody took it
PassOn = Callable[[str, int, bytes, int], bool]


class Redirector(Portal):
    """Listens for the targets of these names, which other processes serve."""

    def __init__(self, loop: Loop, settings: PortalSettings, targets: Iterable[str], pass_on: PassOn) -> None:
        super().__init__(loop, settings, {name: Target(name, {}) for name in targets})
        self._pass_on = pass_on

    def expect(self, targets: Iterable[str]) -> None:
        """Listen for the targets of these names from now on."""
        self.targets = {name: self.targets.get(name) or Target(name, {}) for name in targets}

    def connect(self, peer: Peer) -> Visit:
        """Return the connection of a new peer."""
        return Visit(self, peer.notify, peer.local)

    def has_target(self, name: str) -> bool:
        """Return False: nobody logs in to a target here.

        Raises:
            LoginError: there is this target, but its process did not take the login.
        """
        if self.serves(name):
            raise LoginError(LoginStatus.SERVICE_UNAVAILABLE, f"{name} is not served now")
        return False

    def heard(self, peer: Peer) -> None:
        """Pass a peer on that has said where it wants to."""
        visit = peer.connection
        assert isinstance(visit, Visit)
        target = visit.wanted
        if target is None:
            return
        if self._pass_on(target, peer.sock.fileno(), bytes(visit.heard), visit.told):
            log.debug("%s: goes to the process of %s", peer.address, target)
            peer.release()
        else:
            visit.stay()
