"""Whatever bytes come: the connection answers or ends, never raises, and another session goes on."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from tcmu_core.iscsi import pdu as p
from tcmu_core.iscsi.settings import Limits, PortalSettings
from tests.iscsi.initiator import OPERATIONAL, Initiator
from tests.iscsi.wire import FakeHost, Wire

SMALL = PortalSettings(limits=Limits(segment=8192, queue_depth=8, memory=1 << 20))
DIGESTS = {"HeaderDigest": "CRC32C", "DataDigest": "CRC32C"}

tags = st.integers(0, 3) | st.sampled_from([0xFFFFFFFF])
small = st.integers(0, 4) | st.integers(0, 0xFFFFFFFF)
flags = st.integers(0, 255)
luns = st.sampled_from([bytes(8), b"\0\1" + bytes(6), b"\0\7" + bytes(6), b"\xff" * 8])
data = st.binary(max_size=600) | st.just(b"SendTargets=All\0")
cdbs = st.sampled_from([b"\x28" + bytes(7) + b"\1" + bytes(7), b"\x2a" + bytes(7) + b"\2" + bytes(7), bytes(16)])
immediates = st.booleans()

pdus = st.one_of(
    st.builds(
        p.ScsiCommand, immediate=immediates, flags=flags, lun=luns, itt=tags, expected_length=small, cmd_sn=small,
        cdb=cdbs, data=data, ahs=st.sampled_from([b"", p.extended_cdb(bytes(20)), b"\0\0\0\0", b"\xff" * 8]),
    ),
    st.builds(p.DataOut, flags=flags, lun=luns, itt=tags, ttt=tags, data_sn=small, offset=small, data=data),
    st.builds(
        p.TaskManagementRequest, immediate=immediates, function=st.integers(0x80, 0x8A), lun=luns, itt=tags,
        referenced_tag=tags, cmd_sn=small, ref_cmd_sn=small,
    ),
    st.builds(p.TextRequest, immediate=immediates, flags=flags, itt=tags, ttt=tags, cmd_sn=small, data=data),
    st.builds(p.NopOut, immediate=immediates, itt=tags, ttt=tags, cmd_sn=small, data=data),
    st.builds(p.SnackRequest, itt=tags),
    st.builds(p.LoginRequest, immediate=immediates, flags=flags, itt=tags, cmd_sn=small, data=data),
    st.builds(p.LogoutRequest, immediate=immediates, reason=st.integers(0x81, 0x83), itt=tags, cmd_sn=small),
)  # fmt: skip
streams = st.lists(pdus, max_size=12).map(lambda found: b"".join(p.Framing().encode(pdu) for pdu in found))


class Pair:
    """A session to mistreat, and another one that must not notice."""

    def __init__(self, digests: bool = False, *, login: bool = True) -> None:
        self.host = FakeHost(SMALL)
        self.bystander = Wire(self.host, Initiator(name="iqn.2026-01.test:bystander"))
        self.bystander.login()
        self.victim = Wire(self.host)
        self.victim.initiator.cmd_sn = 0
        if login:
            self.victim.login(DIGESTS if digests else None)

    def feed(self, stream: bytes, step: int | None = None) -> list[p.Pdu]:
        self.host.units[0].hold = self.host.units[1].hold = len(stream) % 3 == 0
        return self.victim.feed(stream, step)

    def check(self) -> None:
        unit = self.host.units[0]
        unit.hold = False
        while unit.held:
            unit.finish()
        self.victim.collect()
        self.victim.connection.close()
        while isinstance(answer := self.bystander.send(self.bystander.initiator.command(bytes(6)))[0], p.ScsiResponse):
            if not answer.status:
                break  # it has heard of each reset
        (answer,) = self.bystander.send(self.bystander.initiator.read_10(0, 1))
        assert isinstance(answer, p.DataIn)


@settings(max_examples=150, deadline=None)
@given(streams)
def test_any_sequence_of_pdus(stream: bytes) -> None:
    pair = Pair()
    pair.feed(stream)
    pair.check()


@settings(max_examples=40, deadline=None)
@given(streams)
def test_the_answers_are_the_same_byte_by_byte(stream: bytes) -> None:
    whole, bytewise = Pair(), Pair()
    assert whole.feed(stream) == bytewise.feed(stream, 1)
    assert whole.victim.connection.ended == bytewise.victim.connection.ended


@settings(max_examples=30, deadline=None)
@given(st.lists(pdus, min_size=1, max_size=4), st.data())
def test_a_stream_that_is_cut_anywhere(found: list[p.Pdu], drawn: st.DataObject) -> None:
    stream = b"".join(p.Framing().encode(pdu) for pdu in found)
    cut = drawn.draw(st.integers(0, len(stream)))
    pair = Pair()
    pair.feed(stream[:cut])
    pair.check()


@settings(max_examples=150, deadline=None)
@given(streams, st.lists(st.integers(0, 1 << 20), min_size=1, max_size=6), st.booleans())
def test_flipped_bits(stream: bytes, bits: list[int], digests: bool) -> None:
    pair = Pair(digests)
    if digests:
        stream = p.Framing(True, True).encode(p.NopOut(itt=1, data=b"x")) + stream
    broken = bytearray(stream or bytes(48))
    for bit in bits:
        broken[bit // 8 % len(broken)] ^= 1 << bit % 8
    pair.feed(bytes(broken))
    pair.check()


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=400))
def test_noise(noise: bytes) -> None:
    pair = Pair()
    pair.feed(noise)
    pair.check()


@settings(max_examples=100, deadline=None)
@given(streams | st.binary(max_size=300), st.lists(st.integers(0, 1 << 20), max_size=4))
def test_a_broken_login(stream: bytes, bits: list[int]) -> None:
    pair = Pair(login=False)
    login = bytearray(pair.victim.initiator.encode(pair.victim.initiator.login(OPERATIONAL)))
    for bit in bits:
        login[bit // 8 % len(login)] ^= 1 << bit % 8
    pair.feed(bytes(login) + stream)
    pair.check()
