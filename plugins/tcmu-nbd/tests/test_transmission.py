"""Replies of a server that is played: whole, byte by byte, in any cutting; and replies that make no sense."""

from __future__ import annotations

import itertools
import random
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcmu_nbd import transmission as transmission_module
from tcmu_nbd.codec import Export
from tcmu_nbd.constants import Chunk, Cmd, ExportFlag
from tcmu_nbd.errors import ProtocolError
from tcmu_nbd.request import Request
from tcmu_nbd.transmission import Done, Transmission

CONTEXT = 3
STRUCTURED = Export(1 << 30, ExportFlag.HAS_FLAGS, structured=True, context=CONTEXT)
SIMPLE = Export(1 << 30, ExportFlag.HAS_FLAGS)
OFFSET = 4096
LENGTH = 1024


def simple(cookie: int, error: int = 0, data: bytes = b"") -> bytes:
    return struct.pack(">IIQ", 0x67446698, error, cookie) + data


def chunk(kind: int, payload: bytes = b"", *, cookie: int = 1, done: bool = True) -> bytes:
    return struct.pack(">IHHQI", 0x668E33EF, done, kind, cookie, len(payload)) + payload


def data(offset: int, content: bytes, *, cookie: int = 1, done: bool = True) -> bytes:
    return chunk(Chunk.OFFSET_DATA, offset.to_bytes(8, "big") + content, cookie=cookie, done=done)


def hole(offset: int, length: int, *, cookie: int = 1, done: bool = True) -> bytes:
    return chunk(Chunk.OFFSET_HOLE, struct.pack(">QI", offset, length), cookie=cookie, done=done)


def failure(code: int, text: str = "", *, done: bool = True, kind: int = Chunk.ERROR, more: bytes = b"") -> bytes:
    return chunk(kind, struct.pack(">IH", code, len(text)) + text.encode() + more, done=done)


def status(*runs: tuple[int, int], context: int = CONTEXT, done: bool = True) -> bytes:
    body = context.to_bytes(4, "big") + b"".join(struct.pack(">II", *run) for run in runs)
    return chunk(Chunk.BLOCK_STATUS, body, done=done)


def reading(length: int = LENGTH, parts: tuple[int, ...] = ()) -> tuple[Request, bytearray]:
    """Return a read and the memory behind its buffers, which are cut as told."""
    memory = bytearray(b"\xee" * length)
    view, buffers = memoryview(memory), []
    for part in parts:
        buffers.append(view[:part])
        view = view[part:]
    return Request(Cmd.READ, OFFSET, length, buffers=[*buffers, view]), memory


def feed(transmission: Transmission, said: bytes, step: int = 0) -> Done:
    done: Done = []
    while said:
        room = transmission.room()
        count = min(len(room), len(said), step or len(said))
        room[:count] = said[:count]
        said = said[count:]
        done += transmission.received(count)
    return done


CONTENT = random.Random(1).randbytes(LENGTH)
HALF = LENGTH // 2
READS = {
    "simple": (SIMPLE, simple(1, data=CONTENT), CONTENT),
    "one chunk": (STRUCTURED, data(OFFSET, CONTENT), CONTENT),
    "two chunks, the last first": (
        STRUCTURED,
        data(OFFSET + HALF, CONTENT[HALF:], done=False) + data(OFFSET, CONTENT[:HALF]),
        CONTENT,
    ),
    "a hole": (STRUCTURED, hole(OFFSET, LENGTH), bytes(LENGTH)),
    "data, a hole, and an end of its own": (
        STRUCTURED,
        data(OFFSET, CONTENT[:HALF], done=False) + hole(OFFSET + HALF, HALF, done=False) + chunk(Chunk.NONE),
        CONTENT[:HALF] + bytes(HALF),
    ),
}
SENSELESS = {
    "another magic": b"\0" * 16,
    "a reply to nothing": simple(9),
    "a simple reply after structured ones were agreed on": simple(1, data=CONTENT),
    "data before the range": data(OFFSET - 1, CONTENT),
    "data behind the range": data(OFFSET + 1, CONTENT),
    "more data than was asked for": data(OFFSET, CONTENT + b"x"),
    "no data": data(OFFSET, b""),
    "a chunk too short for its offset": chunk(Chunk.OFFSET_DATA, bytes(4)) + bytes(8),
    "data twice": data(OFFSET, CONTENT[:HALF], done=False) + data(OFFSET, CONTENT[:HALF]),
    "a half, and then all of it": data(OFFSET, CONTENT[:HALF], done=False) + data(OFFSET, CONTENT),
    "data that overlaps": data(OFFSET, CONTENT[:HALF], done=False) + data(OFFSET + HALF - 1, CONTENT[:HALF]),
    "something missing": data(OFFSET, CONTENT[:HALF]),
    "nothing at all": chunk(Chunk.NONE),
    "an end with something in it": chunk(Chunk.NONE, b"x"),
    "a hole of nothing": hole(OFFSET, 0),
    "a hole too short": chunk(Chunk.OFFSET_HOLE, bytes(11)),
    "a block status for a read": status((512, 0)),
    "a type that is not known": chunk(0x77),
    "an error without one": failure(0),
    "an error message longer than its chunk": chunk(Chunk.ERROR, struct.pack(">IH", 5, 100)),
    "an error chunk too short": chunk(Chunk.ERROR, b"\0\0"),
    "an error chunk without an end": struct.pack(">IHHQI", 0x668E33EF, 1, Chunk.ERROR, 1, 1 << 31),
}
STATUSES = {
    "none": chunk(Chunk.NONE),
    "no runs": status(),
    "an empty run": status((0, 0)),
    "another context": status((512, 0), context=4),
    "twice": status((512, 0), done=False) + status((512, 0)),
    "half a run": chunk(Chunk.BLOCK_STATUS, bytes(10)),
    "too many": struct.pack(">IHHQI", 0x668E33EF, 1, Chunk.BLOCK_STATUS, 1, 1 << 31),
}


@pytest.mark.parametrize("parts", [(), (1,), (500, 24), (512, 511)], ids=str)
@pytest.mark.parametrize("step", [0, 1, 13])
@pytest.mark.parametrize(("export", "said", "content"), READS.values(), ids=READS)
def test_a_read_is_filled(export: Export, said: bytes, content: bytes, step: int, parts: tuple[int, ...]) -> None:
    transmission = Transmission(export)
    request, memory = reading(parts=parts)
    transmission.send(request)
    assert feed(transmission, said, step) == [(request, None)]
    assert memory == content
    assert not len(transmission)


@pytest.mark.parametrize("step", [0, 1 << 16])
def test_a_long_read_is_received_where_it_belongs(step: int) -> None:
    transmission = Transmission(STRUCTURED)
    content = random.Random(2).randbytes(1 << 20)
    first, memory = reading(len(content), (100_000, 1))
    second, rest = reading()
    transmission.send(first)
    transmission.send(second)
    said = data(OFFSET, content) + data(OFFSET, CONTENT, cookie=2)
    assert feed(transmission, said, step) == [(first, None), (second, None)]
    assert memory == content
    assert rest == CONTENT


def test_answers_come_in_any_order() -> None:
    transmission = Transmission(STRUCTURED)
    reads = [reading() for _ in range(3)]
    for request, _ in reads:
        transmission.send(request)
    said = b"".join(data(OFFSET, bytes([cookie]) * LENGTH, cookie=cookie) for cookie in (3, 1, 2))
    assert [request for request, _ in feed(transmission, said, 100)] == [reads[2][0], reads[0][0], reads[1][0]]
    assert [memory[0] for _, memory in reads] == [1, 2, 3]


@pytest.mark.parametrize("export", [SIMPLE, STRUCTURED])
def test_a_write_is_a_header_and_its_answer_a_simple_one(export: Export) -> None:
    transmission = Transmission(export)
    request = Request(Cmd.WRITE, OFFSET, 3, 1, data=b"abc")
    assert transmission.send(request) == struct.pack(">IHHQQI", 0x25609513, 1, 1, 1, OFFSET, 3)
    assert feed(transmission, simple(1)) == [(request, None)]


@pytest.mark.parametrize(
    ("export", "said", "number", "text"),
    [
        (SIMPLE, simple(1, 5), 5, "input/output error"),
        (SIMPLE, simple(1, 28), 28, "no space left"),
        (SIMPLE, simple(1, 4711), 22, "invalid request"),
        (STRUCTURED, failure(5, "bad sector"), 5, "bad sector"),
        (STRUCTURED, failure(5, "a\nb", done=False) + failure(28), 5, "a b"),
        (STRUCTURED, data(OFFSET, CONTENT, done=False) + failure(5), 5, "input/output error"),
        (STRUCTURED, failure(12, kind=Chunk.ERROR_OFFSET, more=bytes(8)), 12, "out of memory"),
        (STRUCTURED, failure(1, kind=0x8077, more=b"?"), 1, "not permitted"),
    ],
)
def test_an_error_is_the_requests_alone(export: Export, said: bytes, number: int, text: str) -> None:
    transmission = Transmission(export)
    request, _ = reading()
    transmission.send(request)
    [(ended, error)] = feed(transmission, said, 5)
    assert ended is request
    assert error is not None
    assert error.errno == number
    assert text in str(error)
    again, memory = reading()
    transmission.send(again)
    answer = data(OFFSET, CONTENT, cookie=2) if export.structured else simple(2, data=CONTENT)
    assert feed(transmission, answer) == [(again, None)]
    assert memory == CONTENT


def test_a_block_status_tells_runs_and_may_be_larger_than_the_buffer() -> None:
    transmission = Transmission(STRUCTURED)
    request = Request(Cmd.BLOCK_STATUS, 0, 1 << 30)
    transmission.send(request)
    runs = [(512, number & 3) for number in range(100_000)]
    assert feed(transmission, status(*runs), 60_000) == [(request, None)]
    assert request.runs == runs


@pytest.mark.parametrize("said", SENSELESS.values(), ids=SENSELESS)
@pytest.mark.parametrize("step", [0, 1])
def test_what_makes_no_sense_ends_the_connection(said: bytes, step: int) -> None:
    transmission = Transmission(STRUCTURED)
    transmission.send(reading()[0])
    with pytest.raises(ProtocolError):
        feed(transmission, said, step)


@pytest.mark.parametrize("said", STATUSES.values(), ids=STATUSES)
def test_a_block_status_that_makes_no_sense_does_too(said: bytes) -> None:
    transmission = Transmission(STRUCTURED)
    transmission.send(Request(Cmd.BLOCK_STATUS, 0, 4096))
    with pytest.raises(ProtocolError):
        feed(transmission, said)


@pytest.mark.parametrize("when", ["before", "within", "directly"])
def test_an_answer_that_nobody_waits_for_any_more_is_written_nowhere(when: str) -> None:
    transmission = Transmission(STRUCTURED)
    request, memory = reading(1 << 20)
    transmission.send(request)
    said = data(OFFSET, bytes(1 << 20))
    cut = {"before": 0, "within": 28, "directly": 100_000}[when]
    feed(transmission, said[:cut])
    request.fail(OSError("too late"))
    memory[:] = b"\xaa" * len(memory)
    assert feed(transmission, said[cut:]) == [(request, None)]
    assert memory == b"\xaa" * len(memory)


PIECES = [simple(1), simple(1, 5), simple(2), data(OFFSET, CONTENT), data(OFFSET, CONTENT[:HALF], done=False)]
PIECES += [hole(OFFSET + HALF, HALF), hole(OFFSET, HALF, done=False), failure(5, done=False), chunk(Chunk.NONE)]
PIECES += [status((512, 0)), status((512, 0), context=1), data(OFFSET, CONTENT, cookie=2)]


@given(st.lists(st.one_of(st.sampled_from(PIECES), st.binary(max_size=64)), max_size=10), st.integers(0, 50))
def test_whatever_comes_a_request_ends_at_most_once_or_the_connection_does(said: list[bytes], step: int) -> None:
    transmission = Transmission(STRUCTURED)
    request, memory = reading()
    transmission.send(request)
    transmission.send(Request(Cmd.BLOCK_STATUS, 0, 4096))
    try:
        done = feed(transmission, b"".join(said), step)
    except ProtocolError:
        return
    ended = [each for each, _ in done]
    assert len(ended) == len(set(map(id, ended)))
    if (request, None) in done:
        assert b"\xee" * HALF not in memory


@given(st.data())
def test_any_cutting_of_right_answers_fills_all_reads(draw: st.DataObject) -> None:
    transmission = Transmission(STRUCTURED)
    chance = random.Random(draw.draw(st.integers(0, 1 << 32)))
    reads = [reading(chance.randrange(1, 60_000), (chance.randrange(1, 100),)) for _ in range(4)]
    said = []
    contents = []
    for cookie, (request, _) in enumerate(reads, 1):
        transmission.send(request)
        content = bytearray(chance.randbytes(request.length))
        cuts = sorted({0, request.length, *(chance.randrange(request.length) for _ in range(chance.randrange(4)))})
        pieces = list(itertools.pairwise(cuts))
        chance.shuffle(pieces)
        for number, (begin, end) in enumerate(pieces, 1):
            done = number == len(pieces)
            if chance.random() < 0.3:
                content[begin:end] = bytes(end - begin)
                said.append(hole(OFFSET + begin, end - begin, cookie=cookie, done=done))
            else:
                said.append(data(OFFSET + begin, content[begin:end], cookie=cookie, done=done))
        contents.append(bytes(content))
    ended = feed(transmission, b"".join(said), draw.draw(st.sampled_from([0, 1000, 16385, 70_000])))
    assert ended == [(request, None) for request, _ in reads]
    assert [bytes(memory) for _, memory in reads] == contents


def test_a_read_in_many_pieces_is_kept_as_few_and_one_of_too_many_ends_the_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(transmission_module, "MAX_PIECES", 8)
    length = 1000
    content = random.Random(1).randbytes(length)
    for step in (1, -1):  # each piece adjoins the one before, or the one behind
        transmission = Transmission(STRUCTURED)
        request, memory = reading(length)
        transmission.send(request)
        places = list(range(0, length, 10))[::step]
        said = b"".join(data(OFFSET + at, content[at : at + 10], done=at == places[-1]) for at in places)
        assert feed(transmission, said, 100) == [(request, None)]
        assert memory == content
    transmission = Transmission(STRUCTURED)
    transmission.send(reading(length)[0])
    with pytest.raises(ProtocolError, match="more than 8 pieces"):
        feed(transmission, b"".join(data(OFFSET + at, b"x", done=False) for at in range(0, length, 2)))
