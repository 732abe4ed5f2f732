"""A session in full-feature phase (RFC 7143): what it knows, its state, and its numbered replies; no socket.

The state says who may do what next. `pump.Pump` takes requests while it is PUMPING; a command that ends meanwhile waits
in `finished`, because the pump holds the outbox's cursor. A session that ended during the pump is LEAVING until the
pump returns, then ENDED: its connection closes once the output is sent. Nothing leaves CLOSED.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from enum import IntEnum
from functools import partial

from tcmu_core.iscsi import pdu as p
from tcmu_core.iscsi.buffers import Inbox, Outbox
from tcmu_core.iscsi.constants import BHS, SERIAL, AsyncEvent, RejectReason
from tcmu_core.iscsi.held import Held
from tcmu_core.iscsi.login import Outcome
from tcmu_core.iscsi.pending import Task
from tcmu_core.iscsi.settings import Limits, PortalSettings
from tcmu_core.iscsi.transfer import Transfer
from tcmu_core.scsi.sampling import Sampler
from tcmu_core.scsi.target import ITNexus, Target

Listing = Callable[[str], Iterable[tuple[str, Iterable[str]]]]  # targets and addresses that an initiator may see


class State(IntEnum):
    """What a session is doing."""

    WAITING = 0  # for input, or for commands to end
    STALLED = 1  # input waits until output is sent, or a command has ended
    PUMPING = 2  # the pump is taking requests
    LEAVING = 3  # ... and has taken the last one
    ENDED = 4  # the connection closes when the output is sent
    CLOSED = 5  # it has left its target


class Event(IntEnum):
    """What moves a session from one state to another."""

    PUMP = 0  # the pump begins
    REST = 1  # it has taken all that there was
    STALL = 2  # it has left something
    END = 3  # logout, a broken protocol, or the portal wants it so
    CLOSE = 4  # the connection is gone


MOVES: dict[Event, dict[State, State]] = {
    Event.PUMP: {State.WAITING: State.PUMPING, State.STALLED: State.PUMPING},
    Event.REST: {State.PUMPING: State.WAITING, State.LEAVING: State.ENDED, State.CLOSED: State.CLOSED},
    Event.STALL: {
        State.WAITING: State.STALLED,
        State.STALLED: State.STALLED,
        State.PUMPING: State.STALLED,
        State.LEAVING: State.ENDED,
        State.CLOSED: State.CLOSED,
    },
    Event.END: {
        State.WAITING: State.ENDED,
        State.STALLED: State.ENDED,
        State.PUMPING: State.LEAVING,
        State.LEAVING: State.LEAVING,
        State.ENDED: State.ENDED,
        State.CLOSED: State.CLOSED,
    },
    Event.CLOSE: dict.fromkeys(State, State.CLOSED),
}


class Life(IntEnum):
    """What is known of a peer's being there."""

    HEARD = 0  # since the last look
    SILENT = 1
    ASKED = 2  # a ping waits for its answer


@dataclass(frozen=True, slots=True)
class Attachment:
    """The target that a normal session is connected to."""

    target: Target
    it: ITNexus


class Session:
    """One session on its one connection.

    `notify` is called when there is output or an end that did not come from the pump. `ended` is the reason why the
    connection closes once the output is sent. `clock()` gives seconds, by which a batch ends in time.
    """

    def __init__(
        self,
        settings: PortalSettings,
        outcome: Outcome,
        inbox: Inbox,
        outbox: Outbox,
        attachment: Attachment | None,
        listing: Listing,
        notify: Callable[[], object],
        reset_target: Callable[[Target], object] = lambda target: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.settings = settings
        self.limits = settings.limits
        self.outcome = outcome
        self.parameters = outcome.parameters
        self.inbox = inbox
        self.outbox = outbox
        self.attachment = attachment
        self.listing = listing
        self.notify = notify
        self.reset_target = reset_target
        self.clock = clock
        self.state = State.WAITING
        self.life = Life.HEARD
        self.ended: str | None = None
        self.exp_cmd_sn = outcome.cmd_sn
        self.stat_sn = outcome.stat_sn
        self.tasks: dict[int, Task] = {}  # in the engine's hands, by initiator task tag
        self.transfers: dict[int, Transfer] = {}  # writes whose data has not all come
        self.finished: list[Task] = []  # ended while the pump was at work
        self.sampler = Sampler()
        self.account = inbox.account
        self.held = Held(self.account, self.limits.memory // 8)
        self.left: Callable[[], object] = _nothing  # called when, after its end, all its commands have ended
        self.blocked = False  # whether it waits for pending commands to end before it takes more
        self.framing = p.Framing(self.parameters.header_digest == "CRC32C", self.parameters.data_digest == "CRC32C")
        self._tag = 0

    # -- state --------------------------------------------------------------------------------------------------------

    def move(self, event: Event) -> None:
        """Change the state; a KeyError is a fault of ours."""
        self.state = MOVES[event][self.state]

    @property
    def stalled(self) -> bool:
        """Whether input waits for the pump."""
        return self.state is State.STALLED

    @property
    def closed(self) -> bool:
        """Whether the session has left its target."""
        return self.state is State.CLOSED

    def must_wait(self) -> bool:
        """Return whether what there is no memory for now can have it later: when something of our own has ended."""
        self.outbox.close_run()
        if self.outbox.queue:
            return True
        self.blocked = bool(self.tasks)
        return self.blocked

    def economize(self) -> None:
        """Need less memory from now on: there was none for a command."""
        self.inbox.lean = True
        self.outbox.close_run()
        self.outbox.shrink()

    def end(self, reason: str) -> None:
        """Have the connection closed when all output is sent."""
        self.move(Event.END)
        if self.ended is None:
            self.ended = reason

    def close(self) -> None:
        """Leave the target: commands are aborted, nothing more is written."""
        if self.closed:
            return
        self.end("closed")
        self.move(Event.CLOSE)
        for transfer in self.transfers.values():
            transfer.drop()
        self.transfers.clear()
        self.held.clear()
        if self.attachment is not None:
            for _execute, nexus in self.attachment.it.luns.values():
                nexus.on_clear = None
            self.attachment.target.disconnect(self.attachment.it, self.left)

    def stamp(self) -> None:
        """See when what has ended is out: it is in the outbox's queue."""
        if self.sampler.ended:
            self.outbox.when_sent(partial(self.sampler.sent, self.sampler.take()))

    # -- numbers ------------------------------------------------------------------------------------------------------

    @property
    def busy(self) -> int:
        """How many commands are in flight."""
        return len(self.tasks) + len(self.transfers)

    def keep_time(self, limits: Limits) -> None:
        """Take the times of new limits; what was agreed on with the initiator stays."""
        self.limits = replace(self.limits, nop_interval=limits.nop_interval, nop_timeout=limits.nop_timeout)

    def max_cmd_sn(self) -> int:
        """Return MaxCmdSN: what is in flight narrows the window, so that it never moves back (4.2.2.1)."""
        busy = len(self.tasks) + len(self.transfers)  # `busy`, for each response
        return (self.exp_cmd_sn + self.limits.queue_depth - 1 - busy) & SERIAL

    def widen(self, count: int) -> None:
        """Commands have ended without an answer: if the window was closed, tell that it is open again (11.19)."""
        if self.busy < self.limits.queue_depth <= self.busy + count and self.ended is None:
            self.send(p.NopIn(stat_sn=self.stat_sn, exp_cmd_sn=self.exp_cmd_sn, max_cmd_sn=self.max_cmd_sn()))
            self.outbox.close_run()

    def new_tag(self) -> int:
        """Return a target transfer tag."""
        self._tag = self._tag % 0x7FFFFFFF + 1
        return self._tag

    # -- replies ------------------------------------------------------------------------------------------------------

    def send(self, pdu: p.Pdu) -> None:
        """Write a PDU as it is."""
        if not self.closed:
            self.outbox.append(self.framing.encode(pdu))

    def write(self, encoded: bytes) -> None:
        """Write a PDU that is encoded, its digests included."""
        if not self.closed:
            self.outbox.append(encoded)

    def respond(
        self,
        pdu: p.ScsiResponse | p.NopIn | p.TaskManagementResponse | p.TextResponse | p.LogoutResponsePdu | p.Reject
        | p.AsyncMessage,
    ) -> None:  # fmt: skip
        """Write a PDU that carries the next StatSN."""
        self.send(replace(pdu, stat_sn=self.stat_sn, exp_cmd_sn=self.exp_cmd_sn, max_cmd_sn=self.max_cmd_sn()))
        self.stat_sn = (self.stat_sn + 1) & SERIAL

    def reject(self, header: p.Buffer, reason: RejectReason) -> None:
        """Reject the PDU of this basic header segment (11.17)."""
        self.respond(p.Reject(reason=reason, data=bytes(header[:BHS])))

    def announce(self) -> None:
        """Have what was written sent, unless the pump is at work and will see to that."""
        if self.state is not State.PUMPING and self.state is not State.LEAVING:
            self.outbox.close_run()
            self.notify()

    def ask_logout(self, seconds: int) -> None:
        """Ask the initiator to log out within `seconds` (11.9.1)."""
        self.respond(p.AsyncMessage(event=AsyncEvent.LOGOUT_REQUEST, parameter3=seconds))
        self.outbox.close_run()

    @property
    def patience(self) -> float:
        """Seconds for the peer to say something, from the last look on."""
        return self.limits.nop_timeout if self.life is Life.ASKED else self.limits.nop_interval

    def check_alive(self) -> float | None:
        """Look after a silent peer: return in how many seconds to look again, None when it has not answered a ping."""
        if self.life is Life.HEARD:
            self.life = Life.SILENT
            return self.patience
        if self.life is Life.ASKED:
            return None
        self.life = Life.ASKED
        self.send(
            p.NopIn(ttt=self.new_tag(), stat_sn=self.stat_sn, exp_cmd_sn=self.exp_cmd_sn, max_cmd_sn=self.max_cmd_sn())
        )
        self.outbox.close_run()
        return self.patience


def _nothing() -> None:
    pass
