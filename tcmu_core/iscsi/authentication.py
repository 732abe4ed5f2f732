"""One CHAP exchange as the target sees it (RFC 7143 12.1.3)."""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Callable, Mapping, Sequence

from tcmu_core.iscsi.chap import Algorithm, decode_binary, encode_binary, response
from tcmu_core.iscsi.constants import LoginStatus
from tcmu_core.iscsi.errors import LoginError
from tcmu_core.iscsi.negotiation import Invalid, number
from tcmu_core.iscsi.settings import Access, ChapUser


class Exchange:
    """The target's side of one CHAP exchange: first CHAP_A, then CHAP_N and CHAP_R (and CHAP_I, CHAP_C if mutual)."""

    def __init__(self, access: Access, random: Callable[[int], bytes] = secrets.token_bytes) -> None:
        self._access = access
        self._random = random
        self._algorithm: Algorithm | None = None
        self._identifier = 0
        self._challenge = b""
        self.user: ChapUser | None = None  # who it is, once that is proved

    def step(self, keys: Mapping[str, str]) -> dict[str, str]:
        """Answer the CHAP keys of one request.

        Raises:
            LoginError: the exchange has failed.
        """
        if self._algorithm is None:
            return self._choose(keys)
        if self.user is None:
            return self._verify(keys)
        raise LoginError(LoginStatus.INITIATOR_ERROR, "CHAP: the exchange is over already")

    def _choose(self, keys: Mapping[str, str]) -> dict[str, str]:
        if "CHAP_A" not in keys or len(keys) > 1:
            raise LoginError(LoginStatus.MISSING_PARAMETER, "CHAP: CHAP_A comes first and alone")
        offered = keys["CHAP_A"].split(",")
        self._algorithm = next((a for text in offered for a in self._access.algorithms if _number(text) == a), None)
        if self._algorithm is None:
            raise LoginError(LoginStatus.AUTHENTICATION_FAILED, "CHAP: no common algorithm")
        self._identifier = self._random(1)[0]
        # As long as the hash: RFC 7143 9.2.1 asks for random challenges that are never used again.
        self._challenge = self._random(max(16, len(response(self._algorithm, 0, b"", b""))))
        return {
            "CHAP_A": str(int(self._algorithm)),
            "CHAP_I": str(self._identifier),
            "CHAP_C": encode_binary(self._challenge),
        }

    def _verify(self, keys: Mapping[str, str]) -> dict[str, str]:
        algorithm = self._algorithm
        assert algorithm is not None
        if "CHAP_N" not in keys or "CHAP_R" not in keys:
            raise LoginError(LoginStatus.MISSING_PARAMETER, "CHAP: CHAP_N and CHAP_R are needed")
        given = decode_binary(keys["CHAP_R"])
        user = _find(self._access.users, keys["CHAP_N"])
        # An unknown name costs the same time as a wrong secret.
        secret = user.secret if user is not None else self._random(16)
        right = hmac.compare_digest(response(algorithm, self._identifier, secret, self._challenge), given)
        if user is None or not right:
            raise LoginError(LoginStatus.AUTHENTICATION_FAILED, f"CHAP: wrong name or secret ({keys['CHAP_N']!r})")
        answer = self._prove_ourselves(algorithm, keys)
        self.user = user
        return answer

    def _prove_ourselves(self, algorithm: Algorithm, keys: Mapping[str, str]) -> dict[str, str]:
        if "CHAP_I" not in keys and "CHAP_C" not in keys:
            return {}
        outgoing = self._access.outgoing
        if outgoing is None:
            raise LoginError(LoginStatus.AUTHENTICATION_FAILED, "CHAP: mutual CHAP is asked for, no outgoing user set")
        try:
            identifier = _number(keys["CHAP_I"])
            challenge = decode_binary(keys["CHAP_C"])
        except KeyError:
            raise LoginError(LoginStatus.MISSING_PARAMETER, "CHAP: CHAP_I and CHAP_C come together") from None
        if identifier is None:
            raise LoginError(LoginStatus.INITIATOR_ERROR, "CHAP: CHAP_I is one byte")
        if hmac.compare_digest(challenge, self._challenge):
            raise LoginError(LoginStatus.AUTHENTICATION_FAILED, "CHAP: our own challenge was sent back")
        return {
            "CHAP_N": outgoing.name,
            "CHAP_R": encode_binary(response(algorithm, identifier, outgoing.secret, challenge)),
        }


def _number(text: str) -> int | None:
    """Return the number of one byte that `text` is, decimal or hex (RFC 7143 6.1); None for anything else."""
    try:
        return number(text, (0, 255))
    except Invalid:
        return None


def _find(users: Sequence[ChapUser], name: str) -> ChapUser | None:
    return next((user for user in users if hmac.compare_digest(user.name.encode(), name.encode())), None)
