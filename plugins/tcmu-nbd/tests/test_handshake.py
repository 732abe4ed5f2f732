"""A server that is played: what it says, whole and byte by byte, and what comes of it."""

from __future__ import annotations

import contextlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcmu_nbd.codec import BlockSizes, Export
from tcmu_nbd.constants import ExportFlag, Info, Opt, Rep
from tcmu_nbd.errors import ProtocolError, Refused
from tcmu_nbd.handshake import Handshake, Tls

FLAGS = ExportFlag.HAS_FLAGS | ExportFlag.SEND_FLUSH | ExportFlag.SEND_FUA
GREETING = b"NBDMAGICIHAVEOPT\0\3"


def reply(option: int, kind: int = Rep.ACK, data: bytes = b"") -> bytes:
    return struct.pack(">QIII", 0x3E889045565A9, option, kind, len(data)) + data


def export(size: int) -> bytes:
    return reply(Opt.GO, Rep.INFO, struct.pack(">HQH", Info.EXPORT, size, FLAGS))


def block_size(minimum: int, preferred: int, maximum: int) -> bytes:
    return reply(Opt.GO, Rep.INFO, struct.pack(">HIII", Info.BLOCK_SIZE, minimum, preferred, maximum))


def context(number: int, name: str = "base:allocation") -> bytes:
    return reply(Opt.SET_META_CONTEXT, Rep.META_CONTEXT, number.to_bytes(4, "big") + name.encode())


STRUCTURED, NO_STRUCTURED = reply(Opt.STRUCTURED_REPLY), reply(Opt.STRUCTURED_REPLY, Rep.ERR_UNSUP)
CONTEXTS_END = reply(Opt.SET_META_CONTEXT)
END = reply(Opt.GO)
PLAIN = GREETING + NO_STRUCTURED


def talk(said: bytes, *, step: int = 0, name: str = "disk", tls: Tls = Tls.OFF) -> tuple[Handshake, bytes]:
    """Have a server say all this; returns the handshake and what the client said."""
    handshake = Handshake(name, tls)
    heard = b""
    for at in range(0, len(said), step or len(said) or 1):
        handshake.receive(said[at : at + (step or len(said))])
        heard += handshake.take()
    return handshake, heard


ENDS_WELL = {
    "everything": (
        GREETING + STRUCTURED + context(7) + CONTEXTS_END + block_size(512, 4096, 1 << 20) + export(1 << 20) + END,
        Export(1 << 20, FLAGS, BlockSizes(512, 4096, 1 << 20), True, 7),
    ),
    "nothing beside the size": (PLAIN + export(512) + END, Export(512, FLAGS)),
    "another context": (
        GREETING + STRUCTURED + context(1, "x:y") + CONTEXTS_END + export(512) + END,
        Export(512, FLAGS, structured=True),
    ),
    "no contexts": (
        GREETING + STRUCTURED + reply(Opt.SET_META_CONTEXT, Rep.ERR_UNSUP) + export(512) + END,
        Export(512, FLAGS, structured=True),
    ),
    "information that is not known": (
        PLAIN + reply(Opt.GO, Rep.INFO, b"\0\2a description") + export(512) + END,
        Export(512, FLAGS),
    ),
    "no NBD_OPT_GO": (
        PLAIN + reply(Opt.GO, Rep.ERR_UNSUP) + struct.pack(">QH", 512, FLAGS),
        Export(512, FLAGS),
    ),
    "no NBD_OPT_GO, and zeros at the end": (
        b"NBDMAGICIHAVEOPT\0\1" + NO_STRUCTURED + reply(Opt.GO, Rep.ERR_UNSUP) + struct.pack(">QH124x", 512, FLAGS),
        Export(512, FLAGS),
    ),
    "a maximum without a limit": (
        PLAIN + block_size(1, 4096, 0xFFFFFFFF) + export(512) + END,
        Export(512, FLAGS, BlockSizes(1, 4096, 32 << 20)),
    ),
}
ENDS_BADLY = {
    "another protocol": (b"SSH-2.0-OpenSSH_9", ProtocolError, "is that the right port"),
    "the old handshake": (b"NBDMAGIC\x00\x00\x42\x02\x81\x86\x12\x53", Refused, "old handshake"),
    "newstyle that is not fixed": (b"NBDMAGICIHAVEOPT\0\0", Refused, "too old"),
    "a wrong magic": (GREETING + bytes(20), ProtocolError, "option reply begins"),
    "an answer to something else": (GREETING + reply(Opt.GO), ProtocolError, "answers option 7 when 8"),
    "a reply that is too long": (
        GREETING + struct.pack(">QIII", 0x3E889045565A9, 8, 1, 1 << 30),
        ProtocolError,
        "1073741824 bytes",
    ),
    "no such export": (
        PLAIN + reply(Opt.GO, Rep.ERR_UNKNOWN, b"only 'other'\n"),
        Refused,
        "no export 'disk': it says only 'other'",
    ),
    "a server that wants TLS": (PLAIN + reply(Opt.GO, Rep.ERR_TLS_REQD), Refused, "add tls=require"),
    "an error that is not known": (PLAIN + reply(Opt.GO, 0x80001234), Refused, "0x80001234"),
    "no size": (PLAIN + END, ProtocolError, "how large"),
    "a size that is too large": (PLAIN + export(1 << 63), ProtocolError, "an export of"),
    "block sizes that are none": (PLAIN + block_size(3, 4096, 1 << 20), ProtocolError, "block sizes 3"),
    "a maximum below the minimum": (PLAIN + block_size(4096, 4096, 512), ProtocolError, "block sizes 4096"),
    "information without a type": (PLAIN + reply(Opt.GO, Rep.INFO, b"x"), ProtocolError, "without a type"),
    "data that nobody asked for": (PLAIN + export(512) + END + b"x", ProtocolError, "nobody asked"),
    "contexts without an end": (GREETING + STRUCTURED + context(1) * 1001, ProtocolError, "without an end"),
    "information without an end": (PLAIN + export(512) * 1001, ProtocolError, "without an end"),
}


@pytest.mark.parametrize("step", [0, 1, 7])
@pytest.mark.parametrize(("said", "found"), ENDS_WELL.values(), ids=ENDS_WELL)
def test_a_negotiation_ends_with_an_export(said: bytes, found: Export, step: int) -> None:
    handshake, _ = talk(said, step=step)
    assert handshake.export == found


@pytest.mark.parametrize("step", [0, 1])
@pytest.mark.parametrize(("said", "kind", "message"), ENDS_BADLY.values(), ids=ENDS_BADLY)
def test_a_negotiation_ends_with_a_reason(said: bytes, kind: type[Exception], message: str, step: int) -> None:
    with pytest.raises(kind, match=message):
        talk(said, step=step)


def test_the_client_says_what_the_protocol_wants() -> None:
    said, _ = ENDS_WELL["everything"]
    _, heard = talk(said, name="disk")
    options = [(Opt.STRUCTURED_REPLY, b"")]
    options.append((Opt.SET_META_CONTEXT, b"\0\0\0\4disk\0\0\0\1\0\0\0\x0fbase:allocation"))
    options.append((Opt.GO, b"\0\0\0\4disk\0\1\0\3"))
    expected = b"\0\0\0\3" + b"".join(b"IHAVEOPT" + struct.pack(">II", o, len(d)) + d for o, d in options)
    assert heard == expected


def test_an_old_server_is_asked_by_name_alone() -> None:
    said, _ = ENDS_WELL["no NBD_OPT_GO"]
    _, heard = talk(said, name="disk")
    assert heard.endswith(b"IHAVEOPT\0\0\0\1\0\0\0\4disk")


def test_tls_comes_before_anything_else_is_asked() -> None:
    handshake, heard = talk(GREETING + reply(Opt.STARTTLS), tls=Tls.REQUIRE)
    assert handshake.wants_tls
    assert heard == b"\0\0\0\3IHAVEOPT\0\0\0\5\0\0\0\0"
    handshake.started_tls()
    assert not handshake.wants_tls
    assert handshake.take() == b"IHAVEOPT\0\0\0\x08\0\0\0\0"
    handshake.receive(NO_STRUCTURED + export(512) + END)
    assert handshake.export == Export(512, FLAGS, encrypted=True)


def test_what_came_in_the_clear_after_the_ack_is_not_believed() -> None:
    with pytest.raises(ProtocolError, match="nobody asked"):
        talk(GREETING + reply(Opt.STARTTLS) + NO_STRUCTURED, tls=Tls.ON)


def test_without_tls_at_the_server_on_goes_on_and_require_does_not() -> None:
    refusal = GREETING + reply(Opt.STARTTLS, Rep.ERR_POLICY, b"no certificates")
    handshake, _ = talk(refusal + NO_STRUCTURED + export(512) + END, tls=Tls.ON)
    assert handshake.export == Export(512, FLAGS)
    with pytest.raises(Refused, match="tls=require: it says no certificates"):
        talk(refusal, tls=Tls.REQUIRE)


PIECES = [GREETING, STRUCTURED, NO_STRUCTURED, context(1), CONTEXTS_END, export(512), block_size(1, 512, 512), END]
PIECES += [reply(Opt.GO, Rep.ERR_UNSUP), reply(Opt.STARTTLS), reply(Opt.STARTTLS, Rep.ERR_UNSUP)]


@given(
    st.lists(st.one_of(st.sampled_from(PIECES), st.binary(max_size=40)), max_size=12),
    st.sampled_from(Tls),
    st.booleans(),
)
def test_whatever_a_server_says_ends_in_an_export_or_in_a_reason(said: list[bytes], tls: Tls, greets: bool) -> None:
    handshake = Handshake("disk", tls)
    with contextlib.suppress(ProtocolError, Refused):
        for piece in [GREETING, *said] if greets else said:
            handshake.receive(piece)
            if handshake.wants_tls:
                handshake.started_tls()
        assert handshake.export is None or isinstance(handshake.export, Export)
