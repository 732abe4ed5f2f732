"""The roster: who is logged in to a portal, for people; and how one of them is sent away."""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase

from tcmu_core.host.messages import SessionStatus
from tcmu_core.iscsi.portal import Peer, Portal
from tcmu_core.iscsi.session import Attachment, Session
from tcmu_core.scsi.command import Nexus
from tcmu_core.scsi.reservations import Registrant
from tcmu_core.scsi.unit import Unit


def roster(portal: Portal) -> tuple[SessionStatus, ...]:
    """Return the sessions with targets, the oldest first."""
    return tuple(_status(*one) for one in _present(portal))


def dismiss(portal: Portal, initiator: str, target: str, seconds: int) -> int:
    """Ask an initiator to log out (RFC 7143 11.9.1), and close what is left of its sessions after so many seconds.

    `initiator` may be a pattern, `target` empty for all. Returns how many sessions are meant.
    """
    count = 0
    for peer, session, attachment in list(_present(portal)):
        meant = fnmatchcase(session.outcome.initiator.lower(), initiator.lower())
        if meant and target.lower() in ("", attachment.target.name.lower()):
            session.ask_logout(seconds)
            peer.notify()
            portal.loop.call_later(seconds, peer.close, "it was asked to log out, and did not in time")
            count += 1
    return count


def _present(portal: Portal) -> Iterator[tuple[Peer, Session, Attachment]]:
    for peer in portal.peers:
        session = peer.connection.session
        if session is not None and session.attachment is not None and session.ended is None:
            yield peer, session, session.attachment


def _status(peer: Peer, session: Session, attachment: Attachment) -> SessionStatus:
    outcome, luns = session.outcome, attachment.it.luns
    return SessionStatus(
        initiator=outcome.initiator,
        isid=outcome.isid.hex(),
        tsih=outcome.tsih,
        address=peer.address,
        since=peer.since,
        target=attachment.target.name,
        luns=tuple(sorted(luns)),
        user=outcome.user,
        header_digest=session.framing.header_digest,
        data_digest=session.framing.data_digest,
        in_flight=session.busy,
        reservations=tuple(
            f"LUN {lun}: {what}"
            for lun, (_execute, nexus) in sorted(luns.items())
            for what in _reservations(attachment.target.luns[lun].unit, nexus)
        ),
    )


def _reservations(unit: Unit, nexus: Nexus) -> Iterator[str]:
    """Yield what an initiator holds of a unit."""
    if unit.reservations.legacy is nexus:
        yield "RESERVE(6)"
    now, who = unit.reservations.now, Registrant.of(nexus)
    if now.type is not None and now.holds(who):
        yield now.type.name.replace("_", " ")
    elif who in now.keys:
        yield "registered"
