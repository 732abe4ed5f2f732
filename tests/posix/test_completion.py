"""Completion: a Future like any other, for whoever waits for it, on whichever thread."""

import threading
from concurrent.futures import FIRST_COMPLETED, Future, as_completed, wait

import pytest

from tcmu_core.posix import Completion

LONG = 60


def test_it_is_a_future():
    completion = Completion()
    assert isinstance(completion, Future)
    assert (completion.done(), completion.running(), completion.cancelled(), completion.cancel()) == (
        False,
        True,
        False,
        False,
    )
    completion.set_result(None)
    assert (completion.done(), completion.running(), completion.cancelled()) == (True, False, False)
    assert completion.result() is None
    assert completion.exception() is None


def test_its_error_is_raised_and_returned():
    completion, error = Completion(), OSError(5, "Input/output error")
    completion.set_exception(error)
    assert completion.exception() is error
    with pytest.raises(OSError, match="Input/output"):
        completion.result()


def test_a_wait_that_is_too_long_ends_by_itself():
    with pytest.raises(TimeoutError):
        Completion().result(0.01)


def test_callbacks_are_called_once_in_order_before_and_after_the_end(caplog):
    completion, seen = Completion(), []
    completion.add_done_callback(lambda done: seen.append((1, done.done())))
    completion.add_done_callback(lambda done: 1 / 0)
    completion.add_done_callback(lambda done: seen.append((2, done.done())))
    completion.set_result(None)
    completion.add_done_callback(lambda done: seen.append((3, done.done())))
    assert seen == [(1, True), (2, True), (3, True)]
    assert "ZeroDivisionError" in caplog.text


def test_other_threads_can_wait_for_it():
    for _ in range(200):
        completion, got = Completion(), []
        threads = [threading.Thread(target=lambda c=completion, g=got: g.append(c.result(LONG))) for _ in range(3)]
        for thread in threads:
            thread.start()
        completion.set_result(None)
        for thread in threads:
            thread.join(LONG)
        assert got == [None] * 3


def test_a_callback_that_is_added_while_it_ends_is_called_once():
    for _ in range(500):
        completion, seen = Completion(), []
        thread = threading.Thread(target=completion.set_result, args=(None,))
        thread.start()
        for number in range(5):
            completion.add_done_callback(lambda done, n=number, s=seen: s.append(n))
        thread.join(LONG)
        assert sorted(seen) == list(range(5))


def test_it_can_be_waited_for_together_with_others():
    one, two, other = Completion(), Completion(), Future()
    one.set_result(None)
    assert wait([one, two, other], timeout=LONG, return_when=FIRST_COMPLETED).done == {one}
    threading.Timer(0.01, two.set_exception, [OSError()]).start()
    threading.Timer(0.01, other.set_result, [None]).start()
    assert set(as_completed([one, two, other], timeout=LONG)) == {one, two, other}
