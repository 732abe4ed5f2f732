"""Channels between the runner's processes."""

from __future__ import annotations

import array
import contextlib
import os
import shutil
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tcmu_core.channel import Channel, Rendezvous, ask, connect, pair, receive, send
from tcmu_core.codec import CodecError, Message
from tcmu_core.host.messages import Exited, Failed, Ping, Pong
from tcmu_core.loop import Loop
from tests.waiting import wait_for


@pytest.fixture
def loop() -> Iterator[Loop]:
    made = Loop()
    yield made
    made.close()


def test_a_message_comes_whole_with_its_descriptors() -> None:
    one, other = pair()
    read, write = os.pipe()
    with one, other:
        send(one, Failed(1, "ä" * 1000), [write])
        got = receive(other)
        assert got is not None
        message, (fd,) = got
        assert message == Failed(1, "ä" * 1000)
        os.write(fd, b"x")
        assert os.read(read, 1) == b"x"
        for number in (fd, read, write):
            os.close(number)


@pytest.mark.parametrize("length", [60_000, 70_000, 300_000, 5_000_000])
def test_a_message_may_be_longer_than_a_packet(length: int) -> None:
    one, other = pair()
    read, write = os.pipe()
    with one, other:
        send(one, Failed(1, "x" * length), [write])
        send(one, Pong(7))
        got = receive(other)
        assert got is not None
        message, (fd,) = got
        assert message == Failed(1, "x" * length)
        assert os.path.samestat(os.fstat(fd), os.fstat(read))
        assert receive(other) == (Pong(7), [])
        for number in (fd, read, write):
            os.close(number)


def test_what_is_no_message_elsewhere_is_refused_and_nobody_waits_for_it(tmp_path: Path) -> None:
    one, other = pair()
    read, write = os.pipe()
    directory, endless = os.open(tmp_path, os.O_RDONLY), os.open(tmp_path / "endless", os.O_RDWR | os.O_CREAT)
    os.truncate(endless, 1 << 40)
    before = len(os.listdir("/proc/self/fd"))
    with one, other:
        for fds in ((), (read,), (directory,), (endless,)):
            one.sendmsg([b"\0"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else [])
            with pytest.raises(CodecError, match="elsewhere"):
                receive(other)
        assert len(os.listdir("/proc/self/fd")) == before
    for number in (read, write, directory, endless):
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
        send(one, Pong(number))
    one.close()
    loop.run()
    assert got == [Pong(0), Pong(1), Pong(2)]
    assert closed == [True]


def test_what_does_not_fit_is_sent_later_in_order_and_nothing_blocks(loop: Loop) -> None:
    one, other = pair()
    channel = Channel(loop, one, lambda _message, _fds: None, lambda: None)
    text = "x" * 10000
    for number in range(100):
        channel.send(Failed(number, text))
    got: list[int] = []

    def read(message: Any, _fds: list[int]) -> None:
        got.append(message.errno)
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
    channel.send(Ping())
    channel.close()
    channel.send(Ping())
    assert channel.closed


def test_what_is_no_message_is_passed_over_and_its_descriptors_are_closed(
    loop: Loop, caplog: pytest.LogCaptureFixture
) -> None:
    one, other = pair()
    got: list[Any] = []

    def read(message: Message, _fds: list[int]) -> None:
        got.append(message)
        loop.stop()

    reader = Channel(loop, other, read, lambda: None)
    before = len(os.listdir("/proc/self/fd"))
    socket.send_fds(one, [b"{}"], [one.fileno()])
    send(one, Ping())
    loop.run()
    assert got == [Ping()]
    assert len(os.listdir("/proc/self/fd")) == before
    assert "no message of ours" in caplog.text
    reader.close()
    one.close()


def test_a_process_is_found_at_its_rendezvous_however_long_the_path_is(loop: Loop, tmp_path: Path) -> None:
    path = tmp_path / ("x" * 100) / ("y" * 100) / "host.sock"
    channels: list[Channel] = []

    def welcome(sock: socket.socket) -> None:
        def answer(_message: Message, _fds: list[int]) -> None:
            channels[-1].send(Exited(7, 0))
            loop.post(loop.stop)

        channels.append(Channel(loop, sock, answer, lambda: None))

    meeting = Rendezvous(loop, path, welcome)
    assert path.stat().st_mode & 0o777 == 0o600
    answers: list[Message] = []
    asking = threading.Thread(target=lambda: answers.append(ask(path, Ping(), 30.0)))
    asking.start()
    loop.run()
    asking.join()
    assert answers == [Exited(7, 0)]
    sock, pid = connect(path)
    sock.close()
    assert pid == os.getpid()
    meeting.close()
    for channel in channels:
        channel.close()
    assert not path.exists()


def test_a_rendezvous_that_was_removed_with_its_directory_is_there_again(
    loop: Loop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tcmu_core.channel.LOOK_SECONDS", 0.01)
    path = tmp_path / "run/tcmu/host.sock"
    came: list[int] = []

    def welcome(sock: socket.socket) -> None:
        came.append(1)
        sock.close()
        loop.stop()

    meeting = Rendezvous(loop, path, welcome)
    shutil.rmtree(tmp_path / "run")
    (tmp_path / "run").touch()  # there is no room for a directory yet
    loop.call_later(0.1, (tmp_path / "run").unlink)
    connecting = threading.Thread(target=lambda: (wait_for(path.exists), connect(path)[0].close()))
    connecting.start()
    loop.run()
    connecting.join()
    assert came
    meeting.close()
    assert not path.exists()


def test_a_rendezvous_leaves_that_of_the_next_process_alone(loop: Loop, tmp_path: Path) -> None:
    path = tmp_path / "host.sock"
    first = Rendezvous(loop, path, lambda sock: sock.close())
    second = Rendezvous(loop, path, lambda sock: sock.close())
    first.close()
    assert path.exists()
    second.close()
    with pytest.raises(FileNotFoundError):
        connect(path)


def test_a_process_that_takes_no_connection_keeps_nobody_waiting_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tcmu_core.channel.CONNECT_SECONDS", 0.1)
    path = tmp_path / "full.sock"
    taken: list[socket.socket] = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
        listening.bind(str(path))
        listening.listen(1)
        with contextlib.suppress(TimeoutError):
            while len(taken) < 10:
                taken.append(connect(path)[0])
        assert 0 < len(taken) < 10
        assert taken[0].getsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, 16) == bytes(16), "sends may take their time"
        with pytest.raises(TimeoutError, match="it takes no connection"):
            ask(path, Ping(), 1.0)
    for one in taken:
        one.close()
