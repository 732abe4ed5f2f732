"""Millions of PDUs that are wrong in every way: each connection answers or ends, and a victim's data stays right."""

from __future__ import annotations

import gc
import random
import struct
from collections.abc import Callable, Iterator
from time import monotonic

import pytest

from tcmu_core.iscsi import pdu as p
from tcmu_core.iscsi.chap import Algorithm, decode_binary, encode_binary, response
from tcmu_core.iscsi.constants import BHS, Stage
from tcmu_core.iscsi.settings import Access, ChapUser, Limits, PortalSettings
from tests.iscsi.initiator import OPERATIONAL, TARGET, Initiator, cdb_10, text_of
from tests.iscsi.wire import FakeHost, Scripted, Wire

JOE = ChapUser("joe", b"the secret of joe")
LIMITS = Limits(segment=8192, queue_depth=16, memory=1 << 20, total=8 << 20, first_burst=4096, burst=8192)
OPEN = PortalSettings(limits=LIMITS)
CLOSED = PortalSettings(limits=LIMITS, access=Access(users=(JOE,)))
DIGESTS = {"HeaderDigest": "CRC32C", "DataDigest": "CRC32C"}
VICTIMS = 2  # the LUN whose data is looked at; no attack names it
LUNS = [bytes(8), b"\0\1" + bytes(6), b"\0\7" + bytes(6), b"\xff" * 8]
CDBS = [
    cdb_10(0x28, 0, 1), cdb_10(0x28, 5, 16), cdb_10(0x2A, 0, 1), cdb_10(0x2A, 9, 16), cdb_10(0x41, 0, 8), bytes(6),
    b"\x12" + bytes(5), b"\xa0" + bytes(11), b"\x5f" + bytes(9), b"\x89" + bytes(15), b"\x35" + bytes(9),
]  # fmt: skip
AHS = [b"", b"", b"", p.extended_cdb(bytes(20)), p.bidi_read_length(512), b"\0\0\0\0", b"\xff" * 8]
TEXTS = [
    b"SendTargets=All\0",
    b"MaxRecvDataSegmentLength=512\0",
    b"X#a=b\0",
    b"SendTargets=\0",
    b"nonsense",
    b"\xff=\0",
]
CMD_SN = struct.Struct(">I")
PER_CONNECTION = 250
SEEDS = 20
PDUS = 250_000  # of a seed, five million in all
SECONDS = 25.0  # for a seed at most: a slow machine sends fewer


def templates(draw: random.Random) -> list[bytes]:
    """Return PDUs as bytes, valid and invalid ones; what is random in them is drawn once."""

    def number() -> int:
        return draw.choice([0, 1, 2, 3, 512, 4096, 8192, 0xFFFFFFFF, draw.getrandbits(32)])

    def tag() -> int:
        return draw.choice([0, 1, 2, 3, 4, 5, 0xFFFFFFFF])

    def data() -> bytes:
        return draw.choice([b"", b"", b"x" * 512, b"x" * draw.randrange(1, 600), b"x" * 8192, *TEXTS])

    def command() -> p.Pdu:
        return p.ScsiCommand(
            immediate=draw.random() < 0.1, flags=draw.choice([0x81, 0xC1, 0xA1, 0x21, 0xE1, draw.getrandbits(8)]),
            lun=draw.choice(LUNS), itt=tag(), expected_length=draw.choice([0, 512, 512, 8192, number()]),
            cdb=draw.choice(CDBS).ljust(16, b"\0"), data=data(), ahs=draw.choice(AHS),
        )  # fmt: skip

    makers: list[Callable[[], p.Pdu]] = [
        command, command, command,
        lambda: p.DataOut(flags=draw.choice([0, 0x80]), lun=draw.choice(LUNS), itt=tag(), ttt=tag(),
                          data_sn=draw.choice([0, 0, 1, number()]), offset=draw.choice([0, 512, number()]),
                          data=data()),
        lambda: p.TaskManagementRequest(immediate=draw.random() < 0.7, function=0x80 | draw.randrange(12),
                                        lun=draw.choice(LUNS), itt=tag(), referenced_tag=tag(), ref_cmd_sn=number()),
        lambda: p.TextRequest(immediate=draw.random() < 0.5, flags=draw.choice([0x80, 0x40, 0]), itt=tag(),
                              ttt=draw.choice([0xFFFFFFFF, 1, 2]), data=draw.choice(TEXTS)),
        lambda: p.NopOut(immediate=draw.random() < 0.5, itt=tag(), ttt=tag(), data=data()),
        lambda: p.SnackRequest(itt=tag()),
        lambda: p.LoginRequest(immediate=True, flags=draw.getrandbits(8), itt=tag(), data=draw.choice(TEXTS)),
        lambda: p.LogoutRequest(immediate=draw.random() < 0.5, reason=draw.choice([0x81, 0x82, 0x83]), itt=tag(),
                                cid=9),
        lambda: draw.choice([p.NopIn(), p.Reject(), p.ReadyToTransfer(itt=1, ttt=1), p.DataIn(itt=1)]),
    ]  # fmt: skip
    return [p.Framing().encode(draw.choice(makers)()) for _ in range(3000)]


def digested(raw: bytes | bytearray) -> bytes:
    """Return a PDU with digests of its header and its data."""
    length = BHS + raw[4] * 4
    header, data = bytes(raw[:length]), bytes(raw[length:])
    return header + p.digest(header) + (data + p.digest(data) if data else b"")


class Storm:
    """One seed's attackers on one target, and their victim."""

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)
        self.host = FakeHost(OPEN, [Scripted(1 << 16) for _ in range(3)])
        for unit in self.host.units:
            unit.watch = False
        self.victim = Wire(self.host, Initiator(name="iqn.2026-01.test:victim"))
        self.victim.login()
        self.quiet = self.host.budget.used  # bytes that a victim on its own keeps
        self.turn = 0
        self.templates = templates(self.draw)
        self.sent = 0

    def connection(self) -> None:
        """Let one connection live: from a login, right or wrong, to its end."""
        draw = self.draw
        self.host.settings = draw.choice([OPEN, OPEN, CLOSED])
        wire = Wire(self.host, Initiator(name=f"iqn.2026-01.test:{draw.randrange(9)}"))
        kind = draw.randrange(6)
        if kind == 0:
            pass  # no login at all
        elif kind == 1:
            self.feed(wire, self.flipped(wire.initiator.encode(wire.initiator.login(OPERATIONAL))))
        elif self.host.settings is CLOSED:
            self.prove(wire)
        else:
            wire.login(DIGESTS if kind == 2 else None)
        for _ in range(PER_CONNECTION // 5):
            if wire.connection.ended is not None and draw.random() < 0.9:
                break
            self.host.units[0].hold = draw.random() < 0.3
            self.feed(wire, b"".join(self.pdu(wire) for _ in range(5)))
            for unit in self.host.units:
                while unit.held and draw.random() < 0.6:
                    unit.finish(draw.choice(unit.held))
        wire.connection.close()
        for unit in self.host.units:
            while unit.held:
                unit.finish()
            unit.turn()
        self.host.sessions.clear()

    def prove(self, wire: Wire) -> None:
        """Log in with a password, now and then a wrong one."""
        initiator = wire.initiator
        wire.send(initiator.login({"AuthMethod": "CHAP"}, Stage.SECURITY, None))
        (answer,) = wire.send(initiator.login({"CHAP_A": "5"}, Stage.SECURITY, None, first=False))
        keys = text_of(answer)
        secret = JOE.secret if self.draw.random() < 0.9 else b"wrong"
        value = response(Algorithm.MD5, int(keys["CHAP_I"]), secret, decode_binary(keys["CHAP_C"]))
        pairs = {"CHAP_N": JOE.name, "CHAP_R": encode_binary(value)}
        wire.send(initiator.login(pairs, Stage.SECURITY, Stage.FULL_FEATURE, first=False))

    def pdu(self, wire: Wire) -> bytes:
        """Return a PDU, with a number that is due more often than not."""
        draw = self.draw
        self.sent += wire.connection.ended is None
        raw = bytearray(draw.choice(self.templates))
        session = wire.connection.session
        if session is not None and raw[0] & 0x3F != 0x05:
            CMD_SN.pack_into(raw, 24, (session.exp_cmd_sn + draw.choice([0, 0, 0, 1, 2, 7])) & 0xFFFFFFFF)
        if (session is not None and session.framing.header_digest) != (draw.random() < 0.01):
            raw = bytearray(digested(raw))
        return self.flipped(raw) if draw.random() < 0.05 else bytes(raw)

    def flipped(self, raw: bytes | bytearray) -> bytes:
        """Return bytes with some bits flipped, and none of a LUN's, or cut short."""
        broken = bytearray(raw)
        for _ in range(self.draw.randrange(1, 4)):
            at = self.draw.randrange(len(broken))
            if not 8 <= at < 16:
                broken[at] ^= 1 << self.draw.randrange(8)
        return bytes(broken[: self.draw.randrange(len(broken))] if self.draw.random() < 0.05 else broken)

    def feed(self, wire: Wire, data: bytes) -> None:
        """Let bytes arrive, in pieces or at once, and throw away what is answered."""
        connection = wire.connection
        step = self.draw.choice([0, 0, 0, 1000, 47])
        while data and connection.ended is None:
            room = connection.room() or connection.squeeze()
            count = min(len(room), len(data), step or len(data))
            if not count:
                break
            room[:count] = data[:count]
            data = data[count:]
            connection.received(count)
            self.drain(wire)
        self.drain(wire)

    def drain(self, wire: Wire) -> None:
        connection = wire.connection
        for _ in range(1000):
            for unit in self.host.units:
                unit.turn()
            if connection.outbox.queued:
                connection.outbox.sent(connection.outbox.queued)
            if not connection.stalled or connection.blocked:
                return
            connection.pump()

    def look(self) -> None:
        """Write and read as the victim, and see that of those who have gone nothing is kept."""
        self.turn += 1
        data = self.turn.to_bytes(4, "big") * 256
        command = self.victim.initiator.command
        lba = self.turn % 64 * 2
        while True:
            (answer,) = self.victim.send(command(cdb_10(0x2A, lba, 2), write=data, data=data, lun=VICTIMS))
            assert isinstance(answer, p.ScsiResponse)
            if not answer.status:
                break
            assert answer.data[4] & 0x0F == 0x06, answer  # it has heard of a reset
        (answer,) = self.victim.send(command(cdb_10(0x28, lba, 2), read=1024, lun=VICTIMS))
        assert bytes(answer.data) == data
        assert self.host.budget.used == self.quiet
        assert self.host.target.name == TARGET


@pytest.fixture(autouse=True)
def _no_garbage_collection() -> Iterator[None]:
    """What a connection kept is free when it ends, not when the interpreter next looks for circles."""
    gc.disable()
    yield
    gc.enable()


def storm(seed: int, pdus: int) -> None:
    """Run one seed until so many PDUs were sent, or the time is over."""
    running = Storm(seed)
    until = monotonic() + SECONDS
    while running.sent < pdus and monotonic() < until:
        running.connection()
        running.look()
        if running.turn % 1000 == 0:
            gc.collect()
    assert running.sent >= pdus // 4


@pytest.mark.parametrize("seed", range(4))
def test_some_thousand_broken_pdus(seed: int) -> None:
    storm(1000 + seed, 5000)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(SEEDS))
def test_millions_of_broken_pdus(seed: int) -> None:
    storm(seed, PDUS)
