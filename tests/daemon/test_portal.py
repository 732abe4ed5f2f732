"""The targets of tcmu.conf, served by a door and workers that a real zygote forks, for libiscsi's clients and ours."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import select
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tcmu_core.config.configuration import Config, LunConfig, TargetConfig
from tcmu_core.daemon.keeper import PortalKeeper
from tcmu_core.daemon.spawner import Nursery
from tcmu_core.host.jobs import DOOR, memory_limits
from tcmu_core.iscsi import pdu as p
from tcmu_core.iscsi.constants import LoginStatus
from tcmu_core.iscsi.settings import Access, ChapUser, PortalSettings
from tcmu_core.loop import Loop
from tests.iscsi.initiator import OPERATIONAL, Initiator
from tests.iscsi.served import Client

IQN = "iqn.2026-01.org.example:disk"
OTHER = "iqn.2026-01.org.example:other"
PATIENCE = 30.0
RAM = LunConfig(0, "ram", size=1 << 20)


class Parent:
    """What the supervisor is to the keeper."""

    def __init__(self) -> None:
        self.loop = Loop()
        self.nursery = Nursery(self.loop)

    def log_settings(self) -> Any:
        return {"level": 3, "devices": {}, "directory": None, "syslog": False, "stderr": False}

    def spawn(self, job: Any, on_message: Callable[[Any], object], on_death: Callable[[str], object]) -> Any:
        return self.nursery.spawn(job, on_message, on_death)

    def until(self, condition: Callable[[], object]) -> None:
        """Run the loop until `condition()` holds."""
        timer = self.loop.call_later(PATIENCE, self.loop.stop)

        def look() -> None:
            if condition():
                self.loop.stop()
            else:
                self.loop.call_later(0.01, look)

        look()
        self.loop.run()
        timer.cancel()
        assert condition()


@pytest.fixture
def parent() -> Iterator[Parent]:
    made = Parent()
    yield made
    made.nursery.close()
    made.loop.close()


@pytest.fixture
def keeper(parent: Parent) -> Iterator[PortalKeeper]:
    made = PortalKeeper(parent)
    yield made
    ended: list[bool] = []
    made.stop(lambda: ended.append(True))
    parent.until(lambda: ended)


def config(*luns: LunConfig, others: tuple[LunConfig, ...] = (), **settings: Any) -> Config:
    """Return a configuration of up to two targets."""
    targets = [TargetConfig(name, own) for name, own in ((IQN, luns), (OTHER, others)) if own]
    limits = settings.pop("memory_limits", {})
    portal = PortalSettings(**{"addresses": ("127.0.0.1:0",), **settings})
    return Config(portal=portal, targets=tuple(targets), memory_limits=limits)


def serve(parent: Parent, keeper: PortalKeeper, wanted: Config) -> None:
    """Have the keeper serve what is wanted, and wait until all of it is."""
    keeper.configure(wanted)
    names = {DOOR, *(target.name for target in wanted.targets)} if wanted.targets else set()
    parent.until(
        lambda: set(keeper.kept) == names and all(one.opened and not one.ending for one in keeper.kept.values())
    )


def pid(keeper: PortalKeeper, key: str) -> int:
    worker = keeper.kept[key].worker
    assert worker is not None
    return int(worker.pid)


def kill(parent: Parent, keeper: PortalKeeper, key: str) -> None:
    """Kill a process of the portal and wait for the next one to be ready."""
    before = pid(keeper, key)
    os.kill(before, signal.SIGKILL)
    parent.until(lambda: keeper.kept[key].opened and pid(keeper, key) != before)


def listing(keeper: PortalKeeper) -> str:
    command = ["iscsi-ls", "-s", f"iscsi://{keeper.addresses[0]}"]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=PATIENCE).stdout


def client(keeper: PortalKeeper, target: str) -> Client:
    return Client(keeper.addresses[0], Initiator(target=target))


class Reader:
    """One session that reads all the time, and does not connect again."""

    def __init__(self, one: Client) -> None:
        self.client = one.login()
        self.reads = 0
        self.error: BaseException | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                assert self.client.read(0, 8) == bytes(4096)
                self.reads += 1
        except BaseException as error:
            self.error = error

    def end(self) -> None:
        """Read once more, then leave."""
        self._stop.set()
        self._thread.join(PATIENCE)
        try:
            assert self.error is None, self.error
            assert self.client.read(0, 8) == bytes(4096)
        finally:
            self.client.sock.close()


@contextlib.contextmanager
def undisturbed(keeper: PortalKeeper, target: str) -> Iterator[None]:
    """Hold that a session of the target goes on during the context."""
    reader = Reader(client(keeper, target))
    try:
        yield
    finally:
        reader.end()
    assert reader.reads


# -- one worker for each target ---------------------------------------------------------------------------------------


def test_targets_are_served_by_a_worker(parent: Parent, keeper: PortalKeeper) -> None:
    serve(parent, keeper, config(RAM, LunConfig(3, "ram", size=2 << 20)))
    said = listing(keeper)
    assert f"Target:{IQN}" in said
    assert "Lun:0" in said
    assert "Lun:3" in said


def test_each_target_has_a_process_of_its_own_and_one_port_is_enough(parent: Parent, keeper: PortalKeeper) -> None:
    serve(parent, keeper, config(RAM, others=(LunConfig(5, "ram", size=1 << 20),)))
    assert len({pid(keeper, key) for key in (DOOR, IQN, OTHER)}) == 3
    names = [Path(f"/proc/{pid(keeper, key)}/comm").read_text().strip() for key in (DOOR, IQN, OTHER)]
    assert names == ["tcmu-door", "tcmu:disk", "tcmu:other"]
    for name, lun in ((IQN, "Lun:0"), (OTHER, "Lun:5")):
        assert f"Target:{name} Portal:{keeper.addresses[0]},1" in listing(keeper)
        assert lun in listing(keeper)


def test_the_door_opens_no_storage(parent: Parent, keeper: PortalKeeper, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    serve(parent, keeper, config(LunConfig(0, "file", str(disk), size=1 << 20), others=(RAM,)))

    def opens(key: str) -> bool:
        return any(os.path.samefile(fd, disk) for fd in Path(f"/proc/{pid(keeper, key)}/fd").iterdir() if fd.exists())

    assert [opens(key) for key in (DOOR, IQN, OTHER)] == [False, True, False]


def test_a_lun_that_does_not_open_leaves_the_others(parent: Parent, keeper: PortalKeeper) -> None:
    serve(parent, keeper, config(RAM, LunConfig(1, "nosuch"), LunConfig(2, "file", "/no/where")))
    said = listing(keeper)
    assert "Lun:0" in said
    assert "Lun:1" not in said
    assert "Lun:2" not in said


@pytest.mark.parametrize(
    ("target", "status"),
    [("iqn.2026-01.org.example:nowhere", LoginStatus.NOT_FOUND), ("", LoginStatus.MISSING_PARAMETER)],
)
def test_a_login_that_leads_nowhere_is_told_so(
    parent: Parent, keeper: PortalKeeper, target: str, status: LoginStatus
) -> None:
    serve(parent, keeper, config(RAM))
    with client(keeper, target) as one:
        answer = one.ask(one.initiator.login(OPERATIONAL))
        assert isinstance(answer, p.LoginResponse)
        assert LoginStatus(answer.status) is status


def test_each_target_has_its_own_logins_and_digests_work(parent: Parent, keeper: PortalKeeper) -> None:
    own = {IQN: Access(users=(ChapUser("joe", b"secret of joe"),)), OTHER: Access(users=(ChapUser("jim", b"of jim"),))}
    serve(parent, keeper, config(RAM, others=(RAM,), targets=own, header_digests=("CRC32C",)))
    for login, works in (("joe%secret of joe", True), ("jim%of jim", False), ("joe%of jim", False)):
        done = subprocess.run(
            ["iscsi-inq", f"iscsi://{login}@{keeper.addresses[0]}/{IQN}/0"],
            capture_output=True, text=True, check=False, timeout=PATIENCE,
        )  # fmt: skip
        assert ("DIRECT_ACCESS" in done.stdout) == works, done.stderr


def test_an_address_that_can_not_be_had_is_named_and_tried_again(
    parent: Parent, keeper: PortalKeeper, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        keeper.configure(config(RAM, addresses=(address,)))
        parent.until(lambda: f"portal {address}: Address already in use" in caplog.text)
        assert not keeper.addresses
    parent.until(lambda: keeper.addresses)
    assert "Lun:0" in listing(keeper)


# -- what dies --------------------------------------------------------------------------------------------------------


def test_a_worker_that_dies_is_followed_by_another(parent: Parent, keeper: PortalKeeper) -> None:
    serve(parent, keeper, config(RAM))
    kill(parent, keeper, IQN)
    assert "Lun:0" in listing(keeper)


def test_a_worker_that_dies_leaves_other_targets_undisturbed(parent: Parent, keeper: PortalKeeper) -> None:
    serve(parent, keeper, config(RAM, others=(RAM,)))
    with undisturbed(keeper, OTHER):
        for _ in range(3):
            kill(parent, keeper, IQN)
    with client(keeper, IQN) as again:
        assert again.login().read(0, 1) == bytes(512)


def waiting(keeper: PortalKeeper) -> bool:
    """Return whether a connection to the portal has data that its worker has not read."""
    port = int(keeper.addresses[0].rpartition(":")[2])
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    established = [row[4] for row in rows if row[1].endswith(f":{port:04X}") and row[3] == "01"]
    return any(int(queues.partition(":")[2], 16) for queues in established)


def test_a_client_goes_on_with_the_next_worker(parent: Parent, keeper: PortalKeeper, tmp_path: Path) -> None:
    """QEMU's driver, which connects again by itself, notices nothing, and what it wrote is there."""
    serve(parent, keeper, config(LunConfig(0, "file", str(tmp_path / "disk"), size=64 << 20)))
    command = ["qemu-io", "-f", "raw", f"iscsi://{keeper.addresses[0]}/{IQN}/0"]
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
            os.kill(pid(keeper, IQN), signal.SIGSTOP)
            ask(f"write -P {number + 2} 0 8M\n")
            parent.until(lambda: waiting(keeper))
            kill(parent, keeper, IQN)
            assert "wrote 8388608/8388608" in answered()
            ask(f"read -P {number + 2} 0 8M\n")
            assert "read 8388608/8388608" in answered()
        ask("quit\n")
    assert not qemu.returncode


def test_a_door_that_dies_leaves_sessions_undisturbed(parent: Parent, keeper: PortalKeeper) -> None:
    serve(parent, keeper, config(RAM, others=(RAM,)))
    with undisturbed(keeper, IQN), undisturbed(keeper, OTHER):
        for _ in range(3):
            kill(parent, keeper, DOOR)
    for target in (IQN, OTHER):
        with client(keeper, target) as one:
            assert one.login().read(0, 1) == bytes(512)


def test_a_login_to_a_worker_that_is_gone_is_told_to_come_again(parent: Parent, keeper: PortalKeeper) -> None:
    serve(parent, keeper, config(RAM, others=(RAM,)))
    kill(parent, keeper, IQN)
    os.kill(pid(keeper, IQN), signal.SIGKILL)
    parent.until(lambda: keeper.kept[IQN].worker is None)  # the second one waits for its start
    with client(keeper, IQN) as one:
        answer = one.ask(one.initiator.login(OPERATIONAL))
        assert isinstance(answer, p.LoginResponse)
        assert LoginStatus(answer.status) is LoginStatus.SERVICE_UNAVAILABLE
    with client(keeper, OTHER) as one:
        assert one.login().read(0, 1) == bytes(512)
    parent.until(lambda: keeper.kept[IQN].opened)


def test_a_worker_that_hangs_holds_up_nobody_else(parent: Parent, keeper: PortalKeeper) -> None:
    serve(parent, keeper, config(RAM, others=(RAM,)))
    os.kill(pid(keeper, IQN), signal.SIGSTOP)
    with contextlib.ExitStack() as stack:
        for number in range(300):  # more than wait in the channel to it
            one = stack.enter_context(client(keeper, IQN))
            one.initiator.isid = number.to_bytes(6, "big")
            one.send(one.initiator.login(OPERATIONAL))
        answer = one.receive()
        assert isinstance(answer, p.LoginResponse)
        assert LoginStatus(answer.status) is LoginStatus.SERVICE_UNAVAILABLE
        with client(keeper, OTHER) as other:
            assert other.login().read(0, 1) == bytes(512)
        assert len(list(Path(f"/proc/{pid(keeper, DOOR)}/fd").iterdir())) < 100
    kill(parent, keeper, IQN)
    with client(keeper, IQN) as again:
        assert again.login().read(0, 1) == bytes(512)


def test_a_worker_that_hangs_is_named_with_what_replaces_it_and_not_killed(
    parent: Parent, keeper: PortalKeeper, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tcmu_core.daemon.watchdog.PING_SECONDS", 0.3)
    serve(parent, keeper, config(RAM, others=(RAM,)))
    hung = pid(keeper, IQN)
    os.kill(hung, signal.SIGSTOP)
    parent.until(lambda: f"the worker of {IQN} has not answered for" in caplog.text)
    assert f"(kill -9 {hung} replaces it)" in caplog.text
    os.kill(hung, signal.SIGCONT)
    with client(keeper, IQN) as one:
        assert one.login().read(0, 1) == bytes(512)
    parent.until(lambda: not keeper.kept[IQN].watch.silent)
    assert pid(keeper, IQN) == hung


def test_a_worker_over_its_memory_limit_is_replaced_and_the_others_stay(
    parent: Parent, keeper: PortalKeeper, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path
) -> None:  # fmt: skip
    monkeypatch.setattr("tcmu_core.daemon.keeper.MEMORY_SECONDS", 0.05)
    luns = LunConfig(0, "file", str(tmp_path / "disk"), size=1 << 20), RAM
    serve(parent, keeper, config(luns[0], others=(luns[1],)))
    first = pid(keeper, IQN)
    with undisturbed(keeper, OTHER):
        keeper.configure(config(luns[0], others=(luns[1],), memory_limits={"file": 1 << 20, "ram": 1 << 40}))
        parent.until(lambda: keeper.kept[IQN].opened and pid(keeper, IQN) != first)
        serve(parent, keeper, config(luns[0], others=(luns[1],)))
    assert f"the worker of {IQN} ended: it took" in caplog.text
    with client(keeper, IQN) as one:
        assert one.login().read(0, 1) == bytes(512)


def test_a_targets_worker_may_take_what_its_luns_may_together() -> None:
    mixed = config(RAM, LunConfig(1, "file", "/a"), others=(RAM, LunConfig(1, "ram")))
    for limits, expected in (
        ({"ram": 5}, {OTHER: 10}),
        ({"ram": 5, "file": 7}, {IQN: 12, OTHER: 10}),
        ({"file": 7}, {}),
    ):
        assert memory_limits(dataclasses.replace(mixed, memory_limits=limits)) == expected


def test_the_zygote_can_die_and_workers_live_on(parent: Parent, keeper: PortalKeeper) -> None:
    serve(parent, keeper, config(RAM))
    zygote = parent.nursery._process
    assert zygote is not None
    zygote.kill()
    parent.until(lambda: parent.nursery._process is not zygote)
    assert "Lun:0" in listing(keeper)
    serve(parent, keeper, config(LunConfig(6, "ram", size=1 << 20)))
    assert "Lun:6" in listing(keeper)


def test_each_crash_in_a_row_waits_longer(
    parent: Parent, keeper: PortalKeeper, caplog: pytest.LogCaptureFixture
) -> None:
    serve(parent, keeper, config(RAM))
    for _ in range(3):
        kill(parent, keeper, IQN)
    waits = [record.args[-1] for record in caplog.records if "the next one starts" in record.msg and record.args]  # type: ignore[index]
    assert waits == [0, 1, 2]


# -- what changes -----------------------------------------------------------------------------------------------------


def test_new_settings_take_the_place_of_old_ones(parent: Parent, keeper: PortalKeeper) -> None:
    serve(parent, keeper, config(RAM))
    serve(parent, keeper, config(LunConfig(5, "ram", size=1 << 20)))
    assert "Lun:5" in listing(keeper)
    serve(parent, keeper, config())
    assert not keeper.kept


def test_a_change_of_one_target_leaves_the_sessions_of_the_others(parent: Parent, keeper: PortalKeeper) -> None:
    serve(parent, keeper, config(RAM, others=(RAM,)))
    with undisturbed(keeper, OTHER):
        serve(parent, keeper, config(LunConfig(5, "ram", size=1 << 20), others=(RAM,)))
        assert "Lun:5" in listing(keeper)
        serve(parent, keeper, config(others=(RAM,)))
        assert IQN not in listing(keeper)
        serve(parent, keeper, config(RAM, others=(RAM,), targets={IQN: Access(initiators=("nobody",))}))
        assert IQN not in listing(keeper)


def test_a_disk_can_move_to_another_target(parent: Parent, keeper: PortalKeeper, tmp_path: Path) -> None:
    disk = LunConfig(0, "file", str(tmp_path / "disk"), size=1 << 20)
    serve(parent, keeper, config(disk, others=(RAM,)))
    loser, taker = pid(keeper, IQN), keeper.kept[OTHER]
    os.kill(loser, signal.SIGSTOP)  # it takes its time to let go
    keeper.configure(config(RAM, others=(disk,)))
    parent.until(lambda: (now := keeper.kept.get(OTHER)) is None or (now is not taker and now.opened))
    os.kill(loser, signal.SIGCONT)
    serve(parent, keeper, config(RAM, others=(disk,)))
    with client(keeper, OTHER) as one:
        assert one.login().read(0, 1) == bytes(512)


def test_a_target_that_waits_for_its_next_start_can_be_removed(parent: Parent, keeper: PortalKeeper) -> None:
    serve(parent, keeper, config(RAM, others=(RAM,)))
    kill(parent, keeper, IQN)
    os.kill(pid(keeper, IQN), signal.SIGKILL)
    parent.until(lambda: keeper.kept[IQN].worker is None)
    serve(parent, keeper, config(others=(RAM,)))
    assert IQN not in listing(keeper)


def test_stopping_asks_initiators_to_log_out_and_ends_every_process(parent: Parent, keeper: PortalKeeper) -> None:
    serve(parent, keeper, config(RAM, others=(RAM,)))
    processes = [os.pidfd_open(pid(keeper, key)) for key in (DOOR, IQN, OTHER)]
    with client(keeper, IQN) as one:
        one.login()
        ended: list[bool] = []
        keeper.stop(lambda: ended.append(True))
        assert isinstance(one.receive(), p.AsyncMessage)
        parent.until(lambda: ended)
        assert one.receive() is None
    assert select.select(processes, [], [], 0)[0] == processes  # pidfd_open(2): readable when it has ended
    for handle in processes:
        os.close(handle)


def test_a_worker_that_hangs_does_not_hold_up_the_end(
    parent: Parent, keeper: PortalKeeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tcmu_core.daemon.keeper.STOP_SECONDS", 0.1)
    serve(parent, keeper, config(RAM, others=(RAM,)))
    os.kill(pid(keeper, IQN), signal.SIGSTOP)
    ended: list[bool] = []
    keeper.stop(lambda: ended.append(True))
    parent.until(lambda: ended)
    assert not keeper.kept


def test_what_is_logged_says_who_serves_what(
    parent: Parent, keeper: PortalKeeper, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    serve(parent, keeper, config(LunConfig(0, "nosuch"), others=(LunConfig(1, "ram", size=1 << 20), RAM)))
    assert f"the portal listens at {keeper.addresses[0]}" in caplog.messages
    assert f"{IQN} is served, LUN none" in caplog.messages
    assert f"{OTHER} is served, LUN 0, 1" in caplog.messages
