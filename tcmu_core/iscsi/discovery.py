"""Text in full-feature phase: requests in parts, responses in parts, SendTargets (RFC 7143 11.10, appendix C)."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from tcmu_core.iscsi.constants import CONTINUE, FINAL, RESERVED_TAG, RejectReason
from tcmu_core.iscsi.errors import PduError, TextError
from tcmu_core.iscsi.pdu import TextRequest
from tcmu_core.iscsi.text import format_text, parse_text

Pairs = Iterable[tuple[str, str]]


class TextExchange:
    """One text exchange at a time, as the protocol has it. `reply` turns the initiator's pairs into ours."""

    def __init__(self, reply: Callable[[dict[str, str]], Pairs], limit: int) -> None:
        self._reply = reply
        self._limit = limit
        self._request = bytearray()
        self._response = b""
        self._tag = 0
        self._open = False  # whether more is due, with that tag

    def answer(self, request: TextRequest, max_segment: int) -> tuple[int, int, bytes]:
        """Return flags, target transfer tag and data of the response to `request`.

        Raises:
            PduError: the exchange is broken off.
        """
        if request.ttt == RESERVED_TAG:  # a new exchange resets the old one (11.10.4)
            self._request.clear()
            self._response = b""
        elif request.ttt != self._tag or not self._open:
            raise PduError("this text exchange has ended", RejectReason.NEGOTIATION_RESET)
        self._open = False
        final = bool(request.flags & FINAL)
        if self._response and not request.data:
            return self._part(max_segment, final)
        self._request += request.data
        if len(self._request) > self._limit:
            self._request.clear()
            raise PduError("too much text", RejectReason.NEGOTIATION_RESET)
        if request.flags & CONTINUE:
            return 0, self._new_tag(), b""
        try:
            pairs = parse_text(self._request)
        except TextError as error:
            raise PduError(str(error)) from None
        finally:
            self._request.clear()
        self._response = format_text(self._reply(pairs))
        return self._part(max_segment, final)

    def _part(self, max_segment: int, final: bool) -> tuple[int, int, bytes]:
        """Return what fits of the response; only an initiator that has nothing more gets the F bit (11.11.1)."""
        part, self._response = self._response[:max_segment], self._response[max_segment:]
        if self._response:
            return CONTINUE, self._new_tag(), part
        if not final:
            return 0, self._new_tag(), part
        return FINAL, RESERVED_TAG, part

    def _new_tag(self) -> int:
        self._open = True
        self._tag = self._tag % 0x7FFFFFFF + 1
        return self._tag


def send_targets(asked: str, mine: str | None, listing: Iterable[tuple[str, Iterable[str]]]) -> Pairs:
    """Return the answer to SendTargets=`asked` (appendix C): All, one name, or nothing, which is `mine`.

    `listing` holds for each target that may be seen its name and its addresses (`host:port,group`). In a normal
    session an initiator hears of its own target alone.
    """
    if asked == "All":
        wanted = mine
        if mine is not None:
            return [("SendTargets", "Reject")]
    else:
        wanted = asked or mine
        if wanted is None or (mine is not None and wanted != mine):
            return [("SendTargets", "Reject")] if mine is not None or not asked else []
    pairs = []
    for name, addresses in listing:
        if wanted is None or name == wanted:
            pairs.append(("TargetName", name))
            pairs += [("TargetAddress", address) for address in addresses]
    return pairs
