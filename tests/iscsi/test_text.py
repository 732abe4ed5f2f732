from __future__ import annotations

import pytest

from tcmu_core.iscsi.discovery import TextExchange, send_targets
from tcmu_core.iscsi.errors import PduError, TextError
from tcmu_core.iscsi.pdu import TextRequest
from tcmu_core.iscsi.text import format_text, parse_text

LISTING = [("iqn.a", ["127.0.0.1:3260,1"]), ("iqn.b", ["127.0.0.1:3260,1", "[::1]:3260,1"])]


def test_pairs_go_around_and_come_back() -> None:
    pairs = {"HeaderDigest": "CRC32C,None", "X-com.example.a": "", "SendTargets": "All", "A": "b=c"}
    assert parse_text(format_text(pairs)) == pairs


@pytest.mark.parametrize(
    "key",
    ["X#NodeArchitecture", "Y#SHA3", "Z#CRC64", "X-com.example.a", "Y-com.example.b", "X-com.microsoft.a_b+c@d",
     "iSCSIProtocolLevel", "RDMAExtensions", "K" * 63, "X#" + "K" * 61],
)  # fmt: skip
@pytest.mark.parametrize("value", ["", "os:linux,arch:x86-64", "a=b", "0x7f", "0bAAEC", "x" * 8192, "caf\u00e9"])
def test_each_key_and_value_that_there_may_be_is_read(key: str, value: str) -> None:
    assert parse_text(format_text({key: value})) == {key: value}


def test_the_last_pair_may_lack_its_null() -> None:
    assert parse_text(b"A=1\0B=2") == {"A": "1", "B": "2"}


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"nonsense\0", "no key=value"),
        (b"=x\0", "no key=value"),
        (b"A B=x\0", "no key=value"),
        (b"K" * 64 + b"=x\0", "no key=value"),
        (b"X#" + b"K" * 62 + b"=x\0", "no key=value"),
        (b"X#=x\0", "no key=value"),
        (b"A#b=x\0", "no key=value"),
        (b"A=1\0A=2\0", "comes twice"),
        (b"A=" + b"x" * 8193 + b"\0", "longer than"),
        (b"A=\xff\xfe\0", "UTF-8"),
        (b"".join(b"K%d=1\0" % n for n in range(129)), "more than 128"),
    ],
)
def test_text_that_is_none_is_refused(data: bytes, why: str) -> None:
    with pytest.raises(TextError, match=why):
        parse_text(data)


@pytest.mark.parametrize(
    ("asked", "mine", "names"),
    [
        ("All", None, ["iqn.a", "iqn.b"]),
        ("iqn.b", None, ["iqn.b"]),
        ("iqn.c", None, []),
        ("", "iqn.a", ["iqn.a"]),
        ("iqn.a", "iqn.a", ["iqn.a"]),
    ],
)
def test_send_targets_lists_what_was_asked_for(asked: str, mine: str | None, names: list[str]) -> None:
    assert [value for key, value in send_targets(asked, mine, LISTING) if key == "TargetName"] == names


@pytest.mark.parametrize(("asked", "mine"), [("All", "iqn.a"), ("iqn.b", "iqn.a"), ("", None)])
def test_send_targets_is_rejected_where_it_does_not_fit(asked: str, mine: str | None) -> None:
    assert list(send_targets(asked, mine, LISTING)) == [("SendTargets", "Reject")]


def test_each_address_of_a_target_is_listed() -> None:
    assert list(send_targets("iqn.b", None, LISTING))[1:] == [
        ("TargetAddress", "127.0.0.1:3260,1"),
        ("TargetAddress", "[::1]:3260,1"),
    ]


def test_a_long_response_comes_in_parts_as_it_is_fetched() -> None:
    exchange = TextExchange(lambda pairs: [(f"K{n}", "x" * 50) for n in range(30)], 1000)
    flags, tag, data = exchange.answer(TextRequest(data=b"A=1\0"), 512)
    whole = data
    while not flags & 0x80:
        assert flags == 0x40
        assert len(data) == 512
        flags, tag, data = exchange.answer(TextRequest(ttt=tag), 512)
        whole += data
    assert tag == 0xFFFFFFFF
    assert len(parse_text(whole)) == 30


def test_a_request_may_come_in_parts() -> None:
    seen: list[dict[str, str]] = []

    def reply(pairs: dict[str, str]) -> list[tuple[str, str]]:
        seen.append(pairs)
        return []

    exchange = TextExchange(reply, 1000)
    flags, tag, data = exchange.answer(TextRequest(flags=0x40, data=b"SendTar"), 512)
    assert (flags, data) == (0, b"")
    exchange.answer(TextRequest(ttt=tag, data=b"gets=All\0"), 512)
    assert seen == [{"SendTargets": "All"}]


def test_an_exchange_ends_when_the_initiator_has_nothing_more() -> None:
    exchange = TextExchange(lambda pairs: pairs.items(), 1000)
    flags, tag, data = exchange.answer(TextRequest(flags=0, data=b"A=1\0"), 512)
    assert (flags, data) == (0, b"A=1\0")
    flags, after, data = exchange.answer(TextRequest(flags=0, ttt=tag, data=b"B=2\0"), 512)
    assert (flags, data) == (0, b"B=2\0")
    assert after not in (tag, 0xFFFFFFFF)
    assert exchange.answer(TextRequest(ttt=after), 512) == (0x80, 0xFFFFFFFF, b"")
    with pytest.raises(PduError, match="has ended"):
        exchange.answer(TextRequest(ttt=after), 512)


def test_a_long_response_to_a_request_that_is_not_the_last_does_not_end_the_exchange() -> None:
    exchange = TextExchange(lambda pairs: [("K", "x" * 600)], 1000)
    flags, tag, _data = exchange.answer(TextRequest(flags=0, data=b"A=1\0"), 512)
    assert flags == 0x40
    flags, tag, _data = exchange.answer(TextRequest(flags=0, ttt=tag), 512)
    assert (flags, tag != 0xFFFFFFFF) == (0, True)
    assert exchange.answer(TextRequest(ttt=tag, data=b"B=1\0"), 2048)[:2] == (0x80, 0xFFFFFFFF)


def test_a_stale_tag_is_a_negotiation_reset() -> None:
    exchange = TextExchange(lambda pairs: [], 1000)
    with pytest.raises(PduError, match="has ended"):
        exchange.answer(TextRequest(ttt=5), 512)


def test_a_request_without_end_is_broken_off() -> None:
    exchange = TextExchange(lambda pairs: [], 1000)
    _flags, tag, _data = exchange.answer(TextRequest(flags=0x40, data=b"A" * 900), 512)
    with pytest.raises(PduError, match="too much"):
        exchange.answer(TextRequest(flags=0x40, ttt=tag, data=b"A" * 900), 512)
