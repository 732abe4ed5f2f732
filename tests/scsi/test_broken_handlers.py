"""What a handler may do to the engine and to its device: each is one command's error, or is put back, and logged."""

from __future__ import annotations

import logging
import os
import sys
from typing import Any

import pytest

from tcmu_core import Command, CommandError, Device, NotReady, Opcode, Status, hookimpl
from tcmu_core.disk.device import Change
from tcmu_core.disk.spec import DiskSpec
from tcmu_core.errors import ConfigError, HandlerError
from tcmu_core.scsi.command import Initiator
from tcmu_core.scsi.engine import Engine
from tcmu_core.testing.harness import make_disk
from tests.scsi.harness import BLOCK, Memory, Plain, Rig, cdb10, make_rig

INTERNAL = (4, 0x44, 0)
TEST_UNIT_READY = "00 00 00 00 00 00"
READ = cdb10(0x28, 1, 1)


class NoKey(CommandError):
    """A sense key that is no number."""

    sense_key = "x"  # type: ignore[assignment]


class LongAsc(CommandError):
    """An additional sense code and its qualifier in one."""

    asc = 0x2404


class Good(CommandError):
    """An error that is none."""

    status = 0x00


class NoStatus(CommandError):
    """A status that SAM-5 does not have."""

    status = 300


class Leaves(Exception):
    """An exception whose text ends the process."""

    def __str__(self) -> str:
        raise SystemExit(3)


class NoNumber(OSError):
    """An errno that can't be read."""

    @property
    def errno(self) -> int:  # type: ignore[override]
        raise KeyboardInterrupt


BROKEN = [
    NoKey(),
    LongAsc(),
    Good(),
    NoStatus(),
    Leaves(),
    NoNumber(),
    NotReady(progress=1 << 20),
    CommandError(information=-1),
    CommandError(field=(70000, 3)),
    CommandError(field="x"),  # type: ignore[arg-type]
]


@pytest.mark.parametrize("error", BROKEN, ids=[type(error).__name__ for error in BROKEN])
@pytest.mark.parametrize("descriptor", [False, True])
def test_an_exception_that_is_itself_broken_is_a_hardware_error_and_logged_once(
    error: BaseException, descriptor: bool, caplog: pytest.LogCaptureFixture
) -> None:
    rig = make_rig()
    if descriptor:
        rig.good("55 10 00 00 00 00 00 00 14 00", bytes(8) + bytes.fromhex("0a 0a 06 10 00 00 00 00 ff ff 00 00"))
    rig.memory.error = error
    with caplog.at_level(logging.ERROR):
        assert rig.send(READ, room=BLOCK).error == INTERNAL
    assert len([record for record in caplog.records if "logical unit is not ready" not in record.message]) == 1
    rig.memory.error = None
    rig.good(READ, room=BLOCK)


@pytest.mark.parametrize("number", [[], "EIO", b"", 1.5])
def test_an_errno_that_is_no_number_ends_one_command(number: Any) -> None:
    rig = make_rig()
    rig.memory.error = OSError(number, "odd")
    assert rig.send(READ, room=BLOCK).status == Status.CHECK_CONDITION


@pytest.mark.parametrize("code", [(300, 0), (0x2A, -1), ("x", 0), (None, None), (0x2A, 1.5)])
def test_an_attention_that_no_sense_data_could_hold_is_refused(code: Any) -> None:
    rig = make_rig()
    with pytest.raises(ValueError, match="is no additional sense code"):
        rig.engine.device.notify(*code)
    rig.turn()
    rig.good(TEST_UNIT_READY)


# -- attributes of the device, changed while it is open ----------------------------------------------------------------

NONSENSE = [
    ("size", "x"),
    ("size", None),
    ("size", -5),
    ("size", 1 << 80),
    ("size", 0),
    ("block_size", 0),
    ("block_size", 1000),
    ("block_size", "x"),
    ("max_transfer_length", -1),
    ("max_transfer_length", "x"),
    ("opcodes", 5),
    ("device_type", 99),
    ("read_only", 7),
    ("write_cache", None),
    ("threads", "4"),
    ("max_discard_length", 1.5),
    ("vendor", None),
    ("serial", 7),
]


@pytest.mark.parametrize(("name", "value"), NONSENSE)
def test_an_attribute_that_no_disk_can_have_goes_back_to_what_it_was(
    name: str, value: Any, caplog: pytest.LogCaptureFixture
) -> None:
    rig = make_rig()
    rig.nexus()
    device = rig.engine.device
    before = getattr(device, name)
    setattr(device, name, value)
    with caplog.at_level(logging.ERROR):
        device.notify(0x2A, 0x09)
        rig.turn()
    assert getattr(device, name) == before
    assert "everything stays as it was" in caplog.text
    assert rig.send(TEST_UNIT_READY).error == (6, 0x2A, 9)
    rig.good(READ, room=BLOCK)
    assert rig.good("25 00 00 00 00 00 00 00 00 00", room=8) == bytes.fromhex("000007ff 00000200")


@pytest.mark.parametrize(("name", "value"), NONSENSE)
def test_a_change_that_leaves_no_disk_has_failed(name: str, value: Any) -> None:
    class Changing(Memory):
        @hookimpl
        def reconfigure(self, device: Any) -> None:
            setattr(device, name, value)

    rig = make_rig(Changing())
    before = getattr(rig.engine.device, name)
    with pytest.raises((HandlerError, ConfigError), match="handler 'memory'"):
        rig.engine.change(Change(cfgstring="other"))
    assert getattr(rig.engine.device, name) == before
    rig.good(READ, room=BLOCK)


def test_the_log_of_a_device_stays() -> None:
    with pytest.raises(AttributeError, match="can't be replaced"):
        make_rig().engine.device.log = None  # type: ignore[assignment]


# -- handle_cmd --------------------------------------------------------------------------------------------------------


class Answering(Memory):
    """Sets what it is told to on each command, and answers."""

    def __init__(self, status: Any, **attributes: Any) -> None:
        super().__init__()
        self.status = status
        self.attributes = attributes
        self.seen: list[int] = []

    @hookimpl
    def handle_cmd(self, command: Command) -> Any:
        self.seen.append(command.cdb[0])
        for name, value in self.attributes.items():
            setattr(command, name, value)
        return self.status


@pytest.mark.parametrize(
    ("status", "attributes"),
    [
        (Status.CHECK_CONDITION, {}),
        (Status.CHECK_CONDITION, {"sense": bytes(1000)}),
        (Status.CHECK_CONDITION, {"sense": "text"}),
        (Status.GOOD, {"sense": bytes(18)}),
        (Status.GOOD, {"transferred": 21}),
        (Status.GOOD, {"transferred": -1}),
        (Status.GOOD, {"wanted": -1}),
        (Status.GOOD, {"wanted": "x"}),
    ],
)
def test_an_answer_that_no_transport_could_send_is_a_hardware_error(status: Status, attributes: dict[str, Any]) -> None:
    got = make_rig(Answering(status, **attributes)).send("c1 0 0 0 0 0", room=20)
    assert (got.error, got.transferred, got.wanted) == (INTERNAL, 0, 0)


def test_sense_data_of_its_own_goes_out_as_it_is() -> None:
    told = bytes.fromhex("70 00 05 00 00 00 00 0a 00 00 00 00 64 00 00 00 00 00")
    got = make_rig(Answering(Status.CHECK_CONDITION, sense=told)).send("c1 0 0 0 0 0")
    assert (got.status, got.sense) == (Status.CHECK_CONDITION, told)


WRITES = [cdb10(0x2A, 0, 1), bytes([0xAA]) + bytes(8) + bytes([1, 0, 0]), bytes([0x8A]) + bytes(12) + bytes([1, 0, 0])]


class ReadAlone(Plain):
    """A handler without a write hook that answers every CDB itself."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    @hookimpl
    def handle_cmd(self, command: Command) -> Status:
        self.seen.append(command.cdb[0])
        return Status.GOOD


@pytest.mark.parametrize("handler", [lambda: Answering(Status.GOOD), ReadAlone])
@pytest.mark.parametrize("cdb", WRITES)
def test_read_only_holds_for_a_handler_that_answers_writes_itself(handler: Any, cdb: bytes) -> None:
    disk = make_disk(handler := handler(), DiskSpec("memory", size=1 << 20, read_only=True))
    disk.open()
    posted: Any = []
    rig = Rig([handler], [Engine(disk, post=lambda fn, *args: posted.append((fn, args)))], None, posted)  # type: ignore[arg-type]
    nexus = rig.engine.attach(Initiator("initiator", b""))
    nexus.attentions.clear()
    data = bytearray(BLOCK)
    command = Command(cdb, [memoryview(data)], BLOCK, nexus)
    assert rig.engine.execute(command)
    assert (command.status, command.sense[2], command.sense[12]) == (2, 7, 0x27)
    assert not handler.seen


@pytest.mark.parametrize("cdb", [*WRITES, "c1 0 0 0 0 0", READ])
@pytest.mark.parametrize("legacy", [False, True])
def test_a_reservation_holds_for_a_handler_that_answers_commands_itself(cdb: Any, legacy: bool) -> None:
    class Picky(Answering):
        @hookimpl
        def handle_cmd(self, command: Command) -> Any:
            self.seen.append(command.cdb[0])
            return None if command.cdb[0] in (0x5F, 0x16) else Status.GOOD

    rig = make_rig(Picky(None))
    rig.nexus("b")
    if legacy:
        rig.good("16 00 00 00 00 00")
    else:
        rig.good(bytes([0x5F, 0, 0, 0, 0, 0, 0, 0, 24, 0]), bytes(15) + b"\1" + bytes(8))
        rig.good(bytes([0x5F, 1, 3, 0, 0, 0, 0, 0, 24, 0]), bytes(7) + b"\1" + bytes(16))
    rig.memory.seen.clear()
    assert rig.send(cdb, room=BLOCK, who="b").status == Status.RESERVATION_CONFLICT
    assert not rig.memory.seen
    assert rig.send(cdb, room=BLOCK, who="a").status == Status.GOOD


def test_an_opcode_of_its_own_is_judged_by_its_row() -> None:
    class Own(Answering):
        @hookimpl
        def open(self, device: Any) -> None:
            super().open(device)
            device.opcodes = (Opcode(0xC1, "BLINK", bytes.fromhex("ff 00 00 00 00 00"), protected=True),)

    rig = make_rig(Own(Status.GOOD), read_only=True)
    assert rig.send("c1 0 0 0 0 0").error == (7, 0x27, 0)


# -- media -------------------------------------------------------------------------------------------------------------


def test_a_drive_that_is_empty_says_so_and_another_medium_has_its_own_size() -> None:
    rig = make_rig(size=0, removable=True)
    for cdb in (
        TEST_UNIT_READY,
        "25 00 00 00 00 00 00 00 00 00",
        "9e 10 00 00 00 00 00 00 00 00 00 00 00 20 00 00",
        READ,
    ):
        assert rig.send(cdb, room=BLOCK).error == (2, 0x3A, 0)
    rig.memory.data = memoryview(bytearray(1 << 20))
    rig.engine.device.size = 1 << 20
    rig.engine.device.notify(0x28, 0x00)
    rig.turn()
    assert rig.send(TEST_UNIT_READY).error == (6, 0x28, 0)
    assert rig.good("25 00 00 00 00 00 00 00 00 00", room=8) == bytes.fromhex("000007ff 00000200")


def _breaks(*_arguments: Any) -> Any:
    raise ZeroDivisionError


BROKEN_ROWS = {
    "blocks": {"blocks": _breaks},
    "amount": {"amount": _breaks},
    "blocks of one number": {"blocks": lambda cdb: 7},
    "a negative amount": {"amount": lambda cdb, count, size: -1},
    "spared": {"spared": _breaks, "spared_6": _breaks},
    "run": {"run": _breaks},
}


@pytest.mark.parametrize("fields", BROKEN_ROWS.values(), ids=BROKEN_ROWS)
def test_a_row_that_breaks_is_its_commands_error_alone(fields: dict[str, Any]) -> None:
    class Vendor(Memory):
        @hookimpl
        def open(self, device: Device) -> None:
            super().open(device)
            device.opcodes = (Opcode(0xC1, "BLINK", bytes(b"\xff" * 6), **fields),)

        @hookimpl
        def handle_cmd(self, command: Command) -> None:
            if command.cdb[0] == 0xC1:
                raise OSError("it is told in the log, with the command's name")

    rig = make_rig(Vendor())
    rig.nexus()
    assert rig.engine.expects(bytes([0xC1]) + bytes(5))[1] is None
    assert rig.send(bytes([0xC1]) + bytes(5), room=BLOCK).status == Status.CHECK_CONDITION
    assert rig.good(READ, room=BLOCK) == bytes(BLOCK)


@pytest.mark.parametrize(
    "fields",
    [{"code": 256}, {"code": "c1"}, {"name": 7}, {"usage": "ff"}, {"usage": b""}, {"service_action": 99},
     {"direction": "in"}],
)  # fmt: skip
def test_a_row_that_nobody_could_read_is_refused(fields: dict[str, Any]) -> None:
    class Vendor(Memory):
        @hookimpl
        def open(self, device: Device) -> None:
            super().open(device)
            row: Any = {"code": 0xC1, "name": "BLINK", "usage": b"\xff" * 6} | fields
            device.opcodes = (Opcode(**row),)

    with pytest.raises(HandlerError, match=f"opcodes: .*{next(iter(fields))} must be"):
        make_rig(Vendor())


class Unprintable:
    """A value that can't be shown."""

    def __repr__(self) -> str:
        raise SystemExit(3)


@pytest.mark.parametrize("name", ["size", "threads", "read_only", "vendor"])
def test_a_value_that_can_not_be_shown_is_refused_as_any_other(name: str) -> None:
    class Odd(Memory):
        @hookimpl
        def open(self, device: Device) -> None:
            super().open(device)
            setattr(device, name, Unprintable())

    with pytest.raises(HandlerError, match=f"{name} is a Unprintable"):
        make_rig(Odd())


# -- processes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("leave", "status"), [(lambda: sys.exit(7), 7), (lambda: 1 // 0, 1), (lambda: sys.exit("no"), 1)]
)
def test_a_child_that_a_hook_forks_ends_where_it_leaves_and_serves_nobody(leave: Any, status: int) -> None:
    class Forks(Memory):
        children: list[int] = []

        @hookimpl
        def read(self, buffers: list[memoryview]) -> None:
            pid = os.fork()
            if not pid:
                leave()
            self.children.append(pid)

    handler = Forks()
    parent = os.getpid()
    make_rig(handler).good(READ, room=BLOCK)
    if os.getpid() != parent:
        os._exit(99)
    assert os.waitstatus_to_exitcode(os.waitpid(handler.children.pop(), 0)[1]) == status
