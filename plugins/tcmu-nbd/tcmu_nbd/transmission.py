"""A connection after its negotiation, sans I/O: requests become bytes, bytes become finished requests.

Bytes are received where `room` says: into a buffer of this class, or, for the rest of a long payload, straight into
the initiator's own. `received` then returns what has ended. Anything that the protocol does not have is a
`ProtocolError`, after which the connection is of no use: the boundary of the next reply is lost.
"""

from __future__ import annotations

from bisect import bisect

from tcmu_nbd import codec
from tcmu_nbd import constants as nbd
from tcmu_nbd.codec import Export
from tcmu_nbd.constants import Chunk, Cmd
from tcmu_nbd.errors import ProtocolError, from_reply
from tcmu_nbd.request import Request

ROOM = 256 << 10  # bytes that are received at once
DIRECT = 16 << 10  # bytes of a payload from which on they are received where they belong
MAX_STATUS = 16 << 20  # bytes of one block status
MAX_MESSAGE = 64 << 10  # bytes of an error chunk
MAX_PIECES = 1 << 16  # of a read, with gaps in between; those that adjoin are one

_READ, _BLOCK_STATUS, _OFFSET_DATA = Cmd.READ, Cmd.BLOCK_STATUS, int(Chunk.OFFSET_DATA)  # looked up once

Done = list[tuple[Request, OSError | None]]


class Incoming:
    """A payload that is on its way into a request's buffers, or nowhere once the request has been given up."""

    __slots__ = ("at", "left", "request")

    def __init__(self, request: Request, at: int, length: int) -> None:
        self.request = request
        self.at = at  # bytes from the beginning of the request's range
        self.left = length

    def target(self) -> memoryview | None:
        """Return the buffer that takes the next bytes, at most `left` of them; None if nobody wants them."""
        if self.request.buffers is None:
            return None
        at = self.at
        for buffer in self.request.buffers:
            if at < len(buffer):
                return buffer[at : at + self.left]
            at -= len(buffer)
        raise ProtocolError("it sends more data than was asked for")

    def put(self, data: memoryview) -> None:
        """Take bytes that came elsewhere."""
        while data:
            target = self.target()
            size = len(data) if target is None else min(len(target), len(data))
            if target is not None:
                target[:size] = data[:size]
            data = data[size:]
            self.at += size
            self.left -= size


class Reply:
    """What has come of one request's structured reply."""

    __slots__ = ("error", "pieces")

    def __init__(self) -> None:
        self.error: OSError | None = None
        self.pieces: list[tuple[int, int]] = []  # (first byte, length) of what came of the range, in order


class Transmission:
    """The requests under way on one connection."""

    def __init__(self, export: Export) -> None:
        self._export = export
        self._cookie = 0
        self._waiting: dict[int, Request] = {}
        self._replies: dict[int, Reply] = {}
        self._memory = memoryview(bytearray(ROOM))
        self._start = self._end = 0  # what has been received and not yet understood
        self._incoming: Incoming | None = None
        self._ends = 0  # cookie of the reply that ends with the payload on its way; 0 for none
        self._direct = False

    def __len__(self) -> int:
        return len(self._waiting)

    def send(self, request: Request) -> bytes:
        """Return a request's header; its `data` follows. It is waited for from now on."""
        self._cookie = cookie = self._cookie + 1
        if request.runs:  # of an answer that broke off
            request.runs = ()
        self._waiting[cookie] = request
        return codec.request(request.command, cookie, request.offset, request.length, request.flags)

    def room(self) -> memoryview:
        """Return where to receive the next bytes."""
        incoming = self._incoming
        self._direct = False
        if incoming is not None and incoming.left >= DIRECT:
            target = incoming.target()
            if target is not None and len(target) >= DIRECT:
                self._direct = True
                return target
        return self._memory[self._end :]

    def received(self, count: int) -> Done:
        """Take `count` bytes that were put into `room`; returns the requests that ended.

        Raises:
            ProtocolError: the server sent what makes no sense.
        """
        done: Done = []
        if self._direct:
            self._direct = False
            assert self._incoming is not None
            self._incoming.at += count
            self._incoming.left -= count
            if not self._incoming.left:
                self._payload_ended(done)
            return done
        self._end += count
        self._take_whole(done)
        while self._understand(done):
            self._take_whole(done)
        if self._start == self._end:
            self._start = self._end = 0
        elif self._start:
            rest = bytes(self._memory[self._start : self._end])
            self._memory[: len(rest)] = rest
            self._start, self._end = 0, len(rest)
        return done

    def _take_whole(self, done: Done) -> None:
        """Take what most answers to reads are: all of it in one piece that has come whole, for one buffer.

        What is anything else is left to `_understand`, which knows the rest.
        """
        if self._incoming is not None or not self._export.structured:
            return
        memory, start, end, waiting, unpack = (
            self._memory,
            self._start,
            self._end,
            self._waiting,
            codec.DATA.unpack_from,
        )
        while end - start >= codec.DATA.size:
            magic, flags, kind, cookie, length, at = unpack(memory, start)
            if magic != nbd.STRUCTURED_REPLY_MAGIC or kind != _OFFSET_DATA or not flags & nbd.CHUNK_DONE:
                break
            request = waiting.get(cookie)
            if request is None or cookie in self._replies:
                break
            buffers = request.buffers
            data = start + codec.DATA.size
            length -= codec.DATA.size - codec.STRUCTURED.size
            if (
                buffers is None
                or len(buffers) != 1
                or not length == request.length == len(buffers[0])
                or at != request.offset
                or request.command is not _READ
                or end - data < length
            ):
                break
            start = data + length
            buffers[0][:] = memory[data:start]
            del waiting[cookie]
            done.append((request, None))
        self._start = start

    def _understand(self, done: Done) -> bool:
        """Take one piece of what has come; False when more has to come first."""
        here = self._end - self._start
        if self._incoming is not None:
            take = min(here, self._incoming.left)
            self._incoming.put(self._memory[self._start : self._start + take])
            self._start += take
            if self._incoming.left:
                return False
            self._payload_ended(done)
            return True
        if here < codec.SIMPLE.size:
            return False
        magic, code, cookie = codec.SIMPLE.unpack_from(self._memory, self._start)
        if magic == nbd.SIMPLE_REPLY_MAGIC:
            self._start += codec.SIMPLE.size
            self._simple(code, cookie, done)
            return True
        if magic == nbd.STRUCTURED_REPLY_MAGIC and self._export.structured:
            return here >= codec.STRUCTURED.size and self._chunk(here, done)
        raise ProtocolError(f"a reply begins with {magic:#010x}")

    def _simple(self, code: int, cookie: int, done: Done) -> None:
        request = self._request(cookie)
        if cookie in self._replies:
            raise ProtocolError("a simple reply within a structured one")
        if code:
            del self._waiting[cookie]
            done.append((request, from_reply(code)))
        elif request.command is _READ:
            if self._export.structured:
                raise ProtocolError("a simple reply to a read after structured replies were agreed on")
            self._incoming = Incoming(request, 0, request.length)
            self._ends = cookie
            self._replies[cookie] = reply = Reply()
            reply.pieces.append((0, request.length))
        elif request.command is _BLOCK_STATUS:
            raise ProtocolError("a block status without any")
        else:
            del self._waiting[cookie]
            done.append((request, None))

    def _chunk(self, here: int, done: Done) -> bool:
        _, flags, kind, cookie, length = codec.STRUCTURED.unpack_from(self._memory, self._start)
        request = self._request(cookie)
        if kind == _OFFSET_DATA:
            if here < codec.STRUCTURED.size + 8:
                return False
            at = int.from_bytes(self._memory[self._start + 20 : self._start + 28], "big")
            self._start += codec.STRUCTURED.size + 8
            self._piece(request, cookie, at, length - 8)
            self._incoming = Incoming(request, at - request.offset, length - 8)
            self._ends = cookie if flags & nbd.CHUNK_DONE else 0
            return True
        most = MAX_STATUS if kind == Chunk.BLOCK_STATUS else MAX_MESSAGE
        if length > most:
            raise ProtocolError(f"a chunk of type {kind:#x} with {length} bytes")
        whole = codec.STRUCTURED.size + length
        if here < whole:
            self._grow(whole)
            return False
        payload = bytes(self._memory[self._start + codec.STRUCTURED.size : self._start + whole])
        self._start += whole
        self._small(request, cookie, kind, payload)
        if flags & nbd.CHUNK_DONE:
            self._end_reply(cookie, done)
        return True

    def _small(self, request: Request, cookie: int, kind: int, payload: bytes) -> None:
        """Take a chunk that has come whole."""
        if kind & nbd.CHUNK_ERROR:
            reply = self._replies.setdefault(cookie, Reply())
            reply.error = reply.error or codec.error(kind, payload)
        elif kind == Chunk.NONE:
            if payload:
                raise ProtocolError("a chunk of no type with something in it")
        elif kind == Chunk.OFFSET_HOLE:
            at, length = codec.hole(payload)
            self._piece(request, cookie, at, length)
            incoming = Incoming(request, at - request.offset, length)
            while incoming.left and (target := incoming.target()) is not None:
                target[:] = bytes(len(target))
                incoming.at += len(target)
                incoming.left -= len(target)
        elif kind == Chunk.BLOCK_STATUS:
            context, runs = codec.block_status(payload)
            if request.command is not Cmd.BLOCK_STATUS or context != self._export.context or request.runs:
                raise ProtocolError("a block status that was not asked for")
            request.runs = runs
        else:
            raise ProtocolError(f"a chunk of type {kind:#x}")

    def _piece(self, request: Request, cookie: int, at: int, length: int) -> None:
        """Note that a piece of a read comes; raises unless it lies in the range and is new."""
        first = at - request.offset
        if request.command is not Cmd.READ or length <= 0 or first < 0 or first + length > request.length:
            raise ProtocolError(f"{length} bytes from {at}, in answer to {request!r}")
        reply = self._replies.setdefault(cookie, Reply())
        pieces = reply.pieces
        where = bisect(pieces, (first, 0))
        if (where and sum(pieces[where - 1]) > first) or (where < len(pieces) and pieces[where][0] < first + length):
            raise ProtocolError("a piece of data comes twice")
        if where and sum(pieces[where - 1]) == first:
            first, length = pieces[where - 1][0], pieces[where - 1][1] + length
            del pieces[where - 1]
            where -= 1
        if where < len(pieces) and first + length == pieces[where][0]:
            length += pieces.pop(where)[1]
        if len(pieces) >= MAX_PIECES:
            raise ProtocolError(f"an answer in more than {MAX_PIECES} pieces")
        pieces.insert(where, (first, length))

    def _payload_ended(self, done: Done) -> None:
        self._incoming = None
        if self._ends:
            self._end_reply(self._ends, done)

    def _end_reply(self, cookie: int, done: Done) -> None:
        request = self._waiting.pop(cookie)
        reply = self._replies.pop(cookie, None) or Reply()
        if reply.error is None:
            if request.command is Cmd.READ and sum(size for _, size in reply.pieces) != request.length:
                raise ProtocolError("an answer to a read with something missing")
            if request.command is Cmd.BLOCK_STATUS and not request.runs:
                raise ProtocolError("a block status without any")
        done.append((request, reply.error))

    def _request(self, cookie: int) -> Request:
        request = self._waiting.get(cookie)
        if request is None:
            raise ProtocolError("a reply to nothing that was asked")
        return request

    def _grow(self, whole: int) -> None:
        """Make room for a chunk that must come whole."""
        if whole > len(self._memory):
            larger = memoryview(bytearray(whole + ROOM))
            larger[: self._end - self._start] = self._memory[self._start : self._end]
            self._start, self._end = 0, self._end - self._start
            self._memory = larger
