"""The one codec of messages between processes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tcmu_core.cfgstring import Default
from tcmu_core.codec import CodecError, Message, decode, encode
from tcmu_core.disk.device import Change
from tcmu_core.disk.spec import DiskSpec
from tcmu_core.host import messages as m
from tcmu_core.host.traces import Line, Trace, Traced
from tcmu_core.iscsi.chap import Algorithm
from tcmu_core.iscsi.messages import Feed, Link, RedirectorWay, TargetWay, Visitor
from tcmu_core.iscsi.settings import Access, ChapUser, Limits, PortalSettings
from tcmu_core.kernel.transport import KernelDevice, Record
from tcmu_core.scsi.following import Followed

SETTINGS = PortalSettings(
    addresses=("127.0.0.1:0", "[::1]:0"),
    access=Access((ChapUser("joe", b"\x00\xff secret"),), ChapUser("we", b"other"), ("iqn.*",), tuple(Algorithm)[:1]),
    targets={"iqn.2026-01.org.example:a": Access(initiators=("x", "y"))},
    limits=Limits(connections=3, nop_interval=0.5),
    insecure=True,
)
LOG = m.LogSettings(4, {"file/a": 5}, "/var/log", syslog=True)
DISK = m.DiskStatus(3, "file", "ä", "/x", 1 << 60, 512, False, True, False)
SESSION = m.SessionStatus("x", "80", 1, "[::1]:3", 1.5, "y", (0, 4), None, True, False, 2, ("LUN 0: RESERVE(6)",))
JOB = m.Job(
    "target x", "tcmu:x", TargetWay("iqn.2026-01.org.example:a", SETTINGS, Path("/state")),
    {0: DiskSpec("file", "/a;b=c", size=None, options={"direct": "1"}, place=("x", "0")), 7: DiskSpec("ram", size=5)},
    LOG, "1.0", takes_over=True, delay=2.0,
)  # fmt: skip

COUNTERS = m.InitiatorCounters(
    "i",
    (m.OperationCounters(0x28, "read_10", 9, 1 << 70, 2, (m.ErrorCount("busy", 1),), m.TimesTaken((0, 3), 5)),),
    1.5,
)

MESSAGES: list[Message] = [
    JOB, LOG, m.Adopt(), m.Reassign(JOB),
    m.Ping(), m.Ask(), m.Retry(), m.Drain(), m.Close(), m.Ready(), m.Stop(), m.Pong(1, 2),
    m.Exited(1, 9), m.FilterCommand("{}", 1), m.FilterAnswer("{}", "no", mistaken=True),
    m.Spawn(1, JOB), m.Spawned(1, 2), m.Reconfigure(Change(size=5), 1, 2), m.Reconfigure(Change(cfgstring="")),
    m.Changed(1, 22, "no", DISK), m.Changed(1, 0, ""), m.Failed(28, "full"),
    m.Opened(JOB, m.Status(1, (DISK,), (m.Missing(1, "file/b", "gone"),), ("a",), 1, 2)),
    KernelDevice(1, 2, "d", park=True), Record(), RedirectorWay(("a", "b"), SETTINGS), Link("a"), Feed(),
    Visitor(bytes(range(256)), 48), m.AskCounters(3, 1), m.Counters(), m.Counters(COUNTERS),
    m.Look(), m.Looked(), m.Looked((m.DiskCounters(1, COUNTERS),), True, m.Status(1, (DISK,)), (SESSION,)),
    SESSION, m.Sessions(), m.SessionList((SESSION,)), m.Logout("iqn.*", "x", 3),
    m.Unserved(), m.Unserved((m.Status(0, (), (m.Missing(-1, "/a", "no"),), title="x"),)),
    m.LoggedOut(2), m.SetLevel(), m.SetLevel(5), m.LogLevel(3),
    Trace(1, ("READ(10)",), (0x28,), "iqn.*", errors=True, slower=0.5),
    Traced((Line(1.5, Followed("READ(10)", b"\x28", "x", None, 1, 512, "GOOD", True, "", 0.0, 0.5)),), 2, "over"),
]  # fmt: skip


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_what_arrives_is_what_was_sent(message: Message) -> None:
    assert decode(encode(message)) == message


def test_an_option_of_a_handler_still_knows_where_it_is_from() -> None:
    spec = DiskSpec("file", options={"direct": Default("1", "/etc/tcmu/tcmu.conf:7")})
    job = decode(encode(m.Job("x", "x", JOB.way, {0: spec}, LOG)))
    assert isinstance(job, m.Job)
    value = job.disks[0].options["direct"]
    assert value == "1"
    assert isinstance(value, Default)
    assert value.where == "/etc/tcmu/tcmu.conf:7"


def test_every_message_of_the_host_is_tried() -> None:
    known = {kind for kind in vars(m).values() if isinstance(kind, type) and issubclass(kind, Message)}
    assert known - {Message, m.WayIn, m.Missing} <= {type(message) for message in MESSAGES} | {m.DiskStatus, m.Status}


def changed(**fields: object) -> bytes:
    return json.dumps({**json.loads(encode(m.Spawned(1, 2))), **fields}).encode()


@pytest.mark.parametrize(
    "data",
    [
        b"", b"{", b"1", b"{}", b'{"":"os:system"}', b'{"":"host.messages:Nothing"}',
        b'{"":"disk.spec:DiskSpec","handler":"x"}', b'{"":"codec:Message"}', b'{"":5}',
        changed(key="1"), changed(key=True), changed(key=None), changed(more=1),
        b'{"":"host.messages:Spawned","key":1}',
        b'{"":"iscsi.messages:Visitor","heard":"*","told":0}',
        encode(RedirectorWay(("a",), SETTINGS)).replace(b"127.0.0.1:0", b"nowhere"),
    ],
)  # fmt: skip
def test_what_is_no_message_is_refused_whole(data: bytes) -> None:
    with pytest.raises(CodecError):
        decode(data)
