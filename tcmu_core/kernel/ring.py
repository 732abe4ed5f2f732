"""The ring: takes commands from the memory that the kernel shares, gives their status back.

The kernel appends entries at the head; `process` takes them, and what has ended is answered at the tail. Where
the kernel offers out-of-order completion an answer goes into the oldest slot, whichever command that slot brought;
elsewhere each goes into its own and the tail follows when its turn comes. An answer is published (the tail moves) at
once, the doorbell rings once per batch: what a dying process had answered, the kernel still finds.

Only the mailbox, the ring and the ranges of iovecs are ever touched: the data area has holes that kill by SIGBUS.
"""

from __future__ import annotations

import logging
import mmap
import platform
import struct
import threading
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from tcmu_core.errors import TcmuError
from tcmu_core.kernel import abi
from tcmu_core.kernel.abi import Capability, EntryOp, TmrType, UserFlag
from tcmu_core.kernel.watch import Watch
from tcmu_core.scsi.command import Command, Nexus, Status
from tcmu_core.scsi.hot import PASS, Fast, Over
from tcmu_core.scsi.tally import Tally, Uncounted

log = logging.getLogger("tcmu.ring")

# Completing a command makes the kernel copy its data, inside the doorbell. After so many bytes it rings before the
# batch is over, so that the initiator goes on while we work on the rest.
RING_AFTER = 128 << 10
# Initiators that are quick enough keep the ring from ever being empty. After so many commands others have their turn:
# what ended on another thread, timers, the supervisor.
TURN = 64

_TOTAL_STORE_ORDER = platform.machine() in ("x86_64", "i686", "AMD64", "s390x")
_RESETS = (TmrType.LUN_RESET, TmrType.TARGET_WARM_RESET, TmrType.TARGET_COLD_RESET)
_UNKNOWN_OP = bytes([UserFlag.UNKNOWN_OP])


class RingError(TcmuError):
    """The shared memory does not hold what the kernel's interface promises."""


class Unit(Protocol):
    """What the ring needs of the engine."""

    @property
    def fast(self) -> Mapping[int, Fast]:
        """The paths, by operation code, of commands that may end without a Command being made for them."""

    def execute(self, command: Command, /) -> bool:
        """Run a command; False when `command.done` will be called."""

    def proceed(self, command: Command, result: Any, /) -> bool:
        """Go on with a command whose fast path returned or raised `result`; returns what `execute` does."""

    def abort(self, command: Command, then: Callable[[], object], /) -> None:
        """Abort a command."""

    def reset(self, nexus: Nexus | None, then: Callable[[], object], /) -> None:
        """Reset the unit."""

    def count(self, over: Over | None, /) -> None:
        """Have what `over` makes of the fast paths stand in for them; None: no more."""


class Ring:
    """One device's ring in `memory`, which holds the mailbox, the entries and the data area.

    `doorbell()` tells the kernel that the tail moved; `post` calls a function soon, on the loop's thread.
    """

    def __init__(
        self,
        memory: mmap.mmap,
        unit: Unit,
        nexus: Nexus,
        *,
        post: Callable[..., None],
        doorbell: Callable[[], object],
    ) -> None:
        version, flags, start, size = abi.MAILBOX.unpack_from(memory, 0)
        if version != abi.MAILBOX_VERSION:
            raise RingError(f"the mailbox has version {version}; only version {abi.MAILBOX_VERSION} is understood")
        if start % 8 or size % 8 or not abi.MAILBOX_SIZE <= start < start + size <= len(memory):
            raise RingError(f"a ring of {size} bytes at {start} does not fit into {len(memory)} bytes")
        self.capabilities = Capability(flags)
        self.commands = 0  # taken since the start
        self.in_flight: dict[int, Command] = {}  # those for which execute returned False, by cmd_id
        self._memory = memory
        self._view = memoryview(memory)
        self._words = self._view[: start + size].cast("I")
        self._start = start
        self._size = size
        self._unit = unit
        self._nexus = nexus
        self._post = post
        # These three are others while somebody looks at the counters.
        self._doorbell = self._bell = doorbell
        self._proceed = unit.proceed
        self._finished: Callable[[Command], None] = self._end
        self._watch: Watch | None = None
        self._head_word = abi.CMD_HEAD // 4
        self._tail_word = abi.CMD_TAIL // 4
        self._at = self._tail = self._words[self._tail_word]  # the next entry to take; the oldest slot not given back
        self._bell_is_posted = False
        self._in_order = not self.capabilities & Capability.OUT_OF_ORDER
        self._answered_slots: set[int] = set()  # in order only: slots with an answer, before which others have none
        self._slot_of: dict[Command, int] = {}  # in order only
        # A lock handed over and taken again keeps loads and stores from crossing, where the processor might let them.
        self._lock = threading.Lock()
        self._lock.acquire()

    @property
    def pending(self) -> bool:
        """Whether the ring has entries that were not taken."""
        return self._words[self._head_word] != self._at

    def process(self) -> None:
        """Take the commands that are in the ring and answer those that end at once.

        It may leave some that come meanwhile: the kernel sends an event for each.
        """
        memory, view, words = self._memory, self._view, self._words
        start, size = self._start, self._size
        head_word, tail_word = self._head_word, self._tail_word
        unpack, respond = abi.REQUEST.unpack_from, abi.RESPONSE.pack_into
        unit, attentions = self._unit, self._nexus.attentions
        tso, in_order = _TOTAL_STORE_ORDER, self._in_order
        len_mask, op_mask = abi.LEN_MASK, abi.OP_MASK
        taken = answered = silent = 0
        watch = self._watch
        if watch is not None:
            watch.begin()
        while True:
            head = words[head_word]
            if self._at == head or taken >= TURN:
                if not silent:
                    break
                self._doorbell()
                silent = 0
                continue
            if not tso:
                self._fence()
            while self._at != head:
                at = self._at
                entry = start + at
                len_op = words[entry >> 2]
                end = entry + (len_op & len_mask)
                following = end - start
                self._at = following if following != size else 0
                if len_op & op_mask != 1:
                    self._other(entry, end, len_op)
                    silent = 1
                    continue
                taken += 1
                cmd_id, iov_cnt, bidi_cnt, cdb, base, length = unpack(memory, entry)
                if iov_cnt == 1:
                    buffers = [view[base : base + length]]
                elif iov_cnt:
                    buffers = self._gather(entry + abi.IOVEC, iov_cnt)
                    length = sum(map(len, buffers))
                else:
                    buffers = []
                    length = 0
                result: Any = PASS
                fast = unit.fast.get(memory[cdb])
                if fast is not None and not (bidi_cnt or attentions or in_order):
                    try:
                        result = fast(memory, cdb, length, buffers)
                    except BaseException as error:  # whatever a hook raises is this command's alone
                        result = error
                if result is not None:
                    # The entry does not say how long the CDB is: all that there is of it, padded to a multiple of 8.
                    command = Command(memory[cdb:end], buffers, length, self._nexus, self._finished, cmd_id)
                    if bidi_cnt:
                        command.context = self._bidi(entry + abi.IOVEC + iov_cnt * 16, bidi_cnt)
                    if in_order:
                        self._slot_of[command] = entry
                    if self._proceed(command, result):
                        self._answer(command)
                        silent += 1
                    else:
                        self.in_flight[cmd_id] = command
                    continue
                if self._tail == at:  # nothing older is in flight: the slot is its own, id and flags are right
                    words[(entry >> 2) + 2] = 0
                    tail = self._at
                else:
                    slot = start + self._tail
                    len_op = words[slot >> 2]
                    while len_op & op_mask != 1:
                        slot = self._skip(slot, len_op)
                        len_op = words[slot >> 2]
                    respond(memory, slot + 4, cmd_id, 0, 0, 0, 0)
                    tail = slot + (len_op & len_mask) - start
                    if tail == size:
                        tail = 0
                if not tso:
                    self._fence()
                self._tail = words[tail_word] = tail
                silent += 1
                answered += length
                if answered >= RING_AFTER:
                    self._doorbell()
                    answered = silent = 0
        self.commands += taken
        if watch is not None:
            watch.end()

    def answer_now(self) -> None:
        """Ring the doorbell for what has been answered."""
        self._bell_is_posted = False
        self._doorbell()

    def watch(self, tally: Tally | None) -> None:
        """Count in `tally` what passes from now on, and time some of it; None: no more.

        It is not to be called while commands are processed.
        """
        if tally is None:
            self._watch = None
            self._proceed, self._finished, self._doorbell = self._unit.proceed, self._end, self._bell
            self._unit.count(None)
            self._nexus.tally, self._nexus.outgoing = Uncounted(), None
            return
        watch = self._watch = Watch(tally, self._unit.proceed, self._end, self._bell)
        self._proceed, self._finished, self._doorbell = watch.proceed, watch.finished, watch.doorbell
        self._unit.count(watch.over)
        self._nexus.tally, self._nexus.outgoing = tally, watch.follow

    # -- taking -----------------------------------------------------------------------------------------------------

    def _gather(self, at: int, count: int) -> list[memoryview]:
        """Return views of `count` iovecs; those that adjoin become one."""
        view = self._view
        result = []
        first = last = -1
        for base, length in abi.IOVEC_PAIR.iter_unpack(view[at : at + count * 16]):
            if base != last:
                if last >= 0:
                    result.append(view[first:last])
                first = base
            last = base + length
        result.append(view[first:last])
        return result

    def _bidi(self, at: int, count: int) -> list[memoryview]:
        """Return the room for a bidirectional command's data-in, cleared: it goes out whether it is filled or not."""
        room = self._gather(at, count)
        for part in room:
            part[:] = bytes(len(part))
        return room

    def _other(self, entry: int, end: int, len_op: int) -> None:
        """Take an entry that is no command; its slot is given back when the tail comes to it."""
        op = len_op & abi.OP_MASK
        if end <= entry or end > self._start + self._size:
            raise RingError(f"an entry at {entry} says that it ends at {end}")
        if op == EntryOp.TMR:
            kind, count = abi.TMR.unpack_from(self._memory, entry)
            count = min(count, (end - entry - abi.TMR_IDS) // 2)
            ids = struct.unpack_from(f"={count}H", self._memory, entry + abi.TMR_IDS)
            self._manage(kind, ids)
        elif op != EntryOp.PAD:
            self._memory[entry + abi.UFLAGS : entry + abi.UFLAGS + 1] = _UNKNOWN_OP
            log.warning("the kernel sent an entry of the unknown kind %d", op)
        if self._tail == entry - self._start:
            self._give_back()

    def _manage(self, kind: int, ids: tuple[int, ...]) -> None:
        """Abort what the kernel's task management aborts; each command ends all the same, and gives its slot back."""
        name = TmrType(kind).name if kind in TmrType.__members__.values() else str(kind)
        log.info("the kernel says %s of commands %s", name, list(ids))
        if kind in _RESETS:
            self._unit.reset(self._nexus, _nothing)
            return
        for cmd_id in ids:
            command = self.in_flight.get(cmd_id)
            if command is not None:
                self._unit.abort(command, _nothing)

    # -- answering --------------------------------------------------------------------------------------------------

    def _end(self, command: Command) -> None:
        """Answer a command that did not end inside execute; the doorbell follows when others had their chance."""
        self.in_flight.pop(command.tag, None)
        self._answer(command)
        if not self._bell_is_posted:
            self._bell_is_posted = True
            self._post(self.answer_now)

    def _answer(self, command: Command) -> None:
        """Put any status, with sense data and residual, into a slot and move the tail."""
        memory, words = self._memory, self._words
        if self._in_order:
            slot = self._slot_of.pop(command)
        else:
            slot = self._start + self._tail
            len_op = words[slot >> 2]
            while len_op & abi.OP_MASK != EntryOp.CMD:
                slot = self._skip(slot, len_op)
                len_op = words[slot >> 2]
        flags = read_len = 0
        status = Status.TASK_ABORTED if command.aborted else command.status
        moved = command.transferred
        if status == Status.CHECK_CONDITION:
            if moved and _is_only_a_remark(command.sense):
                flags, read_len = UserFlag.READ_LEN, moved
        elif status == Status.GOOD and moved < command.length:
            if moved and self.capabilities & Capability.READ_LEN:
                flags, read_len = UserFlag.READ_LEN, moved
            else:
                _clear(command.buffers, moved)  # the kernel takes all of it: not another command's remains
        abi.RESPONSE.pack_into(memory, slot + abi.RESPONSE_AT, command.tag, 0, flags, status, read_len)
        if status == Status.CHECK_CONDITION:
            sense = command.sense[: abi.SENSE_SIZE]
            memory[slot + abi.SENSE : slot + abi.SENSE + abi.SENSE_SIZE] = sense.ljust(abi.SENSE_SIZE, b"\0")
        if self._in_order:
            self._answered_slots.add(slot)
        else:
            tail = slot + (words[slot >> 2] & abi.LEN_MASK) - self._start
            self._tail = tail if tail != self._size else 0
        self._give_back()

    def _give_back(self) -> None:
        """Move the tail over what needs no answer, and over slots that have theirs, and publish it."""
        words = self._words
        while self._tail != self._at:
            slot = self._start + self._tail
            len_op = words[slot >> 2]
            if len_op & abi.OP_MASK == EntryOp.CMD:
                if slot not in self._answered_slots:
                    break
                self._answered_slots.remove(slot)
            tail = self._tail + (len_op & abi.LEN_MASK)
            self._tail = tail if tail != self._size else 0
        if not _TOTAL_STORE_ORDER:
            self._fence()
        words[self._tail_word] = self._tail

    def _skip(self, slot: int, len_op: int) -> int:
        following = slot + (len_op & abi.LEN_MASK)
        return following if following != self._start + self._size else self._start

    def _fence(self) -> None:
        self._lock.release()
        self._lock.acquire()


def _is_only_a_remark(sense: bytes) -> bool:
    """Return whether the sense key is NO SENSE or RECOVERED ERROR (SPC-4 4.5): the data that came along is good."""
    key = sense[1 if sense[0] & 0x7E == 0x72 else 2] & 0xF if len(sense) > 2 else 0xF
    return key <= 1


def _clear(buffers: list[memoryview], start: int) -> None:
    for part in buffers:
        if start < len(part):
            part[start:] = bytes(len(part) - start)
        start = max(0, start - len(part))


def _nothing(*_: Any) -> None:
    pass
