from __future__ import annotations

import hashlib
from collections.abc import Mapping

import pytest

from tcmu_core.iscsi import chap
from tcmu_core.iscsi import pdu as p
from tcmu_core.iscsi.chap import Algorithm, decode_binary, encode_binary
from tcmu_core.iscsi.constants import FINAL, LoginStatus, Stage
from tcmu_core.iscsi.errors import LoginError
from tcmu_core.iscsi.login import Claim, Login
from tcmu_core.iscsi.settings import Access, ChapUser, Limits, PortalSettings
from tests.iscsi.initiator import NAME, OPERATIONAL, TARGET, Initiator, text_of
from tests.iscsi.wire import FakeHost, Wire

JOE = ChapUser("joe", b"the secret of joe")
US = ChapUser("target", b"what the target knows")
ONE_WAY = PortalSettings(access=Access(users=(JOE,)))
MUTUAL = PortalSettings(access=Access(users=(JOE,), outgoing=US))
SECURITY, OPERATION, FULL = Stage.SECURITY, Stage.OPERATIONAL, Stage.FULL_FEATURE


class Walk:
    """A login walked request by request."""

    def __init__(self, settings: PortalSettings | None = None, **names: str | None) -> None:
        self.wire = Wire(FakeHost(settings), Initiator(**names))  # type: ignore[arg-type]
        self.first = True

    def step(
        self, pairs: Mapping[str, str], csg: Stage, nsg: Stage | None = None, *, more: bool = False
    ) -> p.LoginResponse:
        request = self.wire.initiator.login(pairs, csg, nsg, more=more, first=self.first)
        self.first = False
        (answer,) = self.wire.send(request)
        assert isinstance(answer, p.LoginResponse)
        return answer

    def challenge(self, algorithm: int = 5) -> dict[str, str]:
        self.step({"AuthMethod": "CHAP,None"}, SECURITY)
        return text_of(self.step({"CHAP_A": str(algorithm)}, SECURITY))

    def respond(self, keys: Mapping[str, str], user: ChapUser = JOE, **more: str) -> p.LoginResponse:
        value = chap.response(
            Algorithm(int(keys["CHAP_A"])), int(keys["CHAP_I"]), user.secret, decode_binary(keys["CHAP_C"])
        )
        return self.step({"CHAP_N": user.name, "CHAP_R": encode_binary(value), **more}, SECURITY, OPERATION)

    @property
    def ended(self) -> str | None:
        return self.wire.connection.ended


def failed(answer: p.LoginResponse, status: LoginStatus, walk: Walk) -> None:
    assert LoginStatus(answer.status) == status
    assert walk.ended is not None
    assert walk.wire.connection.session is None


# -- ways that lead there ---------------------------------------------------------------------------------------------


def test_one_operational_request_is_enough_without_authentication() -> None:
    walk = Walk()
    answer = walk.step(OPERATIONAL, OPERATION, FULL)
    assert answer.status == 0
    assert answer.flags == FINAL | OPERATION << 2 | FULL
    assert answer.tsih != 0
    assert walk.wire.session.outcome.initiator == NAME


def test_the_first_response_names_the_portal_group_and_the_segment_that_we_take() -> None:
    settings = PortalSettings(portal_group=7, aliases={TARGET: "the disk"})
    pairs = text_of(Walk(settings).step(OPERATIONAL, OPERATION, FULL))
    assert pairs["TargetPortalGroupTag"] == "7"
    assert pairs["TargetAlias"] == "the disk"
    assert pairs["MaxRecvDataSegmentLength"] == str(settings.limits.segment)


def login_at(settings: PortalSettings, *local: tuple[str, int]) -> list[str | None]:
    """Return the tag that the target has at each address; None where it is not."""
    found = []
    for address in local:
        login = Login(FakeHost(settings), lambda claim: None, address)
        answer = login.answer(Initiator().login(OPERATIONAL))
        found.append(text_of(answer).get("TargetPortalGroupTag"))
        assert answer.status == (LoginStatus.SUCCESS if found[-1] else LoginStatus.NOT_FOUND)
    return found


def test_a_target_with_groups_is_at_their_portals_alone() -> None:
    settings = PortalSettings(groups={TARGET: {"192.0.2.1:3260": 3, "[fd00::1]:3260": 4}})
    assert login_at(settings, ("192.0.2.1", 3260), ("fd00::1", 3260)) == ["3", "4"]
    assert login_at(settings, ("192.0.2.1", 3261), ("192.0.2.2", 3260)) == [None, None]


def test_an_initiator_port_may_have_a_session_with_each_target_port() -> None:
    one = Claim(NAME, TARGET, b"isid", None, 1)
    assert one.same_port(Claim(NAME.upper(), TARGET, b"isid", "joe", 1))
    assert not one.same_port(Claim(NAME, TARGET, b"isid", None, 2))


def test_the_security_stage_may_come_first_and_choose_no_method() -> None:
    walk = Walk()
    answer = walk.step({"AuthMethod": "None"}, SECURITY, OPERATION)
    assert text_of(answer)["AuthMethod"] == "None"
    assert answer.flags == FINAL | OPERATION
    assert walk.step(OPERATIONAL, OPERATION, FULL).tsih != 0


def test_the_operational_stage_may_be_left_out() -> None:
    walk = Walk()
    assert walk.step({"AuthMethod": "None"}, SECURITY, FULL).tsih != 0
    assert walk.wire.session.parameters.max_segment == 8192


def test_the_initiator_may_linger_in_a_stage() -> None:
    walk = Walk()
    answer = walk.step({"MaxBurstLength": "4096"}, OPERATION)
    assert answer.flags == OPERATION << 2
    assert walk.step({"FirstBurstLength": "1024"}, OPERATION, FULL).tsih != 0
    assert walk.wire.session.parameters.first_burst == 1024


def test_text_may_come_in_parts() -> None:
    walk = Walk()
    request = walk.wire.initiator.login({**OPERATIONAL, "X-long": "y" * 6000})
    half = len(request.data) // 2
    first = p.LoginRequest(
        immediate=True, flags=0x40 | OPERATION << 2, isid=request.isid, cid=1, data=request.data[:half]
    )
    (answer,) = walk.wire.send(first)
    assert isinstance(answer, p.LoginResponse)
    assert (answer.flags, answer.data) == (OPERATION << 2, b"")
    rest = p.LoginRequest(immediate=True, flags=request.flags, isid=request.isid, cid=1, data=request.data[half:])
    (answer,) = walk.wire.send(rest)
    assert isinstance(answer, p.LoginResponse)
    assert text_of(answer)["X-long"] == "NotUnderstood"
    assert answer.tsih != 0


def test_a_discovery_login_names_no_target() -> None:
    walk = Walk(target=None)
    answer = walk.step({}, OPERATION, FULL)
    assert answer.status == 0
    assert "TargetPortalGroupTag" not in text_of(answer)
    assert walk.wire.session.outcome.target is None


def test_serial_numbers_go_on_where_the_login_has_left_them() -> None:
    walk = Walk()
    walk.wire.initiator.cmd_sn = 0xFFFFFFFF
    walk.wire.initiator.exp_stat_sn = 41
    answer = walk.step(OPERATIONAL, OPERATION, FULL)
    assert (answer.stat_sn, answer.exp_cmd_sn, answer.max_cmd_sn) == (41, 0xFFFFFFFF, 126)
    (answer,) = walk.wire.send(p.NopOut(itt=1))  # type: ignore[assignment]
    assert (answer.stat_sn, answer.exp_cmd_sn) == (42, 0)


def test_a_login_is_the_same_byte_by_byte() -> None:
    whole, bytewise = Walk(), Walk()
    request = whole.wire.initiator.login(OPERATIONAL)
    assert whole.wire.send(request) == bytewise.wire.send(request, step=1)


# -- CHAP -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", list(Algorithm))
def test_a_user_proves_itself_with_each_algorithm(algorithm: Algorithm) -> None:
    walk = Walk(ONE_WAY)
    answer = walk.respond(walk.challenge(algorithm))
    assert (answer.status, answer.flags) == (0, FINAL | OPERATION)
    assert walk.step(OPERATIONAL, OPERATION, FULL).tsih != 0
    assert walk.wire.session.outcome.user == "joe"


def test_a_response_is_the_hash_of_identifier_secret_and_challenge() -> None:
    expected = hashlib.sha256(b"\x01" + b"secret" + b"challenge").digest()
    assert chap.response(Algorithm.SHA256, 1, b"secret", b"challenge") == expected


def test_the_target_proves_itself_when_it_is_asked_to() -> None:
    walk = Walk(MUTUAL)
    keys = walk.challenge(7)
    answer = walk.respond(keys, CHAP_I="200", CHAP_C="0b" + "AAECAwQFBgcICQ==")
    pairs = text_of(answer)
    assert pairs["CHAP_N"] == "target"
    expected = chap.response(Algorithm.SHA256, 200, US.secret, bytes(range(10)))
    assert decode_binary(pairs["CHAP_R"]) == expected


def test_every_login_gets_another_challenge() -> None:
    assert Walk(ONE_WAY).challenge()["CHAP_C"] != Walk(ONE_WAY).challenge()["CHAP_C"]


def test_the_first_algorithm_of_the_initiator_that_we_know_is_taken() -> None:
    walk = Walk(ONE_WAY)
    walk.step({"AuthMethod": "CHAP"}, SECURITY)
    assert text_of(walk.step({"CHAP_A": "99,7,5"}, SECURITY))["CHAP_A"] == "7"


@pytest.mark.parametrize("offered", ["0x7", "0X07,5", "0x63,7"])
def test_an_algorithm_may_be_named_in_hex(offered: str) -> None:
    walk = Walk(ONE_WAY)
    walk.step({"AuthMethod": "CHAP"}, SECURITY)
    assert text_of(walk.step({"CHAP_A": offered}, SECURITY))["CHAP_A"] == "7"


@pytest.mark.parametrize("identifier", ["256", "-1", "0x100", "1_0", " 1", "0b1", "", "9" * 5000])
def test_an_identifier_is_a_number_of_one_byte(identifier: str) -> None:
    walk = Walk(MUTUAL)
    answer = walk.respond(walk.challenge(), CHAP_I=identifier, CHAP_C="0x0011")
    failed(answer, LoginStatus.INITIATOR_ERROR, walk)


def test_a_wrong_secret_fails() -> None:
    walk = Walk(ONE_WAY)
    failed(walk.respond(walk.challenge(), ChapUser("joe", b"a guess")), LoginStatus.AUTHENTICATION_FAILED, walk)


def test_an_unknown_user_fails_alike() -> None:
    walk = Walk(ONE_WAY)
    failed(walk.respond(walk.challenge(), ChapUser("jim", JOE.secret)), LoginStatus.AUTHENTICATION_FAILED, walk)


def test_our_own_challenge_sent_back_fails() -> None:
    walk = Walk(MUTUAL)
    keys = walk.challenge()
    failed(walk.respond(keys, CHAP_I="1", CHAP_C=keys["CHAP_C"]), LoginStatus.AUTHENTICATION_FAILED, walk)


def test_mutual_chap_fails_when_there_is_no_outgoing_user() -> None:
    walk = Walk(ONE_WAY)
    answer = walk.respond(walk.challenge(), CHAP_I="1", CHAP_C="0x0011")
    failed(answer, LoginStatus.AUTHENTICATION_FAILED, walk)


@pytest.mark.parametrize("method", ["None", "KRB5,None", "SRP"])
def test_offering_no_chap_fails_where_it_is_needed(method: str) -> None:
    walk = Walk(ONE_WAY)
    failed(walk.step({"AuthMethod": method}, SECURITY), LoginStatus.AUTHENTICATION_FAILED, walk)


def test_going_round_the_security_stage_fails() -> None:
    walk = Walk(ONE_WAY)
    failed(walk.step(OPERATIONAL, OPERATION, FULL), LoginStatus.AUTHENTICATION_FAILED, walk)


def test_asking_to_move_on_before_the_proof_is_not_granted() -> None:
    walk = Walk(ONE_WAY)
    assert walk.step({"AuthMethod": "CHAP"}, SECURITY, FULL).flags == 0
    assert walk.step({}, SECURITY, FULL).flags == 0
    assert walk.wire.connection.session is None


def test_discovery_needs_the_proof_too() -> None:
    walk = Walk(ONE_WAY, target=None)
    failed(walk.step({}, OPERATION, FULL), LoginStatus.AUTHENTICATION_FAILED, walk)


@pytest.mark.parametrize(
    ("steps", "status"),
    [
        ([{"CHAP_A": "5"}], LoginStatus.INITIATOR_ERROR),
        ([{"AuthMethod": "CHAP"}, {"CHAP_N": "joe", "CHAP_R": "0x00"}], LoginStatus.MISSING_PARAMETER),
        ([{"AuthMethod": "CHAP"}, {"CHAP_A": "9"}], LoginStatus.AUTHENTICATION_FAILED),
        ([{"AuthMethod": "CHAP"}, {"CHAP_A": "5"}, {"CHAP_N": "joe"}], LoginStatus.MISSING_PARAMETER),
        ([{"AuthMethod": "CHAP"}, {"CHAP_A": "5"}, {"CHAP_N": "joe", "CHAP_R": "00"}], LoginStatus.INITIATOR_ERROR),
        ([{"AuthMethod": "CHAP"}, {"CHAP_A": "5"}, {"CHAP_N": "joe", "CHAP_R": "0x"}], LoginStatus.INITIATOR_ERROR),
        ([{"AuthMethod": "CHAP"}, {"CHAP_A": "5"}, {"CHAP_N": "joe", "CHAP_R": "0xzz"}], LoginStatus.INITIATOR_ERROR),
        ([{"AuthMethod": "CHAP"}, {"CHAP_A": "5"}, {"CHAP_A": "5"}], LoginStatus.MISSING_PARAMETER),
        ([{"AuthMethod": "CHAP"}, {"AuthMethod": "CHAP"}], LoginStatus.INITIATOR_ERROR),
    ],
)
def test_chap_keys_out_of_place_fail(steps: list[dict[str, str]], status: LoginStatus) -> None:
    walk = Walk(ONE_WAY)
    for pairs in steps[:-1]:
        assert walk.step(pairs, SECURITY).status == 0
    failed(walk.step(steps[-1], SECURITY), status, walk)


def test_a_binary_constant_longer_than_1024_bytes_is_refused() -> None:
    with pytest.raises(LoginError, match="1024"):
        decode_binary("0x" + "00" * 1025)


@pytest.mark.parametrize("stage", [SECURITY, OPERATION])
@pytest.mark.parametrize("key", ["X#NodeArchitecture", "X-com.example.a", "RDMAExtensions"])
def test_a_key_that_we_do_not_know_is_not_understood_in_any_stage(stage: Stage, key: str) -> None:
    walk = Walk()
    answer = walk.step({key: "os:linux"}, stage, FULL)
    assert answer.status == 0
    assert text_of(answer)[key] == "NotUnderstood"
    assert walk.wire.connection.session is not None
    (response,) = walk.wire.send(p.TextRequest(itt=1, data=f"{key}=again\0".encode()))
    assert text_of(response) == {key: "NotUnderstood"}


def test_an_alias_may_be_declared_again() -> None:
    walk = Walk()
    walk.step({"InitiatorAlias": "me"}, SECURITY, OPERATION)
    assert walk.step({"InitiatorAlias": "me", **OPERATIONAL}, OPERATION, FULL).status == 0


# -- ways that lead nowhere -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "pairs", "status"),
    [
        ({"name": ""}, {}, LoginStatus.MISSING_PARAMETER),
        ({"name": "two words"}, {}, LoginStatus.INITIATOR_ERROR),
        ({"name": "iqn." + "x" * 220}, {}, LoginStatus.INITIATOR_ERROR),
        ({"target": ""}, {}, LoginStatus.MISSING_PARAMETER),
        ({"target": "iqn.2026-01.test:other"}, {}, LoginStatus.NOT_FOUND),
        ({}, {"SessionType": "Fancy"}, LoginStatus.SESSION_TYPE_NOT_SUPPORTED),
        ({}, {"AuthMethod": "None"}, LoginStatus.INITIATOR_ERROR),
    ],
)
def test_a_first_request_that_can_not_be_right_fails(
    names: dict[str, str | None], pairs: dict[str, str], status: LoginStatus
) -> None:
    walk = Walk(**names)
    failed(walk.step(pairs, OPERATION, FULL), status, walk)


def test_an_initiator_that_is_not_on_the_list_fails() -> None:
    walk = Walk(PortalSettings(access=Access(initiators=("iqn.2026-01.test:other",))))
    failed(walk.step(OPERATIONAL, OPERATION, FULL), LoginStatus.FORBIDDEN, walk)


def test_a_target_may_have_a_list_of_its_own() -> None:
    settings = PortalSettings(targets={TARGET: Access(initiators=("iqn.2026-01.test:other",))})
    walk = Walk(settings)
    failed(walk.step(OPERATIONAL, OPERATION, FULL), LoginStatus.FORBIDDEN, walk)


@pytest.mark.parametrize(
    ("csg", "nsg"),
    [(OPERATION, OPERATION), (OPERATION, SECURITY), (FULL, FULL), (SECURITY, SECURITY)],
)
def test_a_move_that_there_is_not_fails(csg: Stage, nsg: Stage) -> None:
    walk = Walk()
    failed(walk.step(OPERATIONAL, csg, nsg), LoginStatus.INITIATOR_ERROR, walk)


def test_going_back_a_stage_fails() -> None:
    walk = Walk()
    walk.step({}, SECURITY, OPERATION)
    failed(walk.step({}, SECURITY), LoginStatus.INITIATOR_ERROR, walk)


def test_the_stage_that_is_reserved_fails() -> None:
    walk = Walk()
    (answer,) = walk.wire.send(p.LoginRequest(immediate=True, flags=2 << 2))
    assert isinstance(answer, p.LoginResponse)
    failed(answer, LoginStatus.INITIATOR_ERROR, walk)


@pytest.mark.parametrize("offer", [{}, {"HeaderDigest": "None"}], ids=["no offer", "None"])
def test_a_digest_that_we_want_and_do_not_get_fails(offer: dict[str, str]) -> None:
    walk = Walk(PortalSettings(header_digests=("CRC32C",)))
    failed(walk.step(offer, OPERATION, FULL), LoginStatus.INITIATOR_ERROR, walk)


def test_negotiating_a_key_twice_fails() -> None:
    walk = Walk()
    walk.step({"MaxBurstLength": "4096"}, OPERATION)
    failed(walk.step({"MaxBurstLength": "8192"}, OPERATION, FULL), LoginStatus.INITIATOR_ERROR, walk)


@pytest.mark.parametrize("change", ["isid", "cid", "tsih"])
def test_a_login_that_becomes_somebody_else_fails(change: str) -> None:
    walk = Walk()
    walk.step({}, OPERATION)
    values = {"isid": {"isid": bytes(6)}, "cid": {"cid": 2}, "tsih": {"tsih": 5}}[change]
    request = p.LoginRequest(
        **{"immediate": True, "flags": OPERATION << 2, "isid": walk.wire.initiator.isid, "cid": 1} | values
    )
    (answer,) = walk.wire.send(request)
    assert isinstance(answer, p.LoginResponse)
    failed(answer, LoginStatus.INVALID_REQUEST, walk)


def test_another_version_is_refused() -> None:
    walk = Walk()
    (answer,) = walk.wire.send(p.LoginRequest(immediate=True, version_min=1, version_max=1))
    assert isinstance(answer, p.LoginResponse)
    failed(answer, LoginStatus.UNSUPPORTED_VERSION, walk)


def test_a_second_connection_of_a_session_is_refused() -> None:
    host = FakeHost()
    first = Wire(host)
    first.login()
    for tsih, status in ((1, LoginStatus.TOO_MANY_CONNECTIONS), (9, LoginStatus.NO_SESSION)):
        second = Wire(host)
        second.initiator.tsih = tsih
        assert second.login().status == status


def test_too_much_text_fails() -> None:
    walk = Walk()
    for _ in range(2):
        walk.step({"X-a": "y" * 7000}, OPERATION, more=True)
    failed(walk.step({"X-a": "y" * 7000}, OPERATION, more=True), LoginStatus.INITIATOR_ERROR, walk)


def test_too_many_requests_fail() -> None:
    walk = Walk()
    for _ in range(Limits().login_requests):
        assert walk.step({}, OPERATION).status == 0
    failed(walk.step({}, OPERATION), LoginStatus.INITIATOR_ERROR, walk)


def test_too_many_keys_fail() -> None:
    walk = Walk()
    failed(walk.step({f"X-{n}": "" for n in range(200)}, OPERATION), LoginStatus.INITIATOR_ERROR, walk)


def test_text_that_is_none_fails() -> None:
    walk = Walk()
    (answer,) = walk.wire.send(p.LoginRequest(immediate=True, flags=OPERATION << 2, data=b"\0\1\2\3"))
    assert isinstance(answer, p.LoginResponse)
    failed(answer, LoginStatus.INITIATOR_ERROR, walk)


def test_a_request_longer_than_8192_bytes_ends_the_connection() -> None:
    walk = Walk()
    assert walk.wire.feed(p.Framing().encode(p.LoginRequest(immediate=True, data=bytes(8196)))[:48]) == []
    assert walk.ended is not None


def test_a_command_before_the_login_is_refused() -> None:
    walk = Walk()
    (answer,) = walk.wire.send(walk.wire.initiator.read_10(0, 1))
    assert isinstance(answer, p.LoginResponse)
    failed(answer, LoginStatus.INVALID_REQUEST, walk)
