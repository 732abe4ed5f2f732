"""CHAP (RFC 1994) as iSCSI uses it (RFC 7143 12.1.3): challenges, responses, and one exchange as the target sees it."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets
from collections.abc import Callable, Mapping, Sequence
from enum import IntEnum
from typing import TYPE_CHECKING

from tcmu_core.iscsi.constants import LoginStatus
from tcmu_core.iscsi.errors import LoginError

if TYPE_CHECKING:
    from tcmu_core.iscsi.settings import Access, ChapUser

MAX_BINARY = 1024  # bytes of a challenge or response (RFC 7143 12.1.3)


class Algorithm(IntEnum):
    """CHAP algorithms (IANA, PPP Authentication Algorithms; RFC 7143 12.1.3 names 5 alone)."""

    MD5 = 5
    SHA1 = 6
    SHA256 = 7
    SHA3_256 = 8


HASHES: dict[Algorithm, Callable[[bytes], hashlib._Hash]] = {
    Algorithm.MD5: lambda data: hashlib.md5(data, usedforsecurity=False),
    Algorithm.SHA1: lambda data: hashlib.sha1(data, usedforsecurity=False),
    Algorithm.SHA256: hashlib.sha256,
    Algorithm.SHA3_256: hashlib.sha3_256,
}


def response(algorithm: Algorithm, identifier: int, secret: bytes, challenge: bytes) -> bytes:
    """Return the response value to `challenge` (RFC 1994 4.1)."""
    return HASHES[algorithm](bytes([identifier]) + secret + challenge).digest()


def encode_binary(value: bytes) -> str:
    """Return `value` as a hex constant (RFC 7143 6.1)."""
    return "0x" + value.hex()


def decode_binary(text: str) -> bytes:
    """Return the bytes of a hex (0x…) or base64 (0b…) constant.

    Raises:
        LoginError: it is neither, or too long.
    """
    try:
        if text[:2] in {"0x", "0X"}:
            digits = text[2:]
            value = bytes.fromhex("0" * (len(digits) & 1) + digits)
        elif text[:2] in {"0b", "0B"}:
            value = base64.b64decode(text[2:], validate=True)
        else:
            raise ValueError(text)
    except (ValueError, binascii.Error):
        raise LoginError(LoginStatus.INITIATOR_ERROR, "CHAP: not a binary constant") from None
    if not 0 < len(value) <= MAX_BINARY:
        raise LoginError(LoginStatus.INITIATOR_ERROR, "CHAP: a binary constant has 1 to 1024 bytes")
    return value


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
        self._algorithm = next((a for text in offered for a in self._access.algorithms if text == str(int(a))), None)
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
            identifier = int(keys["CHAP_I"], 0)
            challenge = decode_binary(keys["CHAP_C"])
        except (KeyError, ValueError):
            raise LoginError(LoginStatus.MISSING_PARAMETER, "CHAP: CHAP_I and CHAP_C come together") from None
        if not 0 <= identifier <= 255:
            raise LoginError(LoginStatus.INITIATOR_ERROR, "CHAP: CHAP_I is one byte")
        if hmac.compare_digest(challenge, self._challenge):
            raise LoginError(LoginStatus.AUTHENTICATION_FAILED, "CHAP: our own challenge was sent back")
        return {
            "CHAP_N": outgoing.name,
            "CHAP_R": encode_binary(response(algorithm, identifier, outgoing.secret, challenge)),
        }


def _find(users: Sequence[ChapUser], name: str) -> ChapUser | None:
    return next((user for user in users if hmac.compare_digest(user.name.encode(), name.encode())), None)
