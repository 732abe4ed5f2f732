"""What a host is told and what it answers, and how the zygote is asked to fork one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import ClassVar

from tcmu_core.codec import Message
from tcmu_core.disk.device import Change
from tcmu_core.disk.spec import DiskSpec
from tcmu_core.progress import Progress


def _nothing() -> Mapping[str, int]:
    return MappingProxyType({})


@dataclass(frozen=True, slots=True)
class LogSettings(Message):
    """Set the log: levels as numbers (0 to 5), those of single devices by `subtype/name`."""

    level: int = 3
    devices: Mapping[str, int] = field(default_factory=_nothing)
    directory: str | None = None
    syslog: bool = False
    stderr: bool = False


@dataclass(frozen=True, slots=True)
class WayIn(Message):
    """What a transport is to serve; each kind of transport has its own. `KIND` is its row in the table."""

    KIND: ClassVar[str] = ""


@dataclass(frozen=True, slots=True)
class Job(Message):
    """What a host process is to do. `disks` are by LUN; a cfgstring in them is whole, runner options included.

    `rendezvous` is the path at which it can be found when its supervisor is gone. `takes_over`: the way in exists, and
    somebody may wait at it or still serve it. `delay` are seconds to wait before the disks are opened.
    """

    key: str
    title: str  # in `ps -o comm` and `top`
    way: WayIn
    disks: Mapping[int, DiskSpec]
    log: LogSettings
    version: str = ""
    rendezvous: str = ""
    takes_over: bool = False
    delay: float = 0.0


# -- to a host --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Adopt(Message):
    """Who sends this is the supervisor from now on; the answer is `Opened`."""


@dataclass(frozen=True, slots=True)
class Reassign(Message):
    """Do this job from now on, in place of the one before; only what differs is touched. The answer is `Opened`."""

    job: Job


@dataclass(frozen=True, slots=True)
class Ping(Message):
    """Answer with `Pong`."""


@dataclass(frozen=True, slots=True)
class Ask(Message):
    """Answer with `Status`."""


@dataclass(frozen=True, slots=True)
class AskCounters(Message):
    """Answer with `Counters` of the `number`th initiator of a LUN: a message has no room for those of all."""

    lun: int
    number: int = 0


@dataclass(frozen=True, slots=True)
class Look(Message):
    """Tell all that there is to see: the answer is one `Looked`, or several where one has no room for it.

    Of the counters those are enough that have changed since the answer of the number `after`; 0 is before all of them.
    """

    after: int = 0


@dataclass(frozen=True, slots=True)
class Reconfigure(Message):
    """Have the disk of a LUN take a change, of which a cfgstring is whole; the answer is `Changed` of the same id."""

    change: Change
    lun: int = 0
    id: int = 0


@dataclass(frozen=True, slots=True)
class Retry(Message):
    """Try again to open the disks that could not be opened."""


@dataclass(frozen=True, slots=True)
class FilterCommand(Message):
    """Ask something of the filters of a LUN's disk, as JSON (filters/control.py); the answer is `FilterAnswer`."""

    command: str
    lun: int = 0


@dataclass(frozen=True, slots=True)
class SetLevel(Message):
    """Log at this level (0 to 5) from now on, whatever single devices had; None asks. The answer is `LogLevel`."""

    level: int | None = None


@dataclass(frozen=True, slots=True)
class Sessions(Message):
    """Answer with `SessionList`."""


@dataclass(frozen=True, slots=True)
class Logout(Message):
    """Ask initiators whose name fits to log out, and end what is left of their sessions after so many seconds.

    `target` is empty for all. The answer is `LoggedOut`, at once.
    """

    initiator: str
    target: str = ""
    seconds: int = 0


@dataclass(frozen=True, slots=True)
class Drain(Message):
    """Answer what is in flight, take nothing new, then end, and leave the way in to the next host."""


@dataclass(frozen=True, slots=True)
class Close(Message):
    """End: nobody uses the way in any more."""


# -- from a host ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class DiskStatus(Message):
    """An open disk: sizes in bytes, the cfgstring as the handler has it. `tcmu status --json` shows each field."""

    lun: int
    handler: str
    name: str
    cfgstring: str
    size: int
    block_size: int
    read_only: bool
    write_cache: bool
    removable: bool
    filters: tuple[str, ...] = ()
    initiators: tuple[str, ...] = ()  # those that are logged in
    in_flight: int = 0  # commands that have not ended
    progress: Progress | None = None  # of what takes long, in bytes


@dataclass(frozen=True, slots=True)
class SessionStatus(Message):
    """A session: who it is of and from where, `since` in seconds since 1970. `tcmu sessions --json` shows each field.

    `user` is None where no login was asked for; `isid` is hexadecimal, and `reservations` are words with their LUN.
    """

    initiator: str
    isid: str
    tsih: int
    address: str
    since: float
    target: str
    luns: tuple[int, ...]
    user: str | None
    header_digest: bool
    data_digest: bool
    in_flight: int
    reservations: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SessionList(Message):
    """The sessions of a host's way in; none where that knows of none."""

    sessions: tuple[SessionStatus, ...] = ()


@dataclass(frozen=True, slots=True)
class LoggedOut(Message):
    """How many sessions were asked to end."""

    count: int


@dataclass(frozen=True, slots=True)
class TimesTaken:
    """How long samples took: `counts[n]` of them 2**(n-1) nanoseconds or more, and less than 2**n; `total` in all."""

    counts: tuple[int, ...] = ()
    total: int = 0  # nanoseconds


@dataclass(frozen=True, slots=True)
class ErrorCount:
    """How many commands ended with one kind of error: a sense key, another status than GOOD, or `aborted`."""

    kind: str
    count: int


@dataclass(frozen=True, slots=True)
class OperationCounters:
    """What became of the commands of one operation code. Times are those of samples."""

    opcode: int  # -1: all those that have no name
    name: str
    commands: int  # that have ended
    bytes: int  # to the disk, or from it
    in_flight: int
    errors: tuple[ErrorCount, ...] = ()
    queue: TimesTaken = field(default_factory=TimesTaken)  # from the arrival to the call of the hook
    storage: TimesTaken = field(default_factory=TimesTaken)  # from there until the hook is done
    send: TimesTaken = field(default_factory=TimesTaken)  # from there until the status is out


@dataclass(frozen=True, slots=True)
class InitiatorCounters:
    """What one initiator has had a disk do, `since` in seconds since 1970; `other` are all beyond those told apart."""

    initiator: str
    operations: tuple[OperationCounters, ...]
    since: float


@dataclass(frozen=True, slots=True)
class Counters(Message):
    """The answer to `AskCounters`; None: there are no more."""

    counters: InitiatorCounters | None = None


OPENING = "it is being opened"  # the reason of one that is on its way


MISSING_PORTAL = -1  # stands for the LUN of a portal that can't listen


@dataclass(frozen=True, slots=True)
class Missing(Message):
    """A disk that could not be opened, and why; or is being opened, and how far that is if its handler says so."""

    lun: int
    title: str
    reason: str
    progress: Progress | None = None  # in bytes

    @property
    def name(self) -> str:
        """Return what people call it: its title is `handler/name`."""
        return self.title.partition("/")[2]


@dataclass(frozen=True, slots=True)
class Status(Message):
    """What a host serves, by which way in (`title`, for people) and where.

    A host without disks `passes_on` logins to the processes of these targets.
    """

    pid: int
    disks: tuple[DiskStatus, ...] = ()
    missing: tuple[Missing, ...] = ()
    addresses: tuple[str, ...] = ()
    commands: int = 0  # since the start
    in_flight: int = 0
    title: str = ""
    passes_on: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Unserved(Message):
    """The daemon's answer to `Ask`: what nobody serves that is to be served; `pid` is of who is about to, or 0.

    What has no logical units, the portal, is missing itself: `MISSING_PORTAL` stands for its number.
    """

    hosts: tuple[Status, ...] = ()


@dataclass(frozen=True, slots=True)
class DiskCounters:
    """What one initiator has had the disk of a LUN do."""

    lun: int
    counters: InitiatorCounters


@dataclass(frozen=True, slots=True)
class Looked(Message):
    """Some of all that there is to see of a host; the last one is `over`, and has the status and the sessions.

    Each initiator is told, with the operation codes of which something has changed. `number` is that of the whole
    answer, greater than those of the answers before.
    """

    counters: tuple[DiskCounters, ...] = ()
    over: bool = False
    status: Status | None = None
    sessions: tuple[SessionStatus, ...] = ()
    number: int = 0


@dataclass(frozen=True, slots=True)
class Opened(Message):
    """The host serves; `job` is what it does by now, changes included."""

    job: Job
    status: Status


@dataclass(frozen=True, slots=True)
class Failed(Message):
    """The host can't do its job, and ends."""

    errno: int
    reason: str


@dataclass(frozen=True, slots=True)
class Pong(Message):
    """The host's loop goes round."""

    commands: int = 0
    in_flight: int = 0


@dataclass(frozen=True, slots=True)
class Changed(Message):
    """How a `Reconfigure` ended: 0, or an errno and what to tell the person."""

    id: int
    errno: int
    reason: str
    disk: DiskStatus | None = None


@dataclass(frozen=True, slots=True)
class FilterAnswer(Message):
    """How a `FilterCommand` ended: JSON, or what to tell the person, and whether it is a mistake of theirs."""

    answer: str = ""
    error: str = ""
    mistaken: bool = False


@dataclass(frozen=True, slots=True)
class LogLevel(Message):
    """The level at which a process logs."""

    level: int


# -- to and from the zygote -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Spawn(Message):
    """Fork a host for a job; its end of the channel comes along."""

    key: int
    job: Job


@dataclass(frozen=True, slots=True)
class Stop(Message):
    """The supervisor ends on purpose: hosts that do not end by themselves are to be killed."""


@dataclass(frozen=True, slots=True)
class Ready(Message):
    """The zygote has loaded everything."""


@dataclass(frozen=True, slots=True)
class Spawned(Message):
    """The host of this key has this pid; a pidfd comes along."""

    key: int
    pid: int


@dataclass(frozen=True, slots=True)
class Exited(Message):
    """A host has ended, with this wait status."""

    pid: int
    status: int
