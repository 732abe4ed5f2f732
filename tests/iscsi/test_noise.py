"""What hosts that do not log in have the log say."""

from __future__ import annotations

import logging
import socket

import pytest

from tcmu_core.iscsi.noise import HOSTS, MOST, SECONDS, Noise
from tests.iscsi.initiator import Initiator
from tests.iscsi.served import served


def test_many_lines_of_one_host_become_few_and_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    now = 5.0
    noise = Noise(lambda: now)
    with caplog.at_level(logging.INFO, "tcmu.iscsi"):
        for number in range(1000):
            noise.log(logging.WARNING, "192.0.2.1", "failed %d", number)
        noise.log(logging.INFO, "192.0.2.2", "another")
        assert len(caplog.messages) == MOST + 2
        assert "no more are logged" in caplog.messages[MOST]
        assert caplog.messages[-1] == "another"
        now += SECONDS
        noise.log(logging.WARNING, "192.0.2.1", "again")
    assert caplog.messages[-2:] == [
        f"192.0.2.1: {1000 - MOST} more connections without a login were not logged",
        "again",
    ]


def test_hosts_without_end_are_not_remembered() -> None:
    noise = Noise(lambda: 0.0)
    for number in range(3 * HOSTS):
        noise.log(logging.DEBUG, str(number), "x")
    assert len(noise._said) <= HOSTS


def test_failed_logins_of_one_host_do_not_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "tcmu.iscsi"), served() as running:
        for number in range(100):
            with running.client(Initiator(target=f"iqn.2026-01.test:{number}")) as client:
                client.ask(client.initiator.login({}))
        for _ in range(100):
            host, _, port = running.address.rpartition(":")
            socket.create_connection((host, int(port))).close()
        with running.client() as good:
            good.login().read(0, 1)
    assert len(caplog.messages) < MOST + 8
    assert any("logged in to" in message for message in caplog.messages)
