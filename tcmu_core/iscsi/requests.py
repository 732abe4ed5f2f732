"""What an initiator asks besides commands: pings, text, logout (RFC 7143 11.18, 11.10, 11.14)."""

from __future__ import annotations

from collections.abc import Iterable

from tcmu_core.iscsi import pdu as p
from tcmu_core.iscsi.constants import RESERVED_TAG, LogoutReason, LogoutResponse, RejectReason
from tcmu_core.iscsi.discovery import TextExchange, send_targets
from tcmu_core.iscsi.errors import PduError
from tcmu_core.iscsi.negotiation import When, negotiate
from tcmu_core.iscsi.session import Session


class Requests:
    """Answers them for one session."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._exchange = TextExchange(self._reply, session.limits.login_text)

    def nop_out(self, pdu: p.NopOut) -> None:
        """Answer a ping; the answer to one of ours has no tag, and has been heard (11.18)."""
        session = self._session
        if pdu.itt != RESERVED_TAG:
            session.respond(p.NopIn(lun=pdu.lun, itt=pdu.itt, data=bytes(pdu.data[: session.parameters.max_segment])))

    def text(self, pdu: p.TextRequest) -> None:
        """Answer a text request.

        Raises:
            PduError: its exchange is broken off.
        """
        session = self._session
        flags, ttt, data = self._exchange.answer(pdu, session.parameters.max_segment)
        session.respond(p.TextResponse(flags=flags, lun=pdu.lun, itt=pdu.itt, ttt=ttt, data=data))

    def _reply(self, pairs: dict[str, str]) -> Iterable[tuple[str, str]]:
        session = self._session
        asked = pairs.pop("SendTargets", None)
        session.parameters, answers = negotiate(
            pairs,
            session.parameters,
            session.settings,
            phase=When.FULL_FEATURE,
            discovery=session.attachment is None,
        )
        targets: Iterable[tuple[str, str]] = ()
        if asked is not None:
            targets = send_targets(asked, session.outcome.target, session.listing(session.outcome.initiator))
        return [*answers.items(), *targets]

    def logout(self, pdu: p.LogoutRequest) -> None:
        """Answer a logout, and end the session if that is what it asks for.

        Raises:
            PduError: there is no such reason.
        """
        session = self._session
        reason = pdu.reason & 0x7F
        if reason == LogoutReason.REMOVE_FOR_RECOVERY:
            response = LogoutResponse.NO_RECOVERY
        elif reason == LogoutReason.CLOSE_CONNECTION and pdu.cid != session.outcome.cid:
            response = LogoutResponse.NO_CID
        elif reason > LogoutReason.REMOVE_FOR_RECOVERY:
            raise PduError(f"logout reason {reason}", RejectReason.INVALID_PDU_FIELD)
        else:
            response = LogoutResponse.CLOSED
        session.respond(p.LogoutResponsePdu(response=response, itt=pdu.itt))
        if response == LogoutResponse.CLOSED:
            session.end("logout")
