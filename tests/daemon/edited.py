"""A tcmu-runner whose tcmu.conf is edited while each of its LUNs is under verified load."""

from __future__ import annotations

import dataclasses
import re
import select
import subprocess
import sys
from pathlib import Path

from tcmu_core.host import control
from tcmu_core.host.messages import DiskStatus, Status
from tcmu_core.host.observer import Observer, Seen
from tcmu_core.testing.client import Client
from tcmu_core.testing.initiator import InitiatorError
from tests.cli.test_runner import AS_USER, Running
from tests.daemon.edits import CONFIGURATION, Edit
from tests.daemon.loads import Load
from tests.waiting import wait_for

PROBE = "iqn.2026-01.test:probe"
REDIRECTOR = "the portal of tcmu.conf"
IN_FORCE = "new settings are in force"
OFTEN = "import tcmu_core.config.watcher; tcmu_core.config.watcher.INTERVAL = 0.1; "  # s: it looks at its file
VOLATILE = {"initiators": (), "in_flight": 0, "progress": None}


@dataclasses.dataclass(frozen=True)
class Scene:
    """What can be seen from outside at one time."""

    disks: dict[str, DiskStatus]
    processes: dict[str, int]  # by target
    sessions: dict[str, tuple[int, float]]  # of loads, by initiator: handle, and since when


class World:
    """The daemon, its configuration, and a load on each LUN."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.state = directory / "own"
        self.runner = Running(directory, "--state-dir", str(self.state), code=OFTEN + AS_USER)
        self.runner.config.chmod(0o600)
        self.loads: dict[str, Load] = {}
        self._observer = Observer(self.state)
        self._probe: Client | None = None
        self._read = 0  # characters of the log before this edit
        self.text = CONFIGURATION.format(directory=directory, address="127.0.0.1:0")
        self.runner.config.write_text(self.text)

    def start(self) -> None:
        """Serve, and begin to write and read."""
        self.runner.start()
        wait_for(lambda: self.addresses() and self.all_served(), why=self.runner.said)
        for disk, (target, lun) in self._luns().items():
            self.loads[disk] = Load(disk, self.addresses()[0], target, lun).begin()

    def stop(self) -> None:
        """Compare all that was written, and end."""
        try:
            self._observer.close()
            if self._probe is not None:
                self._probe.close()
            problems = []
            for load in self.loads.values():
                try:
                    load.end()
                except BaseException as error:
                    problems.append(error)
            if problems:
                raise BaseExceptionGroup("loads", problems)
        finally:
            if self.runner.process is not None:
                self.runner.end()

    # -- edits --------------------------------------------------------------------------------------------------------

    def carry_out(self, edit: Edit) -> None:
        """Do what the row says, and wait until it is in force."""
        self._read = len(self.runner.said())
        if self._probe is not None:
            self._probe.close()
        self._probe = Client(self.uri("two"), name=PROBE)
        if edit.command:
            self.tcmu(*edit.command)
        else:
            changed = edit.of(self.text).replace("{directory}", str(self.directory))
            self.runner.config.write_text(changed)
        wait_for(lambda: edit.done(self), why=self.said)

    def undo(self, before: Scene) -> None:
        """Have the configuration as it was, and every LUN served and under load as before."""
        applied = IN_FORCE in self.said()
        self._read = len(self.runner.said())
        self.runner.config.write_text(self.text)  # no SIGHUP: one that is heard late would mean the next edit
        if applied:
            wait_for(lambda: IN_FORCE in self.said() and self.scene().disks == before.disks, why=self.said)
        for disk, load in self.loads.items():
            load.portal = self.addresses()[0]
            if not load.living:
                self.loads[disk] = load.again()
            self.loads[disk].round()
            self.loads[disk].forget()

    def keep(self) -> None:
        """Take what the file says now as what there is."""
        self.text = self.runner.config.read_text()
        for load in self.loads.values():
            load.forget()

    # -- what there is to see -----------------------------------------------------------------------------------------

    def _look(self) -> tuple[Seen, ...]:
        """Look at all processes; one may be busy for seconds where the machine is."""
        return wait_for(
            lambda: len(found := self._observer.look().hosts) == len(control.places(self.state)) and found,
            why=self.said,
        )

    def _hosts(self) -> list[Status]:
        return [seen.status for seen in self._look()]

    def _luns(self) -> dict[str, tuple[str, int]]:
        return {disk.name: (host.title, disk.lun) for host in self._hosts() for disk in host.disks}

    def scene(self) -> Scene:
        """Look at what should stay as it is."""
        looked = self._look()
        hosts = [seen.status for seen in looked]
        told = {disk.name: dataclasses.replace(disk, **VOLATILE) for host in hosts for disk in host.disks}
        names = {f"iqn.2026-01.test:{disk}" for disk in self.loads}
        sessions = {
            one.initiator: (one.tsih, one.since) for seen in looked for one in seen.sessions if one.initiator in names
        }
        return Scene(told, {host.title: host.pid for host in hosts}, sessions)

    def said(self) -> str:
        """Return what the log has said since the edit."""
        return self.runner.said()[self._read :]

    def sees(self, disk: str) -> bool:
        """Whether a disk is served."""
        return disk in self._luns()

    def size(self, disk: str) -> int:
        """Return how large a disk is."""
        return next(one.size for host in self._hosts() for one in host.disks if one.name == disk)

    def all_served(self) -> bool:
        """Whether all that the configuration has is served."""
        return set(self._luns()) >= set(re.findall(r"^name = (\S+)", self.runner.config.read_text(), re.MULTILINE))

    def addresses(self) -> list[str]:
        """Where the portal listens."""
        return [address for host in self._hosts() if host.title == REDIRECTOR for address in host.addresses]

    def uri(self, target: str, lun: int = 0) -> str:
        """Return the address of a LUN of a target."""
        return f"iscsi://{self.addresses()[0]}/iqn.2026-01.org.example:{target}/{lun}"

    # -- who comes now ------------------------------------------------------------------------------------------------

    def tcmu(self, *words: str) -> str:
        """Run `tcmu`, and return what it prints."""
        command = [sys.executable, "-m", "tcmu_core.cli.tcmu", *words, "--state-dir", str(self.state)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def refused(self, target: str) -> bool:
        """Whether a login without a password is refused."""
        try:
            Client(self.uri(target), name=PROBE).close()
        except InitiatorError:
            return True
        except ConnectionResetError:
            pass  # it was at its login when the settings came: the next one tells
        return False

    def works(self, target: str, login: str) -> bool:
        """Whether a login with `user%password` works."""
        uri = self.uri(target).replace("iscsi://", f"iscsi://{login}@")
        done = subprocess.run(["iscsi-inq", "-i", PROBE, uri], capture_output=True, text=True, check=False)
        return "DIRECT_ACCESS" in done.stdout

    def discovery(self) -> str:
        """Return what a client is told of the targets."""
        command = ["iscsi-ls", "-i", PROBE, f"iscsi://{self.addresses()[0]}"]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout

    def window(self, target: str) -> int:
        """Return how many commands a session may have in flight that logs in now."""
        with Client(self.uri(target), name=PROBE) as client:
            return client.initiator.room

    def pinged(self) -> bool:
        """Whether the session that logged in before the edit, and says nothing, was asked for a sign of life."""
        assert self._probe is not None
        return bool(select.select([self._probe._sock], [], [], 0)[0])
