"""The kernel's half of TCM-user over anonymous memory: puts entries into the ring, takes the answers back."""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass, field

HEADER = struct.Struct("=IHBB")
MAILBOX_BYTES = 128
DATA_PAGE = 4096
OUT_OF_ORDER, READ_LEN, TMR = 1, 2, 4
FRESH = 0xEE  # what the data area holds before anybody writes it


@dataclass(slots=True)
class Answer:
    """How a command ended: `read_len` where less was read than there was room for."""

    cmd_id: int
    status: int
    sense: bytes
    read_len: int | None
    data: bytes


@dataclass(slots=True)
class Sent:
    """A command in the ring, with where its data lies."""

    cdb: bytes
    iovecs: list[tuple[int, int]]
    writing: bool
    room: int = 0
    pages: list[int] = field(default_factory=list)


class FakeKernel:
    """Behaves as target_core_user.c does: entries are contiguous, a PAD fills the end, slots are freed in order."""

    def __init__(self, ring: int = 4096, pages: int = 64, flags: int = OUT_OF_ORDER | READ_LEN | TMR) -> None:
        self.ring = ring
        self.data_at = MAILBOX_BYTES + ring
        self.pages = pages
        self.memory = mmap.mmap(-1, self.data_at + pages * DATA_PAGE)
        struct.pack_into("=HHII", self.memory, 0, 2, flags, MAILBOX_BYTES, ring)
        self.memory[self.data_at :] = bytes([FRESH]) * (pages * DATA_PAGE)
        self.free = list(range(pages))
        self.sent: dict[int, Sent] = {}
        self.cleaned = 0
        self.bells = 0
        self.answers: list[Answer] = []
        self.unknown: list[int] = []  # offsets of entries whose kind user space did not know

    @property
    def head(self) -> int:
        """Where the next entry will be, from the start of the ring on."""
        return int(struct.unpack_from("=I", self.memory, 12)[0])

    @head.setter
    def head(self, value: int) -> None:
        struct.pack_into("=I", self.memory, 12, value % self.ring)

    @property
    def tail(self) -> int:
        """Before what user space has not answered yet."""
        return int(struct.unpack_from("=I", self.memory, 64)[0])

    def command(
        self, cdb: bytes, *, data: bytes | None = None, room: int = 0, bidi: int = 0, scatter: bool = False
    ) -> int | None:
        """Queue a command that sends `data` or has `room` for an answer; returns its id, None when the ring is full."""
        length = len(data) if data is not None else room
        iovecs, pages = self._allocate(length, scatter)
        in_iovecs, in_pages = self._allocate(bidi, scatter)
        base = max(48 + 16 * (len(iovecs) + len(in_iovecs)), 112)
        entry = self._reserve(base + (len(cdb) + 7) // 8 * 8)
        if entry is None:
            self.free += pages + in_pages
            return None
        cmd_id = next(number for number in range(1, 65536) if number not in self.sent)
        if data is not None:
            at = 0
            for start, size in iovecs:
                self.memory[start : start + size] = data[at : at + size]
                at += size
        size = base + (len(cdb) + 7) // 8 * 8
        self.memory[entry : entry + size] = bytes(size)
        HEADER.pack_into(self.memory, entry, size | 1, cmd_id, 0, 0)
        struct.pack_into("=III4xQ", self.memory, entry + 8, len(iovecs), len(in_iovecs), 0, entry + base)
        for index, pair in enumerate(iovecs + in_iovecs):
            struct.pack_into("=QQ", self.memory, entry + 48 + 16 * index, *pair)
        self.memory[entry + base : entry + base + len(cdb)] = cdb
        self.sent[cmd_id] = Sent(cdb, in_iovecs or iovecs, data is not None and not bidi, room, pages + in_pages)
        self.head += size
        return cmd_id

    def abort(self, kind: int, ids: list[int]) -> None:
        """Queue a task management notification."""
        size = 32 + (len(ids) * 2 + 7) // 8 * 8
        entry = self._reserve(size)
        assert entry is not None
        self.memory[entry : entry + size] = bytes(size)
        HEADER.pack_into(self.memory, entry, size | 2, 0, 0, 0)
        struct.pack_into("=B3xI", self.memory, entry + 8, kind, len(ids))
        struct.pack_into(f"={len(ids)}H", self.memory, entry + 32, *ids)
        self.head += size

    def strange(self, op: int, size: int = 64) -> int:
        """Queue an entry of a kind that nobody knows."""
        entry = self._reserve(size)
        assert entry is not None
        self.memory[entry : entry + size] = bytes(size)
        HEADER.pack_into(self.memory, entry, size | op, 0, 0, 0)
        self.head += size
        return entry

    def bell(self) -> None:
        """Take answers from where we stopped up to the tail; each id must be one that is out."""
        self.bells += 1
        while self.cleaned != self.tail:
            entry = MAILBOX_BYTES + self.cleaned
            len_op, cmd_id, _, flags = HEADER.unpack_from(self.memory, entry)
            if len_op & 7 == 1:
                status, read_len = struct.unpack_from("=B3xI", self.memory, entry + 8)
                sent = self.sent.pop(cmd_id)
                data = b""
                if not sent.writing:
                    data = b"".join(self.memory[start : start + size] for start, size in sent.iovecs)
                valid = read_len if flags & 2 and read_len else None
                if status and valid is None:
                    data = b""
                self.answers.append(Answer(cmd_id, status, self.memory[entry + 16 : entry + 112], valid, data[:valid]))
                for page in sent.pages:
                    self.memory[self.data_at + page * DATA_PAGE : self.data_at + (page + 1) * DATA_PAGE] = (
                        bytes([FRESH]) * DATA_PAGE
                    )
                self.free += sent.pages
            elif flags & 1:
                self.unknown.append(entry)
            self.cleaned = (self.cleaned + (len_op & ~7)) % self.ring

    def answer_of(self, cmd_id: int) -> Answer:
        """Return the latest answer to a command."""
        return next(answer for answer in reversed(self.answers) if answer.cmd_id == cmd_id)

    def _reserve(self, size: int) -> int | None:
        """Return where an entry of `size` bytes may go, with a PAD before it where the end of the ring is too near."""
        to_end = self.ring - self.head
        needed = size if to_end >= size else size + to_end
        used = (self.head - self.cleaned) % self.ring
        if self.ring - used - 1 < needed:
            return None
        if to_end < size:
            HEADER.pack_into(self.memory, MAILBOX_BYTES + self.head, to_end | 0, 0, 0, 0)
            self.head += to_end
        return MAILBOX_BYTES + self.head

    def _allocate(self, length: int, scatter: bool) -> tuple[list[tuple[int, int]], list[int]]:
        count = -(-length // DATA_PAGE)
        pages = [self.free.pop(-1 if scatter else 0) for _ in range(count)]
        iovecs: list[tuple[int, int]] = []
        for index, page in enumerate(pages):
            iovecs.append((self.data_at + page * DATA_PAGE, min(DATA_PAGE, length - index * DATA_PAGE)))
        return iovecs, pages
