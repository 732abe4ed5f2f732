"""Who makes way for whom when there is little room."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from tcmu_core.errors import ConfigError
from tcmu_core.iscsi.admission import WAITING_ROOM, Full, Rank, Standing, enter, log_in
from tcmu_core.iscsi.interfaces import own_addresses
from tcmu_core.iscsi.settings import Limits, PortalSettings, parse_advertised

LIMITS = Limits(connections=8)  # a share is 6
R = Rank


@dataclass
class One:
    standing: Standing


def members(*standings: tuple[Rank, str] | tuple[Rank, str, str]) -> list[One]:
    return [One(Standing(*standing)) for standing in standings]


def test_while_there_is_room_nobody_makes_way() -> None:
    some = members(*[(R.OPEN, "a")] * 3, (R.DISCOVERY, "b"))
    assert enter(some, "a", LIMITS) is None
    assert log_in(some, Standing(R.DISCOVERY, "a"), LIMITS) is None


def test_a_newcomer_is_let_in_at_the_cost_of_those_that_have_not_logged_in() -> None:
    crowd = members(
        *[(R.PROVED, f"h{n}", "x") for n in range(8)], *[(R.LOGGING_IN, f"h{n}") for n in range(WAITING_ROOM)]
    )
    assert enter(crowd, "new", LIMITS) is crowd[8]


def test_who_takes_many_connections_crowds_out_itself() -> None:
    crowd = members((R.LOGGING_IN, "good"), *[(R.LOGGING_IN, "bad")] * 13)
    assert enter(crowd, "good", LIMITS) is None
    assert enter([*crowd, *members((R.LOGGING_IN, "bad"))], "bad", LIMITS) is crowd[1]
    many = members((R.LOGGING_IN, "good"), *[(R.LOGGING_IN, f"bad{n % 3}") for n in range(23)])
    assert enter(many, "new", LIMITS) is many[1]


def test_discovery_sessions_make_way_for_any_login() -> None:
    crowd = members((R.OPEN, "a"), *[(R.DISCOVERY, f"h{n}") for n in range(7)])
    for rank in (R.DISCOVERY, R.OPEN):
        assert log_in(crowd, Standing(rank, "new"), LIMITS) is crowd[1]


def test_sessions_without_a_password_make_way_for_one_with() -> None:
    crowd = members((R.PROVED, "a", "joe"), *[(R.OPEN, f"h{n}") for n in range(7)])
    assert log_in(crowd, Standing(R.PROVED, "new", "ann"), LIMITS) is crowd[1]
    assert log_in(crowd, Standing(R.DISCOVERY, "new", "ann"), LIMITS) is crowd[1]
    with pytest.raises(Full):
        log_in(crowd, Standing(R.OPEN, "new"), LIMITS)


def test_sessions_with_a_password_make_way_for_nobody() -> None:
    crowd = members(*[(R.PROVED, f"h{n}", f"u{n}") for n in range(8)])
    with pytest.raises(Full, match="8 sessions"):
        log_in(crowd, Standing(R.PROVED, "new", "ann"), LIMITS)


@pytest.mark.parametrize(
    ("crowd", "why"),
    [
        ([(R.PROVED, "a", f"u{n}") for n in range(6)], "a has 6"),
        ([(R.PROVED, f"h{n}", "ann") for n in range(6)], "'ann' has 6"),
    ],
    ids=["address", "user"],
)
def test_neither_an_address_nor_a_user_has_more_than_its_share(crowd: list[tuple[Rank, str, str]], why: str) -> None:
    with pytest.raises(Full, match=why):
        log_in(members(*crowd), Standing(R.PROVED, "a", "ann"), LIMITS)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("disks.example.com", ("disks.example.com", 3260)),
        ("nas:3261", ("nas", 3261)),
        ("192.0.2.7", ("192.0.2.7", 3260)),
        ("[2001:db8::1]:3262", ("2001:db8::1", 3262)),
    ],
)
def test_an_advertised_address_may_be_a_name(text: str, address: tuple[str, int]) -> None:
    assert parse_advertised(text) == address


@pytest.mark.parametrize("text", ["0.0.0.0", "[::]:3260", "nas:0", "nas:99999", "-x", "a b", "", "1.2.3"])
def test_an_advertised_address_that_nobody_can_reach_is_named(text: str) -> None:
    with pytest.raises(ConfigError):
        PortalSettings(advertise=(text,))


FIB_TRIE = """\
Main:
  +-- 0.0.0.0/0 3 0 5
     |-- 0.0.0.0
        /0 universe UNICAST
Local:
  +-- 127.0.0.0/8 2 0 2
        |-- 127.0.0.1
           /32 host LOCAL
        |-- 127.255.255.255
           /32 link BROADCAST
     |-- 192.0.2.7
        /32 host LOCAL
     |-- 192.0.2.7
        /32 host LOCAL
     |-- 198.51.100.1
        /32 host LOCAL
"""
IF_INET6 = """\
00000000000000000000000000000001 01 80 10 80       lo
fe800000000000000000000000000001 02 40 20 80     eth0
20010db8000000000000000000000001 02 40 00 80     eth0
"""


def test_the_hosts_own_addresses_are_read_from_the_kernel(tmp_path: Path) -> None:
    (tmp_path / "net").mkdir()
    assert own_addresses(False, tmp_path) == own_addresses(True, tmp_path) == []
    (tmp_path / "net/fib_trie").write_text(FIB_TRIE)
    (tmp_path / "net/if_inet6").write_text(IF_INET6)
    assert own_addresses(False, tmp_path) == ["192.0.2.7", "198.51.100.1"]
    assert own_addresses(True, tmp_path) == ["2001:db8::1"]


def test_this_host_has_an_address() -> None:
    assert own_addresses(False)
