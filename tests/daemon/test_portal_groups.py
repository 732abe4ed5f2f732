"""Portals of a target in target port groups, as tcmu.conf has them: by sockets, with a supervisor's processes."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator

import pytest

from tcmu_core.config.file import parse
from tcmu_core.daemon.targets import Targets
from tcmu_core.iscsi import pdu as p
from tests.daemon.parent import Parent
from tests.daemon.running import IQN, PATIENCE, pid, serve, stop
from tests.iscsi.initiator import Initiator
from tests.iscsi.served import ATTENTIONS, Client

TEST_UNIT_READY = bytes(16)
REPORT = bytes([0xA3, 0x0A, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0])
CHANGED, STANDBY = (6, 0x2A, 0x06), (2, 0x04, 0x0B)
MARK = b"kept" * 128


class Portals:
    """A target with a portal in each of two groups. `write` has tcmu.conf say how they are."""

    def __init__(self, parent: Parent, targets: Targets, port: int) -> None:
        self.parent, self.targets = parent, targets
        self.addresses = [f"127.0.0.1:{port}", f"127.0.0.2:{port}"]

    def write(
        self, first: str = "optimized", second: str = "non-optimized", *, lun: str = "", access: str = "both",
        ids: tuple[int, int] = (1, 2),
    ) -> None:  # fmt: skip
        text = f"""
            [portal]
            listen = {", ".join(self.addresses)}
            [targets]
            [[{IQN}]]
            [[[groups]]]
            access = {access}
            [[[[{ids[0]}]]]]
            portals = {self.addresses[0]}
            state = {first}
            [[[[{ids[1]}]]]]
            portals = {self.addresses[1]}
            state = {second}
            [[[lun 0]]]
            handler = ram
            size = 1M
            [[[lun 1]]]
            handler = ram
            size = 1M
            {lun}
        """
        serve(self.parent, self.targets, parse(text))

    def client(self, number: int) -> Client:
        """Log in at a portal, with the power-on attentions taken."""
        one = Client(self.addresses[number], Initiator(target=IQN)).login()
        for lun in (0, 1):
            assert one.sense(TEST_UNIT_READY, lun=lun) == (6, 0x29, 0)
        return one


@pytest.fixture
def portals(parent: Parent, targets: Targets) -> Iterator[Portals]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    yield Portals(parent, targets, port)
    stop(parent, targets)


def states(one: Client, lun: int = 0) -> dict[int, int]:
    """Ask for the state of each group; unit attentions that wait are taken first."""
    for _ in range(ATTENTIONS):
        answer = one.ask(one.initiator.command(REPORT, read=256, lun=lun))
        if isinstance(answer, p.DataIn):
            data = bytes(answer.data)
            return {int.from_bytes(data[at + 2 : at + 4], "big"): data[at] & 15 for at in range(4, len(data), 12)}
    raise AssertionError(answer)


def test_each_portal_is_a_port_of_its_own_in_the_state_of_its_group(portals: Portals) -> None:
    portals.write(second="standby")
    command = ["iscsi-ls", f"iscsi://{portals.addresses[1]}"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=PATIENCE).stdout
    assert [f"Portal:{address},{tag}" in shown for tag, address in enumerate(portals.addresses, 1)] == [True, True]
    with portals.client(0) as one, portals.client(1) as other:  # the same initiator port, and two nexuses
        one.write(0, MARK)
        assert states(one) == states(other) == {1: 0, 2: 2}
        assert other.sense(TEST_UNIT_READY) == STANDBY
        answer = other.ask(other.initiator.read_10(0, 1))
        assert isinstance(answer, p.ScsiResponse)
        assert one.read(0, 1) == MARK


def test_an_edit_moves_groups_and_those_who_are_logged_in_hear_of_it_and_go_on(portals: Portals) -> None:
    portals.write(second="standby", access="implicit")
    before = pid(portals.targets, IQN)
    with portals.client(0) as one, portals.client(1) as other:
        one.write(0, MARK)
        portals.write("standby", "optimized", access="implicit")
        portals.parent.until(lambda: states(other) == {1: 2, 2: 0})
        assert other.read(0, 1) == MARK
        assert one.sense(TEST_UNIT_READY) == CHANGED
        assert one.sense(TEST_UNIT_READY) == STANDBY
    assert pid(portals.targets, IQN) == before


def test_an_initiator_moves_the_groups_of_one_lun(portals: Portals) -> None:
    portals.write(second="standby")
    with portals.client(0) as one, portals.client(1) as other:
        data = bytes.fromhex("00000000 02000001 00000002")
        cdb = bytes([0xA4, 0x0A, 0, 0, 0, 0, 0, 0, 0, len(data), 0, 0])
        answer = other.ask(other.initiator.command(cdb, write=data, data=data))
        assert isinstance(answer, p.ScsiResponse)
        assert not answer.status
        assert one.sense(TEST_UNIT_READY) == CHANGED
        assert (states(one), states(one, lun=1)) == ({1: 2, 2: 0}, {1: 0, 2: 2})
        assert (one.sense(TEST_UNIT_READY, lun=1), other.sense(TEST_UNIT_READY)) == (None, None)


def test_a_lun_may_have_states_of_its_own(portals: Portals) -> None:
    portals.write(lun="groups = 1 unavailable, 2 optimized preferred")
    with portals.client(0) as one:
        assert (states(one), states(one, lun=1)) == ({1: 0, 2: 1}, {1: 3, 2: 0})


def test_who_came_by_a_portal_that_is_in_another_group_now_has_to_come_again(portals: Portals) -> None:
    portals.write()
    with portals.client(0) as one, portals.client(1) as other:
        portals.write(ids=(1, 3))
        assert other.receive() is None
        assert one.sense(TEST_UNIT_READY) == CHANGED
        assert states(one) == {1: 0, 3: 1}
    with portals.client(1) as again:
        assert states(again) == {1: 0, 3: 1}
