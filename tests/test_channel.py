"""Channels between the runner's processes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

from tcmu_core.channel import Channel, pair, receive, send
from tcmu_core.loop import Loop


@pytest.fixture
def loop() -> Iterator[Loop]:
    made = Loop()
    yield made
    made.close()


def test_a_message_comes_whole_with_its_descriptors() -> None:
    one, other = pair()
    read, write = os.pipe()
    with one, other:
        send(one, {"spawn": 1, "text": "ä" * 1000}, [write])
        got = receive(other)
        assert got is not None
        message, (fd,) = got
        assert message == {"spawn": 1, "text": "ä" * 1000}
        os.write(fd, b"x")
        assert os.read(read, 1) == b"x"
        for number in (fd, read, write):
            os.close(number)


def test_messages_stay_apart_and_the_end_is_told_once(loop: Loop) -> None:
    one, other = pair()
    got: list[Any] = []
    closed: list[bool] = []

    def ended() -> None:
        closed.append(True)
        loop.stop()

    Channel(loop, other, lambda message, _fds: got.append(message), ended)
    for number in range(3):
        send(one, {"n": number})
    one.close()
    loop.run()
    assert got == [{"n": 0}, {"n": 1}, {"n": 2}]
    assert closed == [True]


def test_what_does_not_fit_is_sent_later_in_order_and_nothing_blocks(loop: Loop) -> None:
    one, other = pair()
    channel = Channel(loop, one, lambda _message, _fds: None, lambda: None)
    text = "x" * 10000
    for number in range(100):
        channel.send({"n": number, "text": text})
    got: list[int] = []

    def read(message: Any, _fds: list[int]) -> None:
        got.append(message["n"])
        if len(got) == 100:
            loop.stop()

    reader = Channel(loop, other, read, lambda: None)
    loop.run()
    assert got == list(range(100))
    reader.close()
    channel.close()


def test_a_message_to_nobody_is_dropped(loop: Loop) -> None:
    one, other = pair()
    channel = Channel(loop, one, lambda _message, _fds: None, lambda: None)
    other.close()
    channel.send({"n": 1})
    channel.close()
    channel.send({"n": 2})
    assert channel.closed
