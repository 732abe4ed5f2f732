"""The object that all gateways of an image keep its reservations in: one at a time changes it, and all hear of it."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import pytest

from tcmu_core import Device, StaleVersion
from tcmu_rbd import binding
from tcmu_rbd.config import parse
from tcmu_rbd.shelf import Shelf
from tests.clusters.ceph import POOL, Ceph
from tests.clusters.processes import until

WAIT = 60.0  # seconds


class Gateway:
    """What a gateway makes of a shelf: it takes each change when it is told to."""

    def __init__(self, ceph: Ceph, image_id: str, more: str = "") -> None:
        self.device = Device("test", "rbd", "")
        self.shelf = Shelf(self.device, binding.load(), parse(f"{POOL}/none;conf={ceph.conf}{more}"), image_id)
        self.aware: list[set[int]] = []
        self.shelf.fence = lambda aware: self.aware.append(set(aware))
        self.heard: list[Future[None]] = []
        self.obliging = True  # whether it takes a change at once
        self.shelf.watch(self._changed)

    def _changed(self) -> Future[None]:
        taken: Future[None] = Future()
        if self.obliging:
            taken.set_result(None)
        self.heard.append(taken)
        return taken

    def replace(self, state: bytes) -> None:
        """Replace what is there. One more gateway that watches makes another version of it."""
        try:
            self.shelf.replace(state, self.shelf.load()[1]).result(WAIT)
        except StaleVersion:
            self.shelf.replace(state, self.shelf.load()[1]).result(WAIT)

    def put(self, state: bytes) -> None:
        """Replace what is there, and have others take it."""
        self.replace(state)
        self.shelf.announce().result(WAIT)


Make = Callable[..., Gateway]


@pytest.fixture
def gateway(ceph: Ceph, names: Iterator[str]) -> Iterator[Make]:
    """Make gateways of one image."""
    image_id, made = next(names), []

    def make(more: str = "") -> Gateway:
        made.append(Gateway(ceph, image_id, more))
        return made[-1]

    yield make
    for one in made:
        one.shelf.close()
    ceph.rados("rm", f"tcmu.reservations.{image_id}")


def test_a_change_is_there_for_who_comes_later(gateway: Make) -> None:
    one = gateway()
    assert one.shelf.load()[0] == b""
    one.put(b"1")
    assert gateway().shelf.load()[0] == one.shelf.load()[0] == b"1"


def test_of_two_changes_of_one_version_the_later_one_is_refused_and_what_is_there_is_known(gateway: Make) -> None:
    one, two = gateway(), gateway()
    two.obliging = False
    version = two.shelf.load()[1]
    one.shelf.replace(b"1", version).result(WAIT)
    with pytest.raises(StaleVersion):
        two.shelf.replace(b"2", version).result(WAIT)
    assert two.shelf.load() == one.shelf.load()
    assert two.shelf.load()[0] == b"1"


def test_a_change_is_announced_when_the_other_has_taken_it(gateway: Make) -> None:
    one, two = gateway(), gateway()
    two.obliging = False
    one.replace(b"1")
    announced = one.shelf.announce()
    until(lambda: len(two.heard) == 2, "the other one hears of it")  # the first time was when it began to watch
    assert two.shelf.load()[0] == b"1"
    assert not announced.done()
    two.heard[1].set_result(None)
    announced.result(WAIT)
    assert one.aware == [{one.shelf.instance, two.shelf.instance}]
    assert len(one.heard) == 1  # nobody tells it what it has done itself


def test_who_does_not_take_a_change_in_time_is_not_taken_to_know_of_it(gateway: Make) -> None:
    one, two, three = gateway(), gateway(), gateway()
    two.obliging = False
    one.put(b"1")
    assert one.aware == [{one.shelf.instance, three.shelf.instance}]


def test_who_knows_the_new_state_already_has_to_take_it_all_the_same(gateway: Make) -> None:
    one, two = gateway(), gateway()
    version = two.shelf.load()[1]
    one.shelf.replace(b"1", version).result(WAIT)
    with pytest.raises(StaleVersion):
        two.shelf.replace(b"2", version).result(WAIT)
    one.shelf.announce().result(WAIT)
    assert len(two.heard) == 2


def test_to_end_a_watch_keeps_no_notification_from_being_taken(gateway: Make) -> None:
    shelf = gateway().shelf
    watch, free = shelf._watch, []

    class Watch:
        def close(self) -> None:
            free.append(not shelf._guard.locked())  # which one needs that is being taken
            watch.close()

    shelf._watch = Watch()
    shelf.close()
    assert free == [True]


class Unanswered:
    """A connection that carries out a write, and whose answer nobody hears."""

    def __init__(self, ioctx: Any) -> None:
        self._ioctx = ioctx

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ioctx, name)

    def operate_write_op(self, operation: Any, name: str) -> None:
        self._ioctx.operate_write_op(operation, name)
        raise binding.load().rados.TimedOut("no answer", errno.ETIMEDOUT)


def test_a_change_whose_answer_was_lost_is_told_to_all_when_it_turns_out_to_be_there(gateway: Make) -> None:
    one, two = gateway(), gateway()
    one.shelf._ioctx = Unanswered(one.shelf._ioctx)
    with pytest.raises(TimeoutError):
        one.replace(b"1")
    assert one.shelf.load()[0] == two.shelf.load()[0] == b""
    assert one.shelf.tend()  # it has another connection
    assert one.shelf.load()[0] == b"1"
    until(lambda: two.shelf.load()[0] == b"1", "the other one has heard of it")
    telling = one.shelf._telling
    assert telling is not None
    telling.result(WAIT)
    assert not one.shelf.tend()
    one.put(b"2")
    assert len(one.aware) == len(two.heard) - 1 == 2  # each was told once
