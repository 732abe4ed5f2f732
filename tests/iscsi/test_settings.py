from __future__ import annotations

import pytest

from tcmu_core.errors import ConfigError
from tcmu_core.iscsi.settings import Access, ChapUser, Limits, PortalSettings, format_address, parse_address

JOE = ChapUser("joe", b"joes secret!")


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:3260", ("127.0.0.1", 3260)),
        ("127.0.0.1", ("127.0.0.1", 3260)),
        ("127.0.0.1:0", ("127.0.0.1", 0)),
        ("[::1]:3261", ("::1", 3261)),
        ("[::1]", ("::1", 3260)),
        ("::1", ("::1", 3260)),
        ("localhost:860", ("127.0.0.1", 860)),
        ("*:3260", ("0.0.0.0", 3260)),
    ],
)
def test_an_address_is_read(text: str, address: tuple[str, int]) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize(
    "text", ["", "disk.example:3260", "127.0.0.1:port", "127.0.0.1:65536", "[::1", "[::1]x", "1.2.3"]
)
def test_a_bad_address_is_named(text: str) -> None:
    with pytest.raises(ConfigError, match="write it like"):
        parse_address(text)


def test_an_ipv6_address_is_written_with_brackets() -> None:
    assert format_address("::1", 3260) == "[::1]:3260"
    assert format_address("127.0.0.1", 3260) == "127.0.0.1:3260"


@pytest.mark.parametrize("address", ["0.0.0.0:3260", "[::]:3260", "192.0.2.1:3260"])
def test_an_open_portal_beyond_loopback_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match="CHAP users or an initiator list, or say insecure"):
        PortalSettings(addresses=(address,))


@pytest.mark.parametrize(
    "access", [Access(users=(JOE,)), Access(initiators=("iqn.2026-01.test:*",))], ids=["CHAP", "initiator list"]
)
def test_a_guarded_portal_may_listen_beyond_loopback(access: Access) -> None:
    PortalSettings(addresses=("0.0.0.0:3260",), access=access)


def test_one_open_target_makes_the_portal_open() -> None:
    with pytest.raises(ConfigError, match="insecure"):
        PortalSettings(addresses=("0.0.0.0:3260",), access=Access(users=(JOE,)), targets={"iqn.x": Access()})


def test_a_list_of_everybody_keeps_nobody_out() -> None:
    with pytest.raises(ConfigError, match="insecure"):
        PortalSettings(addresses=("0.0.0.0:3260",), access=Access(initiators=("*",)))


def test_insecure_is_the_word_that_allows_it() -> None:
    PortalSettings(addresses=("0.0.0.0:3260",), insecure=True)


@pytest.mark.parametrize(
    "limits", [{"segment": 511}, {"burst": 1 << 24}, {"first_burst": 0}, {"connections": 0}, {"queue_depth": 65536}]
)
def test_a_limit_that_the_protocol_does_not_know_is_named(limits: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=next(iter(limits))):
        Limits(**limits)


def test_an_unknown_digest_is_named() -> None:
    with pytest.raises(ConfigError, match="MD5"):
        PortalSettings(data_digests=("MD5",))


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: Access(users=(ChapUser("", b"x"),)), "not empty"),
        (lambda: Access(users=(ChapUser("joe", b""),)), "not empty"),
        (lambda: Access(outgoing=JOE), "incoming"),
        (lambda: Access(users=(JOE,), outgoing=ChapUser("us", JOE.secret)), "must differ"),
    ],
)
def test_chap_users_that_protect_nothing_are_refused(make: object, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        make()  # type: ignore[operator]


def test_initiators_are_matched_by_pattern_whatever_their_case() -> None:
    access = Access(initiators=("iqn.2026-01.test:web*", "eui.*"))
    assert access.allows("iqn.2026-01.Test:WEB1")
    assert access.allows("eui.0123456789abcdef")
    assert not access.allows("iqn.2026-01.test:db1")


def test_a_secret_is_not_shown() -> None:
    assert "joes secret!" not in repr(Access(users=(JOE,)))
