"""tcmu.conf applied to what runs: what changes is changed, and who does not use it does not notice."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from tcmu_core.config.configuration import Config, LunConfig
from tcmu_core.daemon.targets import Targets
from tcmu_core.host.messages import LogSettings
from tcmu_core.iscsi.constants import LoginStatus
from tcmu_core.iscsi.settings import Access, ChapUser, Limits
from tests.daemon.parent import Parent
from tests.daemon.running import IQN, OTHER, RAM, Reader, client, config, pid, serve, undisturbed

SECOND = LunConfig(1, "ram", size=1 << 20)
TEST_UNIT_READY = bytes(16)
LUNS_CHANGED, CAPACITY_CHANGED = (6, 0x3F, 0x0E), (6, 0x2A, 0x09)
MARK = b"kept" * 128


def edited(wanted: Config, **settings: object) -> Config:
    return dataclasses.replace(wanted, portal=dataclasses.replace(wanted.portal, **settings))  # type: ignore[arg-type]


@pytest.fixture
def base() -> Config:
    return config(RAM, SECOND, others=(LunConfig(0, "ram", size=1 << 20),))


EDITS: dict[str, Callable[[Config], Config]] = {
    "a timer of the portal": lambda wanted: edited(wanted, limits=Limits(nop_interval=7.0)),
    "who may log in": lambda wanted: edited(wanted, access=Access(initiators=("iqn.2026-01.test:*",))),
    "a password": lambda wanted: edited(wanted, access=Access(users=(ChapUser("joe", b"a long password"),))),
    "a LUN more": lambda wanted: with_luns(wanted, RAM, SECOND, LunConfig(2, "ram", size=1 << 20)),
    "a LUN less": lambda wanted: with_luns(wanted, RAM),
    "a larger LUN": lambda wanted: with_luns(wanted, RAM, dataclasses.replace(SECOND, size=2 << 20)),
    "another LUN in its place": lambda wanted: with_luns(wanted, RAM, dataclasses.replace(SECOND, block_size=4096)),
    "a target more": lambda wanted: dataclasses.replace(
        wanted, targets=(*wanted.targets, dataclasses.replace(wanted.targets[0], name=f"{IQN}2"))
    ),
    "a target less": lambda wanted: dataclasses.replace(wanted, targets=wanted.targets[:1]),
}


def with_luns(wanted: Config, *luns: LunConfig) -> Config:
    first, *others = wanted.targets
    return dataclasses.replace(wanted, targets=(dataclasses.replace(first, luns=luns), *others))


def luns(targets: Targets) -> set[int]:
    status = targets.processes[IQN].status
    return {disk.lun for disk in status.disks} if status is not None else set()


def settled(parent: Parent, targets: Targets, wanted: Config, but: int | None = None) -> None:
    """Apply a configuration and wait until every process does what it asks for, the size of one LUN excepted."""
    serve(parent, targets, wanted)
    parent.until(
        lambda: all(
            {disk.lun: disk.size for disk in process.status.disks if disk.lun != but}
            == {lun.lun: lun.size for lun in target.luns if lun.lun != but}
            for target in wanted.targets
            if (process := targets.processes[target.name]).status is not None
        )
    )


@pytest.mark.parametrize("edit", EDITS)
def test_an_edit_leaves_the_disk_and_the_session_of_who_does_not_use_what_changed(
    parent: Parent, targets: Targets, base: Config, edit: str
) -> None:
    serve(parent, targets, base)
    before = pid(targets, IQN)
    with client(targets, IQN, 1).login() as writer:
        writer.write(100, MARK)
        with undisturbed(targets, IQN):
            settled(parent, targets, EDITS[edit](base))
        assert writer.read(100, 1) == MARK
    assert pid(targets, IQN) == before


def test_who_is_logged_in_hears_of_a_new_lun_and_uses_it(parent: Parent, targets: Targets, base: Config) -> None:
    serve(parent, targets, base)
    with client(targets, IQN).login() as one:
        one.sense(TEST_UNIT_READY)  # power on
        settled(parent, targets, EDITS["a LUN more"](base))
        assert one.sense(TEST_UNIT_READY) == LUNS_CHANGED
        assert one.sense(TEST_UNIT_READY, lun=2)[0] == 6  # power on
        assert one.sense(TEST_UNIT_READY, lun=2) is None


def test_who_is_logged_in_hears_that_a_lun_is_gone(parent: Parent, targets: Targets, base: Config) -> None:
    serve(parent, targets, base)
    with client(targets, IQN).login() as one:
        one.sense(TEST_UNIT_READY)  # power on
        settled(parent, targets, EDITS["a LUN less"](base))
        assert one.sense(TEST_UNIT_READY) == LUNS_CHANGED
        assert one.sense(TEST_UNIT_READY, lun=1) == (5, 0x25, 0)


def test_who_is_logged_in_hears_that_a_lun_has_grown_and_keeps_what_is_on_it(
    parent: Parent, targets: Targets, base: Config
) -> None:
    serve(parent, targets, base)
    with client(targets, IQN).login() as one:
        one.sense(TEST_UNIT_READY, lun=1)
        one.write(5, MARK, lun=1)
        settled(parent, targets, EDITS["a larger LUN"](base))
        assert one.sense(TEST_UNIT_READY, lun=1) == CAPACITY_CHANGED
        assert one.read(5, 1, lun=1) == MARK
        assert one.read(2048, 1, lun=1) == bytes(512)


def test_a_new_password_is_asked_for_at_the_next_login(parent: Parent, targets: Targets, base: Config) -> None:
    serve(parent, targets, base)
    settled(parent, targets, EDITS["a password"](base))
    with client(targets, IQN) as one:
        response = one.ask(one.initiator.login({"AuthMethod": "None"}))
        assert response.status == LoginStatus.AUTHENTICATION_FAILED


def test_a_disk_moves_to_another_target_that_is_there_already(parent: Parent, targets: Targets, tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(bytes(1 << 20))
    moving = LunConfig(1, "file", str(tmp_path / "disk"))
    own = LunConfig(0, "ram", size=1 << 20)
    serve(parent, targets, config(RAM, moving, others=(own,)))
    targets.configure(config(RAM, others=(own, moving)))
    parent.until(
        lambda: (status := targets.processes[OTHER].status) is not None and {d.lun for d in status.disks} == {0, 1}
    )


def test_the_portal_listens_elsewhere_and_sessions_go_on(parent: Parent, targets: Targets, base: Config) -> None:
    serve(parent, targets, base)
    reader = Reader(client(targets, IQN))
    old = targets.addresses
    settled(parent, targets, edited(base, addresses=("127.0.0.2:0",)))
    parent.until(lambda: targets.addresses != old)
    reader.end()
    assert targets.addresses[0].startswith("127.0.0.2:")
    with client(targets, IQN).login() as one:
        assert len(one.read(0, 1)) == 512


IN_MEMORY: dict[str, Callable[[Config], Config]] = {
    "another name": lambda wanted: with_luns(wanted, dataclasses.replace(RAM, name="other"), SECOND),
    "filters": lambda wanted: with_luns(wanted, dataclasses.replace(RAM, filters=("log",)), SECOND),
    "blocks": lambda wanted: with_luns(wanted, dataclasses.replace(RAM, block_size=4096), SECOND),
    "read-only": lambda wanted: with_luns(wanted, dataclasses.replace(RAM, read_only=True), SECOND),
    "a smaller size": lambda wanted: with_luns(wanted, dataclasses.replace(RAM, size=512), SECOND),
    "defaults of the handler": lambda wanted: dataclasses.replace(wanted, handlers={"ram": {"size": "2M"}}),
}


@pytest.mark.parametrize("edit", IN_MEMORY)
def test_no_edit_of_a_disk_in_memory_empties_it(parent: Parent, targets: Targets, base: Config, edit: str) -> None:
    serve(parent, targets, base)
    with client(targets, IQN).login() as one:
        one.sense(TEST_UNIT_READY)  # power on
        one.write(100, MARK)
        serve(parent, targets, IN_MEMORY[edit](base))
        settled(parent, targets, EDITS["a LUN more"](IN_MEMORY[edit](base)), but=0)
        assert one.sense(TEST_UNIT_READY) == LUNS_CHANGED  # of what came after it
        assert one.read(100, 1) == MARK
        settled(parent, targets, base)
        assert one.sense(TEST_UNIT_READY) == LUNS_CHANGED
        assert one.read(100, 1) == MARK


def test_a_disk_goes_on_where_another_can_not_take_its_place(parent: Parent, targets: Targets, tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(MARK * 8)
    there = LunConfig(0, "file", str(tmp_path / "disk"))
    nowhere = dataclasses.replace(there, cfgstring=str(tmp_path / "nowhere"))
    serve(parent, targets, config(there))
    with client(targets, IQN).login() as one:
        targets.configure(config(nowhere))
        targets.configure(config(nowhere, SECOND))
        parent.until(lambda: luns(targets) == {0, 1})
        while sense := one.sense(TEST_UNIT_READY):
            assert sense[0] == 6  # attentions, and no LUN that is not there
        assert one.read(3, 1) == MARK


@pytest.mark.parametrize(("handler", "options"), [("file", ""), ("qcow", ";format=raw")])
def test_two_luns_change_places(parent: Parent, targets: Targets, tmp_path: Path, handler: str, options: str) -> None:
    contents = [b"first" * 512, b"other" * 512]
    files = [f"{tmp_path / name}{options}" for name in ("first", "other")]
    for name, content in zip(("first", "other"), contents, strict=True):
        (tmp_path / name).write_bytes(content)
    serve(parent, targets, config(LunConfig(0, handler, files[0]), LunConfig(1, handler, files[1])))
    targets.configure(config(LunConfig(0, handler, files[1]), LunConfig(1, handler, files[0])))
    shown = {0: files[1], 1: files[0]}
    parent.until(
        lambda: (
            (status := targets.processes[IQN].status) is not None
            and {disk.lun: disk.cfgstring for disk in status.disks} == shown
        )
    )
    with client(targets, IQN).login() as one:
        assert [one.read(0, 5, lun=lun) for lun in (1, 0)] == contents


def test_a_log_that_can_not_be_written_keeps_no_disk_from_being_served(
    parent: Parent, targets: Targets, base: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = parent.spawn
    nowhere = LogSettings(directory="/proc/nowhere", stderr=False)
    monkeypatch.setattr(parent, "spawn", lambda job, *calls: real(dataclasses.replace(job, log=nowhere), *calls))
    serve(parent, targets, base)
    with undisturbed(targets, IQN):
        targets.processes[IQN].send(dataclasses.replace(nowhere, directory="/proc/elsewhere"))
        settled(parent, targets, EDITS["a LUN more"](base))


def test_what_was_there_before_it_was_taken_out_does_not_come_back(
    parent: Parent, targets: Targets, tmp_path: Path
) -> None:
    (tmp_path / "disk").write_bytes(MARK * 8)
    there = LunConfig(1, "file", str(tmp_path / "disk"))
    nowhere = dataclasses.replace(there, cfgstring=str(tmp_path / "nowhere"))
    serve(parent, targets, config(RAM, there))
    for wanted in (config(RAM, nowhere), config(RAM), config(RAM, nowhere)):
        targets.configure(wanted)
    parent.until(lambda: (status := targets.processes[IQN].status) is not None and status.missing)
    assert luns(targets) == {0}
