"""The negotiation with a server, sans I/O: bytes in, bytes out, and in the end an `Export`.

The rules, in the order in which they apply ("Fixed newstyle negotiation"):

1. The server greets. One that speaks the old handshake, or newstyle that is not fixed, is refused.
2. TLS, where it is wanted: NBD_OPT_STARTTLS comes before every other option, since what was said before it could have
   been said by anybody. After its ACK nothing may be left over that came in the clear.
3. NBD_OPT_STRUCTURED_REPLY, and where that is granted NBD_OPT_SET_META_CONTEXT for base:allocation. Either may be
   refused: then there is no block status.
4. NBD_OPT_GO. A server that does not know it gets NBD_OPT_EXPORT_NAME, which can't tell block sizes, nor why it fails.

The conversation is a generator that yields what it wants next (so many bytes, or TLS), and `Handshake` feeds it.
"""

from __future__ import annotations

from collections.abc import Generator
from enum import Enum

from tcmu_nbd import codec
from tcmu_nbd import constants as nbd
from tcmu_nbd.codec import BlockSizes, Export
from tcmu_nbd.constants import ExportFlag, HandshakeFlag, Info, Opt, Rep
from tcmu_nbd.errors import ProtocolError, Refused, printable

MAX_REPLY = 64 << 10  # bytes of one option reply: messages and descriptions are 4 KiB at most
KNOWN_FLAGS = HandshakeFlag.FIXED_NEWSTYLE | HandshakeFlag.NO_ZEROES
MAX_REPLIES = 1000  # replies to one option


class Tls(Enum):
    """Whether a connection is encrypted: never, if the server can, or else not at all."""

    OFF = "off"
    ON = "on"
    REQUIRE = "require"


class Want(Enum):
    """What the conversation waits for beside bytes."""

    TLS = "tls"


Talk = Generator[int | Want, bytes, Export]


class Handshake:
    """One negotiation. Call `receive` with what came; send what `take` gives; when `wants_tls`, encrypt and say so."""

    def __init__(self, name: str, tls: Tls = Tls.OFF) -> None:
        self.export: Export | None = None
        self.encrypted = False
        self._name = name
        self._tls = tls
        self._out = bytearray()
        self._in = bytearray()
        self._talk = self._converse()
        self._wants: int | Want = next(self._talk)

    @property
    def wants_tls(self) -> bool:
        """Whether the connection is to be encrypted now, after `take` was sent; then call `started_tls`."""
        return self._wants is Want.TLS

    def receive(self, data: bytes | memoryview) -> None:
        """Take what the server sent, in pieces of any size.

        Raises:
            ProtocolError: it makes no sense. Refused: it makes sense, but there is no such export.
        """
        if self.export is not None:
            raise ProtocolError("it sent something that nobody asked for")
        self._in += data
        while self.export is None and isinstance(self._wants, int) and len(self._in) >= self._wants:
            taken = bytes(self._in[: self._wants])
            del self._in[: self._wants]
            self._go_on(taken)
        if self._in and (self.export is not None or self.wants_tls):
            raise ProtocolError("it sent something that nobody asked for")

    def started_tls(self) -> None:
        """Go on: the connection is encrypted now."""
        self.encrypted = True
        self._go_on(b"")

    def take(self) -> bytes:
        """Return what is to be sent, once."""
        out = bytes(self._out)
        self._out.clear()
        return out

    def _go_on(self, data: bytes) -> None:
        try:
            self._wants = self._talk.send(data)
        except StopIteration as end:
            self.export = end.value

    # -- the conversation -------------------------------------------------------------------------------------------

    def _converse(self) -> Talk:
        flags = yield from self._greeting()
        self._out += int(flags).to_bytes(4, "big")
        if self._tls is not Tls.OFF:
            yield from self._start_tls()
        kind, _ = yield from self._ask(Opt.STRUCTURED_REPLY, b"")
        structured = kind == Rep.ACK
        context = (yield from self._context()) if structured else None
        self._send(Opt.GO, codec.go(self._name))
        told: tuple[int, ExportFlag] | None = None
        blocks = BlockSizes()
        for _ in range(MAX_REPLIES):
            kind, data = yield from self._reply(Opt.GO)
            if kind == Rep.ACK:
                if told is None:
                    raise ProtocolError("it began without saying how large the export is")
                return Export(*told, blocks, structured, context, self.encrypted)
            if kind == Rep.ERR_UNSUP:
                size, export_flags = yield from self._export_name(flags)
                return Export(size, export_flags, blocks, structured, context, self.encrypted)
            if kind != Rep.INFO:
                raise self._refusal(kind, data)
            what = codec.info_kind(data)
            if what == Info.EXPORT:
                told = codec.info_export(data)
            elif what == Info.BLOCK_SIZE:
                blocks = codec.info_block_size(data)
        raise ProtocolError("it goes on telling about the export without an end")

    def _greeting(self) -> Generator[int | Want, bytes, HandshakeFlag]:
        magic = int.from_bytes((yield 8), "big")
        if magic != nbd.NBDMAGIC:
            raise ProtocolError("it does not greet as an NBD server does: is that the right port?")
        kind = int.from_bytes((yield 8), "big")
        if kind == nbd.CLISERV_MAGIC:
            raise Refused("the NBD server speaks the old handshake, without exports: it has to speak newstyle")
        if kind != nbd.IHAVEOPT:
            raise ProtocolError(f"its greeting is {kind:#018x}")
        flags = HandshakeFlag(int.from_bytes((yield 2), "big") & KNOWN_FLAGS)
        if not flags & HandshakeFlag.FIXED_NEWSTYLE:
            raise Refused("the NBD server is too old: it has to speak fixed newstyle (nbd 3.3, 2013, or later)")
        return flags

    def _start_tls(self) -> Generator[int | Want, bytes, None]:
        kind, data = yield from self._ask(Opt.STARTTLS, b"")
        if kind == Rep.ACK:
            yield Want.TLS
        elif self._tls is Tls.REQUIRE:
            text = printable(data)
            raise Refused(f"the NBD server does not encrypt, and tls=require{': it says ' + text if text else ''}")

    def _context(self) -> Generator[int | Want, bytes, int | None]:
        """Ask for base:allocation; returns its id, None where the server has it not."""
        self._send(Opt.SET_META_CONTEXT, codec.meta_context(self._name, nbd.BASE_ALLOCATION))
        found: int | None = None
        for _ in range(MAX_REPLIES):
            kind, data = yield from self._reply(Opt.SET_META_CONTEXT)
            if kind == Rep.ACK:
                return found
            if kind & nbd.REP_ERROR:
                return None  # what is wrong with the export, NBD_OPT_GO will say
            if kind != Rep.META_CONTEXT:
                raise ProtocolError(f"it answers NBD_OPT_SET_META_CONTEXT with {kind:#x}")
            number, name = codec.context_id(data)
            if name == nbd.BASE_ALLOCATION:
                found = number
        raise ProtocolError("it goes on telling metadata contexts without an end")

    def _export_name(self, flags: HandshakeFlag) -> Generator[int | Want, bytes, tuple[int, ExportFlag]]:
        self._send(Opt.EXPORT_NAME, self._name.encode())
        raw = yield codec.EXPORT_NAME_REPLY.size
        size, export_flags = codec.EXPORT_NAME_REPLY.unpack(raw)
        if not flags & HandshakeFlag.NO_ZEROES:
            yield 124
        return codec.export_size(size), ExportFlag(export_flags)

    def _ask(self, option: Opt, data: bytes) -> Generator[int | Want, bytes, tuple[int, bytes]]:
        """Ask what can only be granted or refused."""
        self._send(option, data)
        kind, answer = yield from self._reply(option)
        if kind != Rep.ACK and not kind & nbd.REP_ERROR:
            raise ProtocolError(f"it answers {option.name} with {kind:#x}")
        return kind, answer

    def _send(self, option: Opt, data: bytes) -> None:
        self._out += codec.option(option, data)

    def _reply(self, option: Opt) -> Generator[int | Want, bytes, tuple[int, bytes]]:
        magic, about, kind, length = codec.OPTION_REPLY.unpack((yield codec.OPTION_REPLY.size))
        if magic != nbd.OPTION_REPLY_MAGIC:
            raise ProtocolError(f"an option reply begins with {magic:#x}")
        if about != option:
            raise ProtocolError(f"it answers option {about} when {int(option)} was asked")
        if length > MAX_REPLY:
            raise ProtocolError(f"an option reply of {length} bytes")
        return kind, ((yield length) if length else b"")

    def _refusal(self, kind: int, data: bytes) -> Exception:
        if not kind & nbd.REP_ERROR:
            return ProtocolError(f"it answers NBD_OPT_GO with {kind:#x}")
        said = printable(data)
        reasons: dict[int, str] = {
            Rep.ERR_UNKNOWN: f"the NBD server has no export {self._name!r}",
            Rep.ERR_TLS_REQD: "the NBD server wants TLS: add tls=require",
            Rep.ERR_POLICY: f"the NBD server does not let us use export {self._name!r}",
            Rep.ERR_SHUTDOWN: "the NBD server is shutting down",
        }
        why = reasons.get(kind, f"the NBD server refuses export {self._name!r} ({kind:#x})")
        return Refused(f"{why}{': it says ' + said if said else ''}")
