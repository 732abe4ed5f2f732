"""The login phase as a target sees it (RFC 7143 6.3): requests in, responses out, no socket.

A login goes through the stages SecurityNegotiation and LoginOperationalNegotiation, either of which may be left out,
to FullFeaturePhase. The initiator asks to move with the T bit and NSG; we agree when the stage has nothing left to do.
A failure ends the login: its response carries the status, and the connection closes behind it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

from tcmu_core.iscsi.authentication import Exchange
from tcmu_core.iscsi.constants import CONTINUE, FINAL, SERIAL, LoginStatus, Stage
from tcmu_core.iscsi.errors import LoginError, TextError
from tcmu_core.iscsi.negotiation import REJECT, Parameters, When, negotiate
from tcmu_core.iscsi.pdu import LoginRequest, LoginResponse
from tcmu_core.iscsi.settings import Access, PortalSettings
from tcmu_core.iscsi.text import format_text, parse_text

MAX_NAME = 223  # bytes of an iSCSI name (RFC 7143 4.2.7.2)
VERSION = 0x00  # RFC 7143 11.12.4
DECLARATIONS = ("InitiatorName", "TargetName", "SessionType")  # of the first request (6.3)
AGAIN = {"InitiatorAlias"}  # may be declared again: nothing depends on it

# The moves that an initiator may ask for (11.12.3): from CSG to NSG.
MOVES = {
    (Stage.SECURITY, Stage.OPERATIONAL),
    (Stage.SECURITY, Stage.FULL_FEATURE),
    (Stage.OPERATIONAL, Stage.FULL_FEATURE),
}


@dataclass(frozen=True, slots=True)
class Claim:
    """Who wants a session with what, and has proved to be `user` if it names one. Target None: a discovery session.

    `group` is the tag of the portal group that it has come to.
    """

    initiator: str
    target: str | None
    isid: bytes
    user: str | None
    group: int = 1

    def same_port(self, other: Claim) -> bool:
        """Return whether both are one initiator port with one target port: there can be but one session (6.3.5)."""
        return self._nexus == other._nexus

    @property
    def _nexus(self) -> tuple[str | None, int, str, bytes]:
        return self.target, self.group, self.initiator.lower(), self.isid


class Directory(Protocol):
    """What a login asks of the portal."""

    settings: PortalSettings

    def has_target(self, name: str) -> bool:
        """Return whether there is a target of this name.

        Raises:
            LoginError: there is, and nobody can log in to it now.
        """

    def has_session(self, tsih: int) -> bool:
        """Return whether there is a session of this handle."""

    def new_tsih(self) -> int:
        """Return a session handle that is not in use, not 0."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """Who has logged in to what."""

    initiator: str
    target: str | None  # None: a discovery session
    isid: bytes
    tsih: int
    cid: int
    user: str | None
    parameters: Parameters
    cmd_sn: int  # of the first command
    stat_sn: int  # of the next response
    group: int = 1  # the tag of the portal group: also the relative identifier of the target port

    @property
    def claim(self) -> Claim:
        """Who has which session."""
        return Claim(self.initiator, self.target, self.isid, self.user, self.group)


class Login:
    """One connection's login. `answer` each request; `outcome` is set when it has succeeded, else `failed`.

    `admit` has room made for the session, or raises the LoginError that tells why not. `local` is the address that the
    initiator has connected to.
    """

    def __init__(self, directory: Directory, admit: Callable[[Claim], None], local: tuple[str, int] = ("", 0)) -> None:
        self._directory = directory
        self._admit = admit
        self._local = local
        self._settings = directory.settings
        self._stage: Stage | None = None
        self._first: LoginRequest | None = None
        self._text = bytearray()
        self._requests = 0
        self._text_total = 0
        self._seen: set[str] = set()
        self._chap: Exchange | None = None
        self._authenticated = False
        self._declared = False  # our own parameters are told once
        self._parameters = Parameters()
        self._stat_sn = 0
        self.initiator = ""
        self.target: str | None = None
        self._group = 1
        self.outcome: Outcome | None = None
        self.failed: str | None = None  # why; the error itself would keep what its frames keep

    def answer(self, request: LoginRequest) -> LoginResponse:
        """Return the response to `request`; never raises."""
        if self._first is None:
            self._stat_sn = request.exp_stat_sn
        try:
            flags, pairs, tsih = self._step(request)
            status = LoginStatus.SUCCESS
        except LoginError as error:
            self.failed = str(error)
            flags, pairs, tsih, status = request.flags & 0x0C, {}, request.tsih, error.status
        response = LoginResponse(
            flags=flags,
            version_max=VERSION,
            version_active=VERSION,
            isid=request.isid,
            tsih=tsih,
            itt=request.itt,
            stat_sn=self._stat_sn,
            exp_cmd_sn=request.cmd_sn,
            max_cmd_sn=(request.cmd_sn + self._settings.limits.queue_depth - 1) & SERIAL,
            status=status,
            data=format_text(pairs),
        )
        self._stat_sn = (self._stat_sn + 1) & SERIAL
        if flags & FINAL and flags & 0x03 == Stage.FULL_FEATURE and self.failed is None:
            self.outcome = Outcome(
                self.initiator,
                self.target,
                request.isid,
                tsih,
                request.cid,
                self._user,
                self._parameters,
                request.cmd_sn,
                self._stat_sn,
                self._group,
            )
        return response

    @property
    def _user(self) -> str | None:
        return self._chap.user.name if self._chap is not None and self._chap.user is not None else None

    def _step(self, request: LoginRequest) -> tuple[int, dict[str, str], int]:
        csg, move = self._check(request)
        if self._first is None:
            self._first = replace(request, data=b"")  # its data lies in the inbox
        if request.flags & CONTINUE:  # more of this text follows (11.12.2)
            return csg << 2, {}, request.tsih
        try:
            pairs = parse_text(self._text)
        except TextError as error:
            raise LoginError(LoginStatus.INITIATOR_ERROR, str(error)) from None
        self._text.clear()
        leading = self._stage is None
        if leading:
            self._begin(pairs)
        for key in DECLARATIONS:
            pairs.pop(key, None)
        repeated = self._seen & pairs.keys()
        if repeated:  # 6.2: a key is negotiated once
            raise LoginError(LoginStatus.INITIATOR_ERROR, f"{min(repeated)} is negotiated again")
        self._stage = csg
        answers = self._security(pairs) if csg == Stage.SECURITY else self._operational(pairs)
        if leading and self.target is not None:
            answers["TargetPortalGroupTag"] = str(self._group)  # 13.9: in the first response
            alias = self._settings.aliases.get(self.target)
            if alias:
                answers["TargetAlias"] = alias  # 13.6
        if move is None or not self._authenticated:
            return csg << 2, answers, request.tsih
        self._stage = move
        if move != Stage.FULL_FEATURE:
            return FINAL | csg << 2 | move, answers, request.tsih
        self._check_digests()
        self._admit(Claim(self.initiator, self.target, request.isid, self._user, self._group))
        return FINAL | csg << 2 | move, answers, self._directory.new_tsih()

    def _check(self, request: LoginRequest) -> tuple[Stage, Stage | None]:
        """Check what each request must keep to; return its stage, and where it wants to go."""
        if request.version_min > VERSION:
            raise LoginError(LoginStatus.UNSUPPORTED_VERSION, f"version {request.version_min} is asked for")
        first = self._first
        if first is None:
            if request.tsih:
                if self._directory.has_session(request.tsih):
                    raise LoginError(LoginStatus.TOO_MANY_CONNECTIONS, "a session has one connection")
                raise LoginError(LoginStatus.NO_SESSION, f"there is no session {request.tsih:04X}h")
        elif (request.isid, request.tsih, request.cid) != (first.isid, first.tsih, first.cid):
            raise LoginError(LoginStatus.INVALID_REQUEST, "ISID, TSIH or CID has changed during the login")
        try:
            csg = Stage(request.flags >> 2 & 3)
            move = Stage(request.flags & 3) if request.flags & FINAL else None
        except ValueError:
            raise LoginError(LoginStatus.INITIATOR_ERROR, "there is no such stage") from None
        if csg == Stage.FULL_FEATURE or (self._stage is not None and csg != self._stage):
            raise LoginError(LoginStatus.INITIATOR_ERROR, f"stage {csg} is not the current one")
        if move is not None and ((csg, move) not in MOVES or request.flags & CONTINUE):
            raise LoginError(LoginStatus.INITIATOR_ERROR, f"no way from stage {csg} to {move}")
        self._requests += 1
        if self._requests > self._settings.limits.login_requests:
            raise LoginError(LoginStatus.INITIATOR_ERROR, "the login has too many requests")
        self._text_total += len(request.data)
        if self._text_total > self._settings.limits.login_text:
            raise LoginError(LoginStatus.INITIATOR_ERROR, "the login has too much text")
        self._text += request.data
        return csg, move

    def _begin(self, pairs: dict[str, str]) -> None:
        """Take who it is and where it wants to: the keys of the first request (6.3.1)."""
        name = pairs.get("InitiatorName", "")
        if not name:
            raise LoginError(LoginStatus.MISSING_PARAMETER, "InitiatorName is missing")
        if len(name.encode()) > MAX_NAME or not name.isprintable() or " " in name:
            raise LoginError(LoginStatus.INITIATOR_ERROR, "InitiatorName is no iSCSI name")
        self.initiator = name
        kind = pairs.get("SessionType", "Normal")
        if kind == "Normal":
            self.target = pairs.get("TargetName", "")
            if not self.target:
                raise LoginError(LoginStatus.MISSING_PARAMETER, "TargetName is missing")
            if not self._directory.has_target(self.target):
                raise LoginError(LoginStatus.NOT_FOUND, f"there is no target {self.target!r}")
            group = self._settings.group_of(self.target, self._local)
            if group is None:
                raise LoginError(LoginStatus.NOT_FOUND, f"{self.target!r} is not at this portal")
            self._group = group
        elif kind != "Discovery":
            raise LoginError(LoginStatus.SESSION_TYPE_NOT_SUPPORTED, f"there is no session type {kind!r}")
        if not self.access.allows(name):
            raise LoginError(LoginStatus.FORBIDDEN, f"initiator {name!r} is not allowed")
        self._authenticated = not self.access.users

    def _check_digests(self) -> None:
        """Refuse an initiator that offered no digest, or none that we take, where we want one."""
        for key, agreed, wanted in (
            ("HeaderDigest", self._parameters.header_digest, self._settings.header_digests),
            ("DataDigest", self._parameters.data_digest, self._settings.data_digests),
        ):
            if agreed not in wanted:
                raise LoginError(LoginStatus.INITIATOR_ERROR, f"{key} must be {' or '.join(wanted)}")

    @property
    def access(self) -> Access:
        """Return who may log in to where this login goes."""
        return self._settings.access_to(self.target)

    def _security(self, pairs: dict[str, str]) -> dict[str, str]:
        """Negotiate AuthMethod (12.1), then go through CHAP; other keys may come along."""
        chap = {key: pairs.pop(key) for key in list(pairs) if key.startswith("CHAP_")}
        answers: dict[str, str] = {}
        if "AuthMethod" in pairs:
            self._seen.add("AuthMethod")
            wanted = "CHAP" if self.access.users else "None"
            if wanted not in pairs.pop("AuthMethod").split(","):
                raise LoginError(LoginStatus.AUTHENTICATION_FAILED, f"AuthMethod must be {wanted}")
            answers["AuthMethod"] = wanted
            if self.access.users:
                self._chap = Exchange(self.access)
        if chap:
            if self._chap is None:
                raise LoginError(LoginStatus.INITIATOR_ERROR, "CHAP is not the method that was agreed on")
            answers |= self._chap.step(chap)
            user = self._chap.user
            if user is not None and not user.may_be(self.initiator):
                raise LoginError(LoginStatus.FORBIDDEN, f"user {user.name!r} is not to be {self.initiator!r}")
            self._authenticated = user is not None
        return answers | self._operational(pairs, declare=False)

    def _operational(self, pairs: dict[str, str], *, declare: bool = True) -> dict[str, str]:
        if declare and not self._authenticated:
            raise LoginError(LoginStatus.AUTHENTICATION_FAILED, "CHAP is needed")
        self._seen |= pairs.keys() - AGAIN
        if "AuthMethod" in pairs:  # 12.1: in SecurityNegotiation alone
            raise LoginError(LoginStatus.INITIATOR_ERROR, f"AuthMethod is for the security stage: {REJECT}")
        self._parameters, answers = negotiate(
            pairs, self._parameters, self._settings, phase=When.LOGIN, discovery=self.target is None
        )
        if declare and not self._declared:
            self._declared = True
            answers["MaxRecvDataSegmentLength"] = str(self._settings.limits.segment)
        return answers
