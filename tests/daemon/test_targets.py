"""The targets of tcmu.conf, served by a door and workers that a real zygote forks, for libiscsi's clients and ours."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import select
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from tcmu_core.config.configuration import LunConfig
from tcmu_core.daemon.managed import State
from tcmu_core.daemon.targets import REDIRECTOR, Targets, memory_limits
from tcmu_core.disk.device import Change
from tcmu_core.host import control
from tcmu_core.host.messages import Ask, FilterAnswer, FilterCommand, LoggedOut, Logout, SessionList, Sessions, Status
from tcmu_core.host.traces import Trace, Traced
from tcmu_core.iscsi import pdu as p
from tcmu_core.iscsi.constants import LoginStatus
from tcmu_core.iscsi.settings import Access, ChapUser
from tests.daemon.parent import Parent
from tests.daemon.running import (
    IQN,
    OTHER,
    PATIENCE,
    RAM,
    client,
    config,
    kill,
    listing,
    pid,
    serve,
    stop,
    undisturbed,
)
from tests.iscsi.initiator import OPERATIONAL, Initiator
from tests.iscsi.served import Client
from tests.waiting import suspend

# -- one worker for each target ---------------------------------------------------------------------------------------


def test_targets_are_served_by_a_worker(parent: Parent, targets: Targets) -> None:
    serve(parent, targets, config(RAM, LunConfig(3, "ram", size=2 << 20)))
    said = listing(targets)
    assert f"Target:{IQN}" in said
    assert "Lun:0" in said
    assert "Lun:3" in said


def test_each_target_has_a_process_of_its_own_and_one_port_is_enough(parent: Parent, targets: Targets) -> None:
    serve(parent, targets, config(RAM, others=(LunConfig(5, "ram", size=1 << 20),)))
    assert len({pid(targets, key) for key in (REDIRECTOR, IQN, OTHER)}) == 3
    names = [Path(f"/proc/{pid(targets, key)}/comm").read_text().strip() for key in (REDIRECTOR, IQN, OTHER)]
    assert names == ["tcmu-redirector", "tcmu:disk", "tcmu:other"]
    for name, lun in ((IQN, "Lun:0"), (OTHER, "Lun:5")):
        assert f"Target:{name} Portal:{targets.addresses[0]},1" in listing(targets)
        assert lun in listing(targets)


def test_the_door_opens_no_storage(parent: Parent, targets: Targets, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    serve(parent, targets, config(LunConfig(0, "file", str(disk), size=1 << 20), others=(RAM,)))

    def opens(key: str) -> bool:
        return any(os.path.samefile(fd, disk) for fd in Path(f"/proc/{pid(targets, key)}/fd").iterdir() if fd.exists())

    assert [opens(key) for key in (REDIRECTOR, IQN, OTHER)] == [False, True, False]


def test_a_lun_that_does_not_open_leaves_the_others(parent: Parent, targets: Targets) -> None:
    serve(parent, targets, config(RAM, LunConfig(1, "nosuch"), LunConfig(2, "file", "/no/where")))
    said = listing(targets)
    assert "Lun:0" in said
    assert "Lun:1" not in said
    assert "Lun:2" not in said


@pytest.mark.parametrize(
    ("target", "status"),
    [("iqn.2026-01.org.example:nowhere", LoginStatus.NOT_FOUND), ("", LoginStatus.MISSING_PARAMETER)],
)
def test_a_login_that_leads_nowhere_is_told_so(
    parent: Parent, targets: Targets, target: str, status: LoginStatus
) -> None:
    serve(parent, targets, config(RAM))
    with client(targets, target) as one:
        answer = one.ask(one.initiator.login(OPERATIONAL))
        assert isinstance(answer, p.LoginResponse)
        assert LoginStatus(answer.status) is status


def test_each_target_has_its_own_logins_and_digests_work(parent: Parent, targets: Targets) -> None:
    own = {IQN: Access(users=(ChapUser("joe", b"secret of joe"),)), OTHER: Access(users=(ChapUser("jim", b"of jim"),))}
    serve(parent, targets, config(RAM, others=(RAM,), targets=own, header_digests=("CRC32C",)))
    for login, works in (("joe%secret of joe", True), ("jim%of jim", False), ("joe%of jim", False)):
        done = subprocess.run(
            ["iscsi-inq", f"iscsi://{login}@{targets.addresses[0]}/{IQN}/0"],
            capture_output=True, text=True, check=False, timeout=PATIENCE,
        )  # fmt: skip
        assert ("DIRECT_ACCESS" in done.stdout) == works, done.stderr


def test_an_address_that_can_not_be_had_is_named_and_tried_again(
    parent: Parent, targets: Targets, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        targets.configure(config(RAM, addresses=(address,)))
        parent.until(lambda: f"portal {address}: Address already in use" in caplog.text)
        assert not targets.addresses
    parent.until(lambda: targets.addresses and all(one.serving for one in targets.processes.values()))
    assert "Lun:0" in listing(targets)


def test_an_address_more_that_can_not_be_had_is_tried_again(
    parent: Parent, targets: Targets, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    serve(parent, targets, config(RAM))
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        caplog.clear()
        targets.configure(config(RAM, addresses=("127.0.0.1:0", address)))
        parent.until(lambda: "the portal listens at" in caplog.text)
        assert len(targets.addresses) == 1
    targets.processes[REDIRECTOR].retry()  # as SIGHUP does
    parent.until(lambda: address in targets.addresses)


# -- what dies --------------------------------------------------------------------------------------------------------


def test_a_worker_that_dies_is_followed_by_another(parent: Parent, targets: Targets) -> None:
    serve(parent, targets, config(RAM))
    kill(parent, targets, IQN)
    assert "Lun:0" in listing(targets)


def test_a_worker_that_dies_leaves_other_targets_undisturbed(parent: Parent, targets: Targets) -> None:
    serve(parent, targets, config(RAM, others=(RAM,)))
    with undisturbed(targets, OTHER):
        for _ in range(3):
            kill(parent, targets, IQN)
    with client(targets, IQN) as again:
        assert again.login().read(0, 1) == bytes(512)


def waiting(targets: Targets) -> bool:
    """Return whether a connection to the portal has data that its worker has not read."""
    port = int(targets.addresses[0].rpartition(":")[2])
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    established = [row[4] for row in rows if row[1].endswith(f":{port:04X}") and row[3] == "01"]
    return any(int(queues.partition(":")[2], 16) for queues in established)


def test_a_client_goes_on_with_the_next_worker(parent: Parent, targets: Targets, tmp_path: Path) -> None:
    """QEMU's driver, which connects again by itself, notices nothing, and what it wrote is there."""
    serve(parent, targets, config(LunConfig(0, "file", str(tmp_path / "disk"), size=64 << 20)))
    command = ["qemu-io", "-f", "raw", f"iscsi://{targets.addresses[0]}/{IQN}/0"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as qemu:
        assert qemu.stdin is not None
        assert qemu.stdout is not None
        ask, lines = qemu.stdin.write, iter(qemu.stdout.readline, "")

        def answered() -> str:
            """Return the answer to a command, which is that so many bytes were read or written."""
            return next(line for line in lines if "bytes at offset" in line or "fail" in line)

        ask("write -P 1 0 1M\n")
        assert "wrote 1048576/1048576" in answered()
        for number in range(3):
            suspend(pid(targets, IQN))
            ask(f"write -P {number + 2} 0 8M\n")
            parent.until(lambda: waiting(targets))
            kill(parent, targets, IQN)
            assert "wrote 8388608/8388608" in answered()
            ask(f"read -P {number + 2} 0 8M\n")
            assert "read 8388608/8388608" in answered()
        ask("quit\n")
    assert not qemu.returncode


def test_a_door_that_dies_leaves_sessions_undisturbed(parent: Parent, targets: Targets) -> None:
    serve(parent, targets, config(RAM, others=(RAM,)))
    with undisturbed(targets, IQN), undisturbed(targets, OTHER):
        for _ in range(3):
            kill(parent, targets, REDIRECTOR)
    for target in (IQN, OTHER):
        with client(targets, target) as one:
            assert one.login().read(0, 1) == bytes(512)


def test_a_login_to_a_worker_that_is_gone_is_told_to_come_again(parent: Parent, targets: Targets) -> None:
    serve(parent, targets, config(RAM, others=(RAM,)))
    kill(parent, targets, IQN)
    os.kill(pid(targets, IQN), signal.SIGKILL)
    parent.until(lambda: not targets.processes[IQN].serving)  # the second one waits for its start
    with client(targets, IQN) as one:
        answer = one.ask(one.initiator.login(OPERATIONAL))
        assert isinstance(answer, p.LoginResponse)
        assert LoginStatus(answer.status) is LoginStatus.SERVICE_UNAVAILABLE
    with client(targets, OTHER) as one:
        assert one.login().read(0, 1) == bytes(512)
    parent.until(lambda: targets.processes[IQN].serving)


def test_a_worker_that_hangs_holds_up_nobody_else(parent: Parent, targets: Targets) -> None:
    serve(parent, targets, config(RAM, others=(RAM,)))
    suspend(pid(targets, IQN))
    with contextlib.ExitStack() as stack:
        for number in range(300):  # more than wait in the channel to it
            one = stack.enter_context(client(targets, IQN))
            one.initiator.isid = number.to_bytes(6, "big")
            one.send(one.initiator.login(OPERATIONAL))
        answer = one.receive()
        assert isinstance(answer, p.LoginResponse)
        assert LoginStatus(answer.status) is LoginStatus.SERVICE_UNAVAILABLE
        with client(targets, OTHER) as other:
            assert other.login().read(0, 1) == bytes(512)
        assert len(list(Path(f"/proc/{pid(targets, REDIRECTOR)}/fd").iterdir())) < 100
    kill(parent, targets, IQN)
    with client(targets, IQN) as again:
        assert again.login().read(0, 1) == bytes(512)


def test_a_worker_that_hangs_is_named_with_what_replaces_it_and_not_killed(
    parent: Parent, targets: Targets, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tcmu_core.daemon.watchdog.PING_SECONDS", 0.3)
    serve(parent, targets, config(RAM, others=(RAM,)))
    hung = pid(targets, IQN)
    suspend(hung)
    parent.until(lambda: f"the worker of {IQN} has not answered for" in caplog.text)
    assert f"(kill -9 {hung} replaces it)" in caplog.text
    os.kill(hung, signal.SIGCONT)
    with client(targets, IQN) as one:
        assert one.login().read(0, 1) == bytes(512)
    parent.until(lambda: not targets.processes[IQN].silent)
    assert pid(targets, IQN) == hung


def test_a_worker_over_its_memory_limit_is_replaced_and_the_others_stay(
    parent: Parent, targets: Targets, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    luns = LunConfig(0, "file", str(tmp_path / "disk"), size=1 << 20), RAM
    serve(parent, targets, config(luns[0], others=(luns[1],)))
    first = pid(targets, IQN)
    with undisturbed(targets, OTHER):
        limited = config(luns[0], others=(luns[1],), memory_limits={"file": 1 << 20, "ram": 1 << 40})
        targets.configure(limited)
        targets.hold_to_limits(limited)
        parent.until(lambda: targets.processes[IQN].serving and pid(targets, IQN) != first)
        serve(parent, targets, config(luns[0], others=(luns[1],)))
    assert f"the worker of {IQN} ended: it took" in caplog.text
    with client(targets, IQN) as one:
        assert one.login().read(0, 1) == bytes(512)


def test_a_targets_worker_may_take_what_its_luns_may_together() -> None:
    mixed = config(RAM, LunConfig(1, "file", "/a"), others=(RAM, LunConfig(1, "ram")))
    for limits, expected in (
        ({"ram": 5}, {OTHER: 10}),
        ({"ram": 5, "file": 7}, {IQN: 12, OTHER: 10}),
        ({"file": 7}, {}),
    ):
        assert memory_limits(dataclasses.replace(mixed, memory_limits=limits)) == expected


def test_the_zygote_can_die_and_workers_live_on(parent: Parent, targets: Targets) -> None:
    serve(parent, targets, config(RAM))
    zygote = parent.spawner._zygote
    assert zygote is not None
    zygote.kill()
    parent.until(lambda: parent.spawner._zygote is not zygote)
    assert "Lun:0" in listing(targets)
    serve(parent, targets, config(LunConfig(6, "ram", size=1 << 20)))
    assert "Lun:6" in listing(targets)


def test_each_crash_in_a_row_waits_longer(parent: Parent, targets: Targets, caplog: pytest.LogCaptureFixture) -> None:
    serve(parent, targets, config(RAM))
    for _ in range(3):
        kill(parent, targets, IQN)
    waits = [record.args[-1] for record in caplog.records if "the next one starts" in record.msg and record.args]  # type: ignore[index]
    assert waits == [0, 1, 2]


def test_sessions_go_on_when_the_supervisor_is_killed_and_the_next_one_adopts_their_hosts(
    parent: Parent, targets: Targets
) -> None:
    wanted = config(RAM, others=(RAM,))
    serve(parent, targets, wanted)
    keys = (REDIRECTOR, IQN, OTHER)
    before = {key: pid(targets, key) for key in keys}
    address = targets.addresses[0]
    with undisturbed(targets, IQN), undisturbed(targets, OTHER):
        for _ in range(2):
            parent.crash()
            with Client(address, Initiator(target=IQN, isid=b"\x80lonely")) as one:  # nobody supervises now
                assert one.login().read(0, 1) == bytes(512)
            targets = Targets(parent, targets.state)
            serve(parent, targets, wanted)
            assert {key: pid(targets, key) for key in keys} == before
            assert targets.addresses == [address]
    kill(parent, targets, IQN)
    with client(targets, IQN) as one:
        assert one.login().read(0, 1) == bytes(512)
    stop(parent, targets)


def test_what_was_asked_for_anew_while_no_supervisor_was_there_is_served_by_the_next(
    parent: Parent, targets: Targets, tmp_path: Path
) -> None:
    disk = LunConfig(0, "file", str(tmp_path / "disk"), size=1 << 20)
    serve(parent, targets, config(disk, others=(RAM,)))
    other = pid(targets, OTHER)
    with undisturbed(targets, OTHER):
        parent.crash()
        targets = Targets(parent, targets.state)
        serve(parent, targets, config(disk, LunConfig(5, "ram", size=1 << 20), others=(RAM,)))
        assert pid(targets, OTHER) == other
    parent.until(lambda: targets.addresses)
    assert "Lun:5" in listing(targets)
    stop(parent, targets)


def test_a_lun_whose_storage_a_hung_host_still_holds_is_there_in_the_end(
    parent: Parent, targets: Targets, tmp_path: Path
) -> None:
    wanted = config(LunConfig(0, "file", str(tmp_path / "disk"), size=1 << 20))
    serve(parent, targets, wanted)
    suspend(pid(targets, IQN))
    parent.crash()
    targets = Targets(parent, targets.state)
    serve(parent, targets, wanted)
    assert "Lun:0" in listing(targets)
    stop(parent, targets)


def test_a_lun_that_is_missing_is_tried_again_and_appears_beside_the_others(
    parent: Parent, targets: Targets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    late = tmp_path / "late"
    serve(parent, targets, config(RAM, LunConfig(1, "file", str(late))))
    host = pid(targets, IQN)
    with undisturbed(targets, IQN):
        assert "Lun:1" not in listing(targets)
        late.write_bytes(bytes(1 << 20))
        targets.processes[IQN].retry()  # on SIGHUP, and every so often
        parent.until(lambda: "Lun:1" in listing(targets))
    assert pid(targets, IQN) == host


def blocks(targets: Targets) -> str:
    """Return what READ CAPACITY says to a new initiator."""
    uri = f"iscsi://{targets.addresses[0]}/{IQN}/0"
    said = subprocess.run(["iscsi-readcapacity16", uri], capture_output=True, text=True, check=True, timeout=PATIENCE)
    return said.stdout


def change(parent: Parent, targets: Targets, wanted: Change) -> None:
    future = targets.processes[IQN].change(wanted)
    parent.until(future.done)
    assert future.result() == (0, "")


def test_a_disk_grows_while_it_is_used(parent: Parent, targets: Targets, tmp_path: Path) -> None:
    serve(parent, targets, config(LunConfig(0, "file", str(tmp_path / "disk"), size=1 << 20)))
    with client(targets, IQN) as one:
        one.login()
        change(parent, targets, Change(size=2 << 20))
        with contextlib.suppress(AssertionError):
            one.read(0, 1)  # CAPACITY DATA HAS CHANGED, once
        assert one.read((2 << 20) // 512 - 1, 1) == bytes(512)
    assert f"Total size:{2 << 20}" in blocks(targets)


def test_a_medium_is_changed(parent: Parent, targets: Targets, tmp_path: Path) -> None:
    for number, name in enumerate(("one", "two"), 1):
        (tmp_path / name).write_bytes(bytes(number << 20))
    serve(parent, targets, config(LunConfig(0, "fbo", f"ro/{tmp_path}/one")))
    assert f"Total size:{1 << 20}" in blocks(targets)
    change(parent, targets, Change(cfgstring=f"ro/{tmp_path}/two"))
    assert f"Total size:{2 << 20}" in blocks(targets)


# -- what changes -----------------------------------------------------------------------------------------------------


def test_new_settings_take_the_place_of_old_ones(parent: Parent, targets: Targets) -> None:
    serve(parent, targets, config(RAM))
    serve(parent, targets, config(LunConfig(5, "ram", size=1 << 20)))
    assert "Lun:5" in listing(targets)
    serve(parent, targets, config())
    assert not targets.processes


def test_a_change_of_one_target_leaves_the_sessions_of_the_others(parent: Parent, targets: Targets) -> None:
    serve(parent, targets, config(RAM, others=(RAM,)))
    with undisturbed(targets, OTHER):
        serve(parent, targets, config(LunConfig(5, "ram", size=1 << 20), others=(RAM,)))
        assert "Lun:5" in listing(targets)
        serve(parent, targets, config(others=(RAM,)))
        assert IQN not in listing(targets)
        serve(parent, targets, config(RAM, others=(RAM,), targets={IQN: Access(initiators=("nobody",))}))
        assert IQN not in listing(targets)


def test_a_disk_can_move_to_another_target(parent: Parent, targets: Targets, tmp_path: Path) -> None:
    disk = LunConfig(0, "file", str(tmp_path / "disk"), size=1 << 20)
    serve(parent, targets, config(disk, others=(RAM,)))
    loser = pid(targets, IQN)
    suspend(loser)  # it takes its time to let go
    targets.configure(config(RAM, others=(disk,)))
    parent.loop.call_later(0.5, parent.loop.stop)
    parent.loop.run()
    os.kill(loser, signal.SIGCONT)

    def moved() -> bool:
        status = targets.processes[OTHER].status
        return status is not None and [one.handler for one in status.disks] == ["file"]

    parent.until(moved)
    with client(targets, OTHER) as one:
        assert one.login().read(0, 1) == bytes(512)


def test_a_target_that_waits_for_its_next_start_can_be_removed(parent: Parent, targets: Targets) -> None:
    serve(parent, targets, config(RAM, others=(RAM,)))
    kill(parent, targets, IQN)
    os.kill(pid(targets, IQN), signal.SIGKILL)
    parent.until(lambda: not targets.processes[IQN].serving)
    serve(parent, targets, config(others=(RAM,)))
    assert IQN not in listing(targets)


def test_what_nobody_serves_is_known_with_the_reason(parent: Parent, targets: Targets) -> None:
    serve(parent, targets, config(RAM, others=(RAM,)))
    assert targets.unserved == []
    os.kill(pid(targets, IQN), signal.SIGKILL)
    parent.until(lambda: not targets.processes[IQN].serving)
    (host,) = targets.unserved
    assert (host.title, [(one.lun, one.reason) for one in host.missing]) == (IQN, [(0, "killed by SIGKILL")])
    targets.processes[IQN].state = State.QUARANTINED
    (host,) = targets.unserved
    assert host.missing[0].reason.startswith("given up: killed by SIGKILL; it is tried again every 60 s")
    targets.processes[IQN].state = State.STARTING
    parent.until(lambda: targets.unserved == [])


def test_stopping_asks_initiators_to_log_out_and_ends_every_process(parent: Parent, targets: Targets) -> None:
    serve(parent, targets, config(RAM, others=(RAM,)))
    processes = [os.pidfd_open(pid(targets, key)) for key in (REDIRECTOR, IQN, OTHER)]
    with client(targets, IQN) as one:
        one.login()
        ended: list[bool] = []
        targets.stop(lambda: ended.append(True))
        assert isinstance(one.receive(), p.AsyncMessage)
        parent.until(lambda: ended)
        assert one.receive() is None
    assert select.select(processes, [], [], 0)[0] == processes  # pidfd_open(2): readable when it has ended
    for handle in processes:
        os.close(handle)


def test_a_worker_that_hangs_does_not_hold_up_the_end(
    parent: Parent, targets: Targets, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tcmu_core.daemon.targets.STOP_SECONDS", 0.1)
    serve(parent, targets, config(RAM, others=(RAM,)))
    suspend(pid(targets, IQN))
    ended: list[bool] = []
    targets.stop(lambda: ended.append(True))
    parent.until(lambda: ended)
    assert not targets.processes


def test_what_is_logged_says_who_serves_what(
    parent: Parent, targets: Targets, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    serve(parent, targets, config(LunConfig(0, "nosuch"), others=(LunConfig(1, "ram", size=1 << 20), RAM)))
    assert f"the portal listens at {targets.addresses[0]}" in caplog.messages
    assert f"{IQN} is served, LUN none" in caplog.messages
    assert f"{OTHER} is served, LUN 0, 1" in caplog.messages


# -- filters ----------------------------------------------------------------------------------------------------------


def test_the_filters_of_a_lun_stand_upon_it_and_its_process_answers_for_them(
    parent: Parent, targets: Targets, tmp_path: Path
) -> None:
    lun = LunConfig(0, "ram", size=8 << 20, name="d", filters=("truncate;size=1M", "stats"))
    serve(parent, targets, config(lun))
    statuses = {path: control.ask(path, Ask()) for path in tmp_path.rglob("*.sock")}
    ((path, disk),) = [
        (path, each.disks[0]) for path, each in statuses.items() if isinstance(each, Status) and each.disks
    ]
    assert disk.size == 1 << 20
    message = {"do": "tell", "name": "fault", "push": True, "message": {"action": "add", "rules": "read -> busy"}}
    answer = control.ask(path, FilterCommand(json.dumps(message), disk.lun))
    assert isinstance(answer, FilterAnswer)
    assert json.loads(answer.answer)["filters"] == ["truncate", "stats", "fault"]
    wrong = control.ask(path, FilterCommand(json.dumps({"do": "pop", "name": "truncate"})))
    assert wrong == FilterAnswer(error="the filter 'truncate' can't be taken off a disk that is in use", mistaken=True)
    missing = control.ask(path, FilterCommand(json.dumps({"do": "list"}), lun=7))
    assert isinstance(missing, FilterAnswer)
    assert "no LUN 7 here" in missing.error


def place(parent: Parent, targets: Targets, key: str) -> Path:
    """Return where the process of a target is found by a person's commands."""
    return parent.rendezvous(targets.processes[key].key)


def test_who_is_logged_in_is_known_and_can_be_sent_away(parent: Parent, targets: Targets) -> None:
    serve(parent, targets, config(RAM, others=(RAM,)))
    with client(targets, IQN) as one, client(targets, OTHER) as other:
        one.login()
        other.login()
        for key in (IQN, OTHER):
            told = control.ask(place(parent, targets, key), Sessions())
            assert isinstance(told, SessionList)
            assert [(each.target, each.initiator, each.luns) for each in told.sessions] == [
                (key, one.initiator.name, (0,))
            ]
        assert control.ask(place(parent, targets, REDIRECTOR), Sessions()) == SessionList()
        assert control.ask(place(parent, targets, IQN), Logout(one.initiator.name, seconds=1)) == LoggedOut(1)
        assert isinstance(one.receive(), p.AsyncMessage)
        assert one.receive() is None
        assert other.read(0, 1) == bytes(512)


def test_the_commands_of_a_target_are_told_to_who_looks(parent: Parent, targets: Targets) -> None:
    serve(parent, targets, config(RAM))
    with client(targets, IQN) as one:
        one.login()
        trace = control.told(place(parent, targets, IQN), Trace(names=("READ(10)",)), begun=lambda: None)
        assert next(trace) == Traced()
        with contextlib.suppress(AssertionError):
            one.read(0, 1)
        assert one.read(8, 2) == bytes(1024)
        message = next(trace)
        assert isinstance(message, Traced)
        assert message.lines[-1].command.initiator == one.initiator.name
        trace.close()
